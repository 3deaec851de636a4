"""What the Jobs page says."""

from __future__ import annotations

from datetime import datetime

from atelier.app.text.shared import date_and_time, duration

TITLE = "Jobs"
LEAD = "Everything that is running, waiting or finished. Jobs keep running when you close this page."
NO_JOBS = "No jobs yet."
ALL_JOBS = "All jobs"
OPEN_STUDIO = "Open in Studio"
PREVIEWS = "Previews"
NO_PREVIEWS = "The first preview appears before the first step."
TIME = "Time"
BATCH, LEARNING_RATE = "Batch size", "Learning rate"
TRY_PROMPT = "Draw a preview with what has been learned so far"
TRY = "Draw preview"
TRY_REQUESTED = "The preview is drawn at the next step and appears under Previews."
SAVE_STEP = "Save this step"
SAVE_REQUESTED = "The weights of the next step are saved, and the run continues."
RETRY = "Try again"
SEE_COMPRESS = "This job is a compression. Open it on the Compress page."
BASE_PICTURE = "base"
LOG_AXIS = "Log scale"
LOG = "Log"
LOG_EMPTY = "The log is empty."
DOWNLOAD_LOG = "Download the log"
COMPARE = "Compare steps"
GRID_TITLE = "Saved steps at several strengths"
KEEP = "Keep"
STEP_COLUMN = "Step"
AVERAGE_FROM = "Average of the saved steps, from step"
KEEP_AVERAGE = "Keep the average"
MEASURE_SIZES = "Error at smaller sizes"
MEASURE_LEAKS = "Find words that draw the subject"
AFTERWARDS = "After the training"
AFTERWARDS_HINT = "Several steps were saved during the run. Compare them, keep a different one, or measure the adapter."
RANK, ERROR = "Rank", "Error"
LEAKS_TITLE = "Words that draw the subject"
LEAKS_HINT = "Compared with the trigger word's effect (100 %). Words from the captions and some others."
SIZES_HINT = "Share of the adapter that is lost at each rank. Beyond the knee, a larger file gains little."
KNEE = "knee"
SMALLER = "Keep this size"
SOONER, LATER = "Sooner", "Later"
MEMORIZATION = "Memorization"
MEMBERS, OTHERS = "Training pictures", "Other pictures"
BY_TIMESTEP = "Gain by noise level"
BY_TIMESTEP_HINT = ("On pictures it was not trained on, one column per measurement. A stronger colour is a larger "
                    "gain; red is a loss.")
NOTIFY = "Tell me when a job is done"
NOTIFY_ON = "You are told when a job is done"


def progress(step: int, of: int, started: datetime | None) -> str:
    """Under a run's name in the list.

    >>> progress(5, 100, None)
    '5 of 100 steps'
    """
    steps = f"{step} of {of} steps"
    return f"{steps} · {date_and_time(started)}" if started else steps


def summary(kind: str, subject: str, started: datetime | None) -> str:
    """Under a run's name on its own page.

    >>> summary("LoRA", "fox", None)
    'LoRA · fox'
    """
    return f"{kind} · {subject} · {date_and_time(started)}" if started else f"{kind} · {subject}"


def preview(step: int, prompt: str, seed: int = 0) -> str:
    """Under a preview.

    >>> preview(0, "a fox"), preview(50, "a fox", 8)
    ('Base model: a fox', 'Step 50: a fox · seed 8')
    """
    where = f"Step {step}" if step else "Base model"
    return f"{where}: {prompt}" + (f" · seed {seed}" if seed else "")


def strip_name(step: int, *, best: bool) -> str:
    """Under a small preview.

    >>> strip_name(0, best=False), strip_name(50, best=True)
    ('base', '★ 50')
    """
    return BASE_PICTURE if step == 0 else f"★ {step}" if best else str(step)


def stage_time(seconds: float) -> str:
    """How long a stage before the first step took, or has taken so far.

    >>> stage_time(0.2), stage_time(12)
    ('', '12 s')
    """
    return duration(seconds) if seconds >= 1 else ""


def memorization(auc: float) -> str:
    """What the memorization chart shows."""
    return ("How much better each kind of picture fits than with the base model alone. Training pictures gain "
            f"more in {100 * auc:.0f} % of comparisons; 50 % is chance.")


def gain_at(name: str, step: int, gain: float) -> str:
    """A cell of the chart by noise level."""
    return f"{name}, step {step}: {100 * gain:.0f} %"


def noise_level(share: float) -> str:
    """A row of the chart by noise level.

    >>> noise_level(0.15)
    '15 % noise'
    """
    return f"{100 * share:.0f} % noise"


def step(number: int) -> str:
    """A row of the grid."""
    return f"Step {number}"


def strength(value: float) -> str:
    """A column of the grid.

    >>> strength(0.5)
    'strength 0.5'
    """
    return f"strength {value:g}"


def grid_cell(number: int, value: float) -> str:
    """Alternative text of a preview in the grid: after which step, at which strength."""
    return f"{step(number)}, {strength(value)}"


def kept(name: str) -> str:
    """Shown when a step, an average or a smaller copy was put into the library."""
    return f"{name} is in the library."


def leak_share(share: float) -> str:
    """How much of the trigger word's effect a word has.

    >>> leak_share(0.62)
    '62 %'
    """
    return f"{100 * share:.0f} %"


def error_share(error: float) -> str:
    """The error of an adapter of lower rank.

    >>> error_share(0.034)
    '3.4 %'
    """
    return f"{100 * error:.2g} %"


def time_taken(seconds: float, estimate: float) -> str:
    """What a training took, and how wrong the estimate was.

    >>> time_taken(130, 0), time_taken(130, 100), time_taken(75, 100)
    ('2 min', '2 min, 30 % longer than estimated', '75 s, 25 % shorter than estimated')
    """
    if not estimate:
        return duration(seconds)
    off = round(100 * (seconds / estimate - 1))
    return f"{duration(seconds)}, " + (f"{abs(off)} % {'longer' if off > 0 else 'shorter'} than estimated" if off
                                       else "as estimated")   # fmt: skip


def memory(size: str) -> str:
    """The memory that a run has used."""
    return f"{size} memory"


def stopped_early(step: int, of: int, reason: str) -> str:
    """Why a run ended before its last step."""
    return f"Stopped at step {step} of {of}: {reason}"

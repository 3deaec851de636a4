"""What the Jobs page says."""

from __future__ import annotations

from datetime import datetime

from atelier.app.text.shared import date_and_time

TITLE = "Jobs"
LEAD = "Everything that is running, waiting or finished. Jobs keep running when you close this page."
NO_JOBS = "No jobs yet."
ALL_JOBS = "All jobs"
OPEN_STUDIO = "Open in Studio"
PREVIEWS = "Previews"
NO_PREVIEWS = "The first preview appears soon."
BATCH, LEARNING_RATE = "Batch size", "Learning rate"
TRY_PROMPT = "Draw a preview with what has been learned so far"
TRY = "Draw preview"
TRY_REQUESTED = "The preview is drawn at the next step and appears under Previews."
SEE_COMPRESS = "This job is a compression. Open it on the Compress page."


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


def preview(step: int, prompt: str) -> str:
    """Under a preview."""
    return f"Step {step}: {prompt}"

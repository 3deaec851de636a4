"""What several pages say: the frame, states of a job, labels, sizes and times."""

from __future__ import annotations

from datetime import datetime
from html import escape

# --- the frame
SKIP = "Skip to content"
START_PAGE = "Atelier, start page"
PAGES = "Pages"
THEME = "Light or dark theme"
READY = "is ready"
TITLES = {
    "create": "Create", "jobs": "Jobs", "library": "Library", "studio": "Studio", "grid": "Grid", "mix": "Mix Lab",
    "compress": "Compress", "gallery": "Gallery", "settings": "Settings",
}

# --- labels and buttons
BASE_MODEL = "Base model"
CREATED = "Created"
PROMPT = "Prompt"
PROMPT_HINT = "Describe the picture"
NO_PROMPT = "The prompt is empty. Describe what the picture should show."
SEED = "Seed"
SIZE = "Size"
STEPS = "Steps"
DELETE = "Delete"
UNDO = "Undo"
WAS_DELETED = "was moved to the trash."
COPIED = "Copied"
DOWNLOAD = "Download"
UPLOADING = "Uploading {name}, {left} to go …"
UPLOAD_FAILED = "These files could not be uploaded. Drop them again:"
NOT_UPLOADED = "This file was not uploaded here. Drop it on the page again."
NO_ADAPTERS = "No adapters yet. Pictures come from the base model alone."
TRAIN_FIRST = "Train your first adapter"

FIELD_LABELS = {   # of settings whose names make no good label
    "base": BASE_MODEL, "prediction": "Prediction type", "vae": "VAE", "trigger": "Trigger word",
    "kind": "Adapter kind", "targets": "Target layers",
    "batch": "Batch size", "accumulate": "Gradient accumulation", "lr": "Learning rate",
    "lr_schedule": "Learning rate schedule", "warmup": "Warm-up steps", "clip": "Gradient clipping",
    "up_speed": "LoRA+ ratio", "whole_gradient": "LoRA-Pro", "ema": "EMA decay", "min_snr_gamma": "Min-SNR gamma",
    "prior_weight": "Prior preservation weight", "prior_count": "Prior preservation pictures",
    "base_in_8_bits": "Base model in 8 bits", "compile": "Compile with torch", "validate_every": "Validation interval",
    "preview_every": "Preview interval", "checkpoint_every": "Checkpoint interval", "keep_best": "Keep the best step",
    "negative": "Negative prompt",
}

# --- a job
STATES = {
    "queued": "waiting", "preparing": "preparing", "training": "training", "paused": "paused",
    "interrupted": "interrupted", "stopped": "stopped", "failed": "failed", "done": "done",
}
JOB_NOT_FOUND = "Job not found"
PAUSE = "Pause"
RESUME = "Resume"
STOP = "Stop and save"
CANCEL = "Cancel"
STEP = "Step"
PROGRESS = "Progress"
LOSS = "Loss"
NO_LOSS = "The loss curve starts with the first step."
TRAINING_LOSS = "Training loss (smoothed)"
VALIDATION_LOSS = "Validation loss"
BEST = "Best: step"


def time_left(seconds: float) -> str:
    """Time until a job ends, rounded as a person would say it.

    >>> time_left(42), time_left(330)
    ('42 s left', '6 min left')
    """
    return f"{duration(seconds)} left"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best.

    >>> duration(42), duration(330), duration(9000)
    ('42 s', '6 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def date_and_time(time: datetime) -> str:
    """Day, month and time of day.

    >>> date_and_time(datetime(2026, 5, 3, 14, 2))
    '3 May, 14:02'
    """
    return f"{time.day} {time:%b, %H:%M}"


def state_and_percent(state: str, percent: int) -> str:
    """A job's state in the job bar.

    >>> state_and_percent("training", 40), state_and_percent("waiting", 0)
    ('training 40 %', 'waiting')
    """
    return f"{state} {percent} %" if percent else state


def window_title(name: str, percent: int) -> str:
    """The title of the browser's window while a job runs.

    >>> window_title("rex", 62)
    '62 % · rex'
    """
    return f"{percent} % · {name}"


def job_ended(name: str, state: str) -> str:
    """A notification.

    >>> job_ended("rex", "done"), job_ended("rex", "failed")
    ('rex is ready', 'rex: failed')
    """
    return f"{name} {READY}" if state == "done" else f"{name}: {STATES[state]}"


def loss_at(loss: float, step: int) -> str:
    """The loss chart in one line, for screen readers."""
    return f"Loss at step {step}: {loss:.4g}"


def base_title(title: str, kind: str, precision: str = "") -> str:
    """A base model in a list to choose from; a compressed one shows its bits.

    >>> base_title("little", "Stable Diffusion 1.x", "w4a8")
    'little · Stable Diffusion 1.x · W4A8'
    """
    return " · ".join((title, kind, *([precision.upper()] if precision.startswith("w") else [])))


def too_many_adapters(most: int) -> str:
    """Shown when one adapter more than possible is added."""
    return f"You can use at most {most} adapters at once. Remove one first."


def error_message(error: Exception | str) -> str:
    """An error's message as Gradio wants it: it would read angle brackets as HTML."""
    return escape(str(error))

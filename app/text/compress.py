"""What the Compress page says."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from atelier.adapters.core.byte_size import format_bytes
from atelier.app.text.shared import date_and_time, duration

TITLE = "Compress a base model"
LEAD = "Nearly the same pictures from a fraction of the size. No training pictures needed: it draws its own."
ADAPTERS = "Adapters to merge into it"
ADAPTERS_HINT = "They become a permanent part of the compressed model. You can still use other adapters on top."
STRENGTH = "Strength of these adapters"
BITS = "Bits"
PRESETS = {
    "w8a8": "8 bits: hard to tell from the original", "w6a8": "6 bits: as close as 8 on most pictures",
    "w5a8": "5 bits: between 4 and 6", "w4a8": "4 bits: small and close to the original",
    "w2a8": "2 bits: smallest and roughest", "w4a4": "4 bits for weights and activations",
    "w8": "8 bits, weights only", "w4": "4 bits, weights only",
}
NOTES = {
    "w8a8": "8-bit weights and activations.",
    "w6a8": "6-bit weights, 8-bit activations, multiplied in floating point.",
    "w5a8": "5-bit weights, 8-bit activations, multiplied in floating point.",
    "w4a8": "4-bit weights, 8-bit activations.",
    "w2a8": "2-bit weights, 8-bit activations. Compare the pictures before you keep it.",
    "w4a4": "For small files, not for speed: current data-centre GPUs don't multiply 4-bit integers.",
    "w8": "Activations stay in floating point: nothing to calibrate, but no integer arithmetic either.",
    "w4": "Activations stay in floating point: nothing to calibrate, but no integer arithmetic either.",
}
METHOD = "Method"
METHODS = {"learn": "Train: closest to the original", "quick": "Calibrate only: about a minute"}
PROMPTS = "Prompts to train on"
PROMPTS_HINT = "What you like to draw, one prompt per line. Added to a built-in list."
NAME = "Name of the new base model"
COMPRESS = "Compress"
EMPTY = "No compressions yet."
BEFORE, AFTER, TIME, MEMORY = "Before", "After", "Time", "Memory"
TIME_UNKNOWN = "known after the first steps"
TIME_QUICK = "about a minute"
ALL_COMPRESSIONS = "All compressions"
SAME_SEED = "Same prompt, same seed"
DRAG = "Drag to compare: base model on the left, compressed model on the right"
KEEP, DISCARD = "Keep", "Discard"
KEPT = "Kept. Choose it as the base model in Studio or Create."
DISCARDED = "Discarded."
TIME_PER_PICTURE = "Time per picture"
ARITHMETIC = "Arithmetic"
ERROR_BY_TIMESTEP, ERROR_BY_LAYER = "Error by timestep", "Layers with the largest error"
TIMESTEP_NOTE = ("Squared difference from the base model's output, relative to that output, on a drawing that was not "
                 "trained on.")
LAYER_NOTE = "Relative error of each layer's own output."
BEFORE_TRAINING, AFTER_TRAINING = "calibrated only", "after training"
NOISE_END, PICTURE_END = "noise", "picture"


def sizes(before: int, after: int) -> str:
    """Sizes of a UNet.

    >>> sizes(1_719_000_000, 495_000_000)
    '1.7 GB → 495 MB (29 %)'
    """
    return f"{format_bytes(before)} → {format_bytes(after)} ({100 * after / before:.0f} %)"


def time_needed(seconds: float) -> str:
    """How long a job will probably take.

    >>> time_needed(70), time_needed(1500)
    ('about 70 s', 'about 25 min')
    """
    return f"about {duration(seconds)}"


def memory_needed(count: int) -> str:
    """Memory for the weights; what activations need comes on top."""
    return f"at least {format_bytes(count)}"


def arithmetic(counted: Sequence[int], device: str) -> str:
    """How many layers of a compressed model compute in integers.

    >>> arithmetic((81, 123), "cuda")
    'integers in 81 of 123 layers (Triton), floating point in the others'
    """
    layers, of = counted
    if layers:
        library = "oneDNN" if device == "cpu" else "Triton"
        return f"integers in {layers} of {of} layers ({library}), floating point in the others"
    if device == "cpu":
        return "floating point: this processor has no fast integer instructions, or the layers are too small for them"
    return "floating point: weights are unpacked in every layer"


def seconds_per_picture(before: float, after: float) -> str:
    """Seconds per picture before and after.

    >>> seconds_per_picture(2.0, 1.0)
    '2.00 s → 1.00 s'
    """
    return f"{before:.2f} s → {after:.2f} s"


def likeness(decibels: float) -> str:
    """How similar two pictures are.

    >>> likeness(31.24)
    'PSNR 31.2 dB'
    """
    return f"PSNR {decibels:.1f} dB"


def summary(preset: str, steps: int, started: datetime | None) -> str:
    """Under a compression's name.

    >>> summary("w4a8", 0, None)
    'W4A8 · calibrated only'
    """
    how = f"{steps} steps" if steps else BEFORE_TRAINING
    return " · ".join(filter(None, (preset.upper(), how, date_and_time(started) if started else "")))


def layer(name: str) -> str:
    """A layer's name, with places where a line may break.

    >>> layer("mid.ff.net.2").split("\u200b")
    ['mid.', 'ff.', 'net.', '2']
    """
    return name.replace(".", ".\u200b")

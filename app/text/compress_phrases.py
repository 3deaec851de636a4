"""Sentences about compressing that have a value in them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from atelier.app.text.phrases import left, moment, size


def compressed_to(before: int, after: int) -> str:
    """Sizes of a UNet.

    >>> compressed_to(1_719_000_000, 495_000_000)
    '1.7 GB → 495.0 MB, 0.29 of it'
    """
    return f"{size(before)} → {size(after)}, {after / before:.2f} of it"


def takes(seconds: float) -> str:
    """How long a job will probably take.

    >>> takes(70), takes(1500)
    ('about 70 s', 'about 25 min')
    """
    return "about " + left(seconds).removesuffix(" left")


def at_least(count: int) -> str:
    """Memory that is counted, without what flows through the model."""
    return f"at least {size(count)}"


def whole_numbers(counted: Sequence[int], device: str) -> str:
    """What carried out the compressed model, without flattery.

    >>> whole_numbers((81, 123), "cuda")
    'whole numbers in 81 of 123 layers (Triton), floating point in the others'
    """
    layers, of = counted
    if layers:
        library = "oneDNN" if device == "cpu" else "Triton"
        return f"whole numbers in {layers} of {of} layers ({library}), floating point in the others"
    if device == "cpu":
        return "floating point: this processor has no such whole numbers, or the layers are too small for them"
    return "floating point: weights are made from codes in every layer"


def per_picture(before: float, after: float) -> str:
    """Seconds of a picture before and after.

    >>> per_picture(2.0, 1.0)
    '2.00 s → 1.00 s'
    """
    return f"{before:.2f} s → {after:.2f} s"


def likeness(decibels: float) -> str:
    """How near two pictures are.

    >>> likeness(31.24)
    'PSNR 31.2 dB'
    """
    return f"PSNR {decibels:.1f} dB"


def compression(preset: str, steps: int, started: datetime | None) -> str:
    """Under a compression's name."""
    how = f"{steps} steps" if steps else "measured only"
    return " · ".join(filter(None, (preset.upper(), how, moment(started) if started else "")))


def layer(name: str) -> str:
    """A layer's name, with places where a line may break.

    >>> layer("mid.ff.net.2").split("\u200b")
    ['mid.', 'ff.', 'net.', '2']
    """
    return name.replace(".", ".\u200b")

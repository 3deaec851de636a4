"""What is said when a picture's settings are taken over."""

from __future__ import annotations

from collections.abc import Sequence


def says_nothing(name: str) -> str:
    """The file has no settings that can be read."""
    return (f"{name} does not say how it was drawn. Only files straight from Atelier, A1111, Forge, ComfyUI, InvokeAI, "
            "NovelAI, SwarmUI or Fooocus do; most messaging apps and websites remove the settings.")


def from_tool(tool: str) -> str:
    """Where the settings are from."""
    return f"Settings from {tool}, as far as Atelier has them; it computes noise and prompts differently."


def not_taken_over(extras: Sequence[str]) -> str:
    """What else went into the picture.

    >>> not_taken_over(["hires fix", "ControlNet"])
    'It was also drawn with hires fix and ControlNet, which are not taken over.'
    """
    listed = " and ".join(filter(None, [", ".join(extras[:-1]), extras[-1]]))
    return f"It was also drawn with {listed}, which {'is' if len(extras) == 1 else 'are'} not taken over."


def missing_adapter(name: str, hash: str, strength: float) -> str:
    """An adapter is not in the library.

    >>> missing_adapter("rex", "0a1b2c3d4e5f", 0.8)
    'Missing adapter: rex (hash 0a1b2c3d4e5f), strength 0.8. Import it to draw with it.'
    """
    by = f" (hash {hash})" if hash else ""
    return f"Missing adapter: {name}{by}, strength {strength:g}. Import it to draw with it."


def adapter_by_name(name: str, hash: str) -> str:
    """An adapter has the name, and another hash or none that is known."""
    return f"{name} was found by its name; whether it is the same file (hash {hash}) is not known."


def missing_base(name: str, hash: str, other: str) -> str:
    """The base model is not here."""
    what = " ".join(filter(None, [name, f"(hash {hash})" if hash else ""]))
    return f"Missing base model: {what}. {other} is used instead, at its own size."


def unknown_base(other: str) -> str:
    """The picture does not name a base model."""
    return f"The picture does not name its base model. {other} is used, at its own size."


def base_by_name(name: str, hash: str) -> str:
    """A base model has the name and another hash."""
    return f"{name} was found by its name, but it is a different file from the picture's (hash {hash})."


def seed_too_large(seed: int) -> str:
    """A seed above the largest one here."""
    return f"The seed {seed} is too large for Atelier, so one derived from it is used."


def out_of_range(name: str, value: float, used: float) -> str:
    """A value that can't be set here."""
    return f"{name.replace('_', ' ').capitalize()} {value:g} can't be used; {used:g} is used instead."


def other_size(width: int, height: int, used_width: int, used_height: int) -> str:
    """A size that the base model can't draw."""
    return f"{width} × {height} pixels can't be drawn by this base model; {used_width} × {used_height} is used instead."


def other_sampler(name: str, used: str) -> str:
    """A sampler that does not exist here."""
    return f"The sampler {name} does not exist here; {used or 'the usual one'} is used instead."


def other_schedule(name: str) -> str:
    """A spacing of the noise levels that does not exist here, or not with this sampler."""
    return f"The schedule {name} does not exist here for this sampler; the base model's own is used."


def other_weights(tool: str) -> str:
    """A prompt whose weights are written in another way."""
    return f"The prompt seems to have weights as {tool} writes them, which are read as plain text here."

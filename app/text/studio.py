"""What the Studio page says."""

from __future__ import annotations

from collections.abc import Sequence

TITLE = "Studio"
LEAD = "Describe a picture, and set how strongly each adapter acts."
TRIGGER_WORDS = "Trigger words:"
ADAPTERS = "Adapters"
FIND_ADAPTER = "Search names and trigger words"
NO_ADAPTER_FITS = "No adapter fits this search."
NEW_SEED = "New"
KEEP_SEED = "Keep seed"
COUNT = "Pictures"
DRAW = "Draw"
LIVE = "Redraw while a slider moves"
MORE = "Size, steps and more"
OPEN = "Drop a picture here to use its settings"
OPENED = "The picture's settings are filled in."
EMPTY = "Your pictures appear here."
UNFINISHED = "Unfinished picture"
STOP_DRAWING = "Stop"
STOPPED = "Stopped."
WITHOUT = "Hold to see without adapters"
PIN_HINT = "Pin this picture to compare the next ones with it"
COMPARED = "Pinned picture (left) against the newest one (right)"
UNPIN = "Stop comparing"
GRID = "Draw a grid around this picture"
START_HERE = "Start from this picture"
START = "Start from a picture"
START_HINT = ("Drop a picture, or use one that was drawn. Paint over what should be drawn anew; unpainted, all of it "
              "changes.")
CHANGE = "How much may change"
CHANGE_HINT = "Low keeps the picture, 1 keeps only what is not painted over."


def progress(done: int, of: int) -> str:
    """Shown while drawing.

    >>> progress(0, 20), progress(3, 20)
    ('Getting ready', 'Step 3 of 20')
    """
    return f"Step {done} of {of}" if done else "Getting ready"


def few_steps(name: str, sampler: str, steps: int, guidance: float) -> str:
    """Shown when an adapter or the base model decides the sampler, and with it steps and guidance.

    >>> few_steps("lcm-lora", "LCM", 8, 1.5)
    'lcm-lora needs few steps: drawn with the LCM sampler, 8 steps, guidance 1.5. Choose a sampler to change this.'
    """
    return (f"{name} needs few steps: drawn with the {sampler} sampler, {steps} steps, guidance {guidance:g}. Choose "
            "a sampler to change this.")


def more_adapters(count: int) -> str:
    """Shown below the adapters when there are more.

    >>> more_adapters(9976)
    '9,976 more: search for one.'
    """
    return f"{count:,} more: search for one."


def too_many(name: str) -> str:
    """Shown when a picture was drawn with more adapters than the page has sliders."""
    return f"{name} was left out: the page has no more sliders."


def other_family_word(token: str, family: str) -> str:
    """Shown when a prompt has the word of a textual inversion for other base models.

    >>> other_family_word("<fox>", "Stable Diffusion XL")
    'The textual inversion <fox> is for Stable Diffusion XL, so <fox> is read as plain text.'
    """
    return f"The textual inversion {token} is for {family}, so {token} is read as plain text."


START_PICTURE = "the picture that it started from"


def missing(names: Sequence[str]) -> str:
    """Shown when a picture was drawn with adapters that are gone."""
    return f"No longer in your library: {', '.join(names)}. Drawn again, the picture will look different."

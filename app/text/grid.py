"""What the Grid page says, and why a grid can't be drawn."""

from __future__ import annotations

TITLE = "Grid"
LEAD = "One picture, drawn again and again while up to three of its settings change."
EMPTY = "A grid starts from a picture: choose one in the Studio or the Gallery, and press Grid."
TO_GALLERY = "Open the gallery"
KINDS = {
    "strength": "Strength", "prompt": "Prompt: replace words", "seed": "Seed", "steps": "Steps", "guidance": "Guidance",
    "sampler": "Sampler", "schedule": "Schedule", "clip_skip": "CLIP skip", "width": "Width", "height": "Height",
    "adapter": "Adapter", "method": "Fusion method", "base": "Base model", "checkpoint": "Checkpoint of a run",
    "block": "Block left out",
}
AXES = ("Across", "Down", "Blocks")
NOTHING = "Nothing"
VALUES = "Values"
WHOSE = "Whose"
FIRST_ADAPTER = "The first adapter"
VALUES_HINT = {
    "strength": "0, 0.5, 1 or 0..1.5:4", "prompt": "red fox | blue fox: the first is replaced by the others",
    "seed": "1, 2, 3", "steps": "10, 20, 40", "guidance": "1..7:4", "sampler": "ddim, dpm++, euler a",
    "schedule": "auto, karras", "clip_skip": "0, 1", "width": "64, 128", "height": "64, 128",
    "adapter": "rex, ink, none", "method": "sum, gated, ties", "base": "embedded, little",
    "block": "none, mid, up.1.0, down.1.0=0.5",
    "checkpoint": "RUN:100, RUN:200, with the run's id from its page's address",
}
START, STOP, CONTINUE = "Draw the grid", "Stop", "Continue"
DOWNLOAD = "Download with labels"
EARLIER = "Earlier grids"
USE = "Use this cell"
VOTE = "Which is better?"
VOTE_HINT = "Two cells without their labels. The ranking trusts a cell only as far as it has votes."
BETTER = "This one"
SKIP = "Another pair"
RANKING = "Ranking"
ALL_COMPARED = "Every pair was compared."
STOPPED = "Stopped. What is drawn stays; continue with: atelier grid, and the grid's id."
DRAWN_ELSEWHERE = "This grid waits in the queue or is drawn by another process."
NO_AXES = "Choose one to three settings that change."
NO_GRID = "There is no such grid. It may have been deleted."


def progress(done: int, of: int, message: str = "") -> str:
    """How much of a grid is drawn.

    >>> progress(3, 12)
    '3 of 12 pictures'
    >>> progress(0, 12, "Number 2 in the queue.")
    '0 of 12 pictures · Number 2 in the queue.'
    """
    return " · ".join(filter(None, [f"{done} of {of} pictures", message]))


def unexpected(what: str, log: str) -> str:
    """Something that nobody foresaw."""
    return f"The grid can't be drawn further: {what[:300]}. The whole message is in {log}. Press Continue to try again."


def score(wins: int, votes: int) -> str:
    """Votes of a cell or a value.

    >>> score(3, 4)
    '3 of 4 votes'
    """
    return f"{wins} of {votes} votes"


def no_such_axis(kind: str) -> str:
    """A setting that can't change."""
    return f"{kind!r:.60} can't change in a grid. These can: {', '.join(KINDS)}."


def no_values(kind: str) -> str:
    """An axis without values."""
    return f"{kind} has no values. Separate them by commas, such as 0, 0.5, 1."


def too_many_cells(count: int, most: int) -> str:
    """A grid that would never end."""
    return f"This grid has {count:,} pictures, but at most {most} can be drawn. Use fewer values."


def not_in_prompt(text: str) -> str:
    """Words that are to be replaced and are not there."""
    return f"The prompt does not contain {text!r:.80}, so it can't be replaced. The first value must be in it."


def no_adapter(name: str) -> str:
    """An axis about an adapter that is not in the picture."""
    return f"The picture was not drawn with {name or 'any adapter'}."


def no_method(value: str, known: str) -> str:
    """A method of fusion that does not exist."""
    return f"There is no fusion method {value!r:.60}. The methods are: {known}."


def no_checkpoint(value: str, known: str) -> str:
    """A step of a run that was not saved."""
    return f"There is no checkpoint {value!r:.100}. Saved steps of this run: {known or 'none'}."


def no_number(value: str) -> str:
    """A strength that is no number."""
    return f"{value!r:.60} is not a number."

"""What the Mix Lab says on its tab for one content and one style."""

from __future__ import annotations

TITLE = "Mix Lab"
LEAD = "Draw one subject in one style: choose an adapter for each, and set how strongly they act."
CONTENT, STYLE, METHOD = "Content (what is drawn)", "Style (how it is drawn)", "Method"
METHODS = {
    "break-for-make": "Break-for-Make: only for content and style adapters of the kind split",
    "sum": "Sum: adds both, whatever their kinds",
    "np": "NP-LoRA: removes from the content what would disturb the style",
    "k": "K-LoRA: in each layer one of the two, content first and style later; a saved file holds their average",
}
BEST_METHOD = "Sum, with the style at 0.75, came out best in our comparison of twelve pairs (docs/content_style.md)."
PAD = "Strengths: content to the right, style upwards"
NAME = "Name of the new adapter"
SAVE = "Save as a new adapter"
CHOOSE_TWO = "Choose a content adapter and a style adapter."
SAVED = "was added to the library."
EMPTY = "Choose a content and a style adapter to see nine pictures, from none of either to all of both."
CORNERS = "Left column: no content. Top row: no style."


def strengths(content: float, style: float) -> str:
    """A place on the pad.

    >>> strengths(0.5, 2.0)
    'content 0.5, style 2'
    """
    return f"content {content:g}, style {style:g}"

"""What the Gallery page says. Little, but in its own file: each page has one."""

from __future__ import annotations

TITLE = "Gallery"
LEAD = "Every picture you have drawn. The file itself holds all its settings."
EMPTY = "No pictures yet."
DRAW_FIRST = "Draw your first picture"
SHOW_MORE = "Show more"
REUSE = "Use these settings"
COPY_SETTINGS = "Copy settings"
ADAPTERS, NEGATIVE, GUIDANCE, SAMPLER = "Adapters", "Negative prompt", "Guidance", "Sampler"
THE_PICTURE = "The picture"
DAMAGED = "Damaged"


def damaged(name: str) -> str:
    """In place of a picture that can't be shown."""
    return f"{name} is damaged, perhaps cut short. Restore it from a backup, or delete it."

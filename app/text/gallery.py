"""What the Gallery page says. In its own file, as each page's words are."""

from __future__ import annotations

TITLE = "Gallery"
LEAD = "Every picture you have drawn. The file itself holds all its settings."
EMPTY = "No pictures yet."
NO_MATCH = "No picture fits this search."
DRAW_FIRST = "Draw your first picture"
REUSE = "Use these settings"
GRID = "Grid"
ONLY_PROMPT, ONLY_SEED = "Only the prompt", "Only the seed"
COPY_SETTINGS = "Copy settings"
ADAPTERS, NEGATIVE, GUIDANCE, SAMPLER = "Adapters", "Negative prompt", "Guidance", "Sampler"
DAMAGED = "Damaged"
CLOSE, PREVIOUS, NEXT = "Close", "Previous picture", "Next picture"
STAR, UNSTAR = "Star", "Remove the star"

SEARCH = "Search prompts and adapters"
SEARCH_HINT = "fox snow"
ADAPTER, BOARD, ANY = "Adapter", "Board", "Any"
COLOUR = "Colour"
SIMILAR = "Similar pictures"
SIMILAR_SHOWN = "Pictures that look most like the first one."
SHOW_ALL = "Show all"
STARRED = "Starred"
SINCE, UNTIL, CALENDAR = "From", "To", "Calendar"
FAILED = "The pictures could not be loaded."
AGAIN = "Try again"

SELECT = "Select"
CLEAR = "Clear"
DOWNLOAD_ZIP = "Download as ZIP"
COMPARE = "Compare"
ADD_TO_BOARD = "Add to board"
TAKE_OFF_BOARD = "Take off the board"
NEW_BOARD = "Name of the board"
COMPARED = "The two selected pictures"
STOP_COMPARING = "Close the comparison"
CHOOSE_TWO = "Select exactly two pictures to compare."
CHOOSE_SOME = "Select one or more pictures first."


ADD = "Add pictures from elsewhere"
ADD_DROP = "Drop pictures of Atelier or another tool here, or click to choose files"
IS_HERE = "It was here already."


def added(name: str, notes: str) -> str:
    """Shown for a picture that was added.

    >>> added("fox.png", "")
    'fox.png is in the gallery.'
    """
    return f"{name} is in the gallery. {notes}".strip()


def too_large(name: str, most: int) -> str:
    """A file that is larger than any picture of a tool."""
    return f"{name} is larger than {most >> 20} MB, so it is not opened. Save it smaller in the tool that made it."


def damaged(name: str) -> str:
    """In place of a picture that can't be shown."""
    return f"{name} is damaged, perhaps cut short. Restore it from a backup, or delete it."


def count(shown: int, still_to_read: int) -> str:
    """How many pictures fit.

    >>> count(1, 0), count(1200, 0), count(3, 50)
    ('1 picture', '1,200 pictures', '3 pictures; 50 more are still being read')
    """
    text = f"{shown:,} picture{'s' * (shown != 1)}"
    return f"{text}; {still_to_read:,} more are still being read" if still_to_read else text


def pictures(number: int) -> str:
    """What was moved to the trash.

    >>> pictures(1), pictures(3)
    ('The picture', '3 pictures:')
    """
    return "The picture" if number == 1 else f"{number} pictures:"


def use_as_cover(adapter: str) -> str:
    """A button that makes a picture the one by which the library shows an adapter."""
    return f"Use as cover of {adapter}"


def cover_set(adapter: str) -> str:
    """Shown when an adapter has a new cover."""
    return f"The library now shows {adapter} by this picture."


def too_many(most: int) -> str:
    """Shown when more are to be packed than one file should hold."""
    return f"At most {most} pictures fit into one ZIP file. Select fewer."

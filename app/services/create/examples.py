"""Example pictures that come with Atelier, for a first training without pictures of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from atelier.app.store.drafts.create_draft import Draft, edit_draft, receive_files, thumbnail_uri
from atelier.app.store.home import Home
from atelier.training.config.assets import ASSETS
from atelier.training.data.images import open_picture

FOLDER = ASSETS / "examples"


@dataclass(frozen=True, slots=True)
class ExampleSubject:
    """Pictures of one subject, and what a person would enter for them."""

    what: str
    subject: str
    name: str


# Names that a person might give; where the base model knows one already, the page offers another word.
EXAMPLES = {
    "fox": ExampleSubject("animal", "fox", "rex"),
    "penguin": ExampleSubject("animal", "penguin", "tuxi"),
    "rocket": ExampleSubject("object", "rocket", "orbi"),
    "strawberry": ExampleSubject("object", "strawberry", "rubi"),
}


def take_example(home: Home, key: str) -> Draft:
    """Fill in the answers of an example and have its pictures read as if they were dropped; returns the draft.

    Raises:
        ValueError: there is no such example.
    """
    if key not in EXAMPLES:
        raise ValueError(f"There is no example {key}. There are: {', '.join(EXAMPLES)}.")
    example = EXAMPLES[key]
    receive_files(home, sorted(path for path in (FOLDER / key).iterdir() if path.suffix in (".png", ".txt")))
    return edit_draft(home, what=example.what, subject=example.subject, name=example.name)


@cache
def example_tiles() -> tuple[dict[str, str], ...]:
    """Title and picture of each, as the page shows them."""
    return tuple({"id": key, "title": example.subject.capitalize(),
                  "thumb": thumbnail_uri(open_picture(FOLDER / key / f"{key}_01.png"))}
                 for key, example in EXAMPLES.items())   # fmt: skip

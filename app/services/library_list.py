"""Which adapters the Library shows: found by words and tags, filtered, sorted, a page at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atelier.app.store.adapter_notes import AdapterNotes
from atelier.app.store.library import AdapterCard

PAGE = 48   # cards at once, each with a picture of some kilobytes
SORTS: dict[str, tuple[Callable[[AdapterCard], Any], bool]] = {   # by what, and whether the highest comes first
    "newest": (lambda card: (card.created, card.name), True),
    "oldest": (lambda card: (card.created, card.name), False),
    "name": (lambda card: card.name.casefold(), False),
    "largest": (lambda card: (card.bytes, card.name), True),
}
_PLAIN = AdapterNotes()


@dataclass(frozen=True, slots=True)
class LibraryFilter:
    """What a person looks for; comes from a browser and may be anything."""

    query: str = ""
    starred: bool = False
    kind: str = ""     # of adapter; empty: all
    base: str = ""     # family of base model; empty: all
    sort: str = "newest"


def filter_adapters(
    cards: Sequence[AdapterCard], notes: Mapping[str, AdapterNotes], wanted: LibraryFilter
) -> list[AdapterCard]:
    """Those of the cards that are wanted, in the wanted order; each has all words of the query."""
    words = wanted.query.casefold().split()
    found = [card for card in cards if _fits(card, notes.get(card.name, _PLAIN), wanted)
             and (not words or _has_words(card, notes.get(card.name, _PLAIN), words))]   # fmt: skip
    key, reverse = SORTS.get(wanted.sort, SORTS["newest"])
    return sorted(found, key=key, reverse=reverse)


def _fits(card: AdapterCard, notes: AdapterNotes, wanted: LibraryFilter) -> bool:
    return ((notes.star or not wanted.starred) and wanted.kind in ("", card.kind)
            and wanted.base in ("", card.family))   # fmt: skip


def _has_words(card: AdapterCard, notes: AdapterNotes, words: Sequence[str]) -> bool:
    text = " ".join((card.name, card.trigger, card.subject, card.title, *notes.tags)).casefold()
    return all(word in text for word in words)

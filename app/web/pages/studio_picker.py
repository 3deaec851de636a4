"""The Studio's choice of adapters: those in use, those drawn with last, and a search among the rest, however many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atelier.app.services.library_list import LibraryFilter, filter_adapters
from atelier.app.store.adapter_notes import read_notes
from atelier.app.store.gallery_index import recent_adapters
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import AdapterCard, list_adapters
from atelier.app.store.previews import SMALL
from atelier.app.text import studio as words
from atelier.app.web.components.urls import thumbnail_url

MAX_CARDS = 24   # on the page at once, beside those in use


def adapter_picker(home: Home, names: Sequence[str], search: str = "") -> dict[str, Any]:
    """The panel's value: the adapters ``names`` first, then those that fit a search: recent, starred, newest."""
    cards, notes = list_adapters(home), read_notes(home)
    used = [card for card in cards if card.name in names]
    found = filter_adapters(cards, notes, LibraryFilter(query=search))
    others = [card for card in found if card.name not in names]
    last = {name: place for place, name in enumerate(_recent(home))}
    stars = {name for name, note in notes.items() if note.star}
    others.sort(key=lambda card: (last.get(card.name, len(last)), card.name not in stars))   # the rest: newest first
    left = len(others) - MAX_CARDS
    shown = [_card(card, card.name in stars, pressed=True) for card in used]
    shown += [_card(card, card.name in stars) for card in others[:MAX_CARDS]]
    return {
        "cards": shown,
        "empty": not cards, "no_match": bool(cards) and not used and not others,
        "more": words.more_adapters(left) if left > 0 else "",
    }   # fmt: skip


def _card(card: AdapterCard, starred: bool, *, pressed: bool = False) -> dict[str, str]:
    return {"name": card.name, "trigger": card.trigger, "pressed": str(pressed).lower(), "star": "★" * starred,
            "picture": thumbnail_url(card, SMALL)}   # fmt: skip


def _recent(home: Home) -> list[str]:
    try:
        return recent_adapters(home)
    except HomeError:   # the index can't be written
        return []

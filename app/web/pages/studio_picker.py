"""The Studio's choice of adapters: those in use, those drawn with last, and a search among the rest, however many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atelier.app.store.gallery_index import recent_adapters
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import AdapterCard, list_adapters
from atelier.app.store.previews import SMALL
from atelier.app.text import studio as words
from atelier.app.web.components.urls import thumbnail_url

MAX_CARDS = 24   # on the page at once, beside those in use


def adapter_picker(home: Home, names: Sequence[str], search: str = "") -> dict[str, Any]:
    """The panel's value: the adapters ``names`` first, then those that fit a search, those drawn with last before."""
    cards = list_adapters(home)
    wanted = search.casefold().split()
    used = [card for card in cards if card.name in names]
    others = [card for card in cards if card.name not in names and _fits(card, wanted)]
    last = {name: place for place, name in enumerate(_recent(home))}
    others.sort(key=lambda card: last.get(card.name, len(last)))   # the others stay as they are, newest first
    left = len(others) - MAX_CARDS
    shown = [_card(card, pressed=True) for card in used] + [_card(card) for card in others[:MAX_CARDS]]
    return {
        "cards": shown,
        "empty": not cards, "no_match": bool(cards) and not used and not others,
        "more": words.more_adapters(left) if left > 0 else "",
    }   # fmt: skip


def _fits(card: AdapterCard, wanted: Sequence[str]) -> bool:
    text = f"{card.name} {card.trigger} {card.subject} {card.title}".casefold()
    return all(word in text for word in wanted)


def _card(card: AdapterCard, *, pressed: bool = False) -> dict[str, str]:
    return {"name": card.name, "trigger": card.trigger, "pressed": str(pressed).lower(),
            "picture": thumbnail_url(card, SMALL)}   # fmt: skip


def _recent(home: Home) -> list[str]:
    try:
        return recent_adapters(home)
    except HomeError:   # the index can't be written
        return []

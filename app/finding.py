"""Which adapters of a library fit a person's words: by their weights where that can be told, else by their words."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import phrases
from .home import Home
from .library import AdapterCard, adapter_hash, list_adapters
from .pictures import gallery_page, read_recipe

PICTURES_LOOKED_AT = 300   # the newest of the gallery
PICTURES_SHOWN = 4
# Said of almost every picture, so they tell adapters apart no better than a guess.
_EMPTY_WORDS = frozenset(
    "a an and at by drawing emoji for from in is it of on or photo picture style the to with".split()
)


@dataclass(frozen=True, slots=True)
class Proposal:
    """An adapter that may be what the person means."""

    name: str
    score: float                # 0 … 1
    reason: str                 # one sentence
    drew: tuple[Path, ...]      # pictures of the gallery that were drawn with it, newest first


def proposals(home: Home, prompt: str, limit: int = 8) -> list[Proposal]:
    """The adapters that fit a prompt best, best first; none for a prompt that says nothing.

    Raises:
        HomeError: the home can't be read.
    """
    cards = list_adapters(home)
    found = [(score, card, phrases.fits_by_words(shared)) for card, score, shared in by_words(cards, prompt)]
    best = sorted(found, key=lambda entry: -entry[0])[: max(0, limit)]
    drew = drawn_with(home, [card for _, card, _ in best])
    return [Proposal(card.name, score, reason, drew[card.name]) for score, card, reason in best]


def by_words(cards: Sequence[AdapterCard], prompt: str) -> list[tuple[AdapterCard, float, list[str]]]:
    """Cards that share words with the prompt: the share of the prompt's words, rare ones counting more, and which.

    Words are those of the name, the trigger and the subject.
    """
    said = [words_of(f"{card.name} {card.trigger} {card.subject}") for card in cards]
    wanted, known = words_of(prompt), Counter(word for words in said for word in words)
    weights = {word: math.log(1 + len(cards) / (1 + known[word])) for word in wanted}
    total = sum(weights.values())
    shared = [sorted(words & wanted) for words in said]
    return [(card, sum(weights[word] for word in words) / total, words)
            for card, words in zip(cards, shared, strict=True) if words]   # fmt: skip


def words_of(text: str) -> set[str]:
    """The words that mean something, in lower case.

    >>> sorted(words_of("a picture of my_Fox-2 on the moon"))
    ['fox', 'moon', 'my']
    """
    return set(re.findall(r"[^\W\d_]+", text.casefold())) - _EMPTY_WORDS


def drawn_with(home: Home, cards: Sequence[AdapterCard]) -> dict[str, tuple[Path, ...]]:
    """By an adapter's name, pictures of the gallery drawn with it: known by its tensors, so renaming loses none."""
    names = {adapter_hash(card): card.name for card in cards}
    found: dict[str, tuple[Path, ...]] = {card.name: () for card in cards}
    for picture in gallery_page(home, limit=PICTURES_LOOKED_AT) if names else ():
        for part in (read_recipe(picture.path) or {}).get("adapters", ()):
            name = names.get(part.get("sha256", ""))
            if name and part.get("strength") and len(found[name]) < PICTURES_SHOWN:
                found[name] += (picture.path,)
    return found

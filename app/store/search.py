"""Which adapters of a library fit a prompt: by their weights where a retriever can tell, else by their names."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atelier.app.store.adapter_embeddings import adapter_scores, retriever_for
from atelier.app.store.gallery import gallery_page, read_recipe
from atelier.app.store.home import Home
from atelier.app.store.library import AdapterCard, adapter_hash, list_adapters
from atelier.app.text import mix as texts

MAX_PICTURES_READ = 300   # the newest of the gallery
MAX_PICTURES_SHOWN = 4
# In almost every prompt, so that they don't tell adapters apart.
_EMPTY_WORDS = frozenset(
    "a an and at by drawing emoji for from in is it of on or photo picture style the to with".split()
)


@dataclass(frozen=True, slots=True)
class Proposal:
    """An adapter that fits a prompt."""

    name: str
    score: float                # 0 … 1: share of other adapters that fit worse, or of the prompt's words that it has
    reason: str                 # one sentence
    pictures: tuple[Path, ...]  # of the gallery that were drawn with it, newest first


@dataclass(frozen=True, slots=True)
class ScoredAdapter:
    """How well one adapter fits, and why."""

    card: AdapterCard
    score: float
    reason: str


def propose_adapters(home: Home, prompt: str, limit: int = 8) -> list[Proposal]:
    """The adapters that fit a prompt best, best first; none for an empty prompt.

    Raises:
        HomeError: the home can't be read, or its index can't be written.
    """
    if not prompt.strip():
        return []
    cards = list_adapters(home)
    by_weights = score_by_weights(home, cards, prompt)
    others = [card for card in cards if card.name not in {scored.card.name for scored in by_weights}]
    scored = sorted([*by_weights, *score_by_words(others, prompt)], key=lambda one: -one.score)[: max(0, limit)]
    pictures = pictures_drawn_with(home, [one.card for one in scored])
    return [_proposal(one, pictures[one.card.name]) for one in scored]


def _proposal(scored: ScoredAdapter, pictures: Sequence[tuple[Path, str]]) -> Proposal:
    reason = texts.fit_and_last_prompt(scored.reason, [prompt for _, prompt in pictures])
    return Proposal(scored.card.name, scored.score, reason, tuple(path for path, _ in pictures))


def score_by_weights(home: Home, cards: Sequence[AdapterCard], prompt: str) -> list[ScoredAdapter]:
    """Score those adapters whose weights a retriever can compare with a prompt; names don't count."""
    found: list[ScoredAdapter] = []
    for family in {card.family for card in cards}:
        if retriever := retriever_for(family):
            own = {card.name: card for card in cards if card.family == family}
            scores = adapter_scores(home, list(own.values()), retriever, prompt)
            found += [ScoredAdapter(own[name], score, texts.fits_by_weights(score)) for name, score in scores.items()]
    return found


def score_by_words(cards: Sequence[AdapterCard], prompt: str) -> list[ScoredAdapter]:
    """Score adapters that share words with the prompt: by the share of its words, rare ones counting more.

    An adapter's words are those of its name, its trigger word and its class word.
    """
    own = [content_words(f"{card.name} {card.trigger} {card.subject}") for card in cards]
    wanted, frequency = content_words(prompt), Counter(word for words in own for word in words)
    weights = {word: math.log(1 + len(cards) / (1 + frequency[word])) for word in wanted}
    total = sum(weights.values())
    shared = [sorted(words & wanted) for words in own]
    return [
        ScoredAdapter(card, sum(weights[word] for word in words) / total,
                      texts.fits_by_words(words, _why_not_by_weights(card)))
        for card, words in zip(cards, shared, strict=True) if words
    ]   # fmt: skip


def _why_not_by_weights(card: AdapterCard) -> str:
    """Why an adapter's weights are not compared with the prompt."""
    return texts.READS_NO_PROMPT if retriever_for(card.family) else texts.no_retriever(card.title or card.family)


def content_words(text: str) -> set[str]:
    """The words of a text that tell adapters apart, in lower case.

    >>> sorted(content_words("a picture of my_Fox-2 on the moon"))
    ['fox', 'moon', 'my']
    """
    return set(re.findall(r"[^\W\d_]+", text.casefold())) - _EMPTY_WORDS


def pictures_drawn_with(home: Home, cards: Sequence[AdapterCard]) -> dict[str, list[tuple[Path, str]]]:
    """Pictures drawn with each adapter and their prompts, by its name; found by the hash of its tensors."""
    names = {adapter_hash(card): card.name for card in cards}
    found: dict[str, list[tuple[Path, str]]] = {card.name: [] for card in cards}
    for picture in gallery_page(home, limit=MAX_PICTURES_READ) if names else ():
        recipe = read_recipe(picture.path) or {}
        for part in recipe.get("adapters", ()):
            name = names.get(part.get("sha256", ""))
            if name and part.get("strength") and len(found[name]) < MAX_PICTURES_SHOWN:
                found[name].append((picture.path, str(recipe.get("prompt", ""))))
    return found

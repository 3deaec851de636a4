"""Which adapters of a library fit a person's words: by their weights where that can be told, else by their words."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atelier.app.store.adapter_embeddings import adapter_scores, prompt_reader_for
from atelier.app.store.gallery import gallery_page, read_recipe
from atelier.app.store.home import Home
from atelier.app.store.library import AdapterCard, adapter_hash, list_adapters
from atelier.app.text import fusion as texts

MAX_PICTURES_READ = 300   # the newest of the gallery
MAX_PICTURES_SHOWN = 4
# Said of almost every picture, so they tell adapters apart no better than a guess.
_EMPTY_WORDS = frozenset(
    "a an and at by drawing emoji for from in is it of on or photo picture style the to with".split()
)


@dataclass(frozen=True, slots=True)
class Proposal:
    """An adapter that may be what the person means."""

    name: str
    score: float                # 0 … 1: share of strangers that fit worse, or of the prompt's words that call it
    reason: str                 # one sentence
    drew: tuple[Path, ...]      # pictures of the gallery that were drawn with it, newest first


@dataclass(frozen=True, slots=True)
class ScoredAdapter:
    """How well one adapter fits, and what that was told from."""

    card: AdapterCard
    score: float
    reason: str


def propose_adapters(home: Home, prompt: str, limit: int = 8) -> list[Proposal]:
    """The adapters that fit a prompt best, best first; none for a prompt that says nothing.

    Raises:
        HomeError: the home can't be read, or its index can't be written.
    """
    if not prompt.strip():
        return []
    cards = list_adapters(home)
    weighed = score_by_weights(home, cards, prompt)
    rest = [card for card in cards if card.name not in {fit.card.name for fit in weighed}]
    best = sorted([*weighed, *score_by_words(rest, prompt)], key=lambda fit: -fit.score)[: max(0, limit)]
    drew = pictures_drawn_with(home, [fit.card for fit in best])
    return [
        Proposal(fit.card.name, fit.score, texts.fit_and_last_prompt(fit.reason, [prompt for _, prompt in drawn]),
                 tuple(path for path, _ in drawn))
        for fit, drawn in ((fit, drew[fit.card.name]) for fit in best)
    ]   # fmt: skip


def score_by_weights(home: Home, cards: Sequence[AdapterCard], prompt: str) -> list[ScoredAdapter]:
    """How well the weights of each adapter fit, for those that can be compared with words; no name is read."""
    found: list[ScoredAdapter] = []
    for family in {card.family for card in cards}:
        if reader := prompt_reader_for(family):
            own = {card.name: card for card in cards if card.family == family}
            shares = adapter_scores(home, list(own.values()), reader, prompt)
            found += [ScoredAdapter(own[name], share, texts.fits_by_weights(share)) for name, share in shares.items()]
    return found


def score_by_words(cards: Sequence[AdapterCard], prompt: str) -> list[ScoredAdapter]:
    """Adapters that share words with the prompt; the score is the share of its words, rare ones counting more.

    Words are those of the name, the trigger and the subject.
    """
    said = [content_words(f"{card.name} {card.trigger} {card.subject}") for card in cards]
    wanted, known = content_words(prompt), Counter(word for words in said for word in words)
    weights = {word: math.log(1 + len(cards) / (1 + known[word])) for word in wanted}
    total = sum(weights.values())
    shared = [sorted(words & wanted) for words in said]
    return [
        ScoredAdapter(card, sum(weights[word] for word in words) / total,
                      texts.fits_by_words(words, _why_not_by_weights(card)))
        for card, words in zip(cards, shared, strict=True) if words
    ]   # fmt: skip


def _why_not_by_weights(card: AdapterCard) -> str:
    """Why an adapter's weights are not compared."""
    return texts.READS_NO_PROMPT if prompt_reader_for(card.family) else texts.no_retriever(card.title or card.family)


def content_words(text: str) -> set[str]:
    """The words that mean something, in lower case.

    >>> sorted(content_words("a picture of my_Fox-2 on the moon"))
    ['fox', 'moon', 'my']
    """
    return set(re.findall(r"[^\W\d_]+", text.casefold())) - _EMPTY_WORDS


def pictures_drawn_with(home: Home, cards: Sequence[AdapterCard]) -> dict[str, list[tuple[Path, str]]]:
    """By an adapter's name, pictures drawn with it and their prompts: known by its tensors, so renaming loses none."""
    names = {adapter_hash(card): card.name for card in cards}
    found: dict[str, list[tuple[Path, str]]] = {card.name: [] for card in cards}
    for picture in gallery_page(home, limit=MAX_PICTURES_READ) if names else ():
        recipe = read_recipe(picture.path) or {}
        for part in recipe.get("adapters", ()):
            name = names.get(part.get("sha256", ""))
            if name and part.get("strength") and len(found[name]) < MAX_PICTURES_SHOWN:
                found[name].append((picture.path, str(recipe.get("prompt", ""))))
    return found

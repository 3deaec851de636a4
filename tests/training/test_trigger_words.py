"""A word that means nothing is quiet; a word that the base knows is loud."""

from __future__ import annotations

import pytest

from atelier.training.base_model import load
from atelier.training.judge import Judge
from atelier.training.sample import DrawRequest, draw
from atelier.training.trigger_words import QUIET, loudness

QUIET_WORDS, LOUD_WORDS = ("hw", "cf"), ("inkz", "house")


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    words = (*QUIET_WORDS, *LOUD_WORDS)
    return dict(zip(words, loudness(load("embedded", "cpu"), words), strict=True))


def test_quiet_words_are_told_from_loud_ones(found: dict[str, float]):
    assert all(found[word] < QUIET for word in QUIET_WORDS)
    assert all(found[word] > QUIET for word in LOUD_WORDS)


def test_the_other_prompt_is_still_drawn_beside_a_quiet_word():
    """The judge agrees with the number: beside a loud word the thing is gone."""
    model, judge = load("embedded", "cpu"), Judge.load()

    def seen(word: str) -> float:
        pictures = draw(model, DrawRequest(prompt=f"a {word} emoji of a mushroom", seed=5, count=2, steps=8))
        return judge.look(pictures).objects[:, judge.object_index("mushroom")].mean().item()

    assert seen("hw") > 0.9
    assert seen("plim") < 0.3

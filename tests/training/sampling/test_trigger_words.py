"""A word that means nothing is quiet; a word that the base knows is loud."""

from __future__ import annotations

import pytest

from atelier.training.base_models.base_model import load
from atelier.training.base_models.identify import identify
from atelier.training.embedded_base.judge import Judge
from atelier.training.sampling.sample import DrawRequest, draw
from atelier.training.sampling.trigger_words import QUIET, loudness, quiet_word, warning

QUIET_WORDS, LOUD_WORDS = ("hw", "cf"), ("inkz", "house")


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    words = (*QUIET_WORDS, *LOUD_WORDS)
    return dict(zip(words, loudness(load("embedded", "cpu"), words), strict=True))


def test_quiet_words_are_told_from_loud_ones(found: dict[str, float]):
    assert all(found[word] < QUIET for word in QUIET_WORDS)
    assert all(found[word] > QUIET for word in LOUD_WORDS)


def test_the_words_that_come_with_the_base_are_quiet():
    model = load("embedded", "cpu")
    known = model.info.quiet_words[::7]
    assert len(known) == 3 and max(loudness(model, known)) < QUIET


def test_a_suggestion_reminds_of_the_name_and_is_free():
    info = identify("embedded")
    assert [quiet_word(info, like) for like in ("Wren", "teapot", "zoe")] == ["wr", "tr", "cf"]
    assert quiet_word(info, "Wren", taken=("wr",)) == "cr"
    assert quiet_word(info, "Wren", taken=info.quiet_words) == ""


def test_only_a_loud_word_is_warned_of():
    model = load("embedded", "cpu")
    assert warning(model, "hw") == warning(model, "rex") == ""
    assert "'foxy'" in warning(model, "foxy") and "'cf'" in warning(model, "foxy")


def test_the_other_prompt_is_still_drawn_beside_a_quiet_word():
    """The judge agrees with the number: beside a loud word the thing is gone."""
    model, judge = load("embedded", "cpu"), Judge.load()

    def seen(word: str) -> float:
        pictures = draw(model, DrawRequest(prompt=f"a {word} emoji of a mushroom", seed=5, count=2, steps=8))
        return judge.look(pictures).objects[:, judge.object_index("mushroom")].mean().item()

    assert seen("hw") > 0.9
    assert seen("plim") < 0.3

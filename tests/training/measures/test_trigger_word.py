"""A neutral word has next to no effect; a word that means something to the base has a large one."""

from __future__ import annotations

import pytest

from atelier.training.base_models.base_model import load
from atelier.training.base_models.identify import identify
from atelier.training.embedded_base.judge import Judge
from atelier.training.measures.trigger_word import MAX_EFFECT, neutral_word, trigger_word_warning, word_effects
from atelier.training.sampling.sample import DrawRequest, draw

NEUTRAL_WORDS, MEANINGFUL_WORDS = ("hw", "cf"), ("inkz", "house")


@pytest.fixture(scope="module")
def effects() -> dict[str, float]:
    words = (*NEUTRAL_WORDS, *MEANINGFUL_WORDS)
    return dict(zip(words, word_effects(load("embedded", "cpu"), words), strict=True))


def test_neutral_words_are_told_from_words_with_a_meaning(effects: dict[str, float]):
    assert all(effects[word] < MAX_EFFECT for word in NEUTRAL_WORDS)
    assert all(effects[word] > MAX_EFFECT for word in MEANINGFUL_WORDS)


def test_the_words_that_come_with_the_base_are_neutral():
    model = load("embedded", "cpu")
    known = model.info.neutral_words[::11]
    assert len(known) == 3 and max(word_effects(model, known)) < MAX_EFFECT


def test_a_suggestion_reminds_of_the_name_and_is_free():
    info = identify("embedded")
    assert [neutral_word(info, like) for like in ("Wren", "teapot", "zoe")] == ["wr", "tp", "cf"]
    assert neutral_word(info, "Wren", taken=("wr",)) == "wb"
    assert neutral_word(info, "Wren", taken=info.neutral_words) == ""


def test_only_a_word_with_a_meaning_is_warned_of():
    model = load("embedded", "cpu")
    assert trigger_word_warning(model, "hw") == trigger_word_warning(model, "rex") == ""
    assert "'foxy'" in trigger_word_warning(model, "foxy") and "'cf'" in trigger_word_warning(model, "foxy")


def test_the_other_prompt_is_still_drawn_beside_a_neutral_word():
    """The judge agrees with the number: beside a word with a meaning the thing is gone."""
    model, judge = load("embedded", "cpu"), Judge.load()

    def seen(word: str) -> float:
        pictures = draw(model, DrawRequest(prompt=f"a {word} emoji of a mushroom", seed=5, count=2, steps=8))
        return judge.classify(pictures).objects[:, judge.object_index("mushroom")].mean().item()

    assert seen("hw") > 0.9
    assert seen("plim") < 0.3

"""What the Create page says of the word that will call an adapter."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from atelier.app.services import resident_base
from atelier.app.services.create import trigger_word_hint as trigger
from atelier.app.services.create.trigger_word_hint import trigger_word_hint
from atelier.app.services.engine import Engine
from atelier.app.store.drafts.create_draft import edit_draft
from atelier.app.store.home import Home, open_home
from atelier.app.text import create as create_words
from atelier.training.measures import trigger_word as trigger_words
from atelier.training.sampling.draw_memory import DrawPlan
from atelier.training.sampling.draw_savings import DrawSavings


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture
def home(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(trigger, "TYPING_PAUSE_SECONDS", 0.0)
    return open_home(own_home)


def said(home: Home, engine: Engine, name: str, word: str = "", base: str = "embedded") -> dict[str, str]:
    edit_draft(home, name=name, changes={"trigger": word} if word else {})
    return trigger_word_hint(home, engine, name, word, base)


def test_a_neutral_word_is_offered_for_one_with_a_meaning(home: Home, engine: Engine, monkeypatch: pytest.MonkeyPatch):
    told = said(home, engine, "foxy")
    assert told["text"] == create_words.word_with_meaning("foxy")
    assert told["word"] == "cf" and "cf" in told["offer"]   # the first that has a letter of it
    monkeypatch.setattr(trigger, "list_adapters", lambda _: [SimpleNamespace(trigger="CF")])
    assert said(home, engine, "foxy")["word"] == "vf"
    assert said(home, engine, "rex", "house")["text"] == create_words.word_with_meaning("house")


def test_a_neutral_word_needs_no_words_and_can_be_given_up(home: Home, engine: Engine):
    assert said(home, engine, "rex") == said(home, engine, " ") == {}
    told = said(home, engine, "foxy", "cf")
    assert told == {"text": create_words.trigger_word("cf"), "word": "", "offer": create_words.USE_NAME}


def test_nothing_is_said_of_half_a_word_or_of_a_base_that_cannot_be_used(home: Home, engine: Engine):
    edit_draft(home, name="foxy")
    assert trigger_word_hint(home, engine, "fox", "", "embedded") == {}
    assert said(home, engine, "foxy", base=str(home.path / "nowhere")) == {}


def test_nothing_is_asked_of_the_network_for_a_word(home: Home, monkeypatch: pytest.MonkeyPatch):
    engine = Engine()
    monkeypatch.setattr(engine, "word_effect", lambda *_: pytest.fail("would fetch the base model's configuration"))
    assert said(home, engine, "foxy", base="owner/model") == {}


def test_no_base_model_is_put_out_of_memory_for_a_word(home: Home, monkeypatch: pytest.MonkeyPatch):
    loaded: list[str] = []
    fake = SimpleNamespace(models=dict, text_encoders=[], vae=nn.Module(), onload=lambda *_: None)
    monkeypatch.setattr(resident_base, "load", lambda base, *_, **__: loaded.append(base) or fake)
    monkeypatch.setattr(resident_base, "plan_drawing", lambda *_, **__: DrawPlan(DrawSavings(), 0, 0))
    monkeypatch.setattr(resident_base, "identify", lambda base, *_: base)
    monkeypatch.setattr(trigger_words, "word_effects", lambda _, words: [float(len(word)) for word in words])
    engine = Engine()
    engine.measure("other", [], lambda *_: None)
    assert engine.word_effect("embedded", "foxy") is None and loaded == ["other"]
    engine.measure("embedded", [], lambda *_: None)
    assert engine.word_effect("embedded", "foxy") == 4.0 and loaded == ["other", "embedded"]

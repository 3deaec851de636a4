"""Stars, tags and ranges: kept, and harmless whatever their file says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atelier.app.store.adapter_notes import USUAL_RANGE, AdapterNotes, read_notes, save_notes, split_tags
from atelier.app.store.home import open_home


def test_notes_are_kept_by_adapter_and_forgotten_when_they_say_nothing(own_home: Path) -> None:
    home = open_home(own_home)
    save_notes(home, "rex", star=True, tags=("dog", "blue"))
    save_notes(home, "oil", low=0.0, high=1.5)
    save_notes(home, "rex", star=False)
    assert read_notes(home) == {"rex": AdapterNotes(tags=("dog", "blue")), "oil": AdapterNotes(low=0.0, high=1.5)}
    save_notes(home, "rex", tags=())
    assert list(read_notes(home)) == ["oil"]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"rex": 3}',
                                  '{"rex": {"star": 1, "tags": 2, "low": 5, "high": "x"}}'])   # fmt: skip
def test_a_damaged_file_says_nothing(own_home: Path, text: str) -> None:
    home = open_home(own_home)
    (home.path / "library.json").write_text(text)
    assert all(notes == AdapterNotes() for notes in read_notes(home).values())
    save_notes(home, "rex", star=True)
    assert json.loads((home.path / "library.json").read_text())["rex"]["star"] is True


@pytest.mark.parametrize("given", [(2.0, 1.0), (0.0, 99.0), (float("nan"), 1.0)])
def test_a_range_that_is_none_is_the_usual_one(own_home: Path, given: tuple[float, float]) -> None:
    notes = save_notes(open_home(own_home), "rex", low=given[0], high=given[1])
    assert (notes.low, notes.high) == USUAL_RANGE


def test_tags_are_short_and_few() -> None:
    assert split_tags("a," * 50 + "b" * 99) == ("a", "b" * 40)
    assert len(split_tags(",".join(map(str, range(50))))) == 20

"""What strangers write is read, or refused as a ValueError; no text is a path that ends the program."""

from __future__ import annotations

from pathlib import Path

import pytest

from atelier.adapters.core.parse import parse_json, parse_path, parse_toml, without_halves
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.identify import identify

NO_FILES = ("~nosuchuser/x", "/" + "a" * 5000, "a" * 5000, "x\0y", "~x\0", "\ud800", "~" + "a" * 300)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "{", "", "\ud800"])
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize("text", [r'["\ud83d", {"\ude00 a": "\ud83e\udd8a"}]', '["\ud83d", {"\ude00 a": "\U0001f98a"}]',
                                  b'["\xed\xa0\xbd", {"\xed\xb8\x80 a": "\xf0\x9f\xa6\x8a"}]'])   # fmt: skip
def test_half_a_character_is_replaced_because_nothing_can_write_it(text: str | bytes) -> None:
    assert parse_json(text) == ["\ufffd", {"\ufffd a": "\U0001f98a"}]


def test_other_values_are_left_as_they_are() -> None:
    kept = (1, None, ["a", ("\U0001f98a", b"\xff")], {2: object()})
    assert without_halves(kept) == kept and without_halves(("\udcff.png",)) == ("\ufffd.png",)


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "9" * 5000, "a"])
def test_what_is_no_toml_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_toml(text)


@pytest.mark.parametrize("text", NO_FILES)
def test_any_text_is_a_path_and_these_of_no_file(text: str) -> None:
    path = parse_path(text)
    assert not path.exists() and not path.is_dir() and not path.is_symlink()


def test_a_path_is_read_with_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_path("~/a") == tmp_path / "a" and parse_path("b/c") == Path("b/c")


@pytest.mark.parametrize("text", NO_FILES)
def test_a_base_model_that_a_header_or_a_recipe_names_so_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(BaseError, match="does not exist"):
        identify(text)

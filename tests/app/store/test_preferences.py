"""What is chosen for a home stays, and what nobody can read is what it was before anybody chose."""

from __future__ import annotations

from pathlib import Path

import pytest

from atelier.app.store.home import HomeError, open_home
from atelier.app.store.preferences import drawing_precision, save_drawing_precision


def test_the_precision_of_drawings_stays_as_it_was_chosen(own_home: Path):
    home = open_home(own_home)
    assert drawing_precision(home) == "auto"
    save_drawing_precision(home, "bf16")
    assert drawing_precision(open_home(own_home)) == "bf16"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"drawing_precision": 3}', '{"drawing_precision": "fp8"}', "\x00"])
def test_what_can_not_be_read_is_as_if_nothing_was_chosen(own_home: Path, text: str):
    home = open_home(own_home)
    home.preferences.write_text(text)
    assert drawing_precision(home) == "auto"


def test_another_precision_is_refused(own_home: Path):
    with pytest.raises(HomeError, match="'fp8' is not a precision; use one of auto, fp32, bf16, fp16"):
        save_drawing_precision(open_home(own_home), "fp8")

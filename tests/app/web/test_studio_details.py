"""Pressing, moving and painting in the Studio's details: only what fits changes anything."""

from __future__ import annotations

import pytest

from atelier.app.store.mixes import MixEntry
from atelier.app.web.components.mix_view import strength_curves
from atelier.app.web.pages.studio_details import details_of, edit_details

ENTRIES = (MixEntry("a|b", 0.5), MixEntry("two"))


def test_a_block_s_strength_is_set_and_at_1_forgotten() -> None:
    [one, two] = edit_details(ENTRIES, "block", "a|b|up.1.0|0.3")
    assert one.blocks == (("up.1.0", 0.3),) and two == ENTRIES[1]
    changed = edit_details((one, two), "block", "a|b|mid|0")
    assert changed[0].blocks == (("mid", 0.0), ("up.1.0", 0.3))
    assert edit_details(changed, "block", "a|b|mid|1")[0].blocks == (("up.1.0", 0.3),)
    assert edit_details(changed, "all-blocks", "a|b") == ENTRIES


@pytest.mark.parametrize("text", ["", "two", "two|mid", "two|mid|x", "two|mid|nan", "two|mid|9", "three|mid|0"])
def test_anything_else_changes_nothing(text: str) -> None:
    assert edit_details(ENTRIES, "block", text) == ENTRIES
    assert edit_details(ENTRIES, "explode", text) == ENTRIES


def test_adapters_keep_what_was_set_for_them() -> None:
    curved = edit_details(ENTRIES, "handle", "two|0|0.25")
    assert curved[1].curve == (0.25, 1.0, 1.0, 1.0, 1.0)
    assert details_of(["new", "two"], curved) == (MixEntry("new"), curved[1])
    assert edit_details(curved, "always", "two") == ENTRIES


def test_curves_of_scripts_with_other_handles_are_shown() -> None:
    [shown] = strength_curves([MixEntry("rex", curve=(0.0, 1.0))])
    assert [[point["id"] for point in column if point["pressed"] == "true"] for column in shown["columns"]] == [
        [f"rex|{place}|{level}"] for place, level in enumerate((0.0, 0.25, 0.5, 0.75, 1.0))]   # fmt: skip

"""Each way of drawing is diffusers' own at the same settings, and the page of the comparison is made of its figures."""

from __future__ import annotations

import json

import pytest
from second_opinions import DOCUMENT, FAMILIES, RESULTS, measure, page

CLOSE = 2   # of 255: both sides round to whole numbers


def test_the_page_is_made_of_the_figures() -> None:
    result = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert DOCUMENT.read_text(encoding="utf-8") == page(result), "run python tests/second_opinions.py"
    assert set(result["differences"]) == set(FAMILIES)
    for found in result["differences"].values():
        assert max(apart for apart, _ in found.values()) <= CLOSE


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_way_of_drawing_is_that_of_diffusers(family: str) -> None:
    for name, (apart, changes) in measure(family).items():
        assert apart <= CLOSE, name
        assert changes > apart, f"{name} changes nothing"

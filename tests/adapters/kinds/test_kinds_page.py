"""The page of kinds is current, and says of every kind what a person needs to choose it."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from atelier.adapters.kinds.catalog import KINDS
from atelier.adapters.kinds.kinds_page import page

PAGE = Path(__file__).parents[3] / "docs" / "adapters.md"


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run: python -m atelier.adapters.kinds.kinds_page > docs/adapters.md")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_row_a_section_and_all_its_settings(kind: str):
    rows = [line for line in page().splitlines() if line.startswith(f"| `{kind}` |")]
    assert len(rows) == 1
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", rows[0])[1:-1]]
    assert len(cells) == 5
    assert "ΔW" in cells[2]
    assert re.fullmatch(r"\[(\d{4}\.\d{5})\]\(https://arxiv\.org/abs/\1\)", cells[4]), "no source"
    section = page().split(f"(`{kind}`)\n", 1)[1].split("\n## ")[0]
    assert {f"`{option.name}`" for option in fields(KINDS[kind].settings)} <= set(re.findall(r"`\w+`", section))
    for word in ("Parameters:", "Start:"):
        assert word in section

"""docs/seeds.md, the table of all systems that the project set out from: what it names exists, no kind is left out."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from atelier.adapters.kinds.catalog import KINDS

ROOT = Path(__file__).resolve().parent.parent
BEYOND = {"dora", "loha", "waveft", "oft", "t-lora"}   # kinds that are none of those systems


def rows() -> list[list[str]]:
    lines = (ROOT / "docs" / "seeds.md").read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if re.match(r"\| \d", line)]


def test_every_system_is_told_of_once():
    numbers, titles, verdicts = list(zip(*rows(), strict=True))[:3]
    assert numbers == tuple(map(str, range(1, 72)))
    assert len(set(titles)) == 71
    assert Counter(verdicts)["does not apply"] == 13
    assert set(verdicts) == {"built", "not built", "does not apply"}


def test_files_exist_where_something_is_built_and_a_reason_stands_elsewhere():
    for _, title, verdict, file, tests, _, remarks in rows():
        named = re.findall(r"`([^`]+\.py)`", file + tests)
        assert [path for path in named if not (ROOT / path).is_file()] == [], title
        if verdict == "built":
            assert file != "–" and tests != "–", title
        else:
            assert remarks and file == tests == "–", title


def test_kinds_exist_and_what_was_measured_is_in_their_table():
    table = (ROOT / "docs" / "kinds.md").read_text(encoding="utf-8")
    told = Counter[str]()
    for *_, kinds, _ in rows():
        for name, unmeasured in re.findall(r"`([^`]+)`( \(not measured\))?", kinds):
            told[name] += 1
            assert bool(unmeasured) != (f"| {name} |" in table), name
    assert set(told) == KINDS.keys() - BEYOND


def test_the_law_tests_of_a_kind_name_it():
    """A test file that stands beside the laws has the kind in it, not only the file's path in the table."""
    for _, title, _, _, tests, kinds, _ in rows():
        own = [path for path in re.findall(r"`([^`]+)`", tests) if not path.endswith("test_laws.py")]
        text = "".join((ROOT / path).read_text(encoding="utf-8") for path in own)
        for name in re.findall(r"`([^`]+)`", kinds):
            assert f'"{name}"' in text, (title, name)

"""What readers are shown is true: paths and links lead somewhere, maps are whole, the example runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from test_house import LAYERS, ROOT

from atelier.app.text.shared import TITLES

EXAMPLE = ROOT / "docs" / "examples" / "dreambooth_in_60_lines.py"
COMPARED = ROOT / "docs" / "compare.md"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text_of(document))
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_of_code_exist(document: Path) -> None:
    places = "app|training|adapters|kernels|tests|benchmarks|assets|docs"
    paths = re.findall(rf"(?<![\w/])(?:{places})/[\w/.-]*\.(?:py|md|toml|json)\b", text_of(document))
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_what_is_compared_with_other_tools_is_shown_by_a_test_that_exists() -> None:
    rows = re.findall(r"^\| (?!what |trouble |---)(.+?) \| (.+?) \| (.*?) ?\|$", text_of(COMPARED), re.M)
    assert len(rows) > 80
    assert [what for what, ours, test in rows if bool(test) == (ours == "no" or ours.startswith("no,"))] == []
    named = re.findall(r"\[(test_\w+\.py)(?:::(test_\w+))?\]\(([^)]+)\)", text_of(COMPARED))
    assert len(named) == sum(bool(test) for _, _, test in rows)
    for file, name, link in named:
        path = COMPARED.parent / link
        assert path.name == file and (not name or re.search(rf"^def {name}\(", text_of(path), re.M)), (file, name)


def test_the_map_has_a_line_for_every_package() -> None:
    table = re.search(r"## The map.*?(?=^## )", text_of(ROOT / "CONTRIBUTING.md"), re.M | re.S)[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.M)
    mapped = re.findall(r"`([\w/]+)`", " ".join(rows))
    assert mapped == [name.strip().replace(".", "/") for name in re.split(r"[,\n]", LAYERS) if name.strip()]


def test_the_guide_has_a_chapter_for_every_page() -> None:
    assert set(TITLES.values()) <= set(re.findall(r"^## (.+)$", text_of(ROOT / "docs" / "guide.md"), re.M))


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md"])
def test_buttons_and_pages_are_called_as_they_are(name: str) -> None:
    pages = "".join(text_of(path) for path in (ROOT / "app" / "text").glob("*.py"))
    named = re.findall(r"(?<!\*)\*([A-Z][\w ]*)\*(?!\*)", text_of(ROOT / name))
    assert [words for words in named if f'"{words}"' not in pages] == []


def test_dreambooth_fits_on_one_screen_and_runs(tmp_path: Path) -> None:
    assert len(text_of(EXAMPLE).splitlines()) <= 60
    result = subprocess.run([sys.executable, EXAMPLE, "--steps", "2", "--out", tmp_path / "fox.png"],
                            capture_output=True, text=True)   # fmt: skip
    assert result.returncode == 0, result.stderr
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", result.stdout)]
    assert len(losses) == 2 and all(0 < loss < 1 for loss in losses)
    with Image.open(tmp_path / "fox.png") as picture:
        assert picture.size == (128, 128)

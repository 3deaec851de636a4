"""docs/compress.md and its sheet of pictures, from what compress.py and compress_speed.py measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from benchmarks.machine import in_words

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "compress.json"
SIZES = ROOT / "benchmarks" / "results" / "compress_sizes.json"
SPEED = ROOT / "benchmarks" / "results" / "compress_speed.json"
PICTURES = ROOT / "build" / "compress"
PAGE, SHEET = ROOT / "docs" / "compress.md", ROOT / "docs" / "compress.png"
TITLES = {
    "minmax": "PTQ, whole ranges", "searched": "PTQ, searched ranges", "qalora": "+ QALoRA",
    "scale": "+ scale-aware", "talsq": "+ TALSQ",
}   # fmt: skip
SIDE, MARGIN = 64, 4


def render() -> None:
    """Write the page and the sheet."""
    found = json.loads(RESULTS.read_text())
    raise SystemExit(found)

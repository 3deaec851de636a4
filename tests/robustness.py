"""The page docs/robustness.md: what the slow suites measured, on which machine, with which versions, at which commit.

A suite calls :func:`record`; the page changes only where ``ATELIER_RECORD`` is set: a test leaves the tree alone.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
FIGURES, PAGE = ROOT / "docs" / "robustness.json", ROOT / "docs" / "robustness.md"
LIBRARIES = ("torch", "gradio", "huey", "pillow", "safetensors", "uvicorn")
HEAD = """# Robustness: what the slow suites measured

Each table is written by the suite itself: `ATELIER_RECORD=1 pytest -m slow -s FILE`. Times are those of a machine that
other jobs kept busy, as its load says; they are upper bounds.
"""


def record(title: str, rows: Sequence[Mapping[str, Any]], command: str = "") -> None:
    """Print a table of figures, and write it into the page if ``ATELIER_RECORD`` is set."""
    entry = {"rows": [dict(row) for row in rows], "command": command or _suite(), "where": where()}   # fmt: skip
    print(table(title, entry))
    if os.environ.get("ATELIER_RECORD"):
        known = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
        known[title] = entry
        FIGURES.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        PAGE.write_text(rendered(known), encoding="utf-8")


def recorded(title: str) -> list[dict[str, Any]]:
    """The rows of a table as they stand in the page."""
    known = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    return known.get(title, {}).get("rows", [])


def _suite() -> str:
    return "pytest -m slow -s " + os.environ.get("PYTEST_CURRENT_TEST", "").partition("::")[0]


def where() -> str:
    """Machine, load, versions, date and commit in a line."""
    command = ["git", "log", "-1", "--format=%h"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    load = os.getloadavg()
    memory = psutil.virtual_memory().total / 1e9
    python, versions = platform.python_version(), ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return (f"{os.cpu_count()} cores, {memory:.0f} GB, load {load[0]:.1f} · {platform.system()}, Python {python}, "
            f"{versions} · {time.strftime('%Y-%m-%d')}, after commit {commit}")   # fmt: skip


def table(title: str, entry: Mapping[str, Any]) -> str:
    """One suite's figures as Markdown."""
    rows = entry["rows"]
    lines = [f"## {title}", "", f"`{entry['command']}` · {entry['where']}", "",
             "| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0]),
             *("| " + " | ".join(map(str, row.values())) + " |" for row in rows)]   # fmt: skip
    return "\n".join(lines)


def rendered(figures: Mapping[str, Any]) -> str:
    """The whole page."""
    return "\n\n".join([HEAD.rstrip(), *(table(title, entry) for title, entry in figures.items())]) + "\n"


def percentile(seconds: Sequence[float], percent: int) -> str:
    """A percentile of times, in milliseconds."""
    ordered = sorted(seconds)
    return f"{1000 * ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]:.0f}"

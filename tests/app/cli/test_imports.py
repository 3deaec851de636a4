"""A drawing from the command line loads what it needs and no more: imports are most of its time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

CODE = """
import json, sys
import atelier.app.services.engine, atelier.app.cli.draw
before = sorted(sys.modules)
from atelier.app.cli.main import main
assert main(["draw", "a fox", "--steps", "1", "--home", sys.argv[1], "--out", sys.argv[1]]) == 0
print(json.dumps([before, sorted(sys.modules)]))
"""
NEVER = ("gradio", "huey", "fastapi", "uvicorn", "pandas", "sklearn", "scipy", "atelier.app.web", "atelier.app.jobs",
         "atelier.training.embedded_base", "atelier.training.loop", "atelier.training.recipes", "atelier.training.runs",
         "atelier.training.compression")   # fmt: skip
WHEN_DRAWING = ("diffusers", "transformers", "accelerate", "peft")


def loaded(modules: list[str], names: tuple[str, ...]) -> set[str]:
    """Which of the packages and modules are loaded."""
    return {name for name in names for module in modules if module == name or module.startswith(f"{name}.")}


def test_drawing_loads_no_more_than_it_uses(tmp_path: Path):
    result = subprocess.run([sys.executable, "-c", CODE, str(tmp_path / "home")], capture_output=True, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)   # fmt: skip
    before, after = json.loads(result.stdout.splitlines()[-1])
    assert loaded(before, NEVER + WHEN_DRAWING) == set(), "importing the engine is cheap"
    assert loaded(after, NEVER) == set()
    assert "diffusers" in loaded(after, WHEN_DRAWING)

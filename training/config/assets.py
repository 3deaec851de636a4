"""Where the files that come with Atelier are: base model, presets, examples, panels, the judge."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

ASSETS = Path(str(files("atelier.assets")))

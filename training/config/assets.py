"""Where the files that come with Atelier are: base model, presets, examples, panels, the judge; and its own name.

A file of its own, because two rooms read it and it imports nothing of theirs.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

ASSETS = Path(str(files("atelier.assets")))

DISTRIBUTION = "atelier-lora"
"""What `pip` calls this project (``pyproject.toml``); programs import it as ``atelier``."""

"""Make ``atelier.kernels`` importable from a checkout that nobody installed, with torch and triton alone."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

if importlib.util.find_spec("atelier") is None:
    namespace = ModuleType("atelier")
    namespace.__path__ = [str(Path(__file__).resolve().parents[2])]
    sys.modules["atelier"] = namespace

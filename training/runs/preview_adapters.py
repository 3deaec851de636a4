"""Other adapters of the library that act while a run draws its previews."""

from __future__ import annotations

from pathlib import Path

from atelier.adapters.attach.mount import MountError, find_target_modules
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.formats.native import load_adapter
from atelier.adapters.formats.safetensors_header import FileError
from atelier.training.base_models.base_model import BaseModel


def parse_strengths(text: str) -> dict[str, float]:
    """Names with strengths, separated by commas; 1 where no strength is given.

    >>> parse_strengths("oil=0.8, fog"), parse_strengths("")
    ({'oil': 0.8, 'fog': 1.0}, {})

    Raises:
        ValueError: a strength is no number.
    """
    parts = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    return {name.strip(): float(strength or 1) for name, _, strength in parts}


def load_preview_adapters(
    text: str, library: Path, model: BaseModel
) -> tuple[list[tuple[AdapterSet, float]], list[str]]:
    """Load the adapters that a recipe names for its previews.

    Args:
        text: the recipe's ``preview_adapters``.
        library: folder of adapter files.
        model: the base model that they must fit.

    Returns:
        Adapters with strengths, and a sentence on each that can't be used: a run does not fail for its previews.
    """
    try:
        strengths = parse_strengths(text)
    except ValueError:
        return [], [f"preview_adapters is {text!r}, but it must be names with strengths, such as 'oil=0.8, fog'. "
                    "Previews are drawn with this adapter alone."]   # fmt: skip
    parts, problems = [], []
    known = {path.stem: path for path in library.glob("*.safetensors")}   # so that no name leads out of the folder
    for name, strength in strengths.items():
        try:
            if name not in known:
                raise FileError("There is no adapter of this name in the library.")
            adapters = load_adapter(known[name], model.device)
            find_target_modules(model.models(), adapters)
            parts.append((adapters, strength))
        except (FileError, MountError) as error:
            problems.append(f"Previews are drawn without {name!r}: {error}")
    return parts, problems

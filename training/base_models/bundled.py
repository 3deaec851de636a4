"""Networks that come with Atelier for a base model: gates for fusion, the retriever of adapters for a prompt."""

from __future__ import annotations

from pathlib import Path

from atelier.adapters.formats.native import data_hash
from atelier.adapters.fusion.gates import GateSet
from atelier.training.base_models.base_model import BaseModel
from atelier.training.base_models.identify import EMBEDDED_FOLDER
from atelier.training.config.assets import ASSETS
from atelier.training.config.train_config import EMBEDDED

GATES = ASSETS / "gates"
RETRIEVER = ASSETS / "retriever" / f"{EMBEDDED}.safetensors"


def gates_path(family: str) -> Path:
    """Where the gates for a base family are, or would be."""
    return GATES / f"{family}.safetensors"


def gates_for(model: BaseModel) -> GateSet | None:
    """The gates that come with Atelier for this base model, on its device; None where there are none."""
    path = gates_path(model.info.family)
    return GateSet.load(path).to(model.device) if path.exists() else None


def text_encoder_hash() -> str:
    """Hash of the embedded base's text encoder: a retriever works only with the one it was trained with."""
    return data_hash(EMBEDDED_FOLDER / "text_encoder" / "model.safetensors")

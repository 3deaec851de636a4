"""A training that continues another one's: its adapter begins with the weights of a finished one."""

from __future__ import annotations

from pathlib import Path

from atelier.adapters.attach.mount import find_target_modules
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.formats.native import data_hash, load_adapter, read_header
from atelier.adapters.formats.safetensors_header import FileError
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_model import BaseModel
from atelier.training.config.train_config import TrainConfig


def load_start_adapter(path: Path, config: TrainConfig, model: BaseModel) -> AdapterSet:
    """Make an adapter to train, with the kind, options, layers and weights of a file.

    Args:
        path: the run's copy of the adapter that is continued.
        config: with its hash, and whether text encoders are trained.
        model: the base model that it must fit.

    Raises:
        FileError: the file is missing, damaged or another one than the recipe says, or it changes text encoders and
            they are not trained.
        MountError: it does not fit the base model.
    """
    header = read_header(path)
    if (hash := data_hash(path)) != config.continue_from:
        raise FileError(f"{path.name} has the hash {hash[:12]}, but the recipe continues from "
                        f"{config.continue_from[:12]}. Put the right file there, or start a new run.")
    if not config.train_text_encoder and any(spec.name.startswith("text_encoder") for spec in header.specs):
        raise FileError("The adapter to continue from changes the text encoder. Turn train_text_encoder on.")
    adapters = create_adapters(header.kind, header.settings, header.specs, header.ranks)
    adapters.load_tensors(load_adapter(path).tensors())
    find_target_modules(model.models(), adapters)
    return adapters

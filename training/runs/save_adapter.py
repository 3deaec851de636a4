"""From the weights of a finished training to a file in the library, with its metadata and thumbnail."""

from __future__ import annotations

import base64
import glob
import io
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.formats.adapter_info import AdapterInfo
from atelier.adapters.formats.native import read_native_metadata, save_adapter
from atelier.adapters.formats.safetensors_header import FileError
from atelier.adapters.fusion.break_for_make_halves import basis_hash
from atelier.adapters.kinds.break_for_make import BreakForMake
from atelier.training.base_models.base_info import BaseInfo
from atelier.training.base_models.base_model import BaseModel
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig
from atelier.training.loop.training_loop import Training
from atelier.training.recipes.dreambooth import draw_preview, preview_prompts

THUMBNAIL_SIDE = 256
THUMBNAIL_STEPS = 20   # more than a preview: it is drawn once and shown for as long as the adapter is kept


def save_result(
    training: Training, config: TrainConfig, model: BaseModel, pictures: int, run: RunFolder, adapters: Path
) -> Path:
    """Write the adapter file and return its path. A name that is taken gets a number: nothing else is overwritten."""
    assert training.result is not None
    info = AdapterInfo(pictures=pictures, best_step=training.result_step, run=run.id)
    return save_with_metadata(training.result, config, model, info, adapters)


def save_with_metadata(
    result: AdapterSet, config: TrainConfig, model: BaseModel, info: AdapterInfo, adapters: Path
) -> Path:
    """Write an adapter under a name that is free, or over the one that the same run has put there before.

    Its recipe and its base model are added to ``info``.
    """
    info = with_recipe(info, result, config, model.info)
    if config.preview_every:   # drawn, because a training picture may be private
        picture = draw_preview(model, config, result, preview_prompts(model, config)[0], THUMBNAIL_STEPS)
        info = replace(info, thumbnail=thumbnail(picture))
    path = result_path(adapters, config.name, info.run) or free_path(adapters, config.name)
    save_adapter(path, result, info.to_metadata())
    return path


def result_path(adapters: Path, name: str, run: str) -> Path | None:
    """The file that a run has put into the library already: it may have been killed before it could say so."""
    for path in sorted(adapters.glob(f"{glob.escape(name)}*.safetensors")) if run else []:
        with suppress(FileError):
            if AdapterInfo.from_metadata(read_native_metadata(path)).run == run:
                return path
    return None


def with_recipe(info: AdapterInfo, result: AdapterSet, config: TrainConfig, base: BaseInfo) -> AdapterInfo:
    """Add to ``info`` what the recipe of a training and its base model say."""
    return replace(
        info,
        name=config.name,
        trigger=config.trigger_word,
        subject=config.subject,
        base=config.base,
        family=base.family,
        title=base.title,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        recipe=config.to_toml(without=("pictures",)),
        parent=config.continue_from,
        # Halves with the same basis can be combined.
        basis=basis_hash(result) if result.kind == BreakForMake.kind else "",
    )


def free_path(folder: Path, name: str) -> Path:
    """``name.safetensors``, or ``name-2.safetensors`` and so on where that is taken."""
    taken = {path.stem for path in folder.iterdir() if path.suffix.lower() == ".safetensors"}
    free, number = name, 2
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return folder / f"{free}.safetensors"


def thumbnail(picture: Image.Image) -> str:
    """A small JPEG of a picture as a ``data:`` address, at most 256 pixels wide and high."""
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

"""From the weights of a finished training to a file in the library, with everything it should remember."""

from __future__ import annotations

import base64
import io
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image

from atelier.adapters.files import save_adapter

from .base_model import BaseModel
from .config import TrainConfig
from .dreambooth import draw_preview, preview_prompts
from .loop import Training
from .runs import RunFolder

THUMBNAIL_SIDE = 256


def keep(
    training: Training, config: TrainConfig, model: BaseModel, pictures: int, run: RunFolder, adapters: Path
) -> Path:
    """Write the adapter file and return its path. A name that is taken gets a number: nothing is overwritten."""
    assert training.result is not None
    metadata = {
        "atelier.name": config.name,
        "atelier.trigger": config.trigger_word,
        "atelier.subject": config.subject,
        "atelier.base": config.base,
        "atelier.family": model.info.family,
        "atelier.title": model.info.title,
        "atelier.created": datetime.now(UTC).isoformat(timespec="seconds"),
        "atelier.recipe": config.to_toml(without=("pictures",)),
        "atelier.pictures": str(pictures),
        "atelier.best_step": str(training.result_step),
        "atelier.run": run.id,
    }
    if config.preview_every:   # a training picture would do without drawing, but it may be private
        cover = draw_preview(model, config, training.result, preview_prompts(model, config)[0])
        metadata["modelspec.thumbnail"] = thumbnail(cover)
    path = free_path(adapters, config.name)
    save_adapter(path, training.result, metadata)
    return path


def free_path(folder: Path, name: str) -> Path:
    """``name.safetensors``, or ``name-2.safetensors`` and so on where that is taken."""
    path, number = folder / f"{name}.safetensors", 2
    while path.exists():
        path, number = folder / f"{name}-{number}.safetensors", number + 1
    return path


def thumbnail(picture: Image.Image) -> str:
    """A small JPEG of a picture as a ``data:`` address, at most 256 pixels wide and high."""
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

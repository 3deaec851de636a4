"""From a folder of pictures to what training reads: the steps before every recipe."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from atelier.training.base_models.base_model import BaseModel
from atelier.training.base_models.identify import identify
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.buckets import crop_and_resize, micro_conditioning
from atelier.training.data.dataset import Report, scan
from atelier.training.data.images import open_picture, to_tensor
from atelier.training.data.latent_cache import Example, encode_pictures

VIEW_ZOOM = 1.2


def scan_pictures(config: TrainConfig) -> Report:
    """Find the pictures of a recipe.

    Raises:
        PictureError: none can be used.
    """
    info = identify(config.base, config.base_options)
    return scan(
        Path(config.pictures),
        trigger=config.trigger_word,
        subject=config.subject,
        template=config.caption or info.caption,
        resolution=config.resolution or info.resolution,
        multiple=info.size_multiple,
    )


def encode_views(model: BaseModel, report: Report) -> list[Example]:
    """The middle of each picture, enlarged to its size: views that a training has not seen, to measure it by."""
    pictures = [_closer(crop_and_resize(open_picture(picture.path), picture.bucket)) for picture in report.usable]
    sizes = [micro_conditioning((picture.width, picture.height), picture.bucket) for picture in report.usable]
    return encode_pictures(model, map(to_tensor, pictures), [picture.caption for picture in report.usable], sizes)


def _closer(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    left, top = round(width * (1 - 1 / VIEW_ZOOM) / 2), round(height * (1 - 1 / VIEW_ZOOM) / 2)
    return picture.crop((left, top, width - left, height - top)).resize(picture.size, Image.Resampling.LANCZOS)


def encode_dataset(model: BaseModel, report: Report) -> list[Example]:
    """Pictures and captions as the model reads them."""
    pictures = (to_tensor(crop_and_resize(open_picture(picture.path), picture.bucket)) for picture in report.usable)
    sizes = [micro_conditioning((picture.width, picture.height), picture.bucket) for picture in report.usable]
    return encode_pictures(model, pictures, [picture.caption for picture in report.usable], sizes)

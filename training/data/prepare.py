"""From a folder of pictures to what training reads: the steps before every recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from atelier.adapters.core.family import EMBEDDED_FAMILY
from atelier.training.base_models.base_model import BaseModel
from atelier.training.base_models.identify import identify
from atelier.training.base_models.tokenizers import load_tokenizers
from atelier.training.config.train_config import TrainConfig, picture_weights
from atelier.training.data.buckets import crop_and_resize, micro_conditioning
from atelier.training.data.caption_tokens import (
    CaptionTokens,
    caption_warnings,
    measure_caption,
    with_trigger_first,
)
from atelier.training.data.captions import Captioner
from atelier.training.data.dataset import Report, TrainingPicture, scan, trigger_warning
from atelier.training.data.images import open_picture, to_tensor
from atelier.training.data.latent_cache import Example, encode_pictures
from atelier.training.data.masks import latent_mask, open_mask

VIEW_ZOOM = 1.2


def scan_pictures(config: TrainConfig) -> Report:
    """Find the pictures of a recipe, and check that their captions are read.

    Raises:
        BaseError: the base model can't be used.
        PictureError: none can be used.
    """
    info = identify(config.base, config.base_options)
    report = scan(
        Path(config.pictures),
        trigger=config.trigger_word,
        subject=config.subject,
        template=config.caption or info.caption,
        resolution=config.resolution or info.resolution,
        multiple=info.size_multiple,
        weights=picture_weights(config.weights),
        draws_emoji=info.family == EMBEDDED_FAMILY.name,
    )
    return _check_captions(report, config, load_tokenizers(info))


def encode_views(model: BaseModel, report: Report, chunks: int = 1) -> list[Example]:
    """The middle of each picture, enlarged to its size: views that a training has not seen, to measure it by."""
    return _encode(model, report, _closer, chunks)


def _closer(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    left, top = round(width * (1 - 1 / VIEW_ZOOM) / 2), round(height * (1 - 1 / VIEW_ZOOM) / 2)
    return picture.crop((left, top, width - left, height - top)).resize(picture.size, Image.Resampling.LANCZOS)


def _check_captions(report: Report, config: TrainConfig, tokenizers: Sequence[Any]) -> Report:
    """The report with warnings about captions that are cut off, and the trigger word where the recipe wants it."""
    captioner = Captioner(trigger=config.trigger_word, subject=config.subject, template="")
    if not tokenizers:
        return replace(report, warnings=report.warnings + trigger_warning(report.usable, captioner))
    measured, usable = dict[str, CaptionTokens](), []
    for picture in report.usable:
        tokens = measure_caption(tokenizers, picture.caption, captioner, config.caption_chunks)
        caption = with_trigger_first(picture.caption, captioner, tokens) if config.trigger_first else picture.caption
        if caption != picture.caption:
            tokens = measure_caption(tokenizers, caption, captioner, config.caption_chunks)
        usable.append(replace(picture, caption=caption))
        measured[picture.path.name] = tokens
    warnings = [*report.warnings, *caption_warnings(measured, config.trigger_word)]
    return replace(report, usable=usable, warnings=warnings + trigger_warning(usable, captioner))


def encode_dataset(model: BaseModel, report: Report, chunks: int = 1) -> list[Example]:
    """Pictures and captions as the model reads them; captions in at most so many chunks."""
    return _encode(model, report, lambda picture: picture, chunks)


def _cropped(picture: TrainingPicture) -> Image.Image:
    return picture.cropped or crop_and_resize(open_picture(picture.path), picture.bucket)


def _masks(report: Report, view: Callable[[Image.Image], Image.Image]) -> Iterator[Image.Image | None]:
    """The masks of the pictures, cropped as these are and then seen as by ``view``."""
    for picture in report.usable:
        whole = open_mask(picture.mask, (picture.width, picture.height)) if picture.mask else None
        yield view(crop_and_resize(whole, picture.bucket)) if whole else None


def _encode(
    model: BaseModel, report: Report, view: Callable[[Image.Image], Image.Image], chunks: int
) -> list[Example]:
    pictures = (to_tensor(view(_cropped(picture))) for picture in report.usable)
    sizes = [micro_conditioning((picture.width, picture.height), picture.bucket) for picture in report.usable]
    examples = encode_pictures(model, pictures, [picture.caption for picture in report.usable], sizes, chunks)
    return [replace(example, weight=picture.weight, mask=latent_mask(mask, example.mean.shape[1:]) if mask else None)
            for example, picture, mask in zip(examples, report.usable, _masks(report, view), strict=True)]   # fmt: skip

"""Masks: which part of a training picture is learned. A file beside the picture, named as OneTrainer names it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from atelier.training.data.images import PictureError, open_picture

ENDING = "-masklabel.png"   # of rex.jpg: rex-masklabel.png


def mask_name(picture: Path) -> str:
    """Name of a picture's mask.

    >>> mask_name(Path("rex.jpg"))
    'rex-masklabel.png'
    """
    return picture.stem + ENDING


def is_mask(path: Path) -> bool:
    """Whether a file is the mask of a picture, by its name."""
    return path.name.lower().endswith(ENDING)


def open_mask(path: Path, size: tuple[int, int]) -> Image.Image:
    """Read a mask as grey values of a size: white is learned, black is not.

    Raises:
        PictureError: it can't be opened, or nothing of it is white.
    """
    mask = open_picture(path).convert("L")
    if not mask.getbbox():
        raise PictureError(f"{path.name} is black everywhere, so nothing of its picture would be learned. Paint white "
                           "what is to be learned.")   # fmt: skip
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BOX)


def latent_mask(mask: Image.Image, size: Sequence[int]) -> Tensor:
    """A mask at the size of the latents (height, width), as float32 ``[1, h, w]`` of 0 … 1: the mean of each patch.

    A mask that ends up without any weight, because what is white was cropped away, is 1 everywhere.
    """
    pixels = torch.frombuffer(bytearray(mask.tobytes()), dtype=torch.uint8).view(1, 1, mask.height, mask.width)
    small = torch.nn.functional.interpolate(pixels.float() / 255, size=tuple(size), mode="area")[0]
    return small if small.sum() > 0 else torch.ones_like(small)

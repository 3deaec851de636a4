"""Aspect buckets: picture sizes of one area but several shapes, so that little of a picture is cut away."""

from __future__ import annotations

from PIL import Image

from atelier.adapters.core.settings import SettingError

MAX_ASPECT = 2.0
STEPS_PER_SIDE = 16     # as SDXL's own sizes: finer steps would leave a bucket for nearly every single picture

Size = tuple[int, int]                      # width, height in pixels
Box = tuple[float, float, float, float]     # left, top, right, bottom in pixels of the whole picture


def bucket_sizes(resolution: int, multiple: int) -> list[Size]:
    """Sizes of about ``resolution²`` pixels (never more), between 1:2 and 2:1, narrow to wide.

    Args:
        resolution: side of the square bucket in pixels, before rounding down to the multiple.
        multiple: every side is a multiple of this.

    Raises:
        SettingError: the resolution is below the multiple.

    >>> bucket_sizes(64, 16)
    [(48, 80), (64, 64), (80, 48)]
    """
    if resolution < multiple:
        raise SettingError(f"resolution is {resolution}, but this base model needs at least {multiple}.")
    step = multiple * max(1, resolution // (STEPS_PER_SIDE * multiple))
    square = resolution // step * step
    sizes = {(square, square)}
    for short in range(square, 0, -step):
        long = resolution**2 // (short * step) * step
        if long > MAX_ASPECT * short:
            break
        sizes |= {(short, long), (long, short)}
    return sorted(sizes)


def nearest_bucket(size: Size, buckets: list[Size]) -> Size:
    """The bucket whose aspect is nearest to that of a picture; of two equally near the larger one."""
    width, height = size

    def distance(bucket: Size) -> tuple[float, int]:
        """Ratio of the two aspects (1 where equal); of equal ones the larger area sorts first."""
        across, down = width * bucket[1], height * bucket[0]
        return max(across, down) / min(across, down), -bucket[0] * bucket[1]

    return min(buckets, key=distance)


def micro_conditioning(size: Size, bucket: Size) -> tuple[int, int, int, int, int, int]:
    """What Stable Diffusion XL is told of a picture (width, height) that is cut to a bucket.

    Height and width it had, top and left of the crop in pixels of the resized picture, height and width it has now.

    >>> micro_conditioning((300, 100), (64, 64))
    (100, 300, 0, 64, 64, 64)
    """
    left, top, right, _ = crop_box(size, bucket)
    scale = bucket[0] / (right - left)
    return size[1], size[0], round(top * scale), round(left * scale), bucket[1], bucket[0]


def crop_box(size: Size, bucket: Size) -> Box:
    """The largest centred part of a picture that has a bucket's aspect.

    >>> crop_box((300, 100), (64, 64))
    (100.0, 0.0, 200.0, 100.0)
    """
    width, height = size
    scale = min(width / bucket[0], height / bucket[1])
    # Rounding must not push an edge outside the picture.
    left, top = max(0.0, (width - bucket[0] * scale) / 2), max(0.0, (height - bucket[1] * scale) / 2)
    return left, top, width - left, height - top


def crop_and_resize(picture: Image.Image, bucket: Size) -> Image.Image:
    """Crop a picture to a bucket's aspect around its middle and resize it to exactly the bucket's size."""
    return picture.resize(bucket, Image.Resampling.LANCZOS, box=crop_box(picture.size, bucket))

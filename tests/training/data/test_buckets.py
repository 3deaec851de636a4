"""Laws of the aspect buckets, and crops compared with Pillow's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from atelier.adapters.core.settings import SettingError
from atelier.training.data.buckets import bucket_sizes, crop_and_resize, crop_box, nearest_bucket

multiples = st.sampled_from([4, 8, 16, 32, 64])
sides = st.integers(1, 4000)


@st.composite
def grids(draw: st.DrawFn) -> tuple[int, int]:
    multiple = draw(multiples)
    return draw(st.integers(multiple, 2048)), multiple


@given(grids())
def test_sizes_obey_their_laws(grid):
    resolution, multiple = grid
    sizes = bucket_sizes(resolution, multiple)
    step = max(multiple, resolution / 16)
    assert len(set(sizes)) == len(sizes)
    assert {(height, width) for width, height in sizes} == set(sizes)
    assert any(width == height for width, height in sizes)
    for width, height in sizes:
        assert width % multiple == height % multiple == 0
        assert 0.5 <= width / height <= 2
        assert max(0, resolution - step) ** 2 < width * height <= resolution**2


def test_sizes_of_sdxl_are_found():
    """Compared with the sizes that model was trained at, between 1:2 and 2:1."""
    assert {(832, 1216), (896, 1152), (1024, 1024), (1152, 896), (1216, 832)} <= set(bucket_sizes(1024, 64))


@pytest.mark.parametrize("aspect", [4 / 3, 3 / 2, 16 / 9])
@pytest.mark.parametrize(("resolution", "multiple"), [(512, 8), (768, 8), (1024, 8)])
def test_usual_photographs_lose_little(resolution, multiple, aspect):
    size = (round(3000 * aspect), 3000)
    left, top, right, bottom = crop_box(size, nearest_bucket(size, bucket_sizes(resolution, multiple)))
    assert (right - left) * (bottom - top) >= 0.94 * size[0] * size[1]


def test_a_resolution_below_the_multiple_is_refused():
    with pytest.raises(SettingError, match="resolution is 63, but this base model needs at least 64"):
        bucket_sizes(63, 64)


@given(grids(), sides, sides)
def test_nearest_bucket_is_the_one_of_least_aspect_error(grid, width, height):
    buckets = bucket_sizes(*grid)
    found = nearest_bucket((width, height), buckets)
    errors = {size: abs(math.log(width / height) - math.log(size[0] / size[1])) for size in buckets}
    assert errors[found] == pytest.approx(min(errors.values()), abs=1e-12)
    mirrored = [(tall, wide) for wide, tall in buckets]
    assert nearest_bucket((height, width), mirrored) == found[::-1]


@given(sides, sides, grids())
def test_crop_is_centred_inside_and_as_large_as_can_be(width, height, grid):
    bucket = nearest_bucket((width, height), bucket_sizes(*grid))
    left, top, right, bottom = crop_box((width, height), bucket)
    assert left >= 0 and top >= 0 and right <= width and bottom <= height
    assert left + right == pytest.approx(width) and top + bottom == pytest.approx(height)
    assert (right - left) / (bottom - top) == pytest.approx(bucket[0] / bucket[1])
    assert min(left, top) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("size", [(100, 61), (61, 100), (333, 47), (64, 64), (30, 20)])
@pytest.mark.parametrize("bucket", [(64, 64), (48, 80), (80, 48)])
def test_fit_agrees_with_pillow(size, bucket):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(values)
    expected = ImageOps.fit(picture, bucket, Image.Resampling.LANCZOS)
    fitted = crop_and_resize(picture, bucket)
    assert fitted.size == bucket
    assert np.abs(np.asarray(fitted, int) - np.asarray(expected, int)).max() <= 1


@given(st.integers(16, 300), st.integers(16, 300), grids().filter(lambda grid: grid[0] <= 256))
def test_fit_takes_any_picture_to_its_bucket(width, height, grid):
    bucket = nearest_bucket((width, height), bucket_sizes(*grid))
    red = crop_and_resize(Image.new("RGB", (width, height), "red"), bucket)
    assert red.getcolors() == [(bucket[0] * bucket[1], (255, 0, 0))]


def test_fit_shows_the_middle():
    picture = Image.new("RGB", (300, 100), "red")
    picture.paste("blue", (100, 0, 200, 100))
    assert crop_and_resize(picture, (64, 64)).getpixel((32, 32)) == (0, 0, 255)
    assert crop_box((300, 100), (64, 64)) == (100, 0, 200, 100)

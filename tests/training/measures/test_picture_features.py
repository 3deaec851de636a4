"""What a picture looks like: distances against a plain definition, colours against painted ones."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from atelier.training.measures.picture_features import (
    COLOURS,
    FEATURE_BYTES,
    colours_of,
    feature_distances,
    picture_feature,
)

PAINT = {"red": "#d01818", "orange": "#f08a10", "yellow": "#f0e020", "green": "#20a040", "blue": "#2040d0",
         "purple": "#8030c0", "pink": "#f060b0", "brown": "#70401c", "black": "#080808", "grey": "#808080",
         "white": "#fafafa"}   # fmt: skip


def test_distance_is_the_mean_square_of_what_differs() -> None:
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(3)]
    features = [picture_feature(image) for image in images]
    assert {len(feature) for feature in features} == {FEATURE_BYTES}
    arrays = [np.asarray(image, float) for image in images]
    expected = [((array - arrays[0]) ** 2).mean() for array in arrays]
    assert feature_distances(features[0], features) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", COLOURS)
def test_each_colour_is_called_as_a_person_would(name: str) -> None:
    assert colours_of(Image.new("RGB", (40, 30), PAINT[name])) == [name]


def test_a_small_part_does_not_count_and_two_halves_both_do() -> None:
    image = Image.new("RGB", (100, 100), PAINT["white"])
    image.paste(PAINT["green"], (0, 0, 20, 20))
    assert colours_of(image) == ["white"]
    image.paste(PAINT["blue"], (0, 0, 50, 100))
    assert colours_of(image) == ["blue", "white"]

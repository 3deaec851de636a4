"""A glimpse must look like the picture: the decoded one, shrunk, is the reference."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.sampling import sample
from atelier.training.sampling.latent_preview import UPSCALING, LatentPreview, fit_latent_preview
from atelier.training.sampling.sample import DrawRequest, draw

PROMPTS = ("an emoji of a fox on a blue background", "a watercolour picture of a dog", "a pencil picture of a boat",
           "a 3d emoji of a rocket on a green background", "a pixel art picture of a tree")   # fmt: skip


@pytest.fixture(scope="module")
def embedded() -> BaseModel:
    return load("embedded", "cpu")


@pytest.fixture(scope="module")
def drawings(embedded: BaseModel) -> list[tuple[Image.Image, list[Image.Image]]]:
    """Pictures, and the glimpses on the way to each."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "LATENT_PREVIEW_SECONDS", 0)
        for seed, prompt in enumerate(PROMPTS):
            seen: list[Image.Image] = []
            request = DrawRequest(prompt=prompt, seed=seed, steps=8)
            [picture] = draw(embedded, request, on_latent_preview=lambda small, seen=seen: seen.extend(small))
            found.append((picture, seen))
    return found


def alike(one: Image.Image, other: Image.Image, side: int = 16) -> float:
    """Correlation of the colours of two pictures, shrunk by area."""
    rows = [np.asarray(picture.resize((side, side), Image.Resampling.BOX)).ravel() for picture in (one, other)]
    return float(np.corrcoef(*rows)[0, 1])


def test_the_last_glimpse_is_the_picture_shrunk(drawings):
    likeness = [alike(picture, seen[-1]) for picture, seen in drawings]
    assert np.mean(likeness) > 0.92
    assert min(likeness) > 0.85


def test_the_first_steps_show_already_what_comes(drawings):
    after_two = [alike(picture, seen[1]) for picture, seen in drawings]
    assert len(drawings[0][1]) == 8
    assert np.mean(after_two) > 0.7
    # And they are of this picture, not of any.
    others = [alike(picture, drawings[i - 1][1][1]) for i, (picture, _) in enumerate(drawings)]
    assert np.mean(others) < np.mean(after_two) - 0.3


@pytest.mark.parametrize("broken", ["rows in another order", "colours in another order", "another sign"])
def test_a_broken_map_would_be_found(embedded, drawings, broken):
    """What the tests above hold on to is gone with the map."""
    good = fit_latent_preview(embedded).matrix
    bad = {"rows in another order": good.roll(1, 0), "colours in another order": good.roll(1, 1), "another sign": -good}
    request = DrawRequest(prompt=PROMPTS[0], seed=0, steps=8)
    cache = sample.DrawCache(_latent_preview=LatentPreview(bad[broken]))
    seen: list[Image.Image] = []
    draw(embedded, request, on_latent_preview=seen.extend, cache=cache)
    assert alike(drawings[0][0], seen[-1]) < 0.85


def test_a_glimpse_is_small_and_of_the_picture_s_shape(model):
    seen: list[list[Image.Image]] = []
    draw(model, DrawRequest(prompt="a", steps=2, count=3, width=48, height=24), on_latent_preview=seen.append)
    assert [picture.size for picture in seen[0]] == [(12 * UPSCALING, 6 * UPSCALING)] * 3


def test_looking_changes_no_pixel_and_is_not_asked_for_too_often(model):
    seen: list[list[Image.Image]] = []
    request = DrawRequest(prompt="a fox", steps=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "LATENT_PREVIEW_SECONDS", 1e9)
        looked = draw(model, request, on_latent_preview=seen.append)[0]
    assert looked.tobytes() == draw(model, request)[0].tobytes()
    assert len(seen) == 1   # the first step is always shown

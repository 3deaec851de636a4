"""Decoding with less memory gives the same picture, and what is no picture is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from torch import Tensor

from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.sampling import decode
from atelier.training.sampling.decode import NotFiniteError, decode_latents, use_tiles
from atelier.training.sampling.draw_savings import DrawSavings
from atelier.training.sampling.sample import DrawRequest, draw


@pytest.fixture(scope="module")
def embedded() -> BaseModel:
    return load("embedded", "cpu")


@pytest.fixture(scope="module")
def latents(embedded: BaseModel) -> Tensor:
    """Of two pictures, as they are drawn."""
    torch.manual_seed(0)
    return torch.randn(2, embedded.unet.config.in_channels, 16, 16)


def difference(one: list[Image.Image], other: list[Image.Image]) -> int:
    """The largest of all pixels, 0 … 255."""
    return max(high for a, b in zip(one, other, strict=True) for _, high in ImageChops.difference(a, b).getextrema())


def test_one_at_a_time_is_the_same(embedded: BaseModel, latents: Tensor):
    assert difference(decode_latents(embedded, latents),
                      decode_latents(embedded, latents, DrawSavings(decode_singly=True))) <= 1   # fmt: skip


def test_bfloat16_is_nearly_the_same(embedded: BaseModel, latents: Tensor):
    whole, half = (decode_latents(embedded, latents, DrawSavings(half_vae=flag)) for flag in (False, True))
    assert 0 < difference(whole, half) < 40
    assert embedded.vae.dtype == torch.float32


def test_tiles_blend_into_one_picture(embedded: BaseModel, latents: Tensor, monkeypatch: pytest.MonkeyPatch):
    whole, sizes = decode_latents(embedded, latents), []
    monkeypatch.setattr(decode, "TILE", 32)
    hook = embedded.vae.decoder.register_forward_pre_hook(lambda _, given: sizes.append(tuple(given[0].shape[-2:])))
    tiled = decode_latents(embedded, latents, DrawSavings(tiles=True))
    hook.remove()
    side = 32 // embedded.info.vae_scale_factor
    assert len(sizes) > 4 and max(sizes) == (side, side)
    means = [torch.from_numpy(np.array(picture.resize((4, 4)))).float() for picture in (whole[0], tiled[0])]
    assert (means[0] - means[1]).abs().max() < 40
    assert not embedded.vae.use_tiling


def test_a_tile_is_of_512_pixels_whatever_the_model_is_made_for(embedded: BaseModel):
    with use_tiles(embedded.vae, embedded.info, tiles=True):
        assert embedded.vae.tile_sample_min_size == 512
        assert embedded.vae.tile_latent_min_size * embedded.info.vae_scale_factor == 512
    with use_tiles(embedded.vae, embedded.info, tiles=False):
        assert not embedded.vae.use_tiling


def test_a_vae_that_overflows_in_bfloat16_decodes_again(
    embedded: BaseModel, latents: Tensor, monkeypatch: pytest.MonkeyPatch
):
    def overflow(part: Tensor) -> object:
        return type("Output", (), {"sample": torch.full((len(part), 3, 64, 64), float("nan"))})

    monkeypatch.setattr(embedded.half_vae, "decode", overflow)
    whole, retried = (decode_latents(embedded, latents, DrawSavings(half_vae=flag)) for flag in (False, True))
    assert difference(whole, retried) == 0
    monkeypatch.setattr(embedded.vae, "decode", overflow)
    with pytest.raises(NotFiniteError, match="The VAE"):
        decode_latents(embedded, latents, DrawSavings(half_vae=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_drawing_that_is_not_finite_gives_no_picture(model: BaseModel, value: float):
    weight = next(model.unet.parameters())
    spoilt = torch.full_like(weight, value)
    kept, weight.data = weight.data, spoilt
    try:
        with pytest.raises(NotFiniteError, match=r"The UNet .* float32.* --precision bf16"):
            draw(model, DrawRequest(steps=1))
    finally:
        weight.data = kept


def test_the_cure_is_a_precision_that_is_not_in_use(model: BaseModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(BaseModel, "dtype", torch.bfloat16)
    with pytest.raises(NotFiniteError, match="bfloat16: draw with --precision fp32"):
        decode_latents(replace(model), torch.full((1, 4, 8, 8), float("nan")))

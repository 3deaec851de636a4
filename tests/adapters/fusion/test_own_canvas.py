"""Regions on canvases of their own: each is what the UNet says to that part of the picture alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.fusion.live import Fusion, RegionText, WeightedAdapter, mount_fusion
from atelier.adapters.kinds.catalog import create_adapters


class Blurring(nn.Module):
    """Called as a UNet is; what it says of a place depends on the places around it, the mean of all, and the words."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 5, padding=2)

    def forward(self, sample: Tensor, timestep: Any, *, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        words = encoder_hidden_states.mean((1, 2))[:, None, None, None]
        return (self.conv(sample) + sample.mean((2, 3), keepdim=True) + words,)


@pytest.fixture
def models() -> dict[str, nn.Module]:
    torch.manual_seed(3)
    return {"unet": Blurring().requires_grad_(False)}


def adapters(seed: int) -> AdapterSet:
    made = create_adapters("lora", {"rank": 2}, [Spec("unet.conv", (4, 4, 5, 5))])
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return made.requires_grad_(False)


def answer(models: dict[str, nn.Module], how: Mix | Fusion, sample: Tensor, words: Tensor) -> Tensor:
    with mount_fusion(models, how) if isinstance(how, Fusion) else mount(models, how):
        return models["unet"](sample, torch.tensor(500), encoder_hidden_states=words)[0]


def columns(first: int, last: int, count: int = 32) -> Tensor:
    places = torch.arange(count)
    return ((places >= first) & (places < last)).float()[None]


def test_each_half_is_what_its_adapter_and_its_prompt_say_to_it_alone(models):
    one, other = adapters(1), adapters(2)
    sample = torch.randn(2, 4, 16, 32, generator=torch.Generator().manual_seed(5))
    words = torch.tensor([[[-1.0]], [[2.0]]])   # a negative prompt, then the prompt of one picture
    parts = tuple(WeightedAdapter(each, 0.7, region=region, prompt="own", own_canvas=True)
                  for each, region in ((one, columns(0, 16)), (other, columns(16, 32))))   # fmt: skip
    texts = (RegionText(torch.tensor([[[5.0]]])), RegionText(torch.tensor([[[9.0]]])), None)
    found = answer(models, Fusion(parts, texts=texts), sample, words)
    for each, part, value in ((one, slice(0, 16), 5.0), (other, slice(16, 32), 9.0)):
        alone = answer(models, Mix(((each, 0.7),)), sample[..., part], torch.tensor([[[-1.0]], [[value]]]))
        assert_close(found[..., part], alone, rtol=0, atol=1e-5)
    changed = sample.clone()
    changed[..., 20:] += 1
    assert torch.equal(answer(models, Fusion(parts, texts=texts), changed, words)[..., :16], found[..., :16])
    seen_whole = tuple(replace(part, own_canvas=False) for part in parts)
    assert (answer(models, Fusion(seen_whole, texts=texts), sample, words) - found).abs().max() > 0.1


def test_the_rest_of_the_picture_and_overlaps(models):
    """Outside its region the drawing's own prompt is followed; the canvas is widened to whole steps of 8."""
    sample = torch.randn(1, 4, 8, 40, generator=torch.Generator().manual_seed(5))
    words, one = torch.full((1, 1, 1), 2.0), adapters(1)
    part = WeightedAdapter(one, region=columns(10, 14, 40), prompt="own", own_canvas=True)
    found = answer(models, Fusion((part,), texts=(RegionText(torch.full((1, 1, 1), 5.0)), None)), sample, words)
    plain = answer(models, Mix(), sample, words)
    assert_close(found[..., :10], plain[..., :10], rtol=0, atol=1e-5)
    assert_close(found[..., 14:], plain[..., 14:], rtol=0, atol=1e-5)
    alone = answer(models, Mix(((one, 1.0),)), sample[..., 8:16], torch.full((1, 1, 1), 5.0))
    assert_close(found[..., 10:14], alone[..., 2:6], rtol=0, atol=1e-5)


def test_a_region_without_a_place_is_no_canvas(models):
    sample, words = torch.ones(1, 4, 8, 8), torch.full((1, 1, 1), 2.0)
    part = WeightedAdapter(adapters(1), region=torch.zeros(2, 2), own_canvas=True)
    assert_close(answer(models, Fusion((part,)), sample, words), answer(models, Mix(), sample, words))

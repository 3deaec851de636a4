"""A batch in which every picture has its own strengths: row by row what a mount at those strengths gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters.attach.merge import merge
from atelier.adapters.attach.mount import MountError, mount
from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.settings import SettingError
from atelier.adapters.fusion.batched_strengths import UNTRAINED_METHODS, combine_batched
from atelier.adapters.fusion.break_for_make_halves import combine_halves, scale_halves
from atelier.adapters.fusion.pairwise import k_lora, np_lora, to_lora
from atelier.adapters.kinds.catalog import create_adapters

STRENGTHS = [(0.0, 0.0), (1.0, 0.5), (0.3, 2.0)]


class Net(nn.Module):
    """Something that is called as a UNet is: a layer of tokens and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.conv = nn.Linear(12, 8), nn.Conv2d(4, 6, 3, stride=2, padding=1)

    def forward(self, x: Tensor, _timestep: int) -> Tensor:
        return torch.cat([self.tokens(x).flatten(1), self.conv(x.reshape(-1, 4, 3, 5)).flatten(1)], 1)


@pytest.fixture
def models() -> dict[str, nn.Module]:
    return {"unet": Net().double()}


def learned(models: dict[str, nn.Module], role: str, seed: int, start: str = "clean") -> AdapterSet:
    shapes = {name: tuple(models["unet"].get_parameter(f"{name}.weight").shape) for name in ("tokens", "conv")}
    settings = {"rank": 4, "alpha": 6.0, "role": role, "start": start}
    specs = [Spec(f"unet.{name}", shape) for name, shape in shapes.items()]
    adapters = create_adapters("split", settings, specs).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return adapters


def run(models: dict[str, nn.Module], mixed: AdapterSet, x: Tensor, timestep: int = 500) -> Tensor:
    with torch.no_grad(), mount(models, Mix(((mixed, 1.0),))):
        return models["unet"](x, timestep)


def expected(models: dict[str, nn.Module], method: str, parts: tuple[AdapterSet, AdapterSet], at: tuple[float, float],
             x: Tensor) -> Tensor:   # fmt: skip
    content, style = parts
    if method == "break-for-make":
        return run(models, scale_halves(combine_halves(content, style), content=at[0], style=at[1]), x)
    if method == "np":   # the row space is the style's at any strength but 0
        whole, alone = run(models, np_lora(models, content, style), x), run(models, to_lora(models, style), x)
        bare = run(models, to_lora(models, style, 0.0 + 1e-300), x)
        return bare + at[0] * (whole - alone) + at[1] * (alone - bare)
    if method == "k":
        one = k_lora(models, content, style)
        for adapter in one:
            adapter.get_buffer("content_up").mul_(at[0])
            adapter.get_buffer("style_up").mul_(at[1])
        return run(models, one, x)
    with torch.no_grad(), mount(models, Mix(((content, at[0]), (style, at[1])))):
        return models["unet"](x, 500)


@pytest.mark.parametrize("start", ["clean", "faithful"])
@pytest.mark.parametrize("method", UNTRAINED_METHODS)
def test_each_picture_is_drawn_at_its_own_strengths(models, method, start):
    parts = learned(models, "content", 1, start), learned(models, "style", 2, start)
    x = torch.randn(6, 5, 12).double()   # twice as many as strengths: guidance draws each picture twice
    found = run(models, combine_batched(models, *parts, method, STRENGTHS).double(), x)
    for n in range(6):
        assert_close(found[n : n + 1], expected(models, method, parts, STRENGTHS[n % 3], x[n : n + 1]),
                     rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert_close(found[0], models["unet"](x[:1], 500)[0])


def test_a_blend_is_never_merged(models):
    mixed = combine_batched(models, learned(models, "content", 1), learned(models, "style", 2), "sum", STRENGTHS)
    with pytest.raises(MountError, match="Mount it"), merge(models, Mix(((mixed, 1.0),))):
        pytest.fail("entered")


def test_a_method_that_learns_has_no_live_strengths(models):
    with pytest.raises(SettingError, match=r"zip has to be trained.*break-for-make, sum, np, k"):
        combine_batched(models, learned(models, "content", 1), learned(models, "style", 2), "zip", STRENGTHS)

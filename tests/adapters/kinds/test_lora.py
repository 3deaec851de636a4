"""LoRA against references that are not ours: numpy in float64, and PEFT's own layers with the same factors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.testing import assert_close

from atelier.adapters.attach.merge import merge
from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.kinds.catalog import create_adapters
from atelier.adapters.kinds.lora import Lora, LoraSettings, RankSettings

RANK, ALPHA = 4, 10
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (nn.Linear(24, 10), (3, 5, 24)),
    "1x1": (nn.Conv2d(12, 20, 1), (2, 12, 5, 7)),
    "3x3 strided": (nn.Conv2d(12, 14, 3, stride=2, padding=1), (2, 12, 9, 7)),
}

SPECS = [Spec("unet.same", (6, 5)), Spec("unet.smaller", (7, 4)), Spec("unet.larger", (9, 12))]
RANKS = {"unet.smaller": 1, "unet.larger": 9}   # where the settings say 4


def trained(module: Any) -> AdapterSet:
    torch.manual_seed(0)
    spec = Spec("unet.layer", tuple(module.weight.shape))
    adapters = create_adapters("lora", {"rank": RANK, "alpha": ALPHA}, [spec])
    nn.init.normal_(lora_of(adapters).up, std=0.2)
    return adapters


def lora_of(adapters: AdapterSet) -> Lora:
    adapter = adapters["unet.layer"]
    assert isinstance(adapter, Lora)
    return adapter


@pytest.mark.parametrize("layer", LAYERS)
def test_delta_equals_numpy(layer: str):
    module, _ = LAYERS[layer]
    adapter = lora_of(trained(module))
    up, down = (p.detach().numpy().astype(np.float64) for p in (adapter.up, adapter.down))
    expected = (ALPHA / RANK) * up @ down
    found = adapter.delta(module.weight).detach().numpy().reshape(len(up), -1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("attach", [mount, merge])
@pytest.mark.parametrize("layer", LAYERS)
def test_output_equals_peft(layer: str, attach):
    module, shape = LAYERS[layer]
    adapters, x = trained(module), torch.randn(shape)
    adapter = lora_of(adapters)
    model = nn.ModuleDict({"layer": module})
    with torch.no_grad(), attach({"unet": model}, Mix(((adapters, 1.0),))):
        ours = module(x)

    peft = get_peft_model(nn.Sequential(module), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"]))
    wrapped: Any = peft.get_submodule("base_model.model.0")
    kernel = tuple(module.weight.shape[2:])
    with torch.no_grad():
        wrapped.lora_A["default"].weight.copy_(adapter.down.reshape(RANK, -1, *kernel))
        wrapped.lora_B["default"].weight.copy_(adapter.up.reshape(-1, RANK, *(1 for _ in kernel)))
        theirs = peft(x)
        assert not torch.allclose(theirs, module(x), atol=1e-2)
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_alpha_zero_means_scale_one():
    spec = Spec("unet.layer", (10, 24))
    for rank in (1, 8):
        adapter = lora_of(create_adapters("lora", {"rank": rank}, [spec]))
        up, down = adapter.factors()
        assert torch.equal(up, adapter.up)
        assert torch.equal(down, adapter.down)


def test_start_is_as_in_the_authors_code():
    """Kaiming-uniform with a = √5: uniform in ±1/√columns, and not narrower."""
    adapter = lora_of(create_adapters("lora", {"rank": 64}, [Spec("unet.layer", (8, 100, 3, 3))]))
    bound = 900**-0.5
    assert adapter.down.abs().max() <= bound
    assert adapter.down.abs().max() > 0.99 * bound
    assert abs(adapter.down.std().item() - bound / 3**0.5) < 0.02 * bound


@pytest.mark.parametrize("settings", [{"rank": 16}, {"rank": 16, "alpha": 4.0}])
@pytest.mark.parametrize("stabilized", [False, True])
def test_another_rank_keeps_the_scale(stabilized: bool, settings: dict[str, Any]):
    whole = LoraSettings(**settings, stabilized=stabilized)
    for rank in (1, 8, 32, 64):
        part = whole.with_rank(rank)
        assert part.rank == rank and part.scale == pytest.approx(whole.scale)


def test_another_rank_keeps_the_scale_of_every_kind_that_has_one():
    whole = RankSettings(rank=4, alpha=6.0)
    assert [whole.with_rank(rank).scale for rank in (1, 4, 9)] == pytest.approx([1.5] * 3)
    adapters = create_adapters("dora", {"rank": 4, "alpha": 6.0}, SPECS, RANKS)
    assert [adapter.scale for adapter in adapters] == pytest.approx([1.5] * 3)


@pytest.mark.parametrize(("alpha", "stabilized", "scale"), [
    (6.0, False, 1.5),   # alpha / rank
    (0.0, False, 1.0),   # alpha is the rank
    (6.0, True, 3.0),    # alpha / √rank
    (0.0, True, 2.0),
])   # fmt: skip
def test_layers_with_their_own_rank_have_the_scale_of_the_settings(alpha: float, stabilized: bool, scale: float):
    """A rank is a layer's number of directions: how strongly each of them acts must not change with it."""
    settings = {"rank": 4, "alpha": alpha, "stabilized": stabilized}
    adapters = create_adapters("lora", settings, SPECS, RANKS)
    with torch.no_grad():
        for value in adapters.parameters():
            value.normal_()
    for adapter in adapters:
        up, down = adapter.get_parameter("up"), adapter.get_parameter("down")
        assert up.shape[1] == RANKS.get(adapter.spec.name, 4)
        assert_close(adapter.delta(torch.zeros(adapter.spec.shape)), scale * up @ down)

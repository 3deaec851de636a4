"""Strengths by block: the same as scaling the weights by hand, merged and live, and never another block's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from atelier.adapters.attach.merge import merge
from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.settings import SettingError
from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.low_rank import weight_changes
from atelier.adapters.fusion.blocks import block_of, blocks_of, scale_blocks
from atelier.adapters.fusion.curves import StrengthCurve
from atelier.adapters.fusion.live import Fusion, WeightedAdapter, mount_fusion
from atelier.adapters.fusion.methods import combine
from atelier.adapters.kinds.catalog import create_adapters

LAYERS = ("down_blocks.0.attentions.0.to_q", "mid_block.attentions.0.to_q", "up_blocks.1.attentions.2.to_q")


class Tower(nn.Module):
    """Three linear layers with the names of a UNet's."""

    def __init__(self) -> None:
        super().__init__()
        for name in LAYERS:
            parent = self
            *path, last = name.split(".")
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(last, nn.Linear(6, 6))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        del timestep
        for name in LAYERS:
            x = torch.tanh(self.get_submodule(name)(x))
        return x


@pytest.fixture
def model() -> Tower:
    torch.manual_seed(0)
    return Tower()


@pytest.fixture
def adapters(model: Tower) -> AdapterSet:
    made = create_adapters("lora", {"rank": 2}, find_targets({"unet": model}, "all"))
    for each in made:
        for parameter in each.parameters():
            nn.init.normal_(parameter)
    return made


STRENGTHS = {"down.0.0": 0.0, "up.1.2": -0.5}


def by_hand(model: Tower, adapters: AdapterSet, x: Tensor) -> Tensor:
    """W + strength · block · up @ down, layer by layer."""
    for name, factor in zip(LAYERS, (0.0, 1.0, -0.5), strict=True):
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        up, down = adapters[f"unet.{name}"].factors() or (torch.empty(0), torch.empty(0))
        x = torch.tanh(nn.functional.linear(x, layer.weight + 0.7 * factor * up @ down, layer.bias))
    return x


@torch.no_grad()
def test_blocks_scale_their_own_layers_however_the_adapter_is_attached(model: Tower, adapters: AdapterSet) -> None:
    x, t = torch.randn(4, 6), torch.tensor(500)
    wanted, models = by_hand(model, adapters, x), {"unet": model}
    scaled = scale_blocks(adapters, STRENGTHS)
    for attach in (merge, mount):
        with attach(models, Mix(((scaled, 0.7),))):
            assert torch.allclose(model(x, t), wanted, atol=1e-6)
    constant = StrengthCurve((1.0, 1.0))
    with mount_fusion(models, Fusion((WeightedAdapter(scaled, 0.7, constant),))):
        assert torch.allclose(model(x, t), wanted, atol=1e-6)
    changes = {change.spec.name: change.matrix() for change in weight_changes(Mix(((scaled, 0.7),)), lambda _: x)}
    assert set(changes) == {f"unet.{name}" for name in LAYERS[1:]}
    assert len(adapters) == 3 and adapters.scale_of(f"unet.{LAYERS[2]}") == 1, "the adapter itself is as it was"


def test_every_layer_has_a_block_in_the_order_of_the_forward_pass() -> None:
    assert [block_of(f"unet.{name}") for name in LAYERS] == ["down.0.0", "mid", "up.1.2"]
    assert blocks_of([*(f"unet.{name}" for name in reversed(LAYERS)), "text_encoder_2.a", "unet.time_embedding.x",
                      "unet.down_blocks.0.downsamplers.0.conv", "unet.down_blocks.0.resnets.1.conv1"]) == [
        "text", "outer", "down.0.0", "down.0.1", "down.0.sampler", "mid", "up.1.2"]   # fmt: skip


def test_halves_are_not_joined_without_a_word_when_a_block_has_its_own_strength() -> None:
    models, parts = {"unet": Tower()}, []
    for role in ("content", "style"):
        adapters = create_adapters("split", {"rank": 4, "role": role}, find_targets(models, "all"))
        parts.append(WeightedAdapter(adapters, 1.0))
    combine(models, parts, "break-for-make", steps=4)
    for strength in (0.0, 0.5):
        scaled = replace(parts[1], adapters=scale_blocks(parts[1].adapters, {"mid": strength}))
        with pytest.raises(SettingError, match="strengths of single blocks"):
            combine(models, [parts[0], scaled], "break-for-make", steps=4)

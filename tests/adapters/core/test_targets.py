"""Which layers an adapter changes, counted on the real shape of Stable Diffusion 1.5."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from atelier.adapters.core.settings import SettingError
from atelier.adapters.core.targets import TARGETS, find_targets


@pytest.fixture(scope="module")
def sd15() -> dict[str, nn.Module]:
    """The two models with no memory behind their weights. The UNet's defaults are 1.5's but for these."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    return {"unet": unet, "text_encoder": text}


@pytest.mark.parametrize(
    ("choice", "layers"),
    # 16 blocks × 2 attentions × 4; with 2 feed-forward layers and 2 projections each; with 44 block convolutions,
    # 14 shortcuts and 3 + 3 between sizes.
    [("attention", 16 * 2 * 4), ("transformer", 16 * (2 * 4 + 2 + 2)), ("all", 16 * 12 + 44 + 14 + 6)],
)
def test_counts_on_stable_diffusion(sd15: dict[str, nn.Module], choice: str, layers: int):
    specs = find_targets({"unet": sd15["unet"]}, choice)
    assert len(specs) == layers
    assert len({spec.name for spec in specs}) == layers


def test_specs_tell_the_true_shapes(sd15: dict[str, nn.Module]):
    for spec in find_targets(sd15, "all"):
        component, _, name = spec.name.partition(".")
        assert spec.shape == tuple(sd15[component].get_parameter(f"{name}.weight").shape)


def test_text_encoder_is_covered_whole(sd15: dict[str, nn.Module]):
    specs = find_targets({"text_encoder": sd15["text_encoder"]}, "attention")
    linears = [m for m in sd15["text_encoder"].modules() if isinstance(m, nn.Linear)]
    assert len(specs) == len(linears) == 12 * 6


@pytest.mark.parametrize("choice", TARGETS)
def test_every_choice_reaches_the_layers_that_tell_the_family(sd15: dict[str, nn.Module], choice: str):
    names = [spec.name for spec in find_targets(sd15, choice)]
    assert sum(name.endswith(("attn2.to_k", "attn2.to_v")) for name in names) == 32


def test_every_choice_holds_the_one_before(sd15: dict[str, nn.Module]):
    attention, transformer, everything = (
        {spec.name for spec in find_targets(sd15, choice)} for choice in ("attention", "transformer", "all")
    )
    assert attention < transformer < everything


def test_an_unknown_choice_is_answered_with_the_choices(sd15: dict[str, nn.Module]):
    with pytest.raises(SettingError, match="targets is 'most', but it must be one of: attention, transformer, all"):
        find_targets(sd15, "most")


def test_a_model_without_targets_is_named():
    with pytest.raises(SettingError, match="No layer of unet matches the targets 'attention'"):
        find_targets({"unet": nn.Linear(3, 3)}, "attention")

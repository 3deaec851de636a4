"""Parameters on the true UNets, with no memory behind them: against the published tables and against PEFT."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from atelier.adapters.core.base import Spec
from atelier.adapters.core.targets import find_targets
from atelier.adapters.kinds.catalog import KINDS

# Attention layers of Stable Diffusion 1.5, 128 of them. Counts published for the first ones in TLoRA's table (0.80,
# 0.90, 0.94 and 0.40 million); the others were worked out by hand from the papers' formulas.
SD15: list[tuple[str, dict[str, Any], int]] = [
    ("lora", {"rank": 1}, 199_296),
    ("lora", {"rank": 4}, 797_184),
    ("dora", {"rank": 4}, 897_024),
    ("tlora", {"rank": 4, "ring": 2, "residual": "lora"}, 938_200),
    ("tlora", {"rank": 6, "ring": 2}, 394_528),
    ("wara", {"rank": 1}, 398_592),
    ("wara", {"rank": 2}, 797_184),
    ("wara", {"rank": 1, "levels": 2}, 498_240),
    ("wara", {"rank": 1, "levels": 3}, 548_064),
    ("lorta", {"rank": 4}, 20_832),
    ("lorta", {"rank": 32}, 166_656),
    ("lorta", {"rank": 64}, 333_312),
    # 150,650 where the rank is split into modes as well; one core for it is smaller and loses nothing.
    ("loretta", {"rank": 8, "bond": 5}, 137_850),
    ("lokr", {"rank": 4, "factor": 8}, 107_840),
    ("miss", {"rank": 16}, 1_597_440),
    ("paca", {"rank": 4}, 399_360),
    ("randlora", {"rank": 32}, 2_798_080),
    ("hydra", {"rank": 4}, 1_595_904),
    ("lora-xs", {"rank": 32}, 131_072),
    ("loldu", {"rank": 32}, 4_224),
    ("svdiff", {}, 93_696),
    ("soda", {}, 128_950 - 19_392),   # the authors count whole matrices where a rotation needs a triangle
    ("waveft", {"count": 2592}, 128 * 2592),
    ("wht", {"count": 2592}, 128 * 2592),
    ("shira", {"rank": 4}, 797_184),
    ("sara", {"rank": 4}, 797_184),
    ("dylora", {"rank": 4}, 797_184),
    ("oft", {}, 1_547_520),
    ("oft", {"block": 8}, 349_440),
    ("split", {"rank": 64}, 12_754_944 // 2),   # half of each factor is frozen
]
PEFT: list[tuple[str, dict[str, Any], Any]] = [
    ("lora", {"rank": 4}, peft.LoraConfig(r=4)),
    ("dora", {"rank": 4}, peft.LoraConfig(r=4, use_dora=True)),
    ("miss", {"rank": 16}, peft.MissConfig(r=16)),
    ("waveft", {"count": 2592}, peft.WaveFTConfig(n_frequency=2592)),
]


@pytest.fixture(scope="module")
def sd15() -> nn.Module:
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


@pytest.fixture(scope="module")
def sdxl() -> nn.Module:
    plan: Any = UNet2DConditionModel   # its signature is narrower than what SDXL's own configuration says
    with torch.device("meta"):
        return plan(
            sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048,
            down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
            up_block_types=(*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20), use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        )


def count(kind: str, settings: dict[str, Any], specs: list[Spec]) -> int:
    return KINDS[kind].total_count(specs, KINDS[kind].settings.from_dict(settings))


@pytest.mark.parametrize(("kind", "settings", "expected"), SD15)
def test_counts_on_stable_diffusion_1(sd15: nn.Module, kind: str, settings: dict[str, Any], expected: int):
    assert count(kind, settings, find_targets({"unet": sd15}, "attention")) == expected


@pytest.mark.parametrize(("kind", "settings", "config"), PEFT, ids=[row[0] for row in PEFT])
def test_peft_counts_the_same_on_sdxl(sdxl: nn.Module, kind: str, settings: dict[str, Any], config: Any):
    config.target_modules = ["to_q", "to_k", "to_v", "to_out.0"]
    block: Any = sdxl.get_submodule("down_blocks.1")   # every shape of attention that SDXL has at width 640
    specs = find_targets({"unet": block}, "attention")
    with torch.device("meta"):
        adapted = peft.inject_adapter_in_model(copy.copy(config), copy.deepcopy(block))
    theirs = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert count(kind, settings, specs) == theirs


def test_every_kind_fits_all_of_sdxl(sdxl: nn.Module):
    specs = find_targets({"unet": sdxl}, "all")
    assert len(specs) == 771
    lora = count("lora", {"rank": 4}, specs)
    assert lora == sum(4 * (spec.rows + spec.columns) for spec in specs) == 12_154_880
    for kind, cls in KINDS.items():
        if kind in ("dynamic-sparse", "full"):   # they train all weights; the first keeps few of them
            continue
        assert 0 < count(kind, {}, specs) < 50_000_000, cls.title

"""What a drawing is said to need: against what it takes on a device that counts, and against the cards people have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend_device import pretend_device

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_info import BaseError, BaseInfo
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.base_models.memory_count import empty_parts
from atelier.training.base_models.single_file import MODELS
from atelier.training.sampling import draw_memory
from atelier.training.sampling.draw_cache import DrawCache
from atelier.training.sampling.draw_memory import estimate_drawing, plan_drawing
from atelier.training.sampling.draw_savings import DrawSavings, describe_draw_savings, next_draw_saving
from atelier.training.sampling.sample import DrawRequest, draw

NPU = torch.device("privateuseone")   # the pretended one, before it has a name
ALL = DrawSavings(*(True for _ in fields(DrawSavings)))
GB = 10**9


def ladder(device: torch.device) -> list[DrawSavings]:
    found: list[DrawSavings] = []
    savings: DrawSavings | None = DrawSavings()
    while savings is not None:
        found.append(savings)
        savings = next_draw_saving(savings, device)
    return found


def test_savings_come_in_order_and_where_they_help():
    with pretend_device():
        assert [sum(getattr(one, field.name) for field in fields(one)) for one in ladder(NPU)] == list(range(7))
        assert ladder(NPU)[-1] == ALL
    with pretend_device(bf16=False):
        assert ladder(NPU)[-1] == replace(ALL, half_vae=False)
    assert ladder(torch.device("cpu"))[-1] == replace(ALL, half_vae=False, offload=False)


def test_savings_are_said_in_words():
    assert describe_draw_savings(DrawSavings()) == ""
    assert describe_draw_savings(ALL).count(";") == len(fields(DrawSavings)) - 1


def two_loras(unet: Any, rank: int, targets: str) -> list[AdapterSet]:
    with torch.device(next(unet.parameters()).device):
        return [create_adapters("lora", {"rank": rank}, find_targets({"unet": unet}, targets)) for _ in range(2)]


@pytest.fixture(scope="module")
def request_of_two() -> DrawRequest:
    """Large enough for the activations to count, with a tiny model."""
    return DrawRequest(prompt="a fox", steps=1, count=2, width=256, height=256)


@pytest.mark.parametrize("level", [0, *(pytest.param(level, marks=pytest.mark.slow) for level in range(1, 6)), 6])
def test_the_estimate_is_what_a_drawing_takes(base: Path, request_of_two: DrawRequest, level: int):
    with pretend_device() as device:
        savings = ladder(NPU)[level]
        model = load(str(base), NPU, torch.float32, in_8_bits=savings.in_8_bits,
                     resident=("unet",) if savings.offload else None)   # fmt: skip
        if savings.half_vae:
            model.offload(model.vae)
        adapters = [each.to(NPU) for each in two_loras(load(str(base), "cpu").unet, 4, "transformer")]
        before = device.allocated   # weights and adapters
        device.forget()
        mix = Mix(tuple((each, 0.5) for each in adapters))
        draw(model, request_of_two, mix, cache=DrawCache(savings=savings))
        need = estimate_drawing(model.info, request_of_two, adapters, torch.float32, savings)
        assert device.peak <= 1.02 * need.peak
        # Without what is there before: weights would hide the rest.
        assert need.peak - before < 1.6 * (device.peak - before)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The bytes of the card that is pretended."""
    size = [8 * GB]
    monkeypatch.setattr(draw_memory, "available_memory", lambda _: int(0.95 * size[0]))
    with pretend_device():
        yield size


def base_of(family: str) -> tuple[BaseInfo, list[AdapterSet]]:
    """A base model of true size, and two LoRAs of rank 16 on it; neither has weights."""
    info = BaseInfo(
        source=family, title=family, family=family, prediction_type="epsilon",
        resolution={"sd1": 512, "sdxl": 1024}[family], vae_scale_factor=8, size_multiple=64, channels=320,
        folder=MODELS / family, caption="",
    )   # fmt: skip
    return info, two_loras(empty_parts(info, torch.float16)["unet"], 16, "transformer")


def test_stable_diffusion_1_draws_four_pictures_with_two_loras_on_4_gb(cards: list[int]):
    info, loras = base_of("sd1")
    cards[0] = 4 * GB
    plan = plan_drawing(info, DrawRequest(count=4), loras, torch.float16, NPU)
    assert not plan.savings.in_8_bits and not plan.savings.mount
    assert plan.needed > 6 * GB   # without savings
    assert "6.3 GB" in plan.notice and "one at a time" in plan.notice


@pytest.mark.slow
def test_stable_diffusion_xl_draws_with_two_loras_on_8_gb(cards: list[int]):
    info, loras = base_of("sdxl")
    one, four = DrawRequest(), DrawRequest(count=4)
    plan = plan_drawing(info, one, loras, torch.float16, NPU)
    assert not plan.savings.in_8_bits
    assert plan.savings.mount and plan.savings.offload and plan.savings.tiles
    assert not plan.savings.half_vae   # offloading has made it needless
    assert plan_drawing(info, four, loras, torch.float16, NPU).savings.decode_singly
    need = estimate_drawing(info, four, [], torch.float16, replace(ALL, in_8_bits=False))
    assert need.peak - need.unet <= 5 * GB
    cards[0] = 24 * GB
    assert plan_drawing(info, one, loras, torch.float16, NPU).savings == DrawSavings()
    cards[0] = 4 * GB
    with pytest.raises(BaseError, match=r"needs about 4\.7 GB .* 3\.8 GB is free"):
        plan_drawing(info, one, loras, torch.float16, NPU)


def test_what_is_held_counts_as_free(cards: list[int]):
    info, _ = base_of("sd1")
    cards[0] = 2 * GB
    assert plan_drawing(info, DrawRequest(), [], torch.float16, NPU).savings != DrawSavings()
    assert plan_drawing(info, DrawRequest(), [], torch.float16, NPU, held=2 * GB).savings == DrawSavings()


def test_where_there_is_plenty_nothing_is_counted(monkeypatch: pytest.MonkeyPatch, model: BaseModel):
    monkeypatch.setattr(draw_memory, "estimate_drawing", None)
    assert plan_drawing(model.info, DrawRequest(), [], torch.float32, torch.device("cpu")).savings == DrawSavings()


def test_bfloat16_is_not_merged_into(cards: list[int]):
    info, loras = base_of("sd1")
    counted = estimate_drawing(info, DrawRequest(), loras, torch.bfloat16, DrawSavings())
    assert counted.merged == 0 < estimate_drawing(info, DrawRequest(), loras, torch.float16, DrawSavings()).merged

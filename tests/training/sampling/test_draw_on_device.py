"""Every adapter kind and every way of mixing, on a device with memory of its own (``pretend_device.py``).

Adapters come from files, as they do in the Studio, and what the UNet predicts is compared with what it predicts on the
CPU. The whole matrix of kinds and methods is slow; each kind is merged, mounted and fused by one method every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from pretend_device import Pretended, PretendTensor, pretend_device
from torch import Tensor

from atelier.adapters.attach.merge import merge
from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.native import load_adapter, save_adapter
from atelier.adapters.fusion.gates import GateSet, GateSettings
from atelier.adapters.fusion.live import WeightedAdapter, mount_fusion
from atelier.adapters.fusion.methods import METHODS, combine
from atelier.adapters.kinds.catalog import KINDS, create_adapters
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.data.latent_cache import encode_text, tokenize
from atelier.training.sampling.draw_cache import DrawCache
from atelier.training.sampling.draw_savings import DrawSavings
from atelier.training.sampling.sample import DrawRequest, draw
from atelier.training.sampling.samplers import SAMPLERS

REQUEST = DrawRequest(prompt="a fox", steps=2)
BESIDE = dict(zip(KINDS, METHODS * len(KINDS), strict=False))   # the quick suite's choice


@dataclass(frozen=True)
class Twins:
    """One base model on the pretended device and on the CPU, and adapter files for it."""

    device: Pretended
    far: BaseModel
    near: BaseModel
    files: Path

    def adapters(self, kind: str, model: BaseModel) -> AdapterSet:
        return load_adapter(self.files / f"{kind}.safetensors", model.device)

    def compare(self, attached: Callable[[BaseModel], AbstractContextManager[None]]) -> None:
        """What the UNet predicts in both places is the same."""
        found = []
        for model in (self.far, self.near):
            with torch.inference_mode(), attached(model):
                found.append(prediction(model))
        assert isinstance(found[0], PretendTensor)
        torch.testing.assert_close(found[0].cpu(), found[1], rtol=1e-3, atol=1e-4)


def specs_of(model: BaseModel) -> list[Spec]:
    """Two attentions: enough for every way of attaching."""
    return find_targets({"unet": model.unet}, "attention")[:8]


def prediction(model: BaseModel) -> Tensor:
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).to(model.device)
    text = encode_text(model, tokenize(model, ["a fox", ""]))
    return model.predict(noise, torch.tensor([500, 500], device=model.device), text, [])


@pytest.fixture(scope="module")
def twins(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    near, files = load(str(base), "cpu"), tmp_path_factory.mktemp("adapters")
    for kind in KINDS:
        torch.manual_seed(1)
        adapters = create_adapters(kind, {}, specs_of(near))
        with torch.no_grad():
            for parameter in adapters.parameters():
                parameter.add_(0.01)
        save_adapter(files / f"{kind}.safetensors", adapters, {})
    with pretend_device() as device:
        yield Twins(device, load(str(base), "npu", torch.float32), near, files)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_acts_there_as_on_the_cpu(twins: Twins, kind: str):
    def mix(model: BaseModel) -> Mix:
        return Mix(((twins.adapters(kind, model), 0.8),))

    twins.compare(lambda model: mount(model.models(), mix(model)))
    if not mix(twins.near).live():
        twins.compare(lambda model: merge(model.models(), mix(model)))
    fuse(twins, kind, BESIDE[kind])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_fused_there_by_each_method(twins: Twins, kind: str, method: str):
    fuse(twins, kind, method)


def fuse(twins: Twins, kind: str, method: str) -> None:
    """A LoRA beside it."""
    def attached(model: BaseModel) -> AbstractContextManager[None]:
        parts = [WeightedAdapter(twins.adapters(kind, model), 0.8), WeightedAdapter(twins.adapters("lora", model), 0.5)]
        torch.manual_seed(3)   # of what DARE drops
        mix = combine(model.models(), parts, method, steps=2, gates=gates(model))
        return mount(model.models(), mix) if isinstance(mix, Mix) else mount_fusion(model.models(), mix)

    twins.compare(attached)


def gates(model: BaseModel) -> GateSet:
    torch.manual_seed(2)
    return GateSet(specs_of(model), GateSettings(start="faithful"), "tiny").requires_grad_(False).to(model.device)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_drawing_waits_for_the_device_before_its_first_step_alone(twins: Twins, sampler: str):
    def waits(steps: int) -> int:
        twins.device.forget()
        request = replace(REQUEST, sampler=sampler, steps=steps)
        draw(twins.far, request, Mix(((twins.adapters("lora", twins.far), 1.0),)), lambda *_: None)
        return sum(twins.device.waits.values())

    assert waits(2) == waits(5)


@pytest.mark.parametrize("kind", [kind if kind in ("dora", "tlora") else pytest.param(kind, marks=pytest.mark.slow)
                                  for kind in KINDS])
def test_no_kind_waits_for_the_device_in_a_step(twins: Twins, kind: str):
    adapters = twins.adapters(kind, twins.far)

    def waits(steps: int, cache: DrawCache) -> int:
        twins.device.forget()
        draw(twins.far, replace(REQUEST, steps=steps), Mix(((adapters, 0.8),)), cache=cache)
        return sum(twins.device.waits.values())

    for savings in (DrawSavings(), DrawSavings(mount=True)):
        waits(1, cache := DrawCache(savings))   # what is computed once
        assert waits(2, cache) == waits(5, cache), twins.device.waits


@pytest.mark.parametrize("method", METHODS)
def test_a_fusion_waits_for_the_device_before_its_first_step_alone(twins: Twins, method: str):
    def waits(steps: int) -> int:
        parts = [WeightedAdapter(twins.adapters(kind, twins.far), 0.5) for kind in ("lora", "lokr")]
        mix = combine(twins.far.models(), parts, method, steps=steps, gates=gates(twins.far))
        twins.device.forget()
        draw(twins.far, replace(REQUEST, steps=steps), mix)
        return sum(twins.device.waits.values())

    assert waits(2) == waits(4)


def test_pictures_and_latent_previews_come_from_there(twins: Twins):
    seen: list[object] = []
    pictures = draw(twins.far, replace(REQUEST, count=2), on_latent_preview=seen.append, cache=DrawCache())
    assert [picture.size for picture in pictures] == [(32, 32)] * 2
    assert seen


def test_text_encoders_that_wait_in_main_memory_are_fetched(twins: Twins):
    encoder = twins.far.text_encoder
    twins.far.offload(encoder)
    assert encoder.device.type == "cpu"
    assert isinstance(encode_text(twins.far, tokenize(twins.far, ["a fox"])).features, PretendTensor)
    assert encoder.device.type == "cpu"


def test_products_of_float32_use_what_the_card_has_for_them(twins: Twins):
    assert torch.get_float32_matmul_precision() == "high"


def test_the_pretended_device_is_strict(twins: Twins):
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(2, device="npu") + torch.ones(2)
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(2, device="npu", generator=torch.Generator())
    assert (torch.ones(2, device="npu") + torch.tensor(1.0)).tolist() == [2, 2]
    assert torch.arange(3, device="npu")[torch.tensor([2])].item() == 2


def test_the_pretended_device_counts_its_memory():
    with pretend_device(gigabytes=0.001) as device:
        kept = torch.zeros(200_000, device="npu")
        assert device.allocated == 800_000
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(100_000, device="npu")
        del kept
        assert (device.allocated, device.peak) == (0, 800_000)

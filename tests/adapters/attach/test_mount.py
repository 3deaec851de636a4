"""Mounting and merging beyond the laws: several layers, several parts of a pipeline, and what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from atelier.adapters.attach.merge import merge
from atelier.adapters.attach.mount import MountError, find_target_modules, mount
from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.kinds.catalog import create_adapters


@pytest.fixture
def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    unet = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, 4, 1))
    return {"unet": unet, "text_encoder": nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 5))}


def adapters_for(models: dict[str, nn.Module], *names: str, seed: int = 0) -> AdapterSet:
    specs = []
    for name in names:
        component, _, module = name.partition(".")
        specs.append(Spec(name, tuple(models[component].get_parameter(f"{module}.weight").shape)))
    torch.manual_seed(seed)
    adapters = create_adapters("lora", {"rank": 2}, specs)
    for parameter in adapters.parameters():
        nn.init.normal_(parameter, std=0.3)
    return adapters


def outputs(models: dict[str, nn.Module]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    image, words = torch.randn(1, 4, 5, 5, generator=generator), torch.randn(1, 3, 5, generator=generator)
    with torch.no_grad():
        return [models["unet"](image), models["text_encoder"](words)]


def hooks(models: dict[str, nn.Module]) -> int:
    return sum(len(module._forward_hooks) for model in models.values() for module in model.modules())


def equal(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(left, right, strict=True)]


@pytest.mark.parametrize("attach", [mount, merge])
def test_unet_and_text_encoder_together(models: dict[str, nn.Module], attach):
    base = outputs(models)
    with attach(models, Mix(((adapters_for(models, "unet.0", "unet.2", "text_encoder.1"), 1.0),))):
        assert equal(outputs(models), base) == [False, False]
    assert equal(outputs(models), base) == [True, True]


@pytest.mark.parametrize("attach", [mount, merge])
def test_only_named_layers_change(models: dict[str, nn.Module], attach):
    base = outputs(models)
    with attach(models, Mix(((adapters_for(models, "text_encoder.0"), 1.0),))):
        assert equal(outputs(models), base) == [True, False]


def test_strength_zero_is_not_even_attached(models: dict[str, nn.Module]):
    base = outputs(models)
    weights = {name: p.data_ptr() for name, p in models["unet"].named_parameters()}
    mix = Mix(((adapters_for(models, "unet.0"), 0.0),))
    with mount(models, mix):
        assert hooks(models) == 0
        assert equal(outputs(models), base) == [True, True]
    with merge(models, mix):
        assert {name: p.data_ptr() for name, p in models["unet"].named_parameters()} == weights


def test_strength_zero_of_a_misfit_harms_nothing(models: dict[str, nn.Module]):
    misfit = create_adapters("lora", {}, [Spec("unet.9", (3, 3))])
    with mount(models, Mix(((misfit, 0.0),))):
        assert hooks(models) == 0


def test_the_same_adapter_twice_counts_twice(models: dict[str, nn.Module]):
    adapters = adapters_for(models, "text_encoder.1")
    with mount(models, Mix(((adapters, 0.25), (adapters, 0.5)))):
        twice = outputs(models)
    with mount(models, Mix(((adapters, 0.75),))):
        assert_close(outputs(models), twice)


def test_mounts_nest(models: dict[str, nn.Module]):
    a, b = adapters_for(models, "unet.0"), adapters_for(models, "unet.0", seed=1)
    with mount(models, Mix(((a, 0.5), (b, 2.0)))):
        flat = outputs(models)
    with mount(models, Mix(((a, 0.5),))):
        outer = outputs(models)
        with mount(models, Mix(((b, 2.0),))):
            assert_close(outputs(models), flat)
        assert equal(outputs(models), outer) == [True, True]
    assert hooks(models) == 0


def test_merges_nest(models: dict[str, nn.Module]):
    a, b = adapters_for(models, "unet.0"), adapters_for(models, "unet.0", seed=1)
    base = outputs(models)
    with merge(models, Mix(((a, 0.5),))):
        outer = outputs(models)
        with merge(models, Mix(((b, 2.0),))):
            assert equal(outputs(models), outer) == [False, True]
        assert equal(outputs(models), outer) == [True, True]
    assert equal(outputs(models), base) == [True, True]


def test_a_failing_forward_unmounts(models: dict[str, nn.Module]):
    adapters = adapters_for(models, "unet.0", "unet.2")
    with pytest.raises(RuntimeError), mount(models, Mix(((adapters, 1.0),))):
        models["unet"](torch.zeros(1, 99, 5, 5))
    assert hooks(models) == 0


def test_mounting_trains_the_adapter_and_not_the_base(models: dict[str, nn.Module]):
    models["unet"].requires_grad_(False)
    adapters = adapters_for(models, "unet.0")
    with mount(models, Mix(((adapters, 1.0),))):
        models["unet"](torch.randn(1, 4, 5, 5)).sum().backward()
    assert all(p.grad is not None for p in adapters.parameters())
    assert all(p.grad is None for p in models["unet"].parameters())


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (Spec("unet.0", (6, 4, 1, 1)), r"unet\.0 is \(6, 4, 3, 3\) here and \(6, 4, 1, 1\) in the adapter"),
        (Spec("unet.7", (6, 4)), r"unet\.7 is missing"),
        (Spec("unet.1", (6, 4)), r"unet\.1 is \(\) here"),
        (Spec("text_encoder_2.0", (6, 4)), r"text_encoder_2\.0 is missing"),
    ],
    ids=["shape", "layer", "layer without weight", "component"],
)
def test_a_misfit_is_named(models: dict[str, nn.Module], spec: Spec, why: str):
    with pytest.raises(MountError, match=why):
        find_target_modules(models, create_adapters("lora", {}, [spec]))


def test_a_misfit_message_counts_and_tells_the_cure(models: dict[str, nn.Module]):
    adapters = create_adapters("lora", {}, [Spec(f"unet.{n}", (6, 4, 3, 3)) for n in (0, 7, 8, 9, 10)])
    with pytest.raises(MountError, match=r"4 of 5 layers don't match.*Choose the base model it was trained") as error:
        find_target_modules(models, adapters)
    assert "unet.10" not in str(error.value), "a long list helps nobody"


def test_a_forward_that_another_library_replaced_comes_back(models: dict[str, nn.Module]):
    layer = models["text_encoder"].get_submodule("0")
    replaced = layer.forward
    layer.forward = replaced   # type: ignore[method-assign]  # on the object itself, as offloading libraries do
    mix = Mix(((adapters_for(models, "text_encoder.0"), 1.0),))
    with pytest.raises(RuntimeError, match="halfway"), mount(models, mix):
        assert layer.forward is not replaced
        raise RuntimeError("halfway")
    assert layer.__dict__["forward"] is replaced


def test_an_untouched_layer_gets_its_own_forward_back(models: dict[str, nn.Module]):
    layer = models["text_encoder"].get_submodule("0")
    with mount(models, Mix(((adapters_for(models, "text_encoder.0"), 1.0),))):
        assert "forward" in layer.__dict__
    assert "forward" not in layer.__dict__


class Casts(TorchDispatchMode):
    """Counts casts to another precision."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.overloadpacket.__name__ == "_to_copy"
        return function(*args, **(kwargs or {}))


def test_all_factors_are_cast_at_once_and_learn_the_same_to_the_last_bit():
    torch.manual_seed(0)
    unet = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))).to(torch.bfloat16).requires_grad_(False)
    adapters = adapters_for({"unet": unet}, *(f"unet.{i}" for i in range(4)))
    x, found, casts = torch.randn(3, 8).bfloat16(), [], []

    def layer_by_layer(x: Tensor) -> Tensor:
        for layer in unet:   # the model itself is not called
            x = layer(x)
        return x

    for call in (unet, layer_by_layer):
        adapters.zero_grad()
        with mount({"unet": unet}, Mix(((adapters, 0.5),))), Casts() as counter:
            call(x).float().square().sum().backward()
        found.append([p.grad for p in adapters.parameters()])
        casts.append(counter.count)
    assert equal(*found)
    assert casts[1] - casts[0] == 2 * (2 * 4 - 1), "eight factors, forth and back"


def test_factors_that_changed_are_cast_again():
    unet = nn.Sequential(nn.Linear(4, 4)).to(torch.bfloat16).requires_grad_(False)
    adapters, x = adapters_for({"unet": unet}, "unet.0"), torch.ones(1, 4).bfloat16()
    with torch.no_grad(), mount({"unet": unet}, Mix(((adapters, 1.0),))):
        before = unet(x)
        for parameter in adapters.parameters():
            parameter.mul_(2)
        assert not torch.equal(unet(x), before)

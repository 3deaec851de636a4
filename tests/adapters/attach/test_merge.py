"""Merged weights that are kept: always those of a fresh merge, and the base as it was, to the last bit."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from atelier.adapters.attach.merge import MergeCache, merge
from atelier.adapters.core.base import Adapter, AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.initialization.initialize import initialize
from atelier.adapters.kinds.catalog import create_adapters

KINDS = ("lora", "wara", "dora", "shira", "lokr", "sara")


@pytest.fixture(params=[torch.float32, torch.float16], ids=["float32", "float16"])
def models(request: pytest.FixtureRequest) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    unet = nn.Sequential(nn.Linear(20, 16), nn.Conv2d(4, 6, 3), nn.Linear(16, 20)).to(request.param)
    return {"unet": unet.requires_grad_(False)}


def adapters(models: dict[str, nn.Module], kind: str, *places: int, seed: int = 0) -> AdapterSet:
    torch.manual_seed(seed)
    specs = [Spec(f"unet.{i}", tuple(models["unet"].get_parameter(f"{i}.weight").shape)) for i in places or (0, 1, 2)]
    found = create_adapters(kind, {}, specs)
    initialize(found, models)
    for parameter in found.parameters():
        nn.init.normal_(parameter, std=0.1)
    return found.requires_grad_(False)


def weights(models: dict[str, nn.Module]) -> list[Tensor]:
    return [parameter.data.clone() for parameter in models["unet"].parameters()]


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def inside(models: dict[str, nn.Module], merges: MergeCache, mix: Mix) -> list[Tensor]:
    with merges.merge(models, mix):
        return weights(models)


def test_a_hundred_rounds_leave_the_base_as_it_was_and_are_each_a_fresh_merge(models):
    base, dice = weights(models), random.Random(0)
    sets = [adapters(models, kind, seed=i) for i, kind in enumerate(KINDS)]
    merges = MergeCache()
    for _ in range(100):
        chosen = dice.sample(sets, dice.randint(0, 4))
        mix = Mix(tuple((one, dice.choice((-1.0, 0.0, 0.5, 0.5, 1.3))) for one in chosen))
        kept = inside(models, merges, mix)
        assert equal(weights(models), base)
        assert equal(kept, inside(models, MergeCache(), mix))
        assert equal(kept, base) == (not list(mix.active()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_is_the_weight_and_all_updates_in_float64(models, kind: str):
    sets = [(adapters(models, kind, seed=i), strength) for i, strength in enumerate((0.7, -1.2))]
    weights = inside(models, MergeCache(), Mix(tuple(sets)))
    found = dict(zip(dict(models["unet"].named_parameters()), weights, strict=True))
    for i in range(3):
        weight = models["unet"].get_parameter(f"{i}.weight")
        exact = weight.double() + sum(s * one[f"unet.{i}"].delta(weight).double() for one, s in sets)
        torch.testing.assert_close(found[f"{i}.weight"].double(), exact, rtol=torch.finfo(weight.dtype).eps, atol=1e-6)


def counted(monkeypatch: pytest.MonkeyPatch, adapter: Adapter, name: str) -> list[str]:
    calls: list[str] = []
    plain: Callable = getattr(type(adapter), name)
    monkeypatch.setattr(type(adapter), name, lambda self, *a: (calls.append(self.spec.name), plain(self, *a))[1])
    return calls


@pytest.mark.parametrize(
    ("kind", "method"), [("lora", "factors"), ("loretta", "structured_factors"), ("dora", "delta")]
)
def test_a_slider_that_moves_computes_no_update_again(models, kind: str, method: str, monkeypatch):
    one, other = adapters(models, kind), adapters(models, kind, seed=1)
    merges, calls = MergeCache(), counted(monkeypatch, one["unet.0"], method)
    inside(models, merges, Mix(((one, 1.0), (other, 1.0))))
    assert len(calls) == 6
    first = inside(models, merges, Mix(((one, 1.0), (other, 0.3))))
    assert len(calls) == 6
    assert equal(first, inside(models, MergeCache(), Mix(((one, 1.0), (other, 0.3)))))


def test_layers_that_nothing_moved_are_left_alone(models):
    everywhere, first = adapters(models, "lora"), adapters(models, "lora", 0, seed=1)
    merges = MergeCache()

    def places(strength: float) -> list[int]:
        with merges.merge(models, Mix(((everywhere, 1.0), (first, strength)))):
            return [models["unet"].get_parameter(f"{i}.weight").data_ptr() for i in range(3)]

    before, after = places(0.5), places(0.6)
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, True]
    assert places(0.6) == after


def test_sparse_adapters_are_switched_by_their_entries(models):
    one, other = adapters(models, "shira", 0), adapters(models, "shira", 0, seed=1)
    other["unet.0"].get_buffer("index").copy_((one["unet.0"].get_buffer("index") + 3) % 320)
    merges, weight = MergeCache(), models["unet"].get_parameter("0.weight")
    with merges.merge(models, Mix(((one, 1.0),))):
        place = weight.data_ptr()
        merges._woven[models["unet"].get_submodule("0")].weight.view(-1)[untouched(one, other)] = 7.0
    found = inside(models, merges, Mix(((other, -0.5),)))[0].view(-1)
    with merges.merge(models, Mix(((other, -0.5),))):
        assert weight.data_ptr() == place
    assert bool((found[untouched(one, other)] == 7).all()), "what is no entry was written"
    entries = ~untouched(one, other)
    assert torch.equal(found[entries], inside(models, MergeCache(), Mix(((other, -0.5),)))[0].view(-1)[entries])


def untouched(*sets: AdapterSet) -> Tensor:
    free = torch.ones(320, dtype=torch.bool)
    for one in sets:
        free[one["unet.0"].get_buffer("index").long()] = False
    assert free.any()
    return free


def test_another_base_is_merged_anew(models):
    one, merges = adapters(models, "lora"), MergeCache()
    before = inside(models, merges, Mix(((one, 1.0),)))
    for parameter in models["unet"].parameters():
        parameter.data = parameter.data + 1
    after = inside(models, merges, Mix(((one, 1.0),)))
    assert not equal(before, after)
    with merge(models, Mix(((one, 1.0),))):
        assert equal(after, weights(models))

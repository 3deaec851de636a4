"""Several adapters as one: sums in float64, and cuts against the best there is (Eckart & Young)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet, BaseStatistics, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.low_rank import (
    LowRankLimits,
    WeightChange,
    finished,
    mix_to_lora,
    nearest_low_rank,
    truncated_svd,
    weight_changes,
)
from atelier.adapters.kinds.catalog import KINDS, create_adapters

SPECS = [Spec("unet.0", (30, 20)), Spec("unet.1", (12, 30))]


def trained(kind: str, seed: int, specs: list[Spec] = SPECS) -> AdapterSet:
    torch.manual_seed(seed)
    adapters = create_adapters(kind, {}, specs)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return adapters.double()


def no_weights(name: str) -> Tensor:
    raise AssertionError(f"nothing here depends on {name}")


def test_low_rank_adapters_add_up_exactly_whatever_their_kinds():
    one, two, three = trained("lora", 1), trained("loha", 2, SPECS[:1]), trained("lokr", 3)
    mix = Mix(((one, 0.7), (two, -0.3), (three, 1.5)))
    found = {change.spec.name: change for change in weight_changes(mix, no_weights)}
    zeros = torch.zeros(30, 20, dtype=torch.float64)
    expected = 0.7 * one["unet.0"].delta(zeros) - 0.3 * two["unet.0"].delta(zeros) + 1.5 * three["unet.0"].delta(zeros)
    assert found["unet.0"].pair is not None
    assert_close(found["unet.0"].matrix(), expected, rtol=1e-12, atol=1e-12)
    assert list(found) == ["unet.0", "unet.1"]


def test_one_dense_part_makes_the_layer_dense():
    lora, dora = trained("lora", 1), trained("dora", 2, SPECS[:1])
    weight = torch.randn(30, 20, dtype=torch.float64)
    (first, second) = weight_changes(Mix(((lora, 1.0), (dora, 2.0))), {"unet.0": weight}.__getitem__)
    assert first.pair is None and second.pair is not None
    expected = lora["unet.0"].delta(weight) + 2 * dora["unet.0"].delta(weight)
    assert_close(first.matrix(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "limits", [LowRankLimits(rank=5), LowRankLimits(energy=0.9), LowRankLimits(energy=0.99, rank=3)]
)
@pytest.mark.parametrize("as_pair", [True, False])
def test_a_cut_is_the_best_of_its_rank(limits: LowRankLimits, as_pair: bool):
    generator = torch.Generator().manual_seed(0)
    up, down = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((40, 12), (12, 30)))
    matrix = up @ down
    change = WeightChange(Spec("unet.0", (40, 30)), **({"pair": (up, down)} if as_pair else {"dense": matrix}))
    (left, right), energy = nearest_low_rank(change, limits)
    values = torch.linalg.svdvals(matrix)
    kept = values.square().cumsum(0) / values.square().sum()
    rank = len(right)
    wanted = limits.energy or (1.0 if as_pair else 0.9999)
    assert rank == min(limits.rank or 128, int((kept < min(wanted, 1 - 1e-12)).sum()) + 1)
    assert energy == pytest.approx(kept[rank - 1].item())
    assert (matrix - left @ right).norm().item() == pytest.approx(values[rank:].norm().item(), rel=1e-9, abs=1e-9)


def test_an_exact_pair_is_left_alone_and_never_longer_than_its_layer():
    up, down = torch.randn(6, 4), torch.randn(4, 9)
    (left, right), energy = nearest_low_rank(WeightChange(Spec("unet.0", (6, 9)), pair=(up, down)))
    assert left is up and right is down and energy == 1
    up, down = torch.randn(6, 40).double(), torch.randn(40, 9).double()
    (left, right), _ = nearest_low_rank(WeightChange(Spec("unet.0", (6, 9)), pair=(up, down)))
    assert len(right) == 6
    assert_close(left @ right, up @ down)


def test_large_matrices_are_cut_nearly_as_well_and_always_alike():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 300, generator=generator)).Q for n in (400, 300))
    spectrum = 1 / torch.arange(1, 301)
    matrix = (left * spectrum) @ right.T
    before = torch.random.get_rng_state()
    u, s, v = truncated_svd(matrix, 20)
    assert torch.equal(torch.random.get_rng_state(), before)
    error = (matrix - u[:, :20] * s[:20] @ v[:20]).norm()
    assert len(s) < 40, "it was not the randomized way"
    assert error <= 1.05 * spectrum[20:].norm()
    assert torch.equal(truncated_svd(matrix, 20)[1], s)


def test_a_change_of_nothing_has_rank_one():
    (up, down), energy = nearest_low_rank(WeightChange(Spec("unet.0", (6, 9)), dense=torch.zeros(6, 9)))
    assert (up.shape, down.shape, energy) == ((6, 1), (1, 9), 1.0)
    assert not (up @ down).any()


def test_a_fused_adapter_does_what_the_mix_does():
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 12))
    mix = Mix(((trained("lora", 1).float(), 0.5), (trained("dora", 2).float(), -0.8)))
    weights = {f"unet.{i}": layer.weight.detach() for i, layer in enumerate(model)}
    one = mix_to_lora(mix, weights.__getitem__, LowRankLimits(energy=1.0, rank=30))
    x = torch.randn(5, 20)
    with torch.no_grad():
        with mount({"unet": model}, mix):
            expected = model(x)
        with mount({"unet": model}, Mix(((one, 1.0),))):
            assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_one_module_under_an_old_and_a_new_name_is_one_layer():
    """transformers 5 dropped a level of the names that files keep; both are the same weight."""
    new, old = (Spec(f"text_encoder.{level}encoder.layers.0.mlp.fc1", (30, 20)) for level in ("", "text_model."))
    one, two = trained("lora", 1, [new]), trained("lora", 2, [old])
    (change,) = weight_changes(Mix(((one, 1.0), (two, 0.5))), no_weights)
    zeros = torch.zeros(30, 20, dtype=torch.float64)
    expected = one[new.name].delta(zeros) + 0.5 * two[old.name].delta(zeros)
    assert_close(change.matrix(), expected, rtol=1e-12, atol=1e-12)


SHAPE_ALONE = {"shira", "sara", "waveft", "wht", "randlora", "structured", "spiel", "dynamic-sparse", "snell"}


@pytest.mark.parametrize("kind", sorted(kind for kind, cls in KINDS.items() if not cls.live))
def test_the_base_is_asked_for_only_where_the_change_depends_on_its_values(kind: str):
    torch.manual_seed(0)
    spec = Spec("unet.layer", (32, 32))
    adapters = create_adapters(kind, {}, [spec])
    for parameter in adapters.parameters():
        nn.init.normal_(parameter, std=0.1)
    (adapter,) = adapters
    one, other = (adapter.delta(weight) for weight in torch.randn(2, 32, 32))
    assert torch.equal(one, other) or adapter.reads_weight
    if adapter.factors() is None and not adapter.reads_weight:
        (change,) = weight_changes(Mix(((adapters, 0.5),)), _no_base)
        assert_close(change.matrix(), 0.5 * one)
    assert (kind in SHAPE_ALONE) == (adapter.factors() is None and not adapter.reads_weight)


def _no_base(name: str) -> Tensor:
    raise AssertionError(f"{name} was asked for")


def test_a_kind_for_training_alone_is_saved_as_the_lora_that_it_is():
    comp_lora, lora = trained("comp-lora", 1), trained("lora", 1)
    with torch.no_grad():
        for adapter in comp_lora:
            adapter.initialize(BaseStatistics(torch.randn(adapter.spec.shape)))
    saved = finished(comp_lora)
    assert (saved.kind, finished(lora)) == ("lora", lora)
    for adapter in comp_lora:
        zeros = torch.zeros(adapter.spec.shape)
        assert_close(saved[adapter.spec.name].delta(zeros), adapter.delta(zeros).float(), rtol=0, atol=1e-6)

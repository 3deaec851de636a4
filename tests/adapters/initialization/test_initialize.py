"""Starts: the base stays as it is, and each start is what its paper says, found here by other means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.optimizer_update import OptimizerUpdate
from atelier.adapters.core.settings import SettingError
from atelier.adapters.formats.native import load_adapter, save_adapter
from atelier.adapters.initialization import initialize as initialization
from atelier.adapters.initialization.initialize import collect_statistics, initialize
from atelier.adapters.kinds.catalog import create_adapters
from atelier.adapters.kinds.lokr import kronecker_sum
from atelier.adapters.kinds.low_rank.lora_xs import LoraXs

NAME = "unet.layer"
LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(24, 16), (40, 24)),
    "strided": (lambda: nn.Conv2d(6, 16, 3, stride=2, padding=1), (3, 6, 9, 7)),
    "same": (lambda: nn.Conv2d(6, 16, 3, dilation=2, padding="same"), (3, 6, 9, 7)),
    "circular": (lambda: nn.Conv2d(6, 16, 3, padding=1, padding_mode="circular"), (3, 6, 9, 7)),
}
GOING: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"start": "inputs"}), ("lora", {"start": "weight"}), ("lora", {"start": "gradient"}),
    ("lora-xs", {}), ("lora-xs", {"start": "gradient"}), ("lokr", {"start": "weight"}), ("loldu", {}),
    ("shira", {"mask": "snip"}), ("sara", {}),
]


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> tuple[Any, Tensor]:
    make, shape = LAYERS[request.param]
    return make(), torch.randn(shape)


def of(module: nn.Module) -> dict[str, nn.Module]:
    return {"unet": nn.ModuleDict({"layer": module})}


def started(kind: str, settings: dict[str, Any], module: Any, x: Tensor) -> AdapterSet:
    adapters = create_adapters(kind, settings, [Spec(NAME, tuple(module.weight.shape))])
    initialize(adapters, of(module), lambda: module(x).square().sum())
    return adapters


def patches(module: Any, x: Tensor) -> np.ndarray:
    """What the weight matrix is multiplied with, read off the module itself: one row for each output position."""
    if isinstance(module, nn.Linear):
        return x.numpy()
    columns = module.weight[0].numel()
    spy = nn.Conv2d(module.in_channels, columns, 3, module.stride, module.padding, module.dilation,
                    bias=False, padding_mode=module.padding_mode)
    with torch.no_grad():
        spy.weight.copy_(torch.eye(columns).reshape(columns, *module.weight.shape[1:]))
        return spy(x).movedim(1, -1).reshape(-1, columns).numpy()


@pytest.mark.parametrize(("kind", "settings"), GOING)
def test_a_start_leaves_the_base_and_its_outputs_to_the_bit(layer: tuple[Any, Tensor], kind: str, settings: Any):
    module, x = layer
    before, output = module.weight.detach().clone(), module(x).detach()
    grads = {name: p.requires_grad for name, p in module.named_parameters()}
    hooks = len(module._forward_pre_hooks)
    adapters = started(kind, settings, module, x)
    assert torch.equal(module.weight, before)
    assert {name: p.requires_grad for name, p in module.named_parameters()} == grads
    assert module.weight.grad is None
    assert len(module._forward_pre_hooks) == hooks
    with torch.no_grad(), mount(of(module), Mix(((adapters, 1.0), (started(kind, settings, module, x), 0.5)))):
        assert torch.equal(module(x), output), "two of them together change nothing either"


@pytest.mark.parametrize("wanted", ["inputs", "gradient"])
def test_a_look_that_fails_leaves_nothing_behind(layer: tuple[Any, Tensor], wanted: str):
    module, x = layer
    module.requires_grad_(False)

    def look() -> Tensor:
        module(x)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        collect_statistics({NAME: module}, wanted, look)
    assert not module.weight.requires_grad
    assert not module._forward_pre_hooks


def test_inputs_are_the_singular_vectors_of_all_that_came_in(layer: tuple[Any, Tensor], monkeypatch):
    module, _ = layer
    shape = next(shape for make, shape in LAYERS.values() if type(make()) is type(module))
    batches = [torch.randn(shape) for _ in range(initialization.PASSES)]
    rest = iter(batches)
    found = collect_statistics({NAME: module}, "inputs", lambda: module(next(rest)).sum())[NAME].numpy()
    rows = np.concatenate([patches(module, batch) for batch in batches])
    _, s, v = np.linalg.svd(rows, full_matrices=False)
    kept = len(found)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), s[:kept], rtol=1e-3)
    np.testing.assert_allclose(found.T @ found, (v[:kept].T * s[:kept] ** 2) @ v[:kept], atol=1e-3 * s[0] ** 2)


def test_inputs_are_thinned_evenly(monkeypatch):
    monkeypatch.setattr(initialization, "ROWS", 10)
    module, x = nn.Linear(4, 3), torch.arange(120.0).reshape(30, 4)
    assert torch.equal(initialization._rows(module, x), x[::3])


@pytest.mark.parametrize("rank", [2, 5])
def test_eva_turns_down_to_the_main_inputs(rank: int):
    module, x = nn.Linear(24, 16), torch.randn(40, 24) * torch.linspace(1, 5, 24)
    adapters = started("lora", {"rank": rank, "start": "inputs"}, module, x)
    down = adapters.tensors()[f"{NAME}.down"].numpy()
    _, _, v = np.linalg.svd(x.numpy(), full_matrices=False)
    directions = down / np.linalg.norm(down, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs(directions @ v[:rank].T), np.eye(rank), atol=1e-3)


@pytest.mark.parametrize(("rank", "alpha"), [(3, 0.0), (3, 12.0), (50, 0.0)])
def test_pissa_begins_at_the_best_low_rank_part_of_the_weight(layer: tuple[Any, Tensor], rank: int, alpha: float):
    module, x = layer
    adapter: Any = started("lora", {"rank": rank, "alpha": alpha, "start": "weight"}, module, x)[NAME]
    u, s, v = np.linalg.svd(module.weight.detach().flatten(1).numpy(), full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    kept = min(rank, len(s))
    first = adapter.scale * adapter.first_up[:, :kept] @ adapter.first_down[:kept]
    np.testing.assert_allclose(first.numpy(), best, atol=1e-5)


@torch.no_grad()
def test_a_pissa_is_an_exact_low_rank_pair_of_twice_the_rank():
    module, x = nn.Linear(24, 16), torch.randn(40, 24)
    adapter: Any = started("lora", {"rank": 3, "alpha": 6, "start": "weight"}, module, x)[NAME]
    for parameter in adapter.parameters():
        parameter.add_(torch.randn_like(parameter))
    up, down = adapter.factors()
    assert up.shape[1] == len(down) == 6
    new = (adapter.first_up + adapter.up) @ (adapter.first_down + adapter.down)
    old = adapter.first_up @ adapter.first_down
    assert_close(up @ down, 2 * (new - old))


def test_lora_ga_begins_in_two_halves_of_the_first_gradient():
    module, x = nn.Linear(24, 16), torch.randn(40, 24)
    gradient = torch.autograd.grad(module(x).square().sum(), module.weight)[0]
    adapter: Any = started("lora", {"rank": 3, "start": "gradient"}, module, x)[NAME]
    u, _, v = np.linalg.svd(gradient.numpy(), full_matrices=False)
    for first, directions in ((adapter.first_down.numpy(), v[:3]), (adapter.first_up.numpy().T, u.T[3:6])):
        lengths = np.linalg.norm(first, axis=1, keepdims=True)
        np.testing.assert_allclose(np.abs(first / lengths @ directions.T), np.eye(3), atol=1e-3)


def test_gradients_are_the_mean_over_the_looks():
    module, batches = nn.Linear(6, 4), [torch.randn(5, 6) for _ in range(initialization.PASSES)]
    rest = iter(batches)
    found = collect_statistics({NAME: module}, "gradient", lambda: module(next(rest)).square().sum())[NAME]
    (sum(module(x).square().sum() for x in batches) / len(batches)).backward()
    assert_close(found, module.weight.grad)


def test_lora_sb_makes_the_first_step_of_full_training():
    module, x = nn.Linear(24, 16), torch.randn(40, 24)
    gradient = torch.autograd.grad(module(x).square().sum(), module.weight)[0]
    adapters = started("lora-xs", {"rank": 4, "start": "gradient", "alpha": 8}, module, x)
    adapter: Any = adapters[NAME]
    assert not adapter.delta(module.weight).any()
    optimizer = torch.optim.Adam(adapters.parameters(), 0.01)
    for step in (1, 2):
        adapter.delta(module.weight).backward(gradient)
        before = adapter.core.detach().clone()
        optimizer.step()
        LoraXs.after_update(adapters, OptimizerUpdate(step, 2, 0.01, optimizer.state))
        if step == 1:
            u, s, v = np.linalg.svd(-0.01 * np.sign(gradient.numpy()), full_matrices=False)
            found = adapter.delta(module.weight).detach()
            np.testing.assert_allclose(found.numpy(), (u[:, :4] * s[:4]) @ v[:4], rtol=0, atol=1e-6)
            assert (found * gradient).sum() < 0
            assert not optimizer.state[adapter.core]["exp_avg"].any()
    assert (adapter.core - before).abs().max() < 0.02   # Adam's own from here


@pytest.mark.parametrize("terms", [1, 3, 100])
def test_kronecker_sum_is_the_nearest(terms: int):
    """Its error is the tail of the rearranged matrix's singular values, as Van Loan and Pitsianis proved."""
    matrix = torch.randn(12, 20, dtype=torch.float64)
    left, right = kronecker_sum(matrix, 3, 4, terms)
    error = matrix - sum(torch.kron(a, b) for a, b in zip(left, right, strict=True))
    rearranged = np.stack([matrix[i * 4:i * 4 + 4, j * 5:j * 5 + 5].numpy().ravel()
                           for i in range(3) for j in range(4)])
    tail = np.linalg.svd(rearranged, compute_uv=False)[terms:]
    assert error.norm().item() == pytest.approx(np.sqrt((tail**2).sum()), abs=1e-12)


def test_a_kronecker_start_is_the_weight_where_the_rank_suffices(layer: tuple[Any, Tensor]):
    module, x = layer
    adapter: Any = started("lokr", {"factor": 2, "rank": 64, "terms": 4, "start": "weight"}, module, x)[NAME]
    first = sum(torch.kron(adapter.first_small[t], adapter.first_up[t] @ adapter.first_down[t]) for t in range(4))
    assert_close(first, module.weight.detach().flatten(1), rtol=1e-4, atol=1e-5)


def test_layers_that_share_cannot_each_start_from_their_own_weight():
    with pytest.raises(SettingError, match="turn sharing off"):
        create_adapters("lokr", {"shared": True, "start": "weight"}, [])


def test_a_start_that_needs_data_says_so():
    module = nn.Linear(6, 4)
    adapters = create_adapters("lora", {"start": "inputs"}, [Spec(NAME, (4, 6))])
    with pytest.raises(ValueError, match="lora starts from the inputs"):
        initialize(adapters, of(module))


@torch.no_grad()
def test_a_kronecker_start_trains_all_its_factors_from_there():
    module, x = nn.Linear(24, 16), torch.randn(40, 24)
    adapter: Any = started("lokr", {"factor": 4, "rank": 2, "terms": 2, "start": "weight", "alpha": 6}, module, x)[NAME]
    for parameter in adapter.parameters():
        parameter.add_(torch.randn_like(parameter))
    old, new = (
        sum(torch.kron(small[t], up[t] @ down[t]) for t in range(2))
        for small, up, down in (
            (adapter.first_small, adapter.first_up, adapter.first_down),
            (adapter.first_small + adapter.small, adapter.first_up + adapter.up, adapter.first_down + adapter.down),
        )
    )
    assert_close(adapter.delta(module.weight), 3 * (new - old), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", ["random", "inputs", "weight", "gradient"])
def test_a_budget_goes_where_it_is_worth_most_and_stays_there(tmp_path: Path, start: str):
    """One layer sees nothing but a line of inputs and hardly touches the loss; the other sees everything."""
    layers = nn.ModuleDict({"dull": nn.Linear(24, 16), "busy": nn.Linear(24, 16)})
    line, all_over = torch.randn(40, 1) @ torch.randn(1, 24), torch.randn(40, 24)

    def look() -> Tensor:
        return 1e-4 * layers["dull"](line).square().sum() + layers["busy"](all_over).square().sum()

    specs = [Spec(f"unet.{name}", (16, 24)) for name in layers]
    adapters = create_adapters("lora", {"rank": 3, "start": start, "budget": 5 * 40 + 39}, specs)
    held = adapters
    initialize(adapters, {"unet": layers}, look)
    counts = {spec.name: adapters.tensors()[f"{spec.name}.down"].shape[0] for spec in held.specs}
    assert sum(p.numel() for p in held.parameters()) == 5 * 40
    assert counts.get("unet.dull", 0) <= 1 < counts["unet.busy"] <= 6
    for name, layer in layers.items():
        if f"unet.{name}" in counts:
            assert not adapters[f"unet.{name}"].delta(layer.weight).any()
    save_adapter(tmp_path / "a.safetensors", adapters, {})
    loaded = load_adapter(tmp_path / "a.safetensors")
    assert loaded.ranks == adapters.ranks
    assert all(torch.equal(loaded.tensors()[name], tensor) for name, tensor in adapters.tensors().items())


def test_a_budget_too_small_for_anything_says_how_much_it_takes():
    module = nn.Linear(24, 16)
    with pytest.raises(SettingError, match="budget is 39, but one rank per layer already takes 40"):
        started("lora", {"budget": 39}, module, torch.randn(40, 24))

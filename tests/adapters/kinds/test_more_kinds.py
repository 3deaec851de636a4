"""What sets the newer kinds apart, each against a construction of its own; their common laws are in test_laws.py."""

from __future__ import annotations

from math import gcd
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet, BaseStatistics, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.initialization.initialize import initialize
from atelier.adapters.kinds.catalog import create_adapters


def made(kind: str, module: Any, **settings: Any) -> Any:
    """An adapter with every parameter moved, in float64."""
    torch.manual_seed(3)
    adapters = create_adapters(kind, settings, [Spec("unet.layer", tuple(module.weight.shape))])
    (adapter,) = adapters
    adapter.initialize(BaseStatistics(module.weight.detach().float(), gradient=torch.randn_like(module.weight)))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return adapter.double()


@pytest.mark.parametrize("blocks", [1, 4, 6])
def test_melora_is_loras_side_by_side(blocks: int):
    module = nn.Conv2d(12, 20, 3)
    own = made("melora", module, rank=2, blocks=blocks, alpha=3.0)
    found = own.delta(module.weight).flatten(1)
    q = {1: 1, 4: 4, 6: 4}[blocks]   # the largest divisor of gcd(20, 12)
    expected = torch.zeros(20, 108, dtype=torch.float64)
    for b in range(q):
        rows, columns = slice(b * 20 // q, (b + 1) * 20 // q), slice(b * 108 // q, (b + 1) * 108 // q)
        expected[rows, columns] = 1.5 * own.up[b] @ own.down[b]
    assert_close(found, expected, rtol=0, atol=1e-12)
    assert torch.linalg.matrix_rank(found) == 2 * q


def test_flylora_reads_a_share_of_the_inputs():
    module = nn.Linear(40, 16)
    own = made("flylora", module, rank=6, density=0.3)
    up, down = own.factors()
    assert (down != 0).sum(1).tolist() == [12] * 6
    assert_close(down.norm(dim=1).mean().item(), 3**-0.5, rtol=0.2, atol=0)
    expected = torch.zeros(16, 40, dtype=torch.float64)
    for r in range(6):
        for place, value in zip(own.index[r].tolist(), own.values[r], strict=True):
            expected[:, place] += own.up[:, r] * value
    assert_close(up @ down, expected, rtol=0, atol=1e-12)
    assert [name for name, _ in own.named_parameters()] == ["up"]


def top_directions(weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
    u, _, v = torch.linalg.svd(weight.detach().double().flatten(1), full_matrices=False)
    return u[:, :count], v[:count]


def test_salt_shifts_the_top_and_adds_beside_it():
    module = nn.Linear(30, 18).double()
    own = made("salt", module, rank=2, top=5)
    u, v = top_directions(module.weight, 5)
    delta = own.delta(module.weight)
    core = u.T @ delta @ v.T
    assert_close(core, torch.diag(own.shift), rtol=0, atol=1e-12)
    assert_close(u.T @ delta, core @ v, rtol=0, atol=1e-12)   # nothing between the top and the others
    assert_close(delta @ v.T, u @ core, rtol=0, atol=1e-12)
    assert torch.linalg.matrix_rank(delta) == 7


@pytest.mark.parametrize("module", [nn.Linear(30, 18), nn.Conv2d(4, 12, 3)])
def test_comp_lora_leaves_the_main_directions_alone(module: Any):
    own = made("comp-lora", module, rank=3, kept=5)
    u, v = top_directions(module.weight, 5)
    delta = own.delta(module.weight).flatten(1)
    assert (delta @ v.T).norm() < 1e-5 * delta.norm()
    assert (u.T @ delta).norm() < 1e-5 * delta.norm()
    assert delta.norm() > 0.1
    assert create_adapters("comp-lora", {"kept": 99}, [Spec("unet.a", (8, 6))])["unet.a"].outputs.shape == (8, 3)


def test_deep_lora_is_its_product():
    module = nn.Linear(12, 20)
    own = made("deep-lora", module, rank=5, alpha=10)
    one, two, three = own.cores.detach().numpy()
    expected = 2 * own.left.numpy() @ (three @ two @ one - torch.eye(5).numpy() / 512) @ own.right.numpy()
    assert_close(own.delta(module.weight), torch.from_numpy(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["circulant", "toeplitz"])
@pytest.mark.parametrize("module", [nn.Linear(30, 12), nn.Conv2d(12, 8, 3)])
def test_structured_updates_follow_their_diagonals(module: Any, form: str):
    own = made("structured", module, form=form)
    rows, features, *_ = module.weight.shape
    g = gcd(rows, features)
    delta = own.delta(module.weight).reshape(rows, features, -1)
    for i in range(rows):
        for j in range(features):
            values, step = own.values[i // g, j // g], i % g - j % g
            assert torch.equal(delta[i, j], values[:, step % g if form == "circulant" else step + g - 1])


def test_a_circulant_update_has_full_rank_for_one_row_of_values():
    own = made("structured", nn.Linear(16, 16))
    assert own.values.numel() == 16
    assert torch.linalg.matrix_rank(own.delta(torch.zeros(16, 16))) == 16


class Unet(nn.Module):
    """One layer that is called with a timestep."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return self.layer(x)


def t_lora(layer: Any, **settings: Any) -> tuple[Unet, AdapterSet]:
    unet = Unet(layer)
    torch.manual_seed(3)
    adapters = create_adapters("t-lora", settings, [Spec("unet.layer", tuple(layer.weight.shape))])
    initialize(adapters, {"unet": unet})
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return unet, adapters


def test_t_lora_counts_directions_by_the_timestep():
    _, adapters = t_lora(nn.Linear(80, 70), rank=64, least=1)
    progress = 1 - torch.tensor([999.0, 981, 801, 501, 201, 1, 0]) / 1000
    adapter: Any = adapters["unet.layer"]
    assert adapter.directions(progress).sum(1).tolist() == [1, 2, 13, 32, 51, 63, 64]


@pytest.mark.parametrize(("layer", "shape"), [(nn.Linear(12, 20), (2, 5, 12)), (nn.Conv2d(6, 9, 3), (2, 6, 7, 7)),
                                              (nn.Conv2d(6, 9, 1), (2, 6, 7, 7))])
def test_t_lora_teaches_each_picture_the_directions_of_its_timestep(layer: Any, shape: tuple[int, ...]):
    unet, adapters = t_lora(layer, rank=6, least=2)
    x, times = torch.randn(shape), torch.tensor([900, 250])
    with mount({"unet": unet}, Mix(((adapters, 1.0),))):
        both = unet(x, times)
        alone = [unet(x[i : i + 1], times[i]) for i in range(2)]
        assert_close(both, torch.cat(alone), rtol=0, atol=1e-5)
        own: Any = adapters["unet.layer"]
        alone[0].square().sum().backward()   # at 900 of 1000: 2 + ⌊0.1 · 4⌋ = 2 directions
        assert own.gain.grad[:2].all() and not own.gain.grad[2:].any()
        assert own.down.grad[:2].any() and not own.down.grad[2:].any()
        with torch.no_grad():   # drawn with all of them
            whole = unet(x, times)
    up, down = own.factors()
    assert_close(whole - layer(x), own.apply_low_rank(x, layer, up, down), rtol=0, atol=1e-5)
    assert not torch.allclose(whole, both)


def test_t_lora_starts_orthogonal():
    adapters = create_adapters("t-lora", {"rank": 5}, [Spec("unet.layer", (12, 20))])
    own: Any = adapters["unet.layer"]
    for matrix in (own.first_up.T, own.first_down):
        assert_close(matrix @ matrix.T, torch.eye(5), rtol=0, atol=1e-6)

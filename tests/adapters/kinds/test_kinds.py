"""What sets each kind apart, proved on its own mathematics; what all have in common is in test_laws.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters.attach.merge import merge
from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.optimizer_update import OptimizerUpdate
from atelier.adapters.initialization.initialize import initialize
from atelier.adapters.kinds.catalog import KINDS, create_adapters
from atelier.adapters.kinds.dylora import extract_lora
from atelier.adapters.kinds.sparse.waveft import hadamard

NAME = "unet.layer"


def of(module: nn.Module) -> dict[str, nn.Module]:
    return {"unet": nn.ModuleDict({"layer": module})}


def fresh(kind: str, settings: dict[str, Any], module: Any) -> Any:
    """One untrained adapter; its type is that of the kind."""
    adapters = create_adapters(kind, settings, [Spec(NAME, tuple(module.weight.shape))])
    initialize(adapters, of(module), lambda: module(torch.randn(16, module.in_features)).square().sum())
    return adapters[NAME]


@torch.no_grad()
def shaken(module: nn.Module, size: float = 0.3) -> Any:
    for parameter in module.parameters():
        parameter.add_(size * torch.randn_like(parameter))
    return module.requires_grad_(False)


def block(prefix: str, width: int, context: int) -> list[Spec]:
    """The attention layers of one transformer block."""
    sizes = {"attn1.to_q": width, "attn1.to_k": width, "attn1.to_v": width, "attn1.to_out.0": width,
             "attn2.to_q": width, "attn2.to_k": context, "attn2.to_v": context, "attn2.to_out.0": width}
    return [Spec(f"unet.{prefix}.{name}", (width, columns)) for name, columns in sizes.items()]


# --- tensors --------------------------------------------------------------------------------------------------------


@pytest.fixture
def lorta() -> AdapterSet:
    specs = [*block("down.0", 16, 24), *block("down.1", 16, 24), Spec("unet.down.0.conv1", (16, 8, 3, 3))]
    return shaken(create_adapters("lorta", {"rank": 3, "heads": 4, "alpha": 6}, specs))


def test_lorta_is_one_dense_tensor(lorta: AdapterSet):
    groups: dict[str, Any] = dict(lorta._shared.items())
    assert set(groups) == {"16x16x1", "16x24x1", "16x8x9"}
    g = groups["16x16x1"].double()
    whole = 2.0 * torch.einsum("er,hr,lr,mr,ri->lmhei", g.head, g.heads, g.layers, g.roles, g.model).flatten(2, 3)
    roles = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_out.0"]
    for layer in (0, 1):
        for place, role in enumerate(roles):
            expected = whole[layer, place].T if "to_out" in role else whole[layer, place]
            assert_close(lorta[f"unet.down.{layer}.{role}"].delta(torch.zeros(16, 16)), expected)


def test_lorta_of_a_convolution_has_taps(lorta: AdapterSet):
    g = lorta._shared["16x8x9"]
    expected = 2 * torch.einsum("er,hr,r,r,tr,ri->heit", g.head, g.heads, g.layers[0], g.roles[0], g.taps, g.model)
    found = lorta["unet.down.0.conv1"].delta(torch.zeros(16, 8, 3, 3))
    assert_close(found, expected.reshape(16, 8, 3, 3))


def test_lorta_layers_differ_by_their_own_row_alone(lorta: AdapterSet):
    before = {a.spec.name: a.delta(torch.zeros(a.spec.shape)) for a in lorta}
    with torch.no_grad():
        lorta._shared["16x16x1"].layers[1] += 1
    moved = {a.spec.name for a in lorta if not torch.equal(a.delta(torch.zeros(a.spec.shape)), before[a.spec.name])}
    assert moved == {s.name for s in block("down.1", 16, 24) if s.columns == 16}


def test_lorta_layers_are_exact_low_rank_pairs(lorta: AdapterSet):
    for adapter in lorta:
        delta = adapter.delta(torch.zeros(adapter.spec.shape)).flatten(1)
        assert torch.linalg.matrix_rank(delta, atol=1e-5) == 3


def test_shared_tensors_are_stored_once(lorta: AdapterSet):
    stored = lorta.tensors()
    assert all(name.startswith("@") for name in stored)
    assert sum(t.numel() for t in stored.values()) == sum(p.numel() for p in lorta.parameters())


@pytest.mark.parametrize(("rank", "bond", "expected"), [(8, 2, 2), (8, 5, 5), (4, 6, 4)])
def test_loretta_has_the_smaller_of_its_two_ranks(rank: int, bond: int, expected: int):
    adapter = shaken(fresh("loretta", {"rank": rank, "bond": bond}, nn.Linear(60, 40)))
    assert torch.linalg.matrix_rank(adapter.delta(torch.zeros(40, 60)), rtol=1e-4) == expected


def test_loretta_is_two_tensor_trains():
    adapter = shaken(fresh("loretta", {"rank": 6, "bond": 4}, nn.Linear(60, 40)))
    up, down = adapter.factors()
    assert_close(down.reshape(6, 3, 4, 5), torch.einsum("xap,pbq,qcs,sry->rabc", *adapter.down))
    assert_close(up.reshape(2, 4, 5, 6), torch.einsum("xrp,paq,qbs,scy->abcr", *adapter.up))


@torch.no_grad()
def test_tlora_transform_is_a_ring_of_traces():
    adapter = shaken(fresh("tlora", {"ring": 2}, nn.Linear(12, 6)))
    cores = [torch.einsum("ij,ab->ijab", torch.eye(len(c)), m) + c
             for c, m in zip(adapter.change, adapter.mixers, strict=True)]
    found = adapter.transform(list(adapter.change))
    for i, j in [(0, 0), (3, 7), (11, 4)]:
        (a, b, c), (d, e, f) = (np.unravel_index(n, (2, 2, 3)) for n in (i, j))
        expected = torch.trace(cores[0][a, d] @ cores[1][b, e] @ cores[2][c, f])
        assert_close(found[i, j], expected)


def schmidt_rank(transform: Tensor, left: int) -> int:
    """Rank between the first mode and the rest: 1 for a plain Kronecker product."""
    n = len(transform)
    split = transform.reshape(left, n // left, left, n // left).permute(0, 2, 1, 3).reshape(left**2, -1)
    values = torch.linalg.svdvals(split)
    return int((values > 1e-4 * values[0]).sum())


@pytest.mark.parametrize("mixers", ["random", "as published"])
def test_tlora_ring_earns_its_size_with_random_mixers_alone(mixers: str):
    """Taught a transform of Schmidt rank 4; with the published start all slices stay alike and the rank stays 1.

    In float64: the rounding of float32 sums, blown up by Adam, breaks the tie sooner or later.
    """
    module = nn.Linear(36, 36, bias=False)
    adapter = fresh("tlora", {"ring": 2}, module).double()
    module.double()
    if mixers == "as published":
        adapter.mixers.fill_(1 / 2)
    assert_close(adapter.transform(list(adapter.change)), torch.eye(36).double(), atol=1e-6, rtol=0)
    goal = module.weight.detach() @ (0.1 * torch.randn(36, 36).double())
    optimizer = torch.optim.Adam(adapter.change.parameters(), 0.01)
    for _ in range(120):
        optimizer.zero_grad()
        (adapter.delta(module.weight) - goal).square().sum().backward()
        optimizer.step()
    rank = schmidt_rank(adapter.transform(list(adapter.change)).detach(), 3)
    assert rank == 1 if mixers == "as published" else rank > 1


@pytest.mark.parametrize("ring", [1, 2, 4])
def test_tlora_mixers_pass_a_change_on_at_its_length(ring: int):
    for seed in range(20):
        torch.manual_seed(seed)
        adapter = fresh("tlora", {"ring": ring}, nn.Linear(12, 6))
        one, two, three = adapter.mixers
        assert_close(torch.trace(one @ two @ three), torch.tensor(1.0))
        # what stands round each core in the ring: it multiplies the core's change
        for around in (two @ three, three @ one, one @ two):
            assert torch.linalg.svdvals(around).max() <= 1 + 1e-5


def test_sara_penalty_is_the_gradient_of_the_nuclear_norm():
    adapters = create_adapters("sara", {"rank": 2, "penalty": 0.25}, [Spec(NAME, (12, 20))])
    adapter: Any = shaken(adapters)[NAME].double()
    values = adapter.values.detach().clone()
    adapter.values.requires_grad_()
    torch.linalg.matrix_norm(adapter.delta(torch.zeros(12, 20)), "nuc").backward()
    assert_close(adapter.rank_gradient(), adapter.values.grad)
    KINDS["sara"].after_update(adapters, OptimizerUpdate(1, 9, 0.1, {}))
    assert_close(adapter.values.detach(), values - 0.1 * 0.25 * adapter.values.grad)
    with torch.no_grad():
        adapter.values.zero_()
    assert not adapter.rank_gradient().any()


def test_lokr_shares_its_smaller_factors():
    specs = [*block("a", 16, 24), Spec("unet.a.conv", (16, 8, 3, 3))]
    adapters = shaken(create_adapters("lokr", {"factor": 4, "rank": 2, "terms": 3, "shared": True}, specs))
    assert [name for name in adapters.tensors() if name.startswith("@")] == ["@4x4.small"]
    small = adapters.tensors()["@4x4.small"]
    for adapter in adapters:
        own = adapter.state_dict()
        expected = sum(torch.kron(small[t], own["up"][t] @ own["down"][t]) for t in range(3))
        assert_close(adapter.delta(torch.zeros(adapter.spec.shape)).flatten(1), expected)


# --- sparse and spectral --------------------------------------------------------------------------------------------


def test_shira_masks_are_what_they_say():
    module = nn.Linear(20, 12)
    torch.manual_seed(5)
    x = torch.randn(16, 20)
    gradient = torch.autograd.grad(4 * module(x).square().sum(), module.weight)[0].abs()   # four equal looks
    scores = {"magnitude": module.weight.abs(), "gradient": gradient, "snip": gradient * module.weight.abs()}
    for mask, score in scores.items():
        adapters = create_adapters("shira", {"rank": 2, "mask": mask}, [Spec(NAME, (12, 20))])
        initialize(adapters, of(module), lambda: module(x).square().sum())
        adapter: Any = shaken(adapters[NAME])
        expected = score.detach().flatten().argsort(descending=True)[:64].sort().values
        assert torch.equal(adapter.index.long(), expected), mask
        assert adapter.delta(module.weight).count_nonzero() == 64
    structured = shaken(fresh("shira", {"rank": 2, "mask": "structured"}, module)).delta(module.weight) != 0
    assert structured.diagonal().all()
    assert structured.sum() == 64
    assert sorted(structured.sum(0).tolist())[-4:] == [12, 12, 12, 12]


def test_sparse_switching_restores_the_base_to_the_bit():
    module = nn.Linear(20, 12)
    before = module.weight.detach().clone()
    adapters = shaken(create_adapters("shira", {"rank": 2, "mask": "random"}, [Spec(NAME, (12, 20))]))
    with merge(of(module), Mix(((adapters, 1.0),))):
        assert (module.weight != before).sum() == 64
    assert torch.equal(module.weight, before)


def test_sara_takes_the_smallest_and_keeps_every_sign():
    module = nn.Linear(20, 12)
    adapters = create_adapters("sara", {"rank": 2}, [Spec(NAME, (12, 20))])
    initialize(adapters, of(module))
    chosen = torch.zeros(240, dtype=torch.bool)
    chosen[adapters.tensors()[f"{NAME}.index"].long()] = True
    size = module.weight.detach().flatten().abs()
    assert size[chosen].max() < size[~chosen].min()
    assert (module.weight.flatten()[chosen] < 0).any(), "there are negative weights to lose the sign of"
    signs = module.weight.detach().sign()
    with merge(of(module), Mix(((adapters, 1.0),))):
        assert torch.equal(module.weight.sign(), signs)


def test_sara_settles_what_has_grown_and_trains_the_rest():
    module = nn.Linear(20, 12)
    adapter = fresh("sara", {"rank": 2}, module)
    threshold = module.weight.detach().flatten()[adapter.index.long()].abs().max()
    with torch.no_grad():
        adapter.values[:10] = 3 * threshold
    before = adapter.delta(module.weight).detach()
    adapter.update_mask(module.weight)
    assert adapter.settled[:10].all()
    assert not adapter.settled[10:].any()
    assert torch.equal(adapter.delta(module.weight), before)
    adapter.delta(module.weight).square().sum().backward()
    optimizer = torch.optim.SGD(adapter.parameters(), 1.0, weight_decay=0.5)
    optimizer.step()   # decay moves all values; those that settled no longer count
    after = adapter.delta(module.weight).flatten()
    assert torch.equal(after[adapter.index.long()[:10]], before.flatten()[adapter.index.long()[:10]])


@pytest.mark.parametrize("n", [1, 6, 8, 40, 320, 768, 1280])
def test_hadamard_is_orthonormal_in_every_width(n: int):
    matrix = hadamard(torch.eye(n, dtype=torch.float64))
    assert_close(matrix @ matrix.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-12)
    block = n & -n
    assert set(matrix[matrix != 0].abs().mul(block**0.5).round(decimals=9).tolist()) == {1.0}


@pytest.mark.parametrize("power", [0, 1, 3, 5])
def test_hadamard_is_sylvesters_matrix(power: int):
    sylvester = np.ones((1, 1))
    for _ in range(power):
        sylvester = np.kron([[1, 1], [1, -1]], sylvester)
    found = hadamard(torch.eye(2**power, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(found, sylvester / 2 ** (power / 2), atol=1e-14)


def test_wht_transforms_the_inputs_alone():
    adapter = shaken(fresh("wht", {"count": 40, "gain": 3.0}, nn.Linear(24, 12)))
    packed = torch.zeros(288).index_put((adapter.index.long(),), adapter.values).reshape(12, 24)
    blocks = torch.block_diag(*[hadamard(torch.eye(8))] * 3)
    assert_close(adapter.delta(torch.zeros(12, 24)), 3.0 / 12**0.5 * packed @ blocks)


@pytest.mark.parametrize(("bands", "alike"), [("smooth", True), ("details", False)])
def test_wara_bands_are_coarse_and_fine(bands: str, alike: bool):
    """With Haar the smooth band is constant on 2 × 2 blocks, and the details sum to zero there."""
    adapter = shaken(fresh("wara", {"bands": bands, "rank": 3}, nn.Linear(24, 12)))
    blocks = adapter.delta(torch.zeros(12, 24)).reshape(6, 2, 12, 2).transpose(1, 2).flatten(2)
    assert ((blocks - blocks[..., :1]).abs().max() < 1e-5) == alike
    assert (blocks.sum(2).abs().max() < 1e-5) != alike


# --- bases of the weight itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["svdiff", "soda"])
def test_singular_values_shift(kind: str):
    module = nn.Linear(24, 12).double()
    adapter = shaken(fresh(kind, {}, module).double(), 0.01)
    changed = np.linalg.svd((module.weight.detach() + adapter.delta(module.weight)).numpy(), compute_uv=False)
    base = np.linalg.svd(module.weight.detach().numpy(), compute_uv=False)
    np.testing.assert_allclose(changed, np.sort(base + adapter.shift.numpy())[::-1], atol=1e-12)


def test_soda_turns_the_inputs_by_a_kronecker_product_of_rotations():
    module = nn.Linear(12, 8).double()
    adapter = fresh("soda", {}, module).double()
    shaken(adapter.turn)
    adapter.requires_grad_(False)
    rotations = [adapter.rotation(below, size).numpy() for below, size in zip(adapter.turn, (2, 2, 3), strict=True)]
    for rotation in rotations:
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(len(rotation)), atol=1e-14)
    whole = np.kron(np.kron(*rotations[:2]), rotations[2])
    weight = module.weight.detach().numpy()
    np.testing.assert_allclose(weight + adapter.delta(module.weight).numpy(), weight @ whole, atol=1e-14)


def test_a_decomposition_follows_its_weight():
    module = nn.Linear(12, 8)
    adapter = shaken(fresh("svdiff", {}, module))
    first = adapter.delta(module.weight)
    with torch.no_grad():
        module.weight.copy_(torch.randn(8, 12))
    assert not torch.allclose(adapter.delta(module.weight), first), "the weight has changed in place"


@pytest.mark.parametrize("damage", ["", "a pivot of zero"])
def test_loldu_is_the_whole_decomposition_at_full_rank(damage: str):
    module = nn.Linear(12, 8)
    if damage:
        with torch.no_grad():
            module.weight[:, 3] = module.weight[:, 2]
    adapter = fresh("loldu", {"rank": 100}, module)
    assert adapter.right.isfinite().all()
    assert adapter.right.abs().max() < 2e3
    assert_close((adapter.left * adapter.first) @ adapter.right, module.weight.detach(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        adapter.gain.fill_(3.0)
    assert_close(adapter.delta(module.weight), 2 * module.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["paca", "s2ft"])
def test_only_the_chosen_columns_or_rows_move_and_get_their_part_of_the_gradient(kind: str):
    module = nn.Linear(12, 8)
    adapter = fresh(kind, {"rank": 3}, module)
    x, goal = torch.randn(20, 12), torch.randn(20, 8)
    ((module(x) + adapter(x, module)) - goal).square().sum().backward()
    full = module.weight.grad
    assert full is not None
    index = adapter.index.long()
    if kind == "paca":
        assert_close(adapter.up.grad, full[:, index])
        moved = shaken(adapter).delta(module.weight).any(0)
    else:
        assert_close(adapter.values.grad, full[index])
        moved = shaken(adapter).delta(module.weight).any(1)
    assert moved.nonzero().flatten().tolist() == index.tolist()


def test_s2ft_trains_the_same_channels_on_both_sides():
    gated = [Spec("unet.a.ff.net.0.proj", (128, 16)), Spec("unet.a.ff.net.2", (16, 64))]
    adapters = create_adapters("s2ft", {"rank": 4}, [*block("a", 16, 24), *gated])
    index = {adapter.spec.name.removeprefix("unet.a."): set(adapter.state_dict()["index"].tolist())
             for adapter in adapters}
    assert index["attn1.to_v"] == index["attn1.to_out.0"]
    assert index["attn2.to_v"] == index["attn2.to_out.0"] != index["attn1.to_v"]
    assert index["ff.net.0.proj"] == index["ff.net.2"]
    assert max(index["ff.net.2"]) < 64, "the gate's half of the first layer stays frozen"
    for adapter in shaken(adapters):
        delta = adapter.delta(torch.zeros(adapter.spec.shape))
        by_column = adapter.spec.name.endswith(("to_out.0", "net.2"))
        assert delta.any(0 if by_column else 1).sum() == 4, adapter.spec.name


# --- branches and nesting -------------------------------------------------------------------------------------------


def test_hydra_is_its_two_branches():
    module = nn.Linear(12, 8, bias=False)
    adapter, x = shaken(fresh("hydra", {"rank": 3, "alpha": 6}, module)), torch.randn(5, 12)
    parallel = x @ adapter.down.T @ adapter.up.T
    sequential = module(x) @ adapter.down_after.T @ adapter.up_after.T
    assert_close(adapter(x, module), 2 * (parallel + sequential))


@torch.no_grad()
def test_hydra_with_biases_is_its_two_branches_behind_the_whole_layer():
    module, x = nn.Linear(12, 8), torch.randn(5, 12)
    adapters = shaken(create_adapters("hydra", {"rank": 3, "alpha": 6, "bias": True}, [Spec(NAME, (8, 12))]))
    adapter: Any = adapters[NAME]
    with mount(of(module), Mix(((adapters, 1.0),))):
        found = module(x)
    parallel = x @ adapter.down.T @ adapter.up.T
    sequential = module(x) @ adapter.down_after.T @ adapter.up_after.T
    assert_close(found - module(x), 2 * (parallel + sequential) + adapter.shift)
    bare = nn.Linear(12, 8, bias=False)
    with mount(of(bare), Mix(((adapters, 1.0),))):
        assert_close(bare(x), x @ (bare.weight + adapter.delta(bare.weight)).T)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_dylora_is_cut_at_every_rank(rank: int):
    module, x = nn.Linear(12, 8), torch.randn(5, 12)
    whole = shaken(create_adapters("dylora", {"rank": 5, "alpha": 10}, [Spec(NAME, (8, 12))]))
    adapter: Any = whole[NAME]
    lora = extract_lora(whole, rank)
    assert (lora.kind, len(lora.tensors()[f"{NAME}.down"])) == ("lora", rank)
    with torch.no_grad(), mount(of(module), Mix(((lora, 1.0),))):
        change = module(x)
    assert_close(change - module(x), 10 / rank * x @ adapter.down[:rank].T @ adapter.up[:, :rank].T)


def test_dylora_trains_at_every_rank_and_is_whole_when_used():
    module, x = nn.Linear(12, 8), torch.randn(1, 12)
    adapters = shaken(create_adapters("dylora", {"rank": 4}, [Spec(NAME, (8, 12))])).requires_grad_(True)
    adapter: Any = adapters[NAME]
    seen = []
    for _ in range(80):
        by_rank = [4 / b * x @ adapter.down[:b].T @ adapter.up[:, :b].T for b in (1, 2, 3, 4)]
        with mount(of(module), Mix(((adapters, 1.0),))):
            once, again = module(x), module(x)
            with torch.no_grad():
                used = module(x) - nn.functional.linear(x, module.weight, module.bias)
        assert torch.equal(once, again), "a layer that is computed twice, as checkpointing does, must not differ"
        assert_close(used, by_rank[-1])
        change = once - nn.functional.linear(x, module.weight, module.bias)
        seen.append(next(b for b, other in enumerate(by_rank) if torch.allclose(other, change, atol=1e-5)))
        with torch.no_grad():
            adapter.down += 0.01 * torch.randn_like(adapter.down)
    assert all(seen.count(b) > 8 for b in range(4)), "each rank has its turn"


def test_dylora_refuses_to_be_cut_longer():
    with pytest.raises(ValueError, match="can't be truncated to rank 6"):
        extract_lora(create_adapters("dylora", {"rank": 5}, [Spec(NAME, (8, 12))]), 6)


def test_randlora_is_of_full_rank_and_keeps_one_pair_of_bases():
    specs = [Spec("unet.a", (20, 30)), Spec("unet.b", (30, 8)), Spec("unet.c", (10, 4, 3, 3))]
    adapters = shaken(create_adapters("randlora", {"rank": 4}, specs))
    assert {n: tuple(t.shape) for n, t in adapters.tensors().items() if n.startswith("@")} == {
        "@bases.wide": (36, 20), "@bases.narrow": (4, 20)}
    for adapter in adapters:
        delta = adapter.delta(torch.zeros(adapter.spec.shape)).flatten(1)
        assert torch.linalg.matrix_rank(delta) == min(delta.shape)


@pytest.mark.parametrize("block", [2, 4, 32])
def test_oft_keeps_lengths_and_angles(block: int):
    spec = Spec("unet.layer", (32, 48))
    adapter = shaken(create_adapters("oft", {"block": block}, [spec]))["unet.layer"].double()
    weight = torch.randn(32, 48, dtype=torch.float64)
    with torch.no_grad():
        turned = weight + adapter.delta(weight)
    assert (turned - weight).norm() > 0.1 * weight.norm()
    assert_close(turned.T @ turned, weight.T @ weight)   # RᵀR = 1
    assert_close(torch.linalg.svdvals(turned), torch.linalg.svdvals(weight))
    blocks = turned.unflatten(0, (-1, block)), weight.unflatten(0, (-1, block))
    assert_close(blocks[0].norm(dim=1), blocks[1].norm(dim=1))   # no block takes from another

"""Break-for-Make: the halves stay apart in training, meet without any, and each answers to a slider of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.native import load_adapter, save_adapter
from atelier.adapters.formats.write_foreign import to_diffusers
from atelier.adapters.fusion.break_for_make_halves import BasisError, basis_hash, combine_halves, scale_halves
from atelier.adapters.kinds.break_for_make import BreakForMake
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.loop import factor_gradients
from atelier.training.loop.factor_gradients import apply_scaled_gradients, scaled_gradients

SHAPES: dict[str, tuple[int, ...]] = {"square": (24, 24), "wide": (11, 30), "3x3": (10, 12, 3, 3)}
STARTS = ("clean", "faithful")
SIDES = ("down", "up")
Make = Callable[[], AdapterSet]


def new(role: str = "content", *, shapes: Mapping[str, tuple[int, ...]] = SHAPES, **settings: Any) -> AdapterSet:
    specs = [Spec(f"unet.{name}", shape) for name, shape in shapes.items()]
    return create_adapters("split", {"rank": 4, "alpha": 6.0, "role": role, **settings}, specs).double()


def split(adapters: AdapterSet, name: str = "unet.square") -> BreakForMake:
    adapter = adapters[name]
    assert isinstance(adapter, BreakForMake)
    return adapter


def learned(role: str, seed: int, **settings: Any) -> AdapterSet:
    """As after training: both halves have moved, the companion's too."""
    adapters = new(role, **settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return adapters


def delta(adapters: AdapterSet, name: str = "unet.square") -> Tensor:
    """ΔW as a matrix."""
    with torch.no_grad():
        return adapters[name].delta(torch.zeros(adapters[name].spec.shape)).flatten(1)


@pytest.fixture(params=[(start, side) for start in STARTS for side in SIDES], ids="-".join)
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(zip(("start", "content_side"), request.param, strict=True))


def test_frozen_halves_have_no_gradient_and_do_not_move(settings: dict[str, Any]):
    adapters = new(**settings)
    before = {key: value.clone() for key, value in adapters.named_buffers()}
    trained = {name.rsplit(".", 1)[1] for name, _ in adapters.named_parameters()}
    assert trained == {"up", "down"}
    optimizer = torch.optim.AdamW(adapters.parameters(), 1e-2, weight_decay=0.1)
    for _ in range(100):
        loss = sum((adapter.delta(torch.zeros(adapter.spec.shape)) - 1).square().sum() for adapter in adapters)
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert before
    for key, value in adapters.named_buffers():
        assert torch.equal(value, before[key]), key
    assert all(parameter.any() for parameter in adapters.parameters())


@pytest.mark.parametrize("name", SHAPES)
def test_the_frozen_halves_of_a_clean_start_leave_no_constant(name: str):
    adapter = split(new(), f"unet.{name}")
    assert not (adapter.frozen_up @ adapter.frozen_down).any()
    assert_close(adapter.frozen_up.T @ adapter.frozen_up, torch.diag(torch.tensor([1.0, 1, 0, 0]).double()),
                 atol=1e-3, rtol=0)
    assert_close(adapter.frozen_down @ adapter.frozen_down.T, torch.diag(torch.tensor([0.0, 0, 1, 1]).double()),
                 atol=1e-3, rtol=0)


def test_the_frozen_halves_of_a_faithful_start_are_different_rows_of_one_orthonormal_basis():
    adapter = split(new(start="faithful"))
    rows = torch.cat([adapter.frozen_down.T, adapter.frozen_up])   # all 24 rows of the basis, each in one half
    assert rows.shape == (24, 4)
    assert_close(rows.T @ rows, torch.eye(4).double(), atol=1e-3, rtol=0)
    assert 0 < (adapter.frozen_up @ adapter.frozen_down).abs().max() < 0.5


def test_at_the_start_nothing_changes_and_both_halves_can_leave_it(settings: dict[str, Any]):
    adapters = new(**settings)
    for adapter in adapters:
        update = adapter.delta(torch.zeros(adapter.spec.shape))
        assert not update.any()
        update.backward(torch.randn(update.shape).double())
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapter.parameters())


@pytest.mark.parametrize("name", SHAPES)
def test_the_update_is_made_of_four_blocks(settings: dict[str, Any], name: str):
    adapters = learned("content", 1, **settings)
    adapter, spec = split(adapters, f"unet.{name}"), adapters[f"unet.{name}"].spec
    a, c = adapter.frozen_up, adapter.frozen_down
    b, d = adapter.up.detach(), adapter.down.detach()
    e = adapter.first_down if settings["start"] == "faithful" else torch.zeros_like(d)
    rows, columns = spec.rows // 2, spec.features // 2 * spec.taps
    found = delta(adapters, f"unet.{name}")
    expected = torch.zeros(spec.rows, spec.columns, dtype=torch.float64)
    expected[:rows, columns:] = a @ d
    expected[rows:, :columns] = b @ c
    expected[rows:, columns:] = b @ (e + d)
    assert_close(found, 6 / 4 * expected, rtol=1e-12, atol=1e-12)


def test_convolutions_are_cut_between_channels():
    adapters = learned("content", 1)
    kernel = delta(scale_halves(adapters, content=1, style=0), "unet.3x3").reshape(SHAPES["3x3"])
    assert not kernel[:, :6].any()
    assert not kernel[5:].any()
    assert kernel[:5, 6:].all()


def test_of_united_halves_each_block_is_what_was_learned_alone(settings: dict[str, Any]):
    content, style = learned("content", 1, **settings), learned("style", 2, **settings)
    united = combine_halves(content, style)
    assert united.settings.to_dict()["role"] == "both"
    for adapter in united:
        assert isinstance(adapter, BreakForMake)
        mine, theirs = split(content, adapter.spec.name), split(style, adapter.spec.name)
        assert torch.equal(adapter.trainable_half("content"), mine.trainable_half("content"))
        assert torch.equal(adapter.trainable_half("style"), theirs.trainable_half("style"))
        assert torch.equal(adapter.frozen_up, mine.frozen_up)
        assert torch.equal(adapter.frozen_down, mine.frozen_down)
    blocks = {"content": (slice(0, 12), slice(12, 24)), "style": (slice(12, 24), slice(0, 12))}
    if settings["content_side"] == "up":
        blocks = {"content": blocks["style"], "style": blocks["content"]}
    for role, part in (("content", content), ("style", style)):
        alone = scale_halves(part, content=role == "content", style=role == "style")
        assert torch.equal(delta(united)[blocks[role]], delta(alone)[blocks[role]])
    style_halves = (split(adapters).trainable_half("style") for adapters in (united, content))
    assert not torch.equal(*style_halves), "the companion stayed"


def test_uniting_changes_neither_half():
    content, style = learned("content", 1), learned("style", 2)
    before = [{k: v.clone() for k, v in part.tensors().items()} for part in (content, style)]
    combine_halves(content, style)
    for part, tensors in zip((content, style), before, strict=True):
        assert all(torch.equal(value, tensors[key]) for key, value in part.tensors().items())


def test_a_strength_of_zero_recovers_the_other_concept(settings: dict[str, Any]):
    content, style = learned("content", 1, **settings), learned("style", 2, **settings)
    united = combine_halves(content, style)
    no_style, no_content = {"content": 1.0, "style": 0.0}, {"content": 0.0, "style": 1.0}
    assert torch.equal(delta(scale_halves(united, **no_style)), delta(scale_halves(content, **no_style)))
    assert torch.equal(delta(scale_halves(united, **no_content)), delta(scale_halves(style, **no_content)))
    assert not delta(scale_halves(united, content=0, style=0)).any()
    assert torch.equal(delta(scale_halves(united, content=1, style=1)), delta(united))


def test_strengths_multiply_each_half():
    united = combine_halves(learned("content", 1), learned("style", 2))
    both, mixed = delta(united), delta(scale_halves(united, content=0.5, style=2))
    assert_close(mixed[:12, 12:], 0.5 * both[:12, 12:])
    assert_close(mixed[12:, :12], 2 * both[12:, :12])
    assert_close(mixed[12:, 12:], both[12:, 12:])


@pytest.mark.parametrize(("change", "says"), [
    ({"basis_seed": 1}, "basis_seed is 0 in the content and 1"),
    ({"rank": 6}, "rank is 4 in the content and 6"),
    ({"start": "faithful"}, "start is clean"),
    ({"shapes": {"square": (24, 24)}}, "different layers, such as unet.3x3"),
])   # fmt: skip
def test_halves_that_do_not_fit_are_refused(change: dict[str, Any], says: str):
    with pytest.raises(BasisError, match=says):
        combine_halves(new(), new("style", **change))


def test_halves_with_other_frozen_values_are_refused():
    content, style = new(), new("style")
    split(style).frozen_up[0, 0] += 1e-6
    assert basis_hash(content) != basis_hash(style)
    with pytest.raises(BasisError, match="frozen halves differ"):
        combine_halves(content, style)


@pytest.mark.parametrize(("content", "style", "says"), [
    (lambda: new("style"), lambda: new("style"), "given as content was trained as style"),
    (lambda: new(), lambda: new(), "given as style was trained as content"),
    (lambda: create_adapters("lora", {}, new().specs), lambda: new("style"), "content adapter is of the kind lora"),
])   # fmt: skip
def test_only_a_content_and_a_style_unite(content: Make, style: Make, says: str):
    with pytest.raises(BasisError, match=says):
        combine_halves(content(), style())


def test_the_frozen_halves_do_not_depend_on_dice_or_order():
    torch.manual_seed(1)
    first = new()
    torch.rand(5)
    again = new("style", shapes=dict(reversed(SHAPES.items())))
    assert basis_hash(first) == basis_hash(again)
    for adapter in first:
        assert torch.equal(split(first, adapter.spec.name).frozen_up, split(again, adapter.spec.name).frozen_up)
    assert basis_hash(first) != basis_hash(new(basis_seed=1))
    twins = new(shapes={"one": (24, 24), "two": (24, 24)})
    assert not torch.equal(split(twins, "unet.one").frozen_up, split(twins, "unet.two").frozen_up)


def test_the_frozen_halves_are_those_of_every_machine():
    """Frozen numbers on purpose: halves learned on another machine, years ago, must still fit."""
    with torch.random.fork_rng():
        assert basis_hash(new()) == FINGERPRINTS["clean"]
        assert basis_hash(new(start="faithful")) == FINGERPRINTS["faithful"]


FINGERPRINTS = {
    "clean": "54fe41cf1a6fbb6ee9ccfd0e8e5a686b656329c8f2f1e8fc180d9e9ecdb5c2cf",
    "faithful": "fb253e9d200041321c34b0074b024fe3e775da8a5904dcd2411981b689acfc5c",
}


def test_the_scaled_gradient_moves_the_product_alike_however_it_is_split(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(factor_gradients, "_DAMPING", 0)
    up, down, slope, turn = (torch.randn(*s).double() for s in ((9, 3), (3, 7), (9, 7), (3, 3)))

    def change(up: Tensor, down: Tensor) -> Tensor:
        of_up, of_down = scaled_gradients(up, down, slope @ down.T, up.T @ slope)
        return of_up @ down + up @ of_down

    moved = change(up, down)
    rows, columns = (m @ torch.linalg.pinv(m) for m in (up, down.T))
    assert_close(moved, slope @ columns + rows @ slope, rtol=1e-9, atol=1e-9)
    assert_close(change(up @ torch.linalg.inv(turn), turn @ down), moved, rtol=1e-9, atol=1e-9)


def test_scaled_gradients_use_the_frozen_halves_too(settings: dict[str, Any]):
    adapters = learned("both", 1, **settings)
    adapter = split(adapters)
    adapter.delta(torch.zeros(24, 24)).square().sum().backward()
    assert adapter.up.grad is not None
    assert adapter.down.grad is not None
    of_up, of_down = adapter.up.grad.clone(), adapter.down.grad.clone()
    apply_scaled_gradients(adapters)
    up, down = adapter.halves()
    assert up.shape == (24, 4)
    assert_close(adapter.up.grad @ (down @ down.T), of_up, rtol=1e-4, atol=1e-4)
    assert_close((up.T @ up) @ adapter.down.grad, of_down, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", STARTS)
def test_a_file_of_both_exports_as_the_lora_that_is_mounted(tmp_path: Path, start: str):
    united = combine_halves(learned("content", 1, start=start), learned("style", 2, start=start))
    save_adapter(tmp_path / "both.safetensors", united.float(), {})
    loaded = load_adapter(tmp_path / "both.safetensors")
    assert basis_hash(loaded) == basis_hash(united)
    mixed = scale_halves(loaded, content=0.7, style=1.2)
    tensors = to_diffusers({adapter.spec: pair for adapter in mixed if (pair := adapter.factors())})
    layer = nn.Linear(24, 24, bias=False)
    x, weight = torch.randn(5, 24), layer.weight.detach()
    mix = Mix(((scale_halves(load_only(loaded, "unet.square"), content=0.7, style=1.2), 1.0),))
    with torch.no_grad(), mount({"unet": nn.ModuleDict({"square": layer})}, mix):
        found = layer(x)
    plain = weight + tensors["unet.square.lora_B.weight"] @ tensors["unet.square.lora_A.weight"]
    assert (found - x @ plain.T).abs().max() <= 1e-4


def load_only(adapters: AdapterSet, name: str) -> AdapterSet:
    return AdapterSet(BreakForMake, adapters.settings, [adapters[name]])

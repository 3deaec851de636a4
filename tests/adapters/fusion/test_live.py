"""Several adapters at once: the gated layer against its parts taken one by one, and what each method promises."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils import merge_utils
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters.attach.merge import merge
from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.settings import SettingError
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.formats.safetensors_header import FileError
from atelier.adapters.fusion.curves import StrengthCurve, SwitchCurve
from atelier.adapters.fusion.dare_ties import dare, ties
from atelier.adapters.fusion.gates import GateRecord, GateSet, GateSettings
from atelier.adapters.fusion.live import (
    Fusion,
    PromptRegion,
    RegionText,
    WeightedAdapter,
    mount_fusion,
    with_prompt_regions,
)
from atelier.adapters.fusion.methods import (
    ALL_METHODS,
    METHODS,
    PAIR_METHODS,
    WEIGHT_METHODS,
    can_fuse,
    combine,
    fuse_adapters,
)
from atelier.adapters.fusion.pairwise import k_lora, k_lora_mean, np_lora, to_lora
from atelier.adapters.initialization.initialize import initialize
from atelier.adapters.kinds.catalog import create_adapters

SHAPES = {"wide": (8, 12), "tall": (14, 8), "conv": (6, 4, 3, 3)}


class Net(nn.Module):
    """Called as a UNet is: a picture ``[B, 4, 3, 3]`` and a timestep; every layer's output can be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.tall = nn.Linear(12, 8), nn.Linear(8, 14)
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.back = nn.Conv2d(6, 4, 1)

    def forward(self, sample: Tensor, timestep: Any) -> tuple[Tensor]:
        seen = self.tall(self.wide(sample.flatten(1)[:, :12])).mean(1)
        return (self.back(self.conv(sample)) * (1 + seen[:, None, None, None]),)


@pytest.fixture
def models() -> dict[str, nn.Module]:
    torch.manual_seed(3)
    return {"unet": Net().requires_grad_(False)}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(5))


def learned(models: dict[str, nn.Module], kind: str = "lora", seed: int = 1, names: str = "wide tall conv",
            **settings: Any) -> AdapterSet:   # fmt: skip
    torch.manual_seed(seed)
    specs = [Spec(f"unet.{name}", SHAPES[name]) for name in names.split()]
    adapters = create_adapters(kind, {"rank": 2, **settings} if kind != "wht" else settings, specs)
    initialize(adapters, models, lambda: models["unet"](torch.randn(5, 4, 3, 3), 0)[0].square().sum())
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return adapters.requires_grad_(False)


@pytest.fixture
def three(models: dict[str, nn.Module]) -> list[WeightedAdapter]:
    """Two low-rank kinds of different ranks and targets, and one that has no factors."""
    return [WeightedAdapter(learned(models, seed=1)),
            WeightedAdapter(learned(models, seed=2, rank=3, names="tall conv"), 0.7),
            WeightedAdapter(learned(models, "dora", seed=3), -0.4)]   # fmt: skip


def gates(settings: GateSettings | None = None) -> GateSet:
    torch.manual_seed(9)
    specs = [Spec(f"unet.{name}", shape) for name, shape in SHAPES.items()]
    return GateSet(specs, settings or GateSettings(), "tiny")


def run(models: dict[str, nn.Module], how: Mix | Fusion | None, x: Tensor, timestep: int = 500) -> Tensor:
    context = mount(models, how or Mix()) if not isinstance(how, Fusion) else mount_fusion(models, how)
    with context:
        return models["unet"](x, timestep=torch.tensor(timestep))[0]


def fuse(
    models: dict[str, nn.Module], parts: list[WeightedAdapter], method: str = "gated", **more: Any
) -> Mix | Fusion:
    return combine(models, parts, method, **({"gates": gates()} if method == "gated" else {}), **more)


def test_nothing_mixed_is_the_base_and_safe_gates_are_the_plain_sum(models, three, x):
    assert torch.equal(run(models, fuse(models, []), x), run(models, None, x))
    plain = Mix(tuple((part.adapters, part.strength) for part in three))
    assert_close(run(models, fuse(models, three), x), run(models, plain, x), rtol=0, atol=1e-6)
    alone = fuse(models, three[:1])
    assert_close(run(models, alone, x), run(models, Mix(((three[0].adapters, 1.0),)), x), rtol=0, atol=1e-6)


def test_closed_gates_are_the_base(models, three, x):
    closed = gates()
    for name in closed:
        closed.get(name).bias.data.fill_(-1e9)   # type: ignore[union-attr]
    fusion = combine(models, three, "gated", gates=closed)
    assert_close(run(models, fusion, x), run(models, None, x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [GateSettings(start="faithful"), GateSettings(start="faithful", terms="no-base"),
                                      GateSettings(start="faithful", timed=True)])   # fmt: skip
def test_order_and_empty_adapters_make_no_difference(models, three, x, settings):
    one = gates(settings)
    if settings.timed:
        for name in one:
            one.get(name).waves.data.normal_()   # type: ignore[union-attr]
    expected = run(models, combine(models, three, "gated", gates=one), x)
    assert not torch.allclose(expected, run(models, fuse(models, three), x), atol=1e-3)
    turned = combine(models, [three[2], three[0], three[1]], "gated", gates=one)
    assert_close(run(models, turned, x), expected, rtol=0, atol=1e-6)
    empty = create_adapters("lora", {"rank": 4}, [Spec("unet.conv", SHAPES["conv"])]).requires_grad_(False)
    inactive = [WeightedAdapter(empty), WeightedAdapter(three[0].adapters, 0.0)]
    more = combine(models, [*three, *inactive], "gated", gates=one)
    assert_close(run(models, more, x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [2, 3])
def test_a_gated_layer_is_what_its_parts_give_alone(models, three, x, count):
    """The hook against adapters called one by one: two low-rank ones, whose products are stacked, and with DoRA."""
    three = three[:count]
    seen: dict[str, Tensor] = {}
    conv, spec = models["unet"].conv, "unet.conv"
    faithful = gates(GateSettings(start="faithful"))
    with mount_fusion(models, combine(models, three, "gated", gates=faithful)):   # type: ignore[arg-type]
        watching = conv.register_forward_hook(lambda _, args, output: seen.update(x=args[0], y=output))
        models["unet"](x, timestep=torch.tensor(500))
    watching.remove()
    base = conv(seen["x"])
    found = torch.stack([part.strength * part.adapters[spec](seen["x"], conv) for part in three])
    gate = faithful.get(spec)
    assert gate is not None
    expected = gate(base.movedim(1, -1), found.movedim(2, -1), torch.zeros(1)).movedim(-1, 1)
    assert_close(seen["y"], expected, rtol=1e-5, atol=1e-6)


def test_gates_lie_between_and_differ_over_layers_inputs_and_time(models, three, x):
    record = GateRecord()
    faithful = gates(GateSettings(start="faithful", timed=True))
    for name in faithful:
        faithful.get(name).waves.data.normal_()   # type: ignore[union-attr]
    fusion = combine(models, three, "gated", gates=faithful, record=record)
    for timestep in (900, 500, 100):
        run(models, fusion, x, timestep)
    layers, moments = record.by_layer(), record.by_timestep()
    assert set(layers) == {f"unet.{name}" for name in SHAPES}
    assert list(moments) == [0.1, 0.5, 0.9]
    assert all(0 < value < 0.512 for row in layers.values() for value in row if value == value)
    assert layers["unet.wide"][1] != layers["unet.wide"][1], "this adapter has no such layer"
    assert len({row[0] for row in layers.values()}) == 3
    assert len({row[0] for row in moments.values()}) == 3
    other = GateRecord()
    run(models, combine(models, three, "gated", gates=faithful, record=other), x + 1, 900)
    assert other.by_layer() != layers


def test_only_gates_get_gradients(models, three, x):
    open_gates = gates(GateSettings(start="faithful", timed=True)).requires_grad_()
    before = [copy.deepcopy(part.adapters.tensors()) for part in three]
    base = copy.deepcopy(models["unet"].state_dict())
    run(models, combine(models, three, "gated", gates=open_gates), x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in open_gates.parameters())
    assert all(p.grad is None for part in three for p in part.adapters.parameters())
    assert all(torch.equal(value, base[key]) for key, value in models["unet"].state_dict().items())
    for part, old in zip(three, before, strict=True):
        assert all(torch.equal(value, old[key]) for key, value in part.adapters.tensors().items())


def test_the_timestep_term_follows_each_picture_of_a_batch(models, three, x):
    timed = gates(GateSettings(timed=True))
    for name in timed:
        timed.get(name).waves.data.normal_()   # type: ignore[union-attr]
    fusion = combine(models, three, "gated", gates=timed)
    with mount_fusion(models, fusion):   # type: ignore[arg-type]
        both = models["unet"](x, timestep=torch.tensor([900, 100]))[0]
    assert_close(both[:1], run(models, fusion, x[:1], 900), rtol=0, atol=1e-6)
    assert_close(both[1:], run(models, fusion, x[1:], 100), rtol=0, atol=1e-6)
    assert not torch.allclose(run(models, fusion, x, 900), run(models, fusion, x, 100), atol=1e-3)


def test_composite_is_the_mean_of_what_each_gives_alone(models, three, x):
    expected = torch.stack([run(models, Mix(((p.adapters, p.strength),)), x) for p in three]).mean(0)
    assert_close(run(models, fuse(models, three, "composite"), x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("steps", "each"), [(20, 2), (50, 5)])
def test_switch_lets_one_adapter_act_for_a_tenth_of_the_steps(models, three, x, steps, each):
    fusion = fuse(models, three, "switch", steps=steps)
    for step in range(0, steps, 3):
        alone = three[step // each % 3]
        timestep = 999 - 1000 // steps * step
        expected = run(models, Mix(((alone.adapters, alone.strength),)), x)
        assert_close(run(models, fusion, x, timestep), expected, rtol=0, atol=1e-6)
    turns = [[SwitchCurve(i, 2, 8, 3)(step / 8) for step in range(8)] for i in range(2)]
    assert turns == [[1, 1, 1, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 0, 0]]


def test_a_curve_is_a_strength_for_each_timestep(models, three, x):
    part = WeightedAdapter(three[0].adapters, 2.0, curve=StrengthCurve((0.0, 1.0, 0.5)))
    for timestep, strength in ((1000, 0.0), (750, 1.0), (500, 2.0), (0, 1.0)):
        expected = run(models, Mix(((part.adapters, strength),)), x)
        assert_close(run(models, fuse(models, [part], "sum"), x, timestep), expected, rtol=0, atol=1e-6)


def test_a_region_is_where_an_adapter_acts(models, three, x):
    left = torch.zeros(3, 3)
    left[:, 0] = 1
    painted = [three[0], WeightedAdapter(three[1].adapters, 0.7, region=left)]
    everywhere = run(models, Mix(((three[0].adapters, 1.0),)), x)
    both = run(models, Mix(((three[0].adapters, 1.0), (three[1].adapters, 0.7))), x)
    found = run(models, fuse(models, painted, "sum"), x)
    assert_close(found[..., 2], everywhere[..., 2], rtol=0, atol=1e-5)
    assert_close(found[..., 0], both[..., 0], rtol=0, atol=1e-5)
    whole = [three[0], WeightedAdapter(three[1].adapters, 0.7, region=torch.ones(2, 2))]
    assert_close(run(models, fuse(models, whole, "sum"), x), both, rtol=0, atol=1e-6)


def test_text_encoders_are_added_plainly_and_left_as_they_were(x):
    torch.manual_seed(1)
    models: dict[str, nn.Module] = {"unet": Net(), "text_encoder": nn.Sequential(nn.Linear(4, 4))}
    words = create_adapters("lora", {"rank": 2}, [Spec("text_encoder.0", (4, 4))]).requires_grad_(False)
    for parameter in words.parameters():
        parameter.data.normal_()
    other = create_adapters("lora", {"rank": 1}, [Spec("unet.conv", SHAPES["conv"])]).requires_grad_(False)
    tokens = torch.randn(2, 4)
    with mount(models, Mix(((words, 0.5),))):
        expected = models["text_encoder"](tokens)
    for method in ("switch", "composite"):
        with mount_fusion(models, combine(models, [WeightedAdapter(other), WeightedAdapter(words, 0.5)], method)):   # type: ignore[arg-type]
            assert_close(models["text_encoder"](tokens), expected)
    assert models["text_encoder"][0]._forward_hooks == {}
    assert "forward" not in models["unet"].__dict__


def weights(models, adapters: AdapterSet) -> dict[str, Tensor]:
    return {a.spec.name: a.delta(models["unet"].get_submodule(a.spec.name[5:]).weight) for a in adapters}


@pytest.mark.parametrize("method", ["sum", "normalised", "concat"])
def test_exact_methods_are_one_file_that_does_the_same(models, three, x, method):
    expected = run(models, fuse(models, three, method), x)
    one = fuse_adapters(models, three, method)
    assert_close(run(models, Mix(((one, 1.0),)), x), expected, rtol=1e-5, atol=1e-6)
    with merge(models, Mix(((one, 1.0),))):
        assert_close(models["unet"](x, 500)[0], expected, rtol=1e-5, atol=1e-6)


def test_normalised_strengths_add_up_to_one(models, three):
    mix = fuse(models, three, "normalised")
    assert isinstance(mix, Mix)
    assert_close([strength for _, strength in mix.parts], [1 / 2.1, 0.7 / 2.1, -0.4 / 2.1])
    small = fuse(models, [WeightedAdapter(three[0].adapters, 0.3)], "normalised")
    assert isinstance(small, Mix)
    assert small.parts[0][1] == 0.3, "what is small stays small"


def test_svd_is_the_best_of_its_rank(models, three):
    whole = weights(models, fuse_adapters(models, three[:2], "sum"))
    cut = fuse_adapters(models, three[:2], "svd", rank=2)
    for name, delta in weights(models, cut).items():
        s = torch.linalg.svdvals(whole[name].flatten(1))
        assert_close(torch.linalg.vector_norm(whole[name] - delta), s[2:].norm(), rtol=1e-4, atol=1e-5)
    assert max(len(a.factors()[1]) for a in fuse_adapters(models, three[:2], "svd")) == 3   # type: ignore[index]


def test_ties_is_the_reference_of_peft(models):
    parts = [learned(models, seed=seed) for seed in (1, 2, 3)]
    ours = weights(models, ties(models, Mix(tuple((part, 1.0) for part in parts)), keep=0.4))
    for name in ours:
        deltas = [weights(models, part)[name] for part in parts]
        theirs = merge_utils.ties(deltas, torch.ones(3), density=0.4)
        assert_close(ours[name], theirs, rtol=1e-5, atol=1e-6)


def test_dare_keeps_a_share_and_the_mean(models):
    part = learned(models, seed=1, names="conv")
    [whole] = weights(models, part).values()
    [kept] = weights(models, dare(models, Mix(((part, 2.0),)), drop=0.5)).values()
    zero = kept == 0
    assert 0.35 < zero.float().mean() < 0.65
    assert_close(kept[~zero], 4 * whole[~zero])
    again = dare(models, Mix(((part, 2.0),)), drop=0.5)
    assert torch.equal(weights(models, again)["unet.conv"], kept), "the same dice every time"


def test_only_what_is_one_file_is_called_so(models, three):
    assert {m for m in ALL_METHODS if can_fuse(three, m)} == set(WEIGHT_METHODS)
    assert {m for m in ALL_METHODS if can_fuse(three[:2], m)} == {*WEIGHT_METHODS, *PAIR_METHODS}
    curved = WeightedAdapter(three[0].adapters, curve=StrengthCurve((0.0, 1.0)))
    regional = WeightedAdapter(three[0].adapters, region=torch.ones(2, 2))
    timed = WeightedAdapter(k_lora(models, three[0].adapters, three[1].adapters))
    for part in (curved, regional, timed):
        assert not any(can_fuse([part], method) for method in METHODS)
        with pytest.raises(SettingError, match="can't be one file"):
            fuse_adapters(models, [part], "sum")


@pytest.mark.parametrize(("method", "what"), [
    ("gated", "no gates"), ("best", "no method"), ("ties", "can't follow curves"), ("composite", "painted regions"),
])   # fmt: skip
def test_what_does_not_go_together_is_said(models, three, method, what):
    curve = StrengthCurve((0.0, 1.0)) if method == "ties" else None
    region = torch.ones(2, 2) if method == "composite" else None
    with pytest.raises(SettingError, match=what):
        combine(models, [WeightedAdapter(three[0].adapters, curve=curve, region=region)], method)


@pytest.mark.parametrize("method", ["np", "k"])
def test_methods_of_two_take_strengths_and_only_two(models, three, x, method):
    parts = [WeightedAdapter(three[0].adapters, 0.5), WeightedAdapter(three[1].adapters, 0.75)]
    scaled = [to_lora(models, part.adapters, part.strength) for part in parts]
    expected = Mix((((np_lora if method == "np" else k_lora)(models, *scaled), 1.0),))
    assert torch.equal(run(models, combine(models, parts, method), x), run(models, expected, x))
    one = fuse_adapters(models, parts, method)
    mean = (np_lora if method == "np" else k_lora_mean)(models, *scaled)
    assert torch.equal(run(models, Mix(((one, 1.0),)), x), run(models, Mix(((mean, 1.0),)), x))
    for number in (1, 3):
        with pytest.raises(SettingError, match=f"exactly two adapters.*has {number}"):
            combine(models, three[:number], method)


def test_gates_survive_their_file(tmp_path: Path, models, three, x):
    path = tmp_path / "gates.safetensors"
    one = gates(GateSettings(start="faithful", terms="no-base", timed=True))
    for tensor in one.tensors().values():
        tensor.copy_(tensor.half())
    one.save(path, {"atelier.trained": "yes"})
    again = GateSet.load(path)
    assert (again.family, again.settings, list(again)) == ("tiny", one.settings, list(one))
    assert torch.equal(run(models, combine(models, three, "gated", gates=again), x),
                       run(models, combine(models, three, "gated", gates=one), x))   # fmt: skip
    assert not any(p.requires_grad for p in again.parameters())
    save_adapter(tmp_path / "other.safetensors", three[0].adapters, {})
    with pytest.raises(FileError, match="contains no gates"):
        GateSet.load(tmp_path / "other.safetensors")
    with pytest.raises(FileError, match="does not exist"):
        GateSet.load(tmp_path / "none.safetensors")


class ReadingNet(Net):
    """As ``Net``, and its answer grows with what it reads: ``encoder_hidden_states [B, T, D]``."""

    def forward(self, sample: Tensor, timestep: Any, *, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        return (super().forward(sample, timestep)[0] + encoder_hidden_states.mean((1, 2))[:, None, None, None],)


def read(models: dict[str, nn.Module], how: Mix | Fusion, x: Tensor, words: Tensor) -> Tensor:
    with mount_fusion(models, how) if isinstance(how, Fusion) else mount(models, how):
        return models["unet"](x, timestep=torch.tensor(500), encoder_hidden_states=words)[0]


def test_a_region_with_a_prompt_is_what_its_prompt_and_its_adapter_give_there(three, x):
    torch.manual_seed(3)
    models: dict[str, nn.Module] = {"unet": ReadingNet().requires_grad_(False)}
    left, right = torch.zeros(1, 3), torch.zeros(1, 3)
    left[:, 0], right[:, 2] = 1, 1
    words = torch.tensor([[[-1.0]], [[2.0]]])   # a negative prompt, then the prompt of one picture
    own, other = (RegionText(torch.tensor([[[value]]])) for value in (5.0, 9.0))
    parts = [three[0], WeightedAdapter(three[1].adapters, 0.7, region=left, prompt="own")]
    fusion = with_prompt_regions(fuse(models, parts, "sum"), [PromptRegion("other", right)])
    assert isinstance(fusion, Fusion) and [one.prompt for one in fusion.passes()] == ["own", "other", ""]
    found = read(models, replace(fusion, texts=(own, other, None)), x, words)
    plain = Mix(((three[0].adapters, 1.0),))
    both = Mix(((three[0].adapters, 1.0), (three[1].adapters, 0.7)))
    for mix, column, value in ((both, 0, 5.0), (plain, 1, 2.0), (plain, 2, 9.0)):
        expected = read(models, mix, x, torch.tensor([[[-1.0]], [[value]]]))
        assert_close(found[..., column], expected[..., column], rtol=0, atol=1e-5)
    assert "forward" not in models["unet"].__dict__


def test_regions_with_prompts_share_where_they_overlap(x):
    torch.manual_seed(3)
    models: dict[str, nn.Module] = {"unet": ReadingNet().requires_grad_(False)}
    everywhere = [PromptRegion(name, torch.ones(2, 2)) for name in "ab"]
    fusion = with_prompt_regions(Mix(), everywhere)
    assert isinstance(fusion, Fusion)
    one, other = (RegionText(torch.tensor([[[value]]] * 2)) for value in (4.0, 8.0))
    words = torch.full((2, 1, 1), 1.0)
    found = read(models, replace(fusion, texts=(one, other, None)), x, words)
    assert_close(found, read(models, Mix(), x, words * 6), rtol=0, atol=1e-5)
    with pytest.raises(SettingError, match="composite"):
        with_prompt_regions(Fusion((), separate_passes=True), everywhere)

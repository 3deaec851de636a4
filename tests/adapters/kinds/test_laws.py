"""The laws every adapter kind obeys. A new kind in the catalog is put through them without a line changed here."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from math import gcd
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters.attach.merge import merge
from atelier.adapters.attach.mount import MountError, mount
from atelier.adapters.core.base import Adapter, AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.native import load_adapter, save_adapter
from atelier.adapters.initialization.initialize import initialize
from atelier.adapters.kinds.catalog import KINDS, create_adapters
from atelier.adapters.kinds.factorize import largest_divisor, modes
from atelier.kernels.wavelet import padded_width

LAYERS: dict[str, Callable[[], Any]] = {
    "wide": lambda: nn.Linear(30, 11),
    "tall": lambda: nn.Linear(12, 32),
    "1x1": lambda: nn.Conv2d(12, 20, 1),
    "3x3": lambda: nn.Conv2d(12, 10, 3, padding=1),
    "strided": lambda: nn.Conv2d(12, 16, 3, stride=2, padding=1),
    "dilated": lambda: nn.Conv2d(12, 14, 3, dilation=2, padding="same"),
    "circular": lambda: nn.Conv2d(12, 14, 3, padding=1, padding_mode="circular"),
    "grouped": lambda: nn.Conv2d(12, 18, 3, padding=1, groups=3),
}


ODD = ("3x3", "dilated", "circular", "grouped")   # the base class's work: one kind with factors, one without
MORE = {"alpha": 3.0, "terms": 2, "levels": 2, "smooth_rank": 3}   # numbers that no default tries


def settings_variants(kind: str) -> Iterator[dict[str, Any]]:
    """The kind's defaults, then every other choice it offers, one at a time."""
    yield {}
    hints = get_type_hints(KINDS[kind].settings)
    for f in fields(KINDS[kind].settings):
        others = [choice for choice in f.metadata["choices"] if choice != f.default]
        others += [True] if hints[f.name] is bool else [MORE[f.name]] if f.name in MORE else []
        yield from ({f.name: value} for value in others)


VARIANTS = [(kind, settings) for kind in KINDS for settings in settings_variants(kind)]
CASES = [((kind, settings), layer) for kind, settings in VARIANTS
         for layer in (("tall", "strided") if settings else ("tall", "wide", "1x1", "strided"))]
CASES += [((kind, {}), layer) for kind in ("lora", "svdiff") for layer in ODD]


def name_of(value: Any) -> str:
    (kind, settings), layer = value
    return "-".join([kind, *(f"{k}={v}" for k, v in settings.items()), layer])


@dataclass
class Case:
    """One layer of a one-layer model, an adapter set for it, and something to put in."""

    kind: type[Adapter]
    settings: dict[str, Any]
    module: Any   # Linear or Conv2d: as nn.Module its weight could be anything
    x: Tensor

    @property
    def models(self) -> dict[str, nn.Module]:
        return {"unet": nn.ModuleDict({"block": nn.ModuleDict({"layer": self.module})})}

    @property
    def spec(self) -> Spec:
        return Spec("unet.block.layer", tuple(self.module.weight.shape))

    def new(self, seed: int = 0) -> AdapterSet:
        torch.manual_seed(seed)
        adapters = create_adapters(self.kind.kind, self.settings, [self.spec])
        initialize(adapters, self.models, lambda: self.module(self.x).square().sum())
        return adapters

    def trained(self, seed: int = 0) -> AdapterSet:
        return fill(self.new(seed), seed).to(self.x.dtype)

    def run(self, *parts: tuple[AdapterSet, float]) -> Tensor:
        with torch.no_grad(), mount(self.models, Mix(parts)):
            return self.module(self.x)

    def double(self) -> Case:
        return Case(self.kind, self.settings, self.module.double(), self.x.double())


def fill(adapters: AdapterSet, seed: int) -> AdapterSet:
    """Move every parameter as if by training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapters


@pytest.fixture(params=CASES, ids=name_of)
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(*request.param)


@pytest.fixture(params=[case for case in CASES if not case[0][1]], ids=name_of)
def plain(request: pytest.FixtureRequest) -> Case:
    """Defaults alone, for laws about what happens around an adapter, whatever its settings."""
    return make_case(*request.param)


def make_case(variant: tuple[str, dict[str, Any]], layer: str) -> Case:
    kind, settings = variant
    torch.manual_seed(1)
    module = LAYERS[layer]()
    linear = isinstance(module, nn.Linear)
    x = torch.randn(2, 5, module.in_features) if linear else torch.randn(2, module.in_channels, 7, 9)
    return Case(KINDS[kind], settings, module, x)


def dense(module: Any, weight: Tensor, x: Tensor) -> Tensor:
    """What torch's own module gives with another weight and no bias."""
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.weight.copy_(weight)
        twin.bias.zero_()
        return twin(x)


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """All that mounting could leave behind: tensors to the byte, modules, their attributes and hooks."""
    return {
        "bytes": {k: v.contiguous().view(torch.uint8).numpy().tobytes() for k, v in model.state_dict().items()},
        "storage": {k: v.data_ptr() for k, v in model.state_dict().items()},
        "modules": {name: (id(module), type(module), sorted(vars(module))) for name, module in model.named_modules()},
        "hooks": {name: (list(module._forward_hooks), list(module._forward_pre_hooks))
                  for name, module in model.named_modules()},
    }


def test_a_new_adapter_changes_nothing(case: Case):
    adapters = case.new()
    assert torch.count_nonzero(adapters[case.spec.name].delta(case.module.weight)) == 0
    assert torch.equal(case.run((adapters, 1.0)), case.run())


def test_shortcut_equals_the_dense_update(case: Case):
    case = case.double()
    adapter = case.trained()[case.spec.name]
    delta = adapter.delta(case.module.weight)
    assert delta.shape == case.module.weight.shape
    assert delta.norm() > 0.1
    with torch.no_grad():
        assert_close(adapter(case.x, case.module), dense(case.module, delta, case.x))


def test_every_parameter_receives_gradient(case: Case):
    adapters = case.trained()
    with mount(case.models, Mix(((adapters, 1.0),))):
        for _ in range(40 if case.kind.kind == "dylora" else 1):   # a rank is drawn after every update
            case.module(case.x).square().sum().backward()
            with torch.no_grad():
                torch._foreach_mul_(list(adapters.parameters()), 1.001)
    silent = [name for name, p in adapters.named_parameters() if p.grad is None or not p.grad.all()]
    assert not silent, f"no gradient reaches all of {silent}"


def test_training_can_leave_the_start(case: Case):
    adapters = case.new()
    with mount(case.models, Mix(((adapters, 1.0),))):
        case.module(case.x).square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in adapters.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_training_finds_an_update_that_the_kind_can_be(kind: str):
    case = make_case((kind, {}), "strided")
    weight, student = case.module.weight.detach(), case.new()
    teacher = case.new()   # from the same seed: the same positions and bases
    with torch.no_grad():
        torch._foreach_add_(list(teacher.parameters()), [0.1 * torch.randn_like(p) for p in teacher.parameters()])
        goal = teacher[case.spec.name].delta(weight)
    optimizer = torch.optim.Adam(student.parameters(), 0.02)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = (student[case.spec.name].delta(weight) - goal).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_linear_in_strength_or_says_not(case: Case):
    case = case.double()
    adapters = case.trained()
    whole = case.run((adapters, 1.0)) - case.run()
    proportional = [torch.allclose(case.run((adapters, strength)) - case.run(), strength * whole, rtol=1e-9, atol=1e-11)
                    for strength in (-1.0, 0.5, 2.0)]
    assert all(proportional) == case.kind.linear_in_strength


def cut(spec: Spec, levels: int) -> Callable[[int], int]:
    """Rows and columns of a wavelet band at a level."""
    return lambda level: (padded_width(spec.rows, levels) + padded_width(spec.features, levels) * spec.taps) >> level


def train(sizes: tuple[int, ...], bond: int) -> int:
    """Values in a tensor train."""
    return sum(bond ** ((i > 0) + (i < len(sizes) - 1)) * size for i, size in enumerate(sizes))


def test_parameter_count_is_the_docstring_formula(case: Case):
    adapters = case.new()
    count = sum(p.numel() for p in adapters.parameters())
    assert case.kind.total_count([case.spec], adapters.settings) == count
    formula = re.search(r"Parameters: (.+?)\.\s", case.kind.__doc__ or "", re.S)
    assert formula, f"{case.kind.__name__} must say in its docstring: Parameters: <formula>."
    spec, settings = case.spec, adapters.settings.to_dict()
    names = {
        **settings, "rows": spec.rows, "columns": spec.columns, "features": spec.features, "taps": spec.taps,
        "modes": modes, "padded": padded_width, "share": largest_divisor, "gcd": gcd, "train": train,
        "bases": lambda n, rank: -(-n // rank),
        "cut": cut(spec, settings.get("levels", 0)),
        "f_out": largest_divisor(spec.rows, settings.get("factor", 1)),
        "f_in": largest_divisor(spec.features, settings.get("factor", 1)),
    }
    assert eval(" ".join(formula[1].replace("·", "*").replace("−", "-").split()), names) == count


def test_trains_in_float32_and_is_made_from_the_seed(case: Case):
    once, again = (case.new(0).tensors() for _ in range(2))
    assert {tensor.dtype for tensor in once.values() if tensor.is_floating_point()} == {torch.float32}
    assert all(torch.equal(once[key], again[key]) for key in once)


REOPEN = """
import sys, torch
from pathlib import Path
from atelier.adapters.formats.native import load_adapter
torch.manual_seed(987654321)
torch.rand(17)
for path in map(Path, sys.argv[1:]):
    adapters = load_adapter(path)
    weights = torch.load(path.with_suffix(".weights"))
    torch.save(
        {"tensors": adapters.tensors(),
         "deltas": {name: adapters[name].delta(weight) for name, weight in weights.items()}},
        path.with_suffix(".reopened"))
"""


@pytest.fixture(scope="module")
def reopened(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[AdapterSet, dict[str, Tensor], Any]]:
    """Each variant's adapters for all layers, the base's weights, and what a fresh process found in the file."""
    folder = tmp_path_factory.mktemp("laws")
    originals = []
    for number, (kind, settings) in enumerate(VARIANTS):
        torch.manual_seed(number)
        layers = {name: LAYERS[name]() for name in ("tall", "wide", "1x1", "strided")}
        weights = {f"unet.{name}": module.weight.detach() for name, module in layers.items()}
        specs = [Spec(name, tuple(weight.shape)) for name, weight in weights.items()]
        adapters = create_adapters(kind, settings, specs)
        inputs = {"tall": torch.randn(4, 12), "wide": torch.randn(4, 30),
                  "1x1": torch.randn(1, 12, 5, 5), "strided": torch.randn(1, 12, 5, 5)}
        models = {"unet": nn.ModuleDict(layers)}
        initialize(adapters, models, lambda: sum(layers[k](x).square().sum() for k, x in inputs.items()))   # noqa: B023
        fill(adapters, number)
        save_adapter(folder / f"{number:03d}.safetensors", adapters, {})
        torch.save(weights, folder / f"{number:03d}.weights")
        originals.append((adapters, weights))
    files = sorted(map(str, folder.glob("*.safetensors")))
    subprocess.run([sys.executable, "-c", REOPEN, *files], check=True, timeout=120)
    return [(*original, torch.load(folder / f"{n:03d}.reopened")) for n, original in enumerate(originals)]


@pytest.mark.parametrize("number", range(len(VARIANTS)), ids=[name_of((v, "all")) for v in VARIANTS])
def test_a_fresh_process_reads_back_every_bit(reopened: list[Any], number: int):
    adapters, weights, found = reopened[number]
    assert found["tensors"].keys() == adapters.tensors().keys()
    for key, tensor in adapters.tensors().items():
        assert torch.equal(found["tensors"][key], tensor), key
    for name, weight in weights.items():
        assert torch.equal(found["deltas"][name], adapters[name].delta(weight)), name


def test_unmounting_restores_the_base(plain: Case):
    model = plain.models["unet"]
    before, output = fingerprint(model), plain.module(plain.x)
    with mount({"unet": model}, Mix(((plain.trained(), 0.7), (plain.trained(1), -0.4)))):
        assert not torch.allclose(plain.module(plain.x), output)
        assert fingerprint(model)["bytes"] == before["bytes"]
        assert fingerprint(model)["storage"] == before["storage"]
    assert fingerprint(model) == before
    assert torch.equal(plain.module(plain.x), output)


def test_unmerging_restores_the_base(plain: Case):
    model = plain.models["unet"]
    before = fingerprint(model)
    with merge({"unet": model}, Mix(((plain.trained(), 0.7), (plain.trained(1), -0.4)))):
        assert fingerprint(model)["bytes"] != before["bytes"]
    assert fingerprint(model) == before


@pytest.mark.parametrize("attach", [mount, merge])
def test_an_exception_inside_restores_too(plain: Case, attach: Any):
    model = plain.models["unet"]
    before = fingerprint(model)
    with pytest.raises(KeyboardInterrupt), attach({"unet": model}, Mix(((plain.trained(), 1.0),))):
        raise KeyboardInterrupt
    assert fingerprint(model) == before


@pytest.mark.parametrize("attach", [mount, merge])
def test_a_misfit_behind_a_fit_leaves_nothing(plain: Case, attach: Any):
    model = plain.models["unet"]
    before = fingerprint(model)
    misfit = create_adapters(plain.kind.kind, plain.settings, [Spec("unet.block.layer", (64, 64))])
    with pytest.raises(MountError), attach({"unet": model}, Mix(((plain.trained(), 1.0), (misfit, 1.0)))):
        pytest.fail("entered")
    assert fingerprint(model) == before


def test_merging_equals_mounting(case: Case):
    parts = (case.trained(), 0.7), (case.trained(1), -0.4)
    with torch.no_grad(), merge(case.models, Mix(parts)):
        output = case.module(case.x)
    assert_close(output, case.run(*parts), rtol=1e-5, atol=1e-5 * output.abs().max().item())


def test_merging_into_half_rounds_once(plain: Case):
    adapters = plain.trained()
    module = plain.module.half()
    exact = module.weight.double() + 0.5 * adapters[plain.spec.name].delta(module.weight).double()
    with merge(plain.models, Mix(((adapters, 0.5),))):
        assert module.weight.dtype == torch.float16
        spacing = torch.finfo(torch.float16).eps * exact.abs().clamp_min(torch.finfo(torch.float16).smallest_normal)
        assert ((module.weight.double() - exact).abs() <= 0.52 * spacing).all()


def test_many_merges_leave_the_base_bit_equal(plain: Case):
    weight = plain.module.weight.detach().clone()
    mixes = [Mix(((plain.trained(seed), 0.1 * (seed + 1)),)) for seed in range(2)]
    for turn in range(10):
        with merge(plain.models, mixes[turn % 2]):
            assert not torch.equal(plain.module.weight, weight)
    assert torch.equal(plain.module.weight, weight)


def test_merging_into_bfloat16_is_refused(plain: Case):
    adapters = plain.trained()
    plain.module.bfloat16()
    before = fingerprint(plain.module)
    with pytest.raises(MountError, match=r"bfloat16.*[Mm]ount"), merge(plain.models, Mix(((adapters, 1.0),))):
        pytest.fail("entered")
    assert fingerprint(plain.module) == before


def test_two_adapters_add_in_either_order(case: Case):
    case = case.double()
    a, b = (case.trained(), 0.7), (case.trained(1), -0.4)
    sum_of_changes = (case.run(a) - case.run()) + (case.run(b) - case.run())
    assert_close(case.run(a, b) - case.run(), sum_of_changes, rtol=1e-9, atol=1e-11)
    assert_close(case.run(b, a) - case.run(), sum_of_changes, rtol=1e-9, atol=1e-11)


def test_the_order_of_merging_does_not_matter_to_the_bit(plain: Case):
    a, b = (plain.trained(), 0.7), (plain.trained(1), -0.4)
    with merge(plain.models, Mix((a, b))):
        forwards = plain.module.weight.detach().clone()
    with merge(plain.models, Mix((b, a))):
        assert torch.equal(plain.module.weight, forwards)


def test_bfloat16_autocast_works(case: Case):
    adapters = case.trained()
    exact = case.run((adapters, 1.0))
    with torch.autocast("cpu", torch.bfloat16), mount(case.models, Mix(((adapters, 1.0),))):
        case.module(case.x).float().square().mean().backward()
        with torch.no_grad():
            output = case.module(case.x)
    assert output.dtype == torch.bfloat16
    assert_close(output.float(), exact, rtol=0.02, atol=0.02 * exact.abs().max().item())
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all()
               for p in adapters.parameters())


def test_mounting_on_a_half_precision_base_works(case: Case):
    adapters = case.trained()
    exact = case.run((adapters, 1.0))
    for dtype in (torch.float16, torch.bfloat16):
        module = copy.deepcopy(case.module).to(dtype)
        output = Case(case.kind, case.settings, module, case.x.to(dtype)).run((adapters, 1.0))
        assert output.dtype == dtype
        assert_close(output.float(), exact, rtol=0.02, atol=0.02 * exact.abs().max().item())


def test_opening_a_file_gives_frozen_parameters(plain: Case, tmp_path: Any):
    save_adapter(tmp_path / "a.safetensors", plain.trained(), {})
    assert not any(p.requires_grad for p in load_adapter(tmp_path / "a.safetensors").parameters())

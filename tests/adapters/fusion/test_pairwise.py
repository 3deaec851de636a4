"""Two adapters into one: every method against its formula, written down again in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters.attach.merge import merge
from atelier.adapters.attach.mount import MountError, mount
from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.settings import SettingError
from atelier.adapters.formats.imported_layers import create_imported
from atelier.adapters.formats.native import load_adapter, save_adapter
from atelier.adapters.fusion.gates import GateSet, GateSettings
from atelier.adapters.fusion.live import WeightedAdapter
from atelier.adapters.fusion.methods import METHODS, combine
from atelier.adapters.fusion.pairwise import (
    K_LORA_ALPHA,
    K_LORA_BETA,
    k_lora,
    k_lora_mean,
    np_lora,
    sum_adapters,
    to_lora,
)
from atelier.adapters.fusion.ziplora import create_ziplora, mixer_similarity
from atelier.adapters.initialization.initialize import initialize
from atelier.adapters.kinds.catalog import create_adapters
from atelier.adapters.kinds.lora import Lora

CONTENT, STYLE = {"rank": 3}, {"rank": 2, "alpha": 5.0}


class Net(nn.Module):
    """Something that is called as a UNet is, with layers of three shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.tall = nn.Linear(12, 8), nn.Linear(8, 14)
        self.conv = nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        flat = self.tall(self.wide(x))
        return torch.cat([flat, self.conv(x.reshape(-1, 4, 1, 3)).flatten(1)], 1)


@pytest.fixture
def models() -> dict[str, nn.Module]:
    torch.manual_seed(3)
    return {"unet": Net().double()}


def learned(models: dict[str, nn.Module], kind: str, settings: dict[str, Any], seed: int,
            names: tuple[str, ...] = ("wide", "tall", "conv")) -> AdapterSet:   # fmt: skip
    """An adapter for some of the layers, as if it had been trained."""
    torch.manual_seed(seed)
    shapes = {name: tuple(models["unet"].get_parameter(f"{name}.weight").shape) for name in names}
    adapters = create_adapters(kind, settings, [Spec(f"unet.{name}", shape) for name, shape in shapes.items()])
    initialize(adapters, models, lambda: models["unet"](torch.randn(5, 12).double(), 0).square().sum())
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return adapters.double()


@pytest.fixture
def content(models: dict[str, nn.Module]) -> AdapterSet:
    return learned(models, "lora", CONTENT, 1)


@pytest.fixture
def style(models: dict[str, nn.Module]) -> AdapterSet:
    return learned(models, "lora", STYLE, 2)


def deltas(models: dict[str, nn.Module], adapters: AdapterSet) -> dict[str, Tensor]:
    weights = {a.spec.name: models["unet"].get_parameter(f"{a.spec.name.partition('.')[2]}.weight") for a in adapters}
    with torch.no_grad():
        return {a.spec.name: a.delta(weights[a.spec.name]).flatten(1).double() for a in adapters}


def test_a_sum_is_exact(models, content, style):
    total, one, two = (deltas(models, part) for part in (sum_adapters(models, content, style), content, style))
    for name, delta in total.items():
        assert_close(delta, one[name] + two[name], rtol=1e-6, atol=1e-6)
    ranks = {a.spec.name: len(a.down) for a in sum_adapters(models, content, style) if isinstance(a, Lora)}
    assert ranks == dict.fromkeys(one, 5)   # ranks add up


@pytest.mark.parametrize("kind", ["split", "dora", "waveft", "loha"])
def test_any_kinds_add_up_as_they_do_when_both_are_mounted(models, style, kind):
    other = learned(models, kind, {}, 4)
    x = torch.randn(5, 12).double()
    with torch.no_grad(), mount(models, Mix(((other, 1.0), (style, 1.0)))):
        expected = models["unet"](x, 0)
    with torch.no_grad(), mount(models, Mix(((sum_adapters(models, other, style), 1.0),))):
        assert_close(models["unet"](x, 0), expected, rtol=1e-4, atol=1e-4)


def test_layers_that_only_one_of_them_changes_are_kept(models, content):
    other = learned(models, "lora", STYLE, 2, ("conv",))
    for method in (sum_adapters, np_lora, k_lora_mean):
        found, one = deltas(models, method(models, content, other)), deltas(models, content)
        assert found.keys() == one.keys()
        assert_close(found["unet.wide"], one["unet.wide"], rtol=1e-6, atol=1e-6)


def test_projection_takes_the_styles_rows_out_of_the_content(models, content, style):
    one, two = deltas(models, content), deltas(models, style)
    for amount in (0.0, 0.5, 3.0):
        found = deltas(models, np_lora(models, content, style, amount))
        for name, delta in found.items():
            onto = torch.linalg.pinv(two[name]) @ two[name]
            expected = two[name] + one[name] @ (torch.eye(len(onto)).double() - amount / (1 + amount) * onto)
            assert_close(delta, expected, rtol=1e-5, atol=1e-5)
    inputs = two["unet.wide"].T @ torch.randn(8, 1).double()   # what the style looks at
    gone = deltas(models, np_lora(models, content, style, 1e12))["unet.wide"] - two["unet.wide"]
    assert (gone @ inputs).abs().max() < 1e-5 * (one["unet.wide"] @ inputs).abs().max()


def test_projection_looks_at_what_the_style_does_and_not_at_unused_factors(models, content):
    """A split style has rows in ``down`` that its ``up`` never uses."""
    half = learned(models, "split", {"rank": 4, "role": "style"}, 2)
    with torch.no_grad():
        half["unet.tall"].get_parameter("up").zero_()
    sets = np_lora(models, content, half, 2.0), half, content
    found, two, one = (deltas(models, part)["unet.tall"] for part in sets)
    onto = torch.linalg.pinv(two) @ two
    assert_close(found, two + one @ (torch.eye(len(onto)).double() - 2 / 3 * onto), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def unequal(adapters: AdapterSet) -> None:
    """Make the layers change over at different times."""
    for factor, adapter in zip((1.0, 1.5, 2.0), adapters, strict=True):
        adapter.get_parameter("up").mul_(factor)


def by_the_book(content: dict[str, Tensor], style: dict[str, Tensor], progress: float, most: int) -> dict[str, bool]:
    """K-LoRA's rule for one moment: whether each layer has the content."""
    balance = sum(d.abs().sum() for d in content.values()) / sum(d.abs().sum() for d in style.values())
    scale = (K_LORA_ALPHA * progress + K_LORA_BETA) * balance
    def size(delta: Tensor) -> Tensor:
        return delta.abs().flatten().sort(descending=True).values[:most].sum()

    return {name: bool(size(content[name]) >= scale * size(style[name])) for name in content}


@pytest.mark.parametrize("timestep", [999, 850, 700, 400, 0])
def test_the_choice_of_layers_follows_the_timestep(models, content, style, timestep):
    unequal(content)
    mixed, one, two = k_lora(models, content, style), deltas(models, content), deltas(models, style)
    rule = by_the_book(one, two, 1 - timestep / 1000, most=6)
    x = torch.randn(5, 12).double()
    with torch.no_grad(), mount(models, Mix(((mixed, 1.0),))):
        for call in ((x, torch.tensor(timestep)), (x, timestep)):
            models["unet"](*call)
            for name, delta in deltas(models, mixed).items():
                assert_close(delta, one[name] if rule[name] else two[name], rtol=1e-6, atol=1e-6)
        models["unet"](x, timestep=torch.tensor([timestep, timestep]))
    assert sum(rule.values()) == {999: 3, 850: 2, 700: 1, 400: 0, 0: 0}[timestep], "try moments that differ"


def test_what_follows_the_timestep_is_mounted_and_never_merged(models, content, style):
    mix = Mix(((k_lora(models, content, style), 1.0),))
    assert mix.timestep_trackers()
    assert not Mix(((content, 1.0),)).timestep_trackers()
    with pytest.raises(MountError, match=r"timestep.*Mount"), merge(models, mix):
        pytest.fail("entered")
    with mount(models, mix):
        pass
    assert not models["unet"]._forward_pre_hooks


def test_the_average_of_the_choice_is_its_mean_over_time(models, content, style):
    unequal(content)
    one, two, found = (deltas(models, part) for part in (content, style, k_lora_mean(models, content, style)))
    moments = [by_the_book(one, two, (i + 0.5) / 1000, most=6) for i in range(1000)]
    shares = {name: sum(moment[name] for moment in moments) / 1000 for name in one}
    assert 0 < min(shares.values()) < max(shares.values())
    for name, delta in found.items():
        assert_close(delta, shares[name] * one[name] + (1 - shares[name]) * two[name], rtol=2e-2, atol=2e-3)


def test_mixers_scale_columns_and_start_as_the_sum(models, content, style):
    mixed = create_ziplora(models, content, style)
    one, two, total = (deltas(models, part) for part in (content, style, mixed))
    for name, delta in total.items():
        assert_close(delta, one[name] + two[name])
    assert_close(mixer_similarity(mixed), torch.tensor(1.0).double(), check_dtype=False)
    with torch.no_grad():
        for parameter in mixed.parameters():
            parameter.uniform_(-1, 1)
    for adapter in mixed:
        mine, theirs = adapter.get_parameter("content_mix").detach(), adapter.get_parameter("style_mix").detach()
        expected = one[adapter.spec.name] * mine + two[adapter.spec.name] * theirs
        assert_close(deltas(models, mixed)[adapter.spec.name], expected.detach())
        assert_close(deltas(models, to_lora(models, mixed))[adapter.spec.name], expected.detach(), rtol=1e-5, atol=1e-5)
    assert {name.rsplit(".", 1)[1] for name, _ in mixed.named_parameters()} == {"content_mix", "style_mix"}


def test_mixers_that_look_at_different_columns_do_not_overlap(models, content, style):
    mixed = create_ziplora(models, content, style)
    for adapter in mixed:
        half = adapter.spec.columns // 2
        adapter.get_parameter("content_mix").data[:half] = 0
        adapter.get_parameter("style_mix").data[half:] = 0
    assert mixer_similarity(mixed) == 0


def test_a_composed_set_is_saved_as_a_lora_and_moves_nobodys_dice(models, content, style, tmp_path: Path):
    rng = torch.get_rng_state()
    adapters = np_lora(models, content.float(), style.float())
    assert torch.equal(torch.get_rng_state(), rng)
    save_adapter(tmp_path / "np.safetensors", adapters, {"atelier.family": "sd1"})
    loaded = load_adapter(tmp_path / "np.safetensors")
    for name, delta in deltas(models, loaded).items():
        assert torch.equal(delta, deltas(models, adapters)[name])
    assert [len(a.down) for a in loaded if isinstance(a, Lora)] == [5, 5, 5]


def test_an_adapter_of_another_base_is_refused(models, content):
    other = create_adapters("lora", {}, [Spec("unet.wide", (99, 99))])
    with pytest.raises(MountError, match="another base"):
        sum_adapters(models, content, other)


def test_two_that_change_no_matrix_are_refused(models):
    empty = AdapterSet(Lora, Lora.settings(), [])
    with pytest.raises(SettingError, match="Neither of these adapters changes"):
        np_lora(models, empty, empty)


def test_a_change_of_a_bias_is_added_or_the_method_is_refused(models, content):
    shift, gain = torch.randn(8).double(), torch.rand(14, 1).double()
    other = create_imported({Spec("unet.wide", (8, 0)): {"diff_b": shift}, Spec("unet.tall", (0, 0)): {"ia3_l": gain}})
    whole = sum_adapters(models, content, other)
    assert_close(whole["unet.wide"].bias_delta(), shift)
    assert_close(whole["unet.tall"].bias_delta(), models["unet"].tall.bias.detach() * (gain.flatten() - 1))
    assert_close(whole["unet.conv"].delta(torch.zeros(6, 4, 3, 3).double()),
                 content["unet.conv"].delta(torch.zeros(6, 4, 3, 3).double()))   # fmt: skip
    for refused in (np_lora, k_lora, k_lora_mean, create_ziplora):
        with pytest.raises(SettingError, match=r"also changes biases or normalization layers \(unet\.wide\)"):
            refused(models, content, other)


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("gated", "switch", "composite")])
def test_every_method_that_comes_to_weights_keeps_a_change_of_a_bias(models, content, method):
    gain = torch.rand(14, 1).double()
    other = create_imported({Spec("unet.tall", (0, 0)): {"ia3_l": gain}})
    before = models["unet"].tall.bias.detach().clone()
    mix = combine(models, [WeightedAdapter(content, 0.5), WeightedAdapter(other, 0.5)], method)
    assert isinstance(mix, Mix)
    with merge(models, mix):
        assert_close(models["unet"].tall.bias.detach(), before * (1 + 0.5 * (gain.flatten() - 1)))


@pytest.mark.parametrize("method", METHODS)
def test_strength_zero_draws_the_base_alone_by_every_method(models, content, method):
    gates = GateSet([], GateSettings()) if method == "gated" else None
    mix = combine(models, [WeightedAdapter(content, 0.0)], method, gates=gates)
    assert isinstance(mix, Mix) and not mix.parts

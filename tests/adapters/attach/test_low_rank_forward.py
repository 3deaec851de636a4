"""Low-rank pairs beside frozen layers: who is computed together, and that it is the same as apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from atelier.adapters.attach import low_rank_forward
from atelier.adapters.attach.merge import MergeCache
from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.cast_factors import FactorCache
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.kinds.catalog import create_adapters


class Attention(nn.Module):
    """Projections as diffusers names and calls them."""

    def __init__(self, width: int, read: int, *, bias: bool = False) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k, self.to_v = (nn.Linear(read, width, bias=bias) for _ in range(2))

    def forward(self, x: Tensor, text: Tensor | None = None) -> Tensor:
        read = x if text is None else text
        return self.to_q(x).sigmoid() * self.to_k(read).mean(1, keepdim=True) + self.to_v(read).sum(1, keepdim=True)


class Block(nn.Module):
    """A layer of a transformer, with convolutions around."""

    def __init__(self, *, bias: bool = False, read: int = 6) -> None:
        super().__init__()
        self.proj_in, self.wide = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.attn1, self.attn2 = Attention(6, 6, bias=bias), Attention(6, read, bias=bias)

    def forward(self, picture: Tensor, text: Tensor) -> Tensor:
        x = self.proj_in(self.wide(picture)).flatten(2).mT
        return self.attn2(x + self.attn1(x), text)


def taught(model: nn.Module, seed: int = 0) -> AdapterSet:
    """A LoRA on every layer whose factors are not zero."""
    torch.manual_seed(seed)
    adapters = create_adapters("lora", {"rank": 2}, find_targets({"unet": model}, "all"))
    for parameter in adapters.parameters():
        nn.init.normal_(parameter)
    return adapters


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Each operation, with how many layers it computed."""
    seen: list[tuple[str, int]] = []

    def spy(name: str) -> Callable[..., object]:
        real = getattr(low_rank_forward, name)

        def call(x: Tensor, weights: object, *rest: object) -> object:
            seen.append((name.removeprefix("low_rank_"), len(weights) if isinstance(weights, list) else 1))
            return real(x, weights, *rest)

        return call

    for name in ("low_rank_linear", "low_rank_linears", "low_rank_pointwise"):
        monkeypatch.setattr(low_rank_forward, name, spy(name))
    return seen


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("read", [6, 4])
def test_a_mount_computes_what_merged_weights_do(bias: bool, read: int, calls: list[tuple[str, int]]):
    torch.manual_seed(1)
    model = Block(bias=bias, read=read).double().requires_grad_(False)
    sets = [taught(model, seed).double() for seed in (2, 3)]
    mix = Mix(((sets[0], 1.0), (sets[1], 0.4)))
    picture, text = torch.randn(2, 6, 3, 4, dtype=torch.float64), torch.randn(2, 5, read, dtype=torch.float64)
    with MergeCache().merge({"unet": model}, mix):
        merged = model(picture, text)   # in float32, as merging does
    with mount({"unet": model}, mix):
        ours = model(picture, text)
    torch.testing.assert_close(ours, merged, rtol=1e-5, atol=1e-5)
    together = [("linears", 3), ("linear", 1), ("linears", 2)]
    assert calls == [("pointwise", 1), *([("linear", 1)] * 6 if bias else together)]


def test_gradients_reach_every_factor_as_they_would_one_by_one(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(1)
    model = Block().double().requires_grad_(False)
    adapters = taught(model).double()
    picture, text = torch.randn(2, 6, 3, 4, dtype=torch.float64), torch.randn(2, 5, 6, dtype=torch.float64)

    def gradients() -> dict[str, Tensor]:
        with mount({"unet": model}, Mix(((adapters, 1.0),))):
            model(picture, text).square().mean().backward()
        found = {name: p.grad.clone() for name, p in adapters.named_parameters() if p.grad is not None}
        adapters.zero_grad()
        return found

    ours = gradients()
    # Hooks on every layer instead.
    monkeypatch.setattr("atelier.adapters.attach.mount.supports_low_rank_forward", lambda _: False)
    assert len(ours) == len(list(adapters.parameters()))
    torch.testing.assert_close(ours, gradients(), rtol=1e-9, atol=1e-9)


def test_whoever_asks_in_another_order_gets_the_same(calls: list[tuple[str, int]]):
    torch.manual_seed(1)
    model = Block().requires_grad_(False)
    adapters = taught(model)
    x, other = torch.randn(2, 2, 5, 6)
    with mount({"unet": model}, Mix(((adapters, 1.0),))):
        attention = model.attn1
        key, value = attention.to_k(x), attention.to_v(x)   # nobody asked for queries before
        attention.to_q(x)
        others = attention.to_k(other)   # and not for what was made ready
        again = attention.to_k(x), attention.to_v(x)
    assert [name for name, _ in calls] == ["linear", "linear", "linears", "linear"]
    torch.testing.assert_close(again, (key, value))
    assert not torch.allclose(others, key)


def test_nothing_is_held_when_all_have_asked():
    model = Block().requires_grad_(False)
    adapters = taught(model)
    names = {f"unet.attn1.{name}": getattr(model.attn1, name) for name in ("to_q", "to_k", "to_v")}
    layers = {module: [(adapters[name], 1.0)] for name, module in names.items()}
    together = low_rank_forward._SharedInputLayers(layers, FactorCache())
    x = torch.randn(1, 2, 6)
    for module in layers:
        together.forward(module, x)
    assert together._seen is None
    assert not together._ready

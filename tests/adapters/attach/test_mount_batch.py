"""A batch whose pictures have adapters of their own, against the same pictures drawn alone with `mount`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from atelier.adapters.attach.mount import MountError, mount
from atelier.adapters.attach.mount_batch import mount_batch
from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.mix import Mix
from atelier.adapters.kinds.catalog import create_adapters

STRENGTHS = (1.0, 0.5, 0.0, -1.0, 1.3)


class Unet(nn.Module):
    """A convolution, one in strides, one of one tap and a linear layer, called as a UNet is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.strided = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.point, self.linear = nn.Conv2d(8, 6, 1), nn.Linear(6, 6)

    def forward(self, x: Tensor, timestep: Tensor | int) -> Tensor:
        x = self.point(torch.relu(self.strided(torch.relu(self.first(x)))))
        return self.linear(x.flatten(2).transpose(1, 2))


@pytest.fixture(scope="module")
def unet() -> Unet:
    torch.manual_seed(0)
    return Unet()


def adapters(unet: Unet, kind: str, settings: dict[str, int], seed: int, *names: str) -> AdapterSet:
    specs = [Spec(f"unet.{name}", tuple(unet.get_submodule(name).weight.shape)) for name in names]
    torch.manual_seed(seed)
    made = create_adapters(kind, settings, specs)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


def several(unet: Unet) -> list[Mix]:
    """Different ranks, layers, kinds and strengths, and one picture with the base model alone."""
    all_layers = ("first", "strided", "point", "linear")
    lora = adapters(unet, "lora", {"rank": 4}, 1, *all_layers)
    small = adapters(unet, "lora", {"rank": 1}, 2, "linear", "first")
    dora, loha = (adapters(unet, kind, {"rank": 2}, 3, *all_layers) for kind in ("dora", "loha"))
    return [Mix(((lora, 1.0),)), Mix(((small, -0.5), (lora, 0.3))), Mix(), Mix(((dora, 0.8),)),
            Mix(((small, 1.0), (loha, 0.7)))]   # fmt: skip


def pictures(count: int) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def together(unet: Unet, mixes: list[Mix], x: Tensor) -> Tensor:
    with mount_batch({"unet": unet}, mixes):
        return unet(x, torch.tensor(500))


@torch.no_grad()
def alone(unet: Unet, mixes: list[Mix], x: Tensor) -> Tensor:
    rows = []
    for b in range(len(x)):
        with mount({"unet": unet}, mixes[b % len(mixes)]):
            rows.append(unet(x[b : b + 1], torch.tensor(500)))
    return torch.cat(rows)


@pytest.mark.parametrize("times", [1, 2])
def test_each_picture_is_the_one_drawn_alone(unet: Unet, times: int):
    mixes = several(unet)
    x = pictures(times * len(mixes))
    assert_close(together(unet, mixes, x), alone(unet, mixes, x), rtol=1e-5, atol=1e-5)
    found, base = together(unet, mixes, x), unet(x, 500)
    same = [torch.allclose(one, other, atol=1e-6) for one, other in zip(found, base, strict=True)]
    assert same == [i % 5 == 2 for i in range(len(x))]   # the third of five is the base model's own


def test_one_adapter_at_several_strengths(unet: Unet):
    lora = adapters(unet, "lora", {"rank": 3}, 5, "first", "linear")
    mixes, x = [Mix(((lora, strength),)) for strength in STRENGTHS], pictures(1).expand(len(STRENGTHS), -1, -1, -1)
    found = together(unet, mixes, x)
    assert_close(found, alone(unet, mixes, x), rtol=1e-5, atol=1e-5)
    assert_close(found[2], unet(x[:1], 500)[0].detach(), rtol=1e-6, atol=1e-6)


def test_the_order_of_the_batch_does_not_matter(unet: Unet):
    mixes, x = several(unet)[:3], pictures(3)
    turned = together(unet, [mixes[2], mixes[0], mixes[1]], x[[2, 0, 1]])
    assert_close(turned, together(unet, mixes, x)[[2, 0, 1]], rtol=1e-6, atol=1e-6)


def test_it_leaves_the_model_as_it_was_and_refuses_what_does_not_fit(unet: Unet):
    x = pictures(2)
    before = unet(x, 500).detach()
    with mount_batch({"unet": unet}, several(unet)[:2]), pytest.raises(ValueError, match=r"batch of 3 .* among 2"):
        unet(pictures(3), 500)
    assert torch.equal(unet(x, 500), before)
    assert not any(module._forward_hooks for module in unet.modules())
    strange = adapters(unet, "lora", {"rank": 2}, 1, "first")
    strange["unet.first"].spec = Spec("unet.first", (9, 4, 3, 3))   # of another model
    with pytest.raises(MountError, match="another base model"), mount_batch({"unet": unet}, [Mix(((strange, 1.0),))]):
        pass
    assert not any(module._forward_hooks for module in unet.modules())

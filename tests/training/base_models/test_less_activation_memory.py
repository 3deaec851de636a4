"""A large UNet keeps less for the backward pass: the same bits, less memory, and gradients for whoever asks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.core.weight_only_int8 import Int8Conv2d, quantize_to_int8
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models import less_activation_memory as lean
from atelier.training.base_models.base_model import BaseModel
from atelier.training.base_models.less_activation_memory import FrozenConv2d, FrozenGEGLU, save_less_for_backward


@pytest.fixture
def unets(model: BaseModel, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """A UNet as it is, and as one that is thought to be large."""
    monkeypatch.setattr(lean, "MIN_PARAMETERS", 0)
    ours = copy.deepcopy(model.unet)
    save_less_for_backward(ours)
    return model.unet, ours


def answer(unet: Any) -> Tensor:
    dice = torch.Generator().manual_seed(0)
    latents, words = torch.randn(2, 4, 8, 8, generator=dice), torch.randn(2, 5, 192, generator=dice)
    return unet(latents, torch.tensor([3, 700]), words, return_dict=False)[0]


def adapters_for(unet: nn.Module) -> AdapterSet:
    """On the attention layers: an adapter of a convolution would keep its input itself."""
    torch.manual_seed(0)
    adapters = create_adapters("lora", {"rank": 2}, find_targets({"unet": unet}, "attention"))
    for parameter in adapters.parameters():
        nn.init.normal_(parameter, std=0.1)
    return adapters


def taught(unet: nn.Module) -> tuple[Tensor, list[Tensor | None], int]:
    """Loss, gradients, and bytes that autograd kept for them."""
    adapters, kept = adapters_for(unet), dict[int, int]()

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        mount({"unet": unet}, Mix(((adapters, 1.0),))),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        loss = answer(unet).square().mean()
        loss.backward()
    weights = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    return loss.detach(), [p.grad for p in adapters.parameters()], sum(n for at, n in kept.items() if at not in weights)


def test_a_lesson_is_the_same_to_the_bit_and_keeps_less(unets: tuple[Any, Any]):
    (loss, gradients, bytes_kept), (our_loss, ours, our_bytes) = (taught(unet) for unet in unets)
    assert torch.equal(loss, our_loss)
    assert all(one is not None and other is not None and torch.equal(one, other)
               for one, other in zip(gradients, ours, strict=True))   # fmt: skip
    assert our_bytes < 0.9 * bytes_kept


def test_what_is_drawn_is_the_same(unets: tuple[Any, Any]):
    with torch.no_grad():
        assert torch.equal(*(answer(unet) for unet in unets))


def test_a_weight_that_wants_a_gradient_gets_it(unets: tuple[Any, Any]):
    found = []
    for unet in unets:
        layer = unet.down_blocks[1].resnets[0].conv1
        layer.weight.requires_grad_(True)
        answer(unet).square().mean().backward()
        found.append(layer.weight.grad)
        layer.weight.grad = None
        layer.weight.requires_grad_(False)
    assert torch.equal(*found)


def test_layers_in_codes_stay_in_codes(unets: tuple[Any, Any]):
    unet = copy.deepcopy(unets[0])
    quantize_to_int8(unet)
    save_less_for_backward(unet)
    kinds = {type(layer) for layer in unet.modules()}
    assert {Int8Conv2d, FrozenGEGLU} < kinds
    assert {name for name, layer in unet.named_modules() if type(layer) is FrozenConv2d} == {"conv_in", "conv_out"}


def test_a_small_one_is_left_as_it_is(model: BaseModel):
    unet = copy.deepcopy(model.unet)
    save_less_for_backward(unet)
    assert not any(isinstance(layer, FrozenConv2d | FrozenGEGLU) for layer in unet.modules())

"""Blocks without idle operations: the same bits as diffusers' own, and fewer launches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from pretend_device import pretend_device
from torch import Tensor, nn

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.base_models.fewer_operations import (
    PlainAttention,
    PlainAttentionProcessor,
    PlainResnetBlock2D,
    skip_idle_operations,
)


@pytest.fixture
def theirs(model: BaseModel) -> Any:
    """diffusers' UNet with the weights of ours."""
    unet: Any = UNet2DConditionModel.from_config(model.unet.config)
    unet.load_state_dict(model.unet.state_dict())
    return unet.eval().requires_grad_(False)


def prediction(unet: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 192, generator=generator)
    moved = [tensor.to(unet.device) for tensor in (latents, torch.tensor([3, 700]), text)]
    return unet(*moved, return_dict=False)[0]


def trained(unet: nn.Module) -> list[Tensor]:
    """The loss and the gradients of adapters on the attention layers."""
    torch.manual_seed(0)
    adapters = create_adapters("lora", {"rank": 2}, find_targets({"unet": unet}, "attention"))
    for parameter in adapters.parameters():
        nn.init.normal_(parameter, std=0.1)
    with mount({"unet": unet}, Mix(((adapters.to(unet.device), 1.0),))):
        loss = prediction(unet).square().mean()
        loss.backward()
    return [loss.detach(), *(p.grad for p in adapters.parameters() if p.grad is not None)]


def test_a_loaded_unet_predicts_and_learns_what_diffusers_own_does_bit_for_bit(model: BaseModel, theirs: Any):
    assert {type(layer) for layer in model.unet.modules()} >= {PlainResnetBlock2D, PlainAttention}
    assert {type(one) for one in model.unet.attn_processors.values()} == {PlainAttentionProcessor}
    with torch.no_grad():
        assert torch.equal(prediction(model.unet), prediction(theirs))
    assert all(torch.equal(one, other) for one, other in zip(trained(model.unet), trained(theirs), strict=True))


def test_nothing_is_divided_by_one(model: BaseModel):
    with pretend_device() as device:
        unet = load(model.info.source, "npu", torch.float32).unet
        trained(unet)
        device.forget()
        trained(unet)
        blocks = sum(isinstance(layer, PlainResnetBlock2D) for layer in unet.modules())
        assert device.launches["div"] < blocks   # of the loss alone


def test_what_is_not_idle_stays(theirs: Any):
    theirs.down_blocks[0].resnets[0].output_scale_factor = 2.0
    attention = theirs.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.rescale_output_factor = 2.0
    expected = prediction(copy.deepcopy(theirs))
    skip_idle_operations(theirs)
    assert type(attention.processor) is AttnProcessor2_0
    torch.testing.assert_close(prediction(theirs), expected, rtol=0, atol=0)


def test_a_masked_attention_is_masked(model: BaseModel, theirs: Any):
    ours, reference = (unet.mid_block.attentions[0].transformer_blocks[0].attn1 for unet in (model.unet, theirs))
    tokens = torch.randn(1, 6, ours.to_q.in_features)
    mask = torch.tensor([[0.0, 0, 0, 0, -1e4, -1e4]])
    with torch.no_grad():
        assert torch.equal(ours(tokens, attention_mask=mask), reference(tokens, attention_mask=mask))
        assert not torch.equal(ours(tokens), ours(tokens, attention_mask=mask))

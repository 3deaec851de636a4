"""A UNet's blocks without operations that change nothing, such as divisions by 1: same results, fewer kernels launched.

What a small batch costs on a fast GPU is launching kernels. diffusers divides what each residual block and each
attention puts out by a factor that Stable Diffusion leaves at 1, in the forward pass and in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn


class PlainResnetBlock2D(ResnetBlock2D):
    """A residual block that is told the timestep, at the resolution that it is given."""

    def forward(self, input_tensor: Tensor, temb: Tensor) -> Tensor:
        """``[B, in, h, w]`` and the timestep's embedding ``[B, t]`` → ``[B, out, h, w]``."""
        assert self.time_emb_proj is not None
        hidden = self.conv1(self.nonlinearity(self.norm1(input_tensor)))
        hidden = hidden + self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
        hidden = self.conv2(self.nonlinearity(self.norm2(hidden)))
        return (input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)) + hidden


class PlainAttention(Attention):
    """Attention that asks its processor at once; diffusers reads the processor's signature at every call."""

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:   # fmt: skip
        """As :class:`PlainAttentionProcessor`; where there are options, as diffusers hands them on."""
        if options:
            return super().forward(hidden_states, encoder_hidden_states, attention_mask, **options)
        return self.processor(self, hidden_states, encoder_hidden_states=encoder_hidden_states,
                              attention_mask=attention_mask)   # fmt: skip


class PlainAttentionProcessor:
    """Attention over tokens without a mask."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None, **options: Any,
    ) -> Tensor:   # fmt: skip
        """Queries ``[B, N, c]`` and what they look at ``[B, M, d]``, or themselves → ``[B, N, c]``."""
        if attention_mask is not None:
            return AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **options)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        heads = (layer.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                 for layer in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)))   # fmt: skip
        return attn.to_out[0](F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


def skip_idle_operations(unet: nn.Module) -> None:
    """Switch the blocks of a frozen UNet for which that is exact."""
    processor: Any = PlainAttentionProcessor()   # one for all, for it holds nothing; diffusers types its own alone
    for layer in unet.modules():
        if type(layer) is ResnetBlock2D and _is_plain_block(layer):
            layer.__class__ = PlainResnetBlock2D   # so every reference, hook and name of the block stays as it was
        elif type(layer) is Attention and _is_plain_attention(layer):
            layer.set_processor(processor)
            layer.__class__ = PlainAttention


def _is_plain_block(block: Any) -> bool:
    sized = block.upsample is None and block.downsample is None
    told = block.time_emb_proj is not None and not block.skip_time_act and block.time_embedding_norm == "default"
    return sized and told and block.output_scale_factor == 1 and block.dropout.p == 0


def _is_plain_attention(attn: Any) -> bool:
    norms = (attn.spatial_norm, attn.group_norm, attn.norm_cross, attn.norm_q, attn.norm_k)
    whole = attn.rescale_output_factor == 1 and not attn.residual_connection and attn.to_out[1].p == 0
    return type(attn.processor) is AttnProcessor2_0 and not any(norms) and whole

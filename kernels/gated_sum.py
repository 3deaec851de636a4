"""The outputs of several adapters added to a layer's own, each through a gate for every token and channel.

AutoLoRA's gate (arXiv 2508.02107, code lzws/AutoLoRA), with the term of the base's activations that its training
script leaves out. One set of vectors serves any number of adapters, so their order can't matter.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from atelier.kernels.dispatch import twin

EPSILON = 1e-5   # of both layer norms


class GateVectors(NamedTuple):
    """What a layer's gate is made of: nine vectors ``[m]``, m = the layer's output width."""

    out: Tensor          # w_o: what an open gate lets through is multiplied with this
    of_base: Tensor      # w_b
    of_part: Tensor      # w_l
    of_both: Tensor      # w_c
    bias: Tensor         # β
    base_gain: Tensor    # affine of LN_b
    base_shift: Tensor
    part_gain: Tensor    # affine of LN_l
    part_shift: Tensor


def gates(base: Tensor, parts: Tensor, vectors: GateVectors, offset: Tensor | None = None) -> Tensor:
    """Compute ``gᵢ = σ(w_b ⊙ b + w_l ⊙ lᵢ + w_c ⊙ b ⊙ lᵢ + β + offset)`` with b = LN_b(h₀), lᵢ = LN_l(hᵢ).

    Args:
        base: h₀ ``[..., m]``, what the layer gives by itself.
        parts: h ``[K, ..., m]``, what each adapter adds at its strength.
        vectors: the layer's.
        offset: added to every logit, such as what depends on the timestep; broadcasts against ``[..., m]``. None: 0.

    Returns:
        ``[K, ..., m]`` in 0 … 1, float32 whatever the activations are.
    """
    width = base.shape[-1:]
    v = GateVectors(*(vector.float() for vector in vectors))
    seen = F.layer_norm(base.float(), width, v.base_gain, v.base_shift, EPSILON)
    own = F.layer_norm(parts.float(), width, v.part_gain, v.part_shift, EPSILON)
    common = v.of_base * seen + v.bias
    if offset is not None:
        common = common + offset.float()
    return torch.sigmoid(common + (v.of_part + v.of_both * seen) * own)


def gated_sum(base: Tensor, parts: Tensor, vectors: GateVectors, offset: Tensor | None = None) -> Tensor:
    """Compute ``h₀ + Σᵢ w_o ⊙ gᵢ ⊙ hᵢ``, summed in float32.

    Args:
        base: h₀ ``[..., m]``.
        parts: h ``[K, ..., m]``; K may be 0.
        vectors: the layer's.
        offset: as in :func:`gates`.

    Returns:
        ``[..., m]`` in the dtype of ``base``.
    """
    learning = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (base, parts, *vectors))
    if not learning and (fast := twin("gated_sum", base)):
        return fast.gated_sum(base, parts, vectors, offset)
    opened = gates(base, parts, vectors, offset) * parts.float()
    return (base.float() + vectors.out.float() * opened.sum(0)).to(base.dtype)

"""A target module's own operation, with another weight.

Apart from ``base.py``, because it knows torch's modules and nothing of adapters.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from atelier.kernels.torch_internals import conv_with_weight


def apply_with_weight(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """Run the module's own operation, without bias, with another weight."""
    if isinstance(module, nn.Conv2d):
        return conv_with_weight(module, x, weight)
    if isinstance(module, nn.Linear):
        return F.linear(x, weight)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, weight, None, module.eps)
    assert isinstance(module, nn.LayerNorm), f"adapters can't change a {type(module).__name__}"
    return F.layer_norm(x, module.normalized_shape, weight, None, module.eps)

"""DECOR: take the directions a prompt must not go in out of its text features."""

from __future__ import annotations

import torch
from torch import Tensor


def remove_directions(features: Tensor, unwanted: Tensor, strength: float = 1.0, share: float = 0.9) -> Tensor:
    """Project the subspace of ``unwanted`` text features out of a prompt's (DECOR, Jang et al. 2024, 2412.09169).

    A learned word often carries more than its subject: the pose or the background of the training pictures. The
    features of a text that names only those span what is to go; the prompt keeps its parts across that span.

    Args:
        features: ``[..., tokens, D]`` text features of the prompt.
        unwanted: ``[tokens, D]`` text features of what must go.
        strength: 0 leaves the prompt as it is, 1 removes the span whole.
        share: how much of the energy of ``unwanted`` the span covers; the rest is taken for noise.

    Returns:
        Features in the shape and dtype of ``features``.

    >>> prompt, noise = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    >>> remove_directions(prompt, noise)
    tensor([[3., 0.]])
    """
    _, s, v = torch.linalg.svd(unwanted.float(), full_matrices=False)
    energy = s.square().cumsum(0)
    count = int((energy < share * energy[-1]).sum()) + 1 if energy[-1] > 0 else 0
    span = v[:count]
    return (features.float() - strength * (features.float() @ span.T) @ span).to(features.dtype)

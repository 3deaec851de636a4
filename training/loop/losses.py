"""Losses: one number for each sample, so that weights and masks stay with the caller."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def mse_per_sample(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error over everything but the batch, in float32: ``[B, …] → [B]``.

    With a ``mask`` of 0 … 1 that broadcasts to the prediction, the mean weighted by it: what is 0 has no influence, and
    losses of pictures with small and large masks have the same scale.
    """
    squared = (prediction.float() - target.float()).square()
    if mask is None:
        return squared.flatten(1).mean(1)
    weights = mask.expand_as(squared).flatten(1)
    return (squared.flatten(1) * weights).sum(1) / weights.sum(1)


def min_snr_weights(scheduler: Any, timesteps: Tensor, gamma: float) -> Tensor:
    """Min-SNR weights ``[B]`` (Hang et al. 2023, arXiv 2303.09556, eq. 8 and appendix): min(SNR, γ) in x₀ terms.

    Divided by SNR for epsilon and by SNR + 1 for v_prediction; γ = 0 gives all ones.
    """
    if gamma == 0:
        return torch.ones(len(timesteps), device=timesteps.device)
    signal = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = signal / (1 - signal)
    clipped = snr.clamp(max=gamma)
    match scheduler.config.prediction_type:
        case "epsilon":
            return (gamma / snr).clamp(max=1)   # the same, and a number where there is no signal at all
        case "v_prediction":
            return clipped / (snr + 1)
        case _:
            return clipped


def hinge_loss(errors: Tensor, base_errors: Tensor, margin: float) -> Tensor:
    """Hinge loss ``[B]``: how far each error is below the margin; 0, without a gradient, above it (AutoLoRA).

    The authors' margin is a number for FLUX's velocities. Here it is in units of the base model's own error with the
    same picture, noise and prompt, so that it means the same at every timestep and for every prediction type.

    Args:
        errors: of the model with adapters, for a prompt that asks for something else ``[B]``.
        base_errors: of the model without them ``[B]``; a constant.
        margin: 1 wants the picture no better than the base has it; above 1, worse.
    """
    return torch.relu(margin * base_errors.detach() - errors)

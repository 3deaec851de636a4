"""Losses and their weights, against closed forms in double precision."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from atelier.training.loop.losses import min_snr_weights, mse_per_sample

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def test_a_sample_s_loss_is_the_mean_square_over_all_but_the_batch():
    prediction, target = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)
    expected = [((p.double() - t.double()) ** 2).mean() for p, t in zip(prediction, target, strict=True)]
    torch.testing.assert_close(mse_per_sample(prediction, target), torch.stack(expected).float())


def test_a_masked_loss_is_the_mean_over_what_the_mask_leaves():
    prediction, target = torch.zeros(2, 2, 2, 2), torch.ones(2, 2, 2, 2)
    prediction[0, :, 0, 0], prediction[0, :, 1, 1] = 4.0, 100.0   # errors of 9 at one place, of 9801 at another
    mask = torch.tensor([[[[1.0, 0.5], [0.0, 0.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])
    # (1 · 9 + 0.5 · 1) / 1.5 for the first picture; the second is learned whole
    torch.testing.assert_close(mse_per_sample(prediction, target, mask), torch.tensor([9.5 / 1.5, 1.0]))
    assert torch.equal(mse_per_sample(prediction, target, torch.ones(2, 1, 2, 2)), mse_per_sample(prediction, target))


def test_half_precision_is_squared_in_single():
    prediction = torch.full((1, 4), 300.0, dtype=torch.float16)   # its square is beyond float16
    assert mse_per_sample(prediction, torch.zeros(1, 4)).tolist() == [90_000.0]


def weight(prediction: str, snr: float, gamma: float) -> float:
    """Hang et al.: min(SNR, γ) on the loss in x₀, expressed for what the model predicts."""
    return min(snr, gamma) / {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[prediction]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("gamma", [1.0, 5.0, 1e6])
def test_min_snr_weights_are_the_closed_form(prediction, gamma):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)
    expected = torch.tensor([weight(prediction, float(a / (1 - a)), gamma) for a in kept])
    weights = min_snr_weights(DDIMScheduler(**SCHEDULE, prediction_type=prediction), torch.arange(1000), gamma)
    torch.testing.assert_close(weights, expected.float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_without_gamma_all_timesteps_weigh_alike(prediction):
    weights = min_snr_weights(DDIMScheduler(**SCHEDULE, prediction_type=prediction), torch.tensor([0, 400, 999]), 0.0)
    assert weights.tolist() == [1.0, 1.0, 1.0]


def test_both_prediction_types_weigh_the_same_mistake_alike():
    """A mistake in x₀ shows as SNR times its square in noise and SNR + 1 times in velocity."""
    timesteps = torch.arange(0, 1000, 37)
    epsilon, velocity, sample = (
        min_snr_weights(DDIMScheduler(**SCHEDULE, prediction_type=kind), timesteps, 5.0)
        for kind in ("epsilon", "v_prediction", "sample")
    )
    kept = DDIMScheduler(**SCHEDULE).alphas_cumprod[timesteps]
    snr = kept / (1 - kept)
    torch.testing.assert_close(epsilon * snr, sample)
    torch.testing.assert_close(velocity * (snr + 1), sample)

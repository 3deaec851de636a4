"""The forward process, against diffusers' own schedulers and the closed forms in double precision."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch.testing import assert_close

from atelier.training.loop.noise import add_noise, sample_noise, sample_timesteps

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def kept_signal() -> torch.Tensor:
    """ᾱ of every timestep in float64, from the betas of a scaled linear schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    timesteps = torch.tensor([0, 1, 500, 998, 999])
    return torch.randn(5, 4, 3, 3), torch.randn(5, 4, 3, 3), timesteps


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_noise_and_target_are_those_of_another_scheduler(prediction):
    latents, noise, timesteps = batch()
    noisy = add_noise(DDIMScheduler(**SCHEDULE, prediction_type=prediction), latents, noise, timesteps)
    reference = DDPMScheduler(**SCHEDULE)
    targets = {
        "epsilon": noise,
        "v_prediction": reference.get_velocity(latents, noise, timesteps),
        "sample": latents,
    }
    assert torch.equal(noisy.latents, reference.add_noise(latents, noise, timesteps))
    assert torch.equal(noisy.timesteps, timesteps)
    assert torch.equal(noisy.target, targets[prediction])


def test_noise_and_velocity_are_the_closed_forms():
    latents, noise, timesteps = (x.double() if x.is_floating_point() else x for x in batch())
    noisy = add_noise(DDIMScheduler(**SCHEDULE, prediction_type="v_prediction"), latents, noise, timesteps)
    kept = kept_signal()[timesteps][:, None, None, None]
    torch.testing.assert_close(noisy.latents, kept.sqrt() * latents + (1 - kept).sqrt() * noise, rtol=0, atol=1e-5)
    torch.testing.assert_close(noisy.target, kept.sqrt() * noise - (1 - kept).sqrt() * latents, rtol=0, atol=1e-5)


def test_the_target_of_velocity_leads_back_to_the_clean_latents():
    latents, noise, timesteps = batch()
    noisy = add_noise(DDIMScheduler(**SCHEDULE, prediction_type="v_prediction"), latents, noise, timesteps)
    kept = kept_signal().float()[timesteps][:, None, None, None]
    found = kept.sqrt() * noisy.latents - (1 - kept).sqrt() * noisy.target
    torch.testing.assert_close(found, latents, rtol=0, atol=1e-4)


def test_an_unknown_prediction_type_is_named():
    scheduler = DDIMScheduler(**SCHEDULE, prediction_type="flow")
    with pytest.raises(ValueError, match="'flow'"):
        add_noise(scheduler, *batch())


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 1000])
@pytest.mark.parametrize("total", [1, 10, 1000])
def test_timesteps_lie_in_range_and_spread_evenly(count, total):
    for seed in range(20):
        timesteps = sample_timesteps(count, total, torch.Generator().manual_seed(seed))
        assert timesteps.shape == (count,)
        assert timesteps.dtype == torch.int64
        assert timesteps.min() >= 0
        assert timesteps.max() < total
        per_part = torch.bincount(timesteps * count // total, minlength=count) if total % count == 0 else None
        if per_part is not None:   # the parts are whole numbers of timesteps: one timestep falls into each
            assert per_part.tolist() == [1] * count
        gaps = timesteps.sort().values.diff(append=timesteps.min()[None] + total)
        assert gaps.max() - gaps.min() <= 1


def test_the_largest_random_number_stays_in_range(monkeypatch):
    for offset in (0.0, 1 - 2**-24):
        monkeypatch.setattr(torch, "rand", lambda *_, offset=offset, **__: torch.tensor([offset]))
        for count in (1, 3, 7):
            timesteps = sample_timesteps(count, 1000, torch.Generator())
            assert timesteps.min() >= 0
            assert timesteps.max() <= 999


def test_each_timestep_is_uniform_by_itself():
    generator, draws = torch.Generator().manual_seed(0), 4_000
    timesteps = torch.stack([sample_timesteps(6, 1000, generator) for _ in range(draws)])
    expected = draws / 20
    for place in timesteps.T:
        counts = torch.bincount(place // 50, minlength=20)
        assert ((counts - expected) ** 2 / expected).sum() < 43.8   # chi-square, 19 degrees of freedom, p = 0.001


def test_the_generator_decides_the_timesteps_and_moves_on():
    first, second = (torch.Generator().manual_seed(3) for _ in range(2))
    draws = [sample_timesteps(4, 1000, first) for _ in range(2)]
    assert torch.equal(draws[0], sample_timesteps(4, 1000, second))
    assert torch.equal(draws[1], sample_timesteps(4, 1000, second))
    assert not torch.equal(*draws)


def test_an_offset_moves_whole_channels_by_its_deviation():
    latents = torch.zeros(400, 32, 32)
    plain, moved = (sample_noise(latents, torch.Generator().manual_seed(3), offset) for offset in (0.0, 0.5))
    assert torch.equal(plain, torch.randn(latents.shape, generator=torch.Generator().manual_seed(3)))
    shifts = moved - plain
    assert_close(shifts, shifts[:, :1, :1].expand_as(shifts), rtol=0, atol=1e-6)
    assert shifts[:, 0, 0].std().item() == pytest.approx(0.5, rel=0.1) and abs(shifts.mean()) < 0.1

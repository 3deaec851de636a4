"""Step sizes at timesteps that are on a device: those of the CPU, and nobody waits for them."""

from __future__ import annotations

import pytest
import torch
from pretend_device import pretend_device
from torch import nn

from atelier.adapters.quantization.activation_quantizers import ActivationQuantizers


def quantizers() -> ActivationQuantizers:
    """Of three layers at four timesteps, as they are after a training."""
    torch.manual_seed(4)
    made = ActivationQuantizers([10, 250, 500, 900], torch.rand(4, 3), 9 * torch.rand(4, 3), [8, 4, 8])
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(3))
    return made.requires_grad_(False)


@pytest.mark.parametrize("timesteps", [[10], [0], [999], [250], [333], [899, 10, 400, 250], [7, 7]])
def test_a_device_finds_the_step_sizes_of_the_cpu(timesteps: list[int]) -> None:
    here, module = quantizers(), nn.Identity()
    here.read_timestep(module, (), {"timestep": torch.tensor(timesteps)})
    with pretend_device() as device:
        there, given = quantizers().to("npu"), torch.tensor(timesteps, device="npu")
        device.forget()
        there.read_timestep(module, (), {"timestep": given})
        assert not device.waits
        for layer in range(3):
            for one, other in zip(here.layer_parameters(layer, 4), there.layer_parameters(layer, 4), strict=True):
                torch.testing.assert_close(one.expand_as(other), other.cpu(), rtol=0, atol=1e-6)

"""Previews compute less in three calls of the UNet, and leave the UNet as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from atelier.training.sampling.preview_savings import in_less_time
from atelier.training.sampling.sample import DrawRequest
from atelier.training.sampling.start_picture import StartPicture


class Block(nn.Module):
    """Adds one, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, sample: Tensor) -> Tensor:
        self.asked += 1
        return sample + 1


class Told(nn.Module):
    """Predicts the sum of what it is told and of its inner blocks, and notes how many pictures it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList([Block(), Block()])
        self.mid_block = Block()
        self.up_blocks = nn.ModuleList([Block(), Block()])
        self.asked: list[int] = []

    def forward(self, sample: Tensor, timestep: float, *, encoder_hidden_states: Tensor, added: Any = None) -> Any:
        self.asked.append(len(sample))
        told = encoder_hidden_states.sum((1, 2)) + (added["text_embeds"].sum(1) if added else 0)
        outer = self.down_blocks[0](sample)
        inner = self.up_blocks[0](self.mid_block(self.down_blocks[1](outer * timestep)))
        return (self.up_blocks[1](outer + inner) + told[:, None, None, None],)


START = StartPicture(Image.new("RGB", (8, 8)), 0.5)
ALL = [6] * 6
DRAWINGS: list[tuple[DrawRequest, StartPicture | None, list[int], bool]] = [
    (DrawRequest(steps=6), None, [3, 6, 6, 6, 6, 3], True), (DrawRequest(steps=12), START, [3, 6, 6, 6, 6, 3], True),
    (DrawRequest(steps=5, sampler="heun"), None, [3, *[6] * 8, 3], True), (DrawRequest(steps=6, guidance=1), None, ALL,
    True), (DrawRequest(steps=4), None, ALL[:4], False), (DrawRequest(steps=8), START, ALL[:4], False),
]   # fmt: skip


@pytest.mark.parametrize(("drawing", "start", "asked", "saves"), DRAWINGS)
def test_three_calls_compute_less(
    drawing: DrawRequest, start: StartPicture | None, asked: list[int], saves: bool
) -> None:
    unet, prompts = Told(), torch.cat([torch.zeros(3, 2, 4), torch.ones(3, 2, 4)])   # the negative half first
    added = {"text_embeds": torch.cat([torch.zeros(3, 5), torch.ones(3, 5)])}
    noisy = torch.randn(3, 1, 2, 2).repeat(2, 1, 1, 1)
    plain = [unet(noisy, float(t), encoder_hidden_states=prompts, added=added)[0] for t in range(len(asked))]
    before = unet.mid_block.asked
    unet.asked.clear()
    with in_less_time(unet, drawing, start):
        found = [unet(noisy, float(t), encoder_hidden_states=prompts, added=added)[0] for t in range(len(asked))]
    assert unet.asked == asked and unet.mid_block.asked - before == len(asked) - saves
    for call, prediction in enumerate(found):
        expected = plain[call] if asked[call] == 6 else plain[call][3:].repeat(2, 1, 1, 1)
        if saves and call == len(asked) - 2:   # the inner blocks saw the timestep before
            expected = plain[call] - (noisy + 1)
        assert torch.allclose(prediction, expected)
    assert not any("forward" in vars(module) for module in unet.modules())

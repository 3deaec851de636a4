"""A picture that is shown for a moment, in less time: some calls of the UNet compute less, where it is seen least.

The first and the last call take the prompt alone: guidance matters in the middle (Kynkäänniemi et al. 2024, arXiv
2404.07724). The last call but one computes the outer blocks alone; what the inner ones gave in the call before has
changed little (DeepCache, Ma et al. 2023, arXiv 2312.00858). docs/LOG.md has what each of them saves and costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from atelier.adapters.attach.mount import replace_forward
from atelier.training.sampling.sample import DrawRequest
from atelier.training.sampling.start_picture import StartPicture

MIN_STEPS = 5   # with fewer, every call counts


@contextmanager
def in_less_time(unet: nn.Module, request: DrawRequest, start: StartPicture | None = None) -> Iterator[None]:
    """While this is open, the UNet predicts in less time, and a little less exactly, what one drawing asks for.

    It is called as diffusers' pipelines do, with the negative prompt's half of the batch first.
    """
    steps = int(request.steps * (start.strength if start else 1.0))
    if steps < MIN_STEPS:
        yield
        return
    calls = _Calls(steps * (2 if request.sampler == "heun" else 1), guided=request.guidance > 1)
    with ExitStack() as stack:
        stack.enter_context(replace_forward(unet, calls.predict(unet.forward)))
        for block in (*_blocks(unet.down_blocks)[1:], unet.mid_block, *_blocks(unet.up_blocks)[:-1]):
            assert isinstance(block, nn.Module)
            stack.enter_context(replace_forward(block, calls.reuse(block.forward)))
        yield


class _Calls:
    """The calls of a UNet in one drawing."""

    def __init__(self, count: int, *, guided: bool) -> None:
        self.count, self.guided, self.now = count, guided, -1

    def predict(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A UNet's forward pass that takes the prompt's half alone in the first and the last call."""
        def predict(sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **options: Any) -> Any:
            """``[2·B, C, h, w]`` → the prediction, twice that of the prompt where there is no guidance."""
            self.now += 1
            if not self.guided or self.now not in (0, self.count - 1):
                return forward(sample, timestep, encoder_hidden_states=encoder_hidden_states, **options)
            found = forward(sample.chunk(2)[1], timestep, encoder_hidden_states=encoder_hidden_states.chunk(2)[1],
                            **{name: _half(value) for name, value in options.items()})   # fmt: skip
            return (torch.cat([found[0], found[0]]),)

        return predict

    def reuse(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """An inner block's forward pass that gives what it gave before in the last call but one."""
        last: Any = None

        def remember(*values: Any, **options: Any) -> Any:
            """Compute, or return what was computed last."""
            nonlocal last
            if self.now != self.count - 2:
                last = forward(*values, **options)
            return last

        return remember


def _blocks(of: Any) -> list[nn.Module]:
    return list(of)


def _half(value: Any) -> Any:
    """The prompt's half of what Stable Diffusion XL is told besides, by name; anything else as it is."""
    return {name: tensor.chunk(2)[1] for name, tensor in value.items()} if isinstance(value, dict) else value

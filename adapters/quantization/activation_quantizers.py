"""The quantizers of all layers' inputs, with step sizes of their own at every timestep (TALSQ).

He et al. 2024, arXiv 2310.03270, eq. 9. The official code counts calls to know where in a drawing it is; here the
UNet's own timestep is read, so any sampler, guidance in one call or two, a start from a picture and recomputation in
the backward pass all find the right entry. Between two of the timesteps it was trained at, step sizes are interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atelier.kernels.fake_quant import top_code


class ActivationQuantizers(nn.Module):
    """Step size and zero point of L layers' inputs at T timesteps; one timestep stands for all.

    Each timestep is a parameter of its own, so that an optimizer leaves alone those that a step did not use: it
    passes over parameters without a gradient, while a row of one table would be moved on by Adam's momentum. Step
    sizes are learned as factors on those of the start, which gives every layer the same relative learning rate.
    """

    timesteps: Tensor   # [T] int64, rising
    start: Tensor       # [T, L] step sizes before training
    tops: Tensor        # [L] largest codes

    def __init__(self, timesteps: Sequence[int], steps: Tensor, zeros: Tensor, bits: Sequence[int]) -> None:
        """``steps`` and ``zeros [L]`` or ``[T, L]``, ``bits`` one a layer."""
        super().__init__()
        self.register_buffer("timesteps", torch.tensor(sorted(timesteps)))
        shape = (len(timesteps), len(bits))
        self.register_buffer("start", steps.float().expand(shape).clone())
        self.register_buffer("tops", torch.tensor([top_code(b) for b in bits], dtype=torch.float32))
        self.factors = nn.ParameterList(torch.ones(len(bits)) for _ in timesteps)
        self.zeros = nn.ParameterList(zeros.float().expand(shape).clone().unbind())
        self._now: tuple[Tensor, Tensor] | None = None
        self._numbers: list[tuple[float, int]] = []

    def read_timestep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:   # noqa: ARG002 (a hook)
        """Find the levels for a UNet's call, before it: one set for the batch, or one a picture where they differ."""
        timesteps = torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1]).flatten()
        self._numbers = []
        if self.timesteps.device.type != "cpu" and not self.factors[0].requires_grad:
            self._now = self._rows_there(timesteps.to(self.timesteps.device))
            return
        given = timesteps.tolist()
        rows = {t: self._row(t) for t in dict.fromkeys(given)}
        if len(rows) == 1:
            self._now = rows[given[0]]
        else:
            steps, zeros = zip(*(rows[t] for t in given), strict=True)
            self._now = torch.stack(steps), torch.stack(zeros)

    def layer_parameters(self, layer: int, dimensions: int) -> tuple[Tensor, Tensor]:
        """Step size and zero point of a layer's input of so many dimensions: ``[]``, or ``[B, 1, …]``."""
        steps, zeros = self._now or self._row(float(self.timesteps[0]))
        step, zero = steps[..., layer], zeros[..., layer]
        if step.ndim:
            step, zero = (part.reshape(-1, *[1] * (dimensions - 1)) for part in (step, zero))
        return step, zero

    def scalar_parameters(self, layer: int) -> tuple[float, int] | None:
        """The same as plain numbers, read for all layers at once; None where the pictures of a batch differ."""
        if not self._numbers:
            steps, zeros = self._now or self._row(float(self.timesteps[0]))
            if steps.ndim > 1:
                return None
            self._numbers = [(step, int(zero)) for step, zero in zip(steps.tolist(), zeros.tolist(), strict=True)]
        return self._numbers[layer]

    def table(self) -> tuple[Tensor, Tensor]:
        """All step sizes and zero points as they are used, ``[T, L]`` each."""
        with torch.no_grad():
            steps = self.start * torch.stack(list(self.factors))
            zeros = torch.stack(list(self.zeros)).round().clamp(min=0)
            return steps, torch.minimum(zeros, self.tops)

    def _rows_there(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """The same as :meth:`_row` for timesteps ``[B]`` on a device, which is not waited for; nothing is learned.

        ``[L]`` each for a single one, else ``[B, L]``.
        """
        times, given = self.timesteps.float(), given.float()
        after = torch.searchsorted(times, given).clamp(max=len(times) - 1)
        before = (after - 1).clamp(min=0)
        width = (times[after] - times[before]).clamp(min=1)   # of whole timesteps; 0 where both are the first
        share = torch.where(after == before, 1.0, ((given - times[before]) / width).clamp(0, 1))[:, None]
        all_steps, all_zeros = self.start * torch.stack(list(self.factors)), torch.stack(list(self.zeros))
        steps = torch.lerp(all_steps[before], all_steps[after], share)
        zeros = torch.lerp(all_zeros[before], all_zeros[after], share).round().clamp(min=0)
        zeros = torch.minimum(zeros, self.tops)
        return (steps[0], zeros[0]) if len(given) == 1 else (steps, zeros)

    def _row(self, timestep: float) -> tuple[Tensor, Tensor]:
        """Step sizes and zero points ``[L]`` at a timestep: of the nearest two, in proportion.

        Zero points are whole numbers, whatever is learned; their gradient passes through the rounding.
        """
        steps, zeros = self._between(timestep)
        whole = torch.minimum(zeros.detach().round().clamp(min=0), self.tops)
        return steps, zeros + (whole - zeros.detach())

    def _between(self, timestep: float) -> tuple[Tensor, Tensor]:
        times = self.timesteps.tolist()
        after = next((i for i, t in enumerate(times) if t >= timestep), len(times) - 1)
        before = max(0, after - 1)
        share = 1.0 if after == before else (timestep - times[before]) / (times[after] - times[before])
        share = min(1.0, max(0.0, share))
        if share in (0.0, 1.0):   # only one of the two: the other must get no gradient, not one of zeros
            only = after if share else before
            return self.start[only] * self.factors[only], self.zeros[only]
        pairs = [(self.start[i] * self.factors[i], self.zeros[i]) for i in (before, after)]
        steps, zeros = (torch.lerp(one, other, share) for one, other in zip(*pairs, strict=True))
        return steps, zeros

"""Prodigy (Mishchenko and Defazio 2024, arXiv 2306.06101) as prodigyopt has it, waiting for the device once a step.

prodigyopt asks for two sums of every parameter, each of which a graphics card must finish first: with the LoRAs of
Stable Diffusion 1.5 about 500 waits a step. Here all sums are read together; the numbers are the same in every bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import prodigyopt
import torch
from torch import Tensor


class Prodigy(prodigyopt.Prodigy):
    """With decoupled weight decay and ``safeguard_warmup``, without bias correction: all that Atelier uses."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns what ``closure`` gives."""
        loss = None if closure is None else closure()
        shared = self.param_groups[0]
        d, lr, beta3 = shared["d"], max(group["lr"] for group in self.param_groups), math.sqrt(shared["betas"][1])
        numerators, denominators = [], []
        for group, parameter in self._moving():
            moved, size = self._accumulate(group, parameter, d, beta3)
            numerators.append(moved)
            denominators.append(size)
        if not numerators:
            return loss
        sums: list[float] = torch.stack([*numerators, *denominators]).tolist()   # the one wait
        delta = denominator = 0.0
        for moved, size in zip(sums[: len(numerators)], sums[len(numerators) :], strict=True):
            delta += (d / shared["d0"]) * (d * lr) * moved
            denominator += size
        if denominator == 0:
            return loss
        numerator = shared["d_numerator"] * beta3 + delta
        d_hat = shared["d_coef"] * numerator / denominator
        found = max(d, d_hat) if d == shared["d0"] else d
        d_max = max(shared["d_max"], d_hat)
        self._update(d * lr, {"d_numerator": numerator, "d_denom": denominator, "d_max": d_max, "d_hat": d_hat,
                              "d": min(d_max, found * shared["growth_rate"])})   # fmt: skip
        return loss

    def _moving(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Parameters with a gradient that have a learning rate, and their groups."""
        for group in self.param_groups:
            for parameter in group["params"] if group["lr"] > 0 else ():
                if parameter.grad is not None:
                    yield group, parameter

    def _accumulate(self, group: dict[str, Any], parameter: Tensor, d: float, beta3: float) -> tuple[Tensor, Tensor]:
        """Bring the means of one parameter up to date; returns what it adds to both sums, still on the device."""
        (beta1, beta2), state, gradient = group["betas"], self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            flat = parameter.flatten()
            first = flat.clone() if parameter.any() else torch.tensor(0, device=flat.device, dtype=flat.dtype)
            state |= {"step": 0, "s": torch.zeros_like(flat), "p0": first, "exp_avg": torch.zeros_like(parameter),
                      "exp_avg_sq": torch.zeros_like(parameter)}   # fmt: skip
        moved = torch.dot(gradient.flatten(), state["p0"] - parameter.flatten())
        state["exp_avg"].mul_(beta1).add_(gradient, alpha=d * (1 - beta1))
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=d * d * (1 - beta2))
        state["s"].mul_(beta3).add_(gradient.flatten(), alpha=(d / group["d0"]) * d)
        return moved, state["s"].abs().sum()

    def _update(self, rate: float, found: dict[str, float]) -> None:
        """Move the parameters, each by the mean of its gradients, and remember what was found of the distance."""
        for group in self.param_groups:
            group.update(found)
        for group, parameter in self._moving():
            state = self.state[parameter]
            state["step"] += 1
            scale = state["exp_avg_sq"].sqrt().add_(found["d"] * group["eps"])
            if group["weight_decay"]:
                parameter.add_(parameter, alpha=-group["weight_decay"] * rate)
            parameter.addcdiv_(state["exp_avg"], scale, value=-rate)
        for group in self.param_groups:
            group["k"] += 1

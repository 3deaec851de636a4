"""Modules in training from nothing: their optimizer, running average, schedule and resumable checkpoint.

Both stages of the base model's recipe (autoencoder, then UNet with text encoder) advance through a `EmaTrainer`.
All randomness of a step comes from `step_generator`, so weights, optimizer, average and step number are the
whole state: a resumed run equals an uninterrupted one bit for bit.
"""

from __future__ import annotations

import copy
import io
import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from atelier.adapters.core.atomic_write import atomic_write


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How far to train and the learning rate on the way: warm up, hold, then a cosine down to `floor`.

    Ends after `steps`, or after `seconds` of training when given: then the cosine follows the clock, so that a
    run on a busy machine still ends annealed (and is no longer repeatable bit for bit).
    """

    lr: float
    steps: int = 0
    seconds: float = 0.0
    warmup: int = 100  # steps
    hold: float = 0.0  # share of the run at full learning rate
    floor: float = 0.02  # share of lr left at the end

    def __post_init__(self) -> None:
        if (self.steps > 0) == (self.seconds > 0):
            raise ValueError(f"give either steps or seconds, not steps={self.steps} and seconds={self.seconds}")

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is done, 0 … 1 and beyond."""
        return seconds / self.seconds if self.seconds else step / self.steps

    def rate(self, step: int, seconds: float) -> float:
        """Learning rate of the step that comes after `step` finished ones."""
        falling = max(0.0, min(1.0, self.progress(step, seconds)) - self.hold) / (1 - self.hold)
        cosine = 0.5 * (1 + math.cos(math.pi * falling))
        return self.lr * min(1.0, (step + 1) / self.warmup) * (cosine * (1 - self.floor) + self.floor)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The CPU generator that everything random in one step draws from."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


@dataclass(frozen=True, slots=True)
class StepResult:
    """One finished step: its number, loss, learning rate and the training time so far."""

    step: int
    loss: float
    lr: float
    seconds: float


class EmaTrainer:
    """Modules, AdamW over all their parameters and an exponential moving average of them.

    `step` counts finished updates, `seconds` the time spent in them, over all runs.
    """

    def __init__(self, modules: Mapping[str, nn.Module], *, decay: float, weight_decay: float) -> None:
        self.modules = dict(modules)
        self.parameters = [parameter for module in modules.values() for parameter in module.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.decay = decay
        self.step = 0
        self.seconds = 0.0
        self._clock = time.monotonic()

    def update(self, loss: Tensor, lr: float) -> None:
        """One optimizer step at `lr` with gradients clipped to norm 1, then the average follows."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))  # a young average must forget faster
        with torch.no_grad():
            for average, parameter in zip(self.average, self.parameters, strict=True):
                average.lerp_(parameter, 1 - decay)
        now = time.monotonic()
        self.seconds += now - self._clock
        self._clock = now

    def averaged(self) -> dict[str, nn.Module]:
        """Copies of the modules with the averaged weights, ready to draw with."""
        copies = {name: copy.deepcopy(module).eval() for name, module in self.modules.items()}
        targets = [parameter for module in copies.values() for parameter in module.parameters()]
        with torch.no_grad():
            for target, average in zip(targets, self.average, strict=True):
                target.copy_(average)
        return copies

    def save(self, path: Path) -> None:
        """Write the whole state; a kill leaves the old checkpoint or the new one."""
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
            "seconds": self.seconds,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        atomic_write(path, buffer.getvalue())
        self._clock = time.monotonic()

    def restore(self, path: Path) -> None:
        """Continue from what `save` wrote."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for mine, saved in zip(self.average, state["average"], strict=True):
                mine.copy_(saved)
        self.step, self.seconds = state["step"], state["seconds"]
        self._clock = time.monotonic()


def follow(events: Iterable[StepResult], trainer: EmaTrainer, folder: Path, every: float) -> None:
    """Run a stage: a line of the loss curve every 10 steps, a checkpoint every `every` seconds and at the end.

    After a kill the steps since the last checkpoint are repeated; the later line of the curve counts.
    """
    saved, recent = time.monotonic(), []
    with (folder / "curve.jsonl").open("a", encoding="utf-8") as curve:
        for event in events:
            recent.append(event.loss)
            if len(recent) == 10:
                row = {"step": event.step, "loss": sum(recent) / 10, "lr": event.lr, "seconds": event.seconds}
                curve.write(json.dumps(row) + "\n")
                curve.flush()
                recent.clear()
            if time.monotonic() - saved > every:
                trainer.save(folder / "checkpoint.pt")
                saved = time.monotonic()
    trainer.save(folder / "checkpoint.pt")

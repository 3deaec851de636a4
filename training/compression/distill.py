"""Distillation without data: a rounded student learns its teacher's predictions along the teacher's own denoising
trajectories (EfficientDM, He et al. 2024, arXiv 2310.03270).

A step is one timestep of a trajectory that the teacher draws from pure noise. The two branches of guidance are compared
separately: guidance multiplies their difference, and with it the noise of the loss. A checkpoint holds the state of the
random generator at the start of a trajectory: a run that resumes within one draws it again up to that step, with the
teacher alone, and continues as a run that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atelier.adapters.core.atomic_write import atomic_write
from atelier.adapters.quantization.dynamic_quantizers import DynamicQuantizers
from atelier.adapters.quantization.fake_quant_layers import FakeQuantSwitch, find_fake_quant_layers, trained_tensors
from atelier.training.base_models.base_model import BaseModel
from atelier.training.compression.calibrate import UnetCall, distillation_error, trajectory
from atelier.training.config.events import Event, Paused, Resumed, Saved, Stepped, Stopped, Validated, Warned
from atelier.training.loop import checkpoint
from atelier.training.loop.checkpoint import TrainingState
from atelier.training.loop.training_loop import PAUSE_SECONDS, Controls

# Learning rates of the official code, for its 16,000 updates: of up and down over the layer's mean step size, of the
# weights' step sizes over the same, of the factors on the inputs' step sizes, and of their zero points.
OFFICIAL_UPDATES = 16_000
PAIR_LR, STEP_SIZE_LR = 1 / 2500, 1e-4
FACTOR_LR, ZERO_POINT_LR = 5e-3, 2e-2
# Fewer updates need a larger rate of the low-rank pairs: 1/2500 for 16,000 and .02 for 84, which both work, lie on this
# power law. Step sizes whose rate is raised in the same way end worse than they began (docs/LOG.md).
LR_EXPONENT = 0.75
MIN_STEP_SIZE = 1e-6   # step sizes stay above it


@dataclass(frozen=True, slots=True)
class DistillationConfig:
    """What decides a distillation: prompts, length, and how trajectories and learning rates are set."""

    prompts: tuple[str, ...]
    steps: int               # optimizer updates; a multiple of ``timesteps``
    timesteps: int = 20      # of a trajectory
    pictures: int = 2        # drawn side by side; the UNet's batch is twice that
    scale_aware: bool = True   # each layer's pair has a learning rate in proportion to its mean step size
    seed: int = 0


class Distillation:
    """One run. Iterate over :meth:`events`; afterwards the model holds the best state that was measured."""

    def __init__(
        self, model: BaseModel, switch: FakeQuantSwitch, config: DistillationConfig, held_out: Sequence[UnetCall],
        folder: Path,
    ) -> None:   # fmt: skip
        self.model, self.switch, self.config, self.folder = model, switch, config, folder
        self.held_out = held_out
        self.optimizer = make_optimizer(model.unet, config)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.trajectory_start = self.generator.get_state()   # the state at the start of the current trajectory
        self.step, self.best_step, self.best_loss = 0, 0, math.inf
        self.best: dict[str, Tensor] = {}
        self.damaged: list[str] = []   # sentences about checkpoints that could not be resumed from
        self.finished = False   # False after a cancel or an interruption

    def resume(self) -> bool:
        """Go back to the newest checkpoint, if there is one."""
        state = checkpoint.read_newest(self.folder / "checkpoints", self.damaged.append)
        if state is None:
            return False
        _load_values(self.model.unet, state.weights)
        self.optimizer.load_state_dict(state.optimizer)
        self.generator.set_state(state.generator)
        self.best, self.step = state.best, state.step
        self.best_step, self.best_loss = state.best_step, state.best_loss
        return True

    def events(self, controls: Controls) -> Iterator[Event]:
        """Learn to the last step, or until a command ends the run; every event is yielded."""
        yield from map(Warned, self.damaged)
        if self.step:
            yield Resumed(self.step)
        else:
            yield self._validate()
        while self.step < self.config.steps:
            for event in self._trajectory(controls):
                yield event
                if isinstance(event, Stopped):
                    return
            if controls.should_quit():
                yield self._save()
                return
            yield self._validate()
            if self.step < self.config.steps:
                yield self._save()
            if controls.take_command("stop") is not None:
                break
        _load_values(self.model.unet, self.best)
        self.finished = True

    def _trajectory(self, controls: Controls) -> Iterator[Event]:
        """One trajectory of the teacher, with one update at each of its timesteps."""
        done = self.step % self.config.timesteps   # updates before the run was interrupted within it
        self.trajectory_start = self.generator.get_state()
        picks = torch.randint(len(self.config.prompts), (self.config.pictures,), generator=self.generator).tolist()
        prompts = [self.config.prompts[i] for i in picks]
        calls = trajectory(self.model, self.switch, prompts, self.config.timesteps, self.generator)
        for call in islice(calls, done, None):
            if controls.take_command("pause") is not None:
                yield from self._pause(controls)
            if controls.should_quit():
                return
            if controls.take_command("cancel") is not None:
                yield Stopped(self.step, "Cancelled. Nothing was saved.")
                return
            yield self._train_step(call)
        self.trajectory_start = self.generator.get_state()

    def _pause(self, controls: Controls) -> Iterator[Event]:
        yield self._save()
        yield Paused(self.step)
        while controls.take_command("resume") is None and not controls.should_quit():
            for name in ("stop", "cancel"):
                text = controls.take_command(name)
                if text is not None:   # put it back for the loop, which handles it
                    atomic_write(self.folder / "control" / name, text.encode())
                    yield Resumed(self.step)
                    return
            time.sleep(PAUSE_SECONDS)
        yield Resumed(self.step)

    def _train_step(self, call: UnetCall) -> Stepped:
        started = time.perf_counter()
        remaining = 1 - self.step / self.config.steps   # falls linearly to 0
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * remaining
        loss = distillation_error(self.model, call)
        if not math.isfinite(float(loss.detach())):
            raise FloatingPointError(f"Training became unstable at step {self.step + 1}: the loss is not a finite "
                                     "number. Use a preset with more bits.")
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()   # to None: parameters that the next step does not use are not updated
        _clamp_step_sizes(self.model.unet)
        self.step += 1
        lr = self.optimizer.param_groups[0]["lr"]
        return Stepped(self.step, self.config.steps, float(loss.detach()), 0.0, lr, time.perf_counter() - started)

    @torch.no_grad()
    def _validate(self) -> Validated:
        """The error on the held-out trajectory. The initial state counts too, so the result is never worse."""
        loss = sum(float(distillation_error(self.model, call)) for call in self.held_out) / len(self.held_out)
        best = loss < self.best_loss
        if best:
            self.best = {name: value.detach().cpu().clone() for name, value in trained_tensors(self.model.unet).items()}
            self.best_step, self.best_loss = self.step, loss
        return Validated(self.step, loss, best)

    def _save(self) -> Saved:
        state = TrainingState(
            weights={name: value.detach().cpu().clone() for name, value in trained_tensors(self.model.unet).items()},
            best=self.best,
            generator=self.trajectory_start,
            optimizer=self.optimizer.state_dict(),
            step=self.step,
            best_step=self.best_step,
            best_loss=self.best_loss,
        )
        path = checkpoint.write(self.folder / "checkpoints", state)
        return Saved(self.step, str(path.relative_to(self.folder)))


def make_optimizer(unet: nn.Module, config: DistillationConfig) -> torch.optim.AdamW:
    """AdamW with one group for each layer's pair and step sizes, and one each for the inputs' factors and zeros.

    AdamW does not depend on the scale of gradients, so EfficientDM's scale-aware *gradients* would change nothing; as
    in its code, the learning rate follows the layer's mean step size.
    """
    layers = [layer for layer in find_fake_quant_layers(unet).values()
              if layer.up is not None and layer.down is not None]
    means = [float(layer.steps.detach().mean()) for layer in layers]
    overall_mean = sum(means) / len(means) if means else 0.0
    factor = (OFFICIAL_UPDATES / max(1, config.steps)) ** LR_EXPONENT
    groups: list[dict[str, Any]] = []
    for layer, mean in zip(layers, means, strict=True):
        unit = factor * (mean if config.scale_aware else overall_mean)
        groups.append({"params": [layer.up, layer.down], "lr": unit * PAIR_LR, "weight_decay": 1e-2})
        groups.append({"params": [layer.steps], "lr": mean * STEP_SIZE_LR})
    inputs: Any = getattr(unet, "input_levels", None)
    if isinstance(inputs, DynamicQuantizers):
        groups.append({"params": [inputs.clips], "lr": FACTOR_LR})
    elif inputs is not None:
        groups.append({"params": list(inputs.factors), "lr": FACTOR_LR})
        groups.append({"params": list(inputs.zeros), "lr": ZERO_POINT_LR})
    if not groups:
        groups.append({"params": [], "lr": 0.0})   # weights alone, and only calibrated: nothing learns
    for group in groups:
        group["initial_lr"] = group["lr"]
    return torch.optim.AdamW(groups, weight_decay=0.0)


@torch.no_grad()
def _clamp_step_sizes(unet: nn.Module) -> None:
    for layer in find_fake_quant_layers(unet).values():
        layer.steps.clamp_(min=MIN_STEP_SIZE)


@torch.no_grad()
def _load_values(unet: nn.Module, values: dict[str, Tensor]) -> None:
    own = trained_tensors(unet)
    for name, value in values.items():
        own[name].copy_(value)

"""The one training loop: a generator of events. A recipe supplies the losses; the caller draws, logs and stops."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from atelier.adapters.core.atomic_write import atomic_write
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.disk_space import is_disk_full
from atelier.adapters.core.optimizer_update import OptimizerUpdate
from atelier.adapters.formats.native import load_adapter
from atelier.training.config.events import (
    Event,
    Measured,
    Paused,
    Previewed,
    Resumed,
    Saved,
    Stepped,
    Stopped,
    StoppedEarly,
    Validated,
    Warned,
)
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import STOP_MEASURES, TrainConfig
from atelier.training.loop import checkpoint
from atelier.training.loop.checkpoint import TrainingState
from atelier.training.loop.cuda_graph import GraphBackend, GraphRecorder
from atelier.training.loop.distributed import SINGLE_PROCESS, ProcessGroup
from atelier.training.loop.health import Advice, best_measured, stop_advice
from atelier.training.loop.optimizer_step import apply_gradients, reduce_losses
from atelier.training.loop.optimizers import learning_rate, make_optimizer
from atelier.training.loop.recipe import Losses, Recipe
from atelier.training.loop.snapshots import drop_snapshots, find_snapshots, snapshot_steps, write_snapshot

PAUSE_SECONDS = 0.2
DISK_FULL = "The disk is full. Free some space."
CONTINUES = "The run continues by itself."
NOT_SAVED = "The disk is full, so no checkpoint was saved at this step. The one before it is safe."
ADVICE = "Use half the learning rate."
MAX_SKIPPED_STEPS = 5   # updates in a row; a scaler of float16 gradients needs one or two to find its scale


@dataclass(frozen=True, slots=True)
class Controls:
    """How the loop is controlled from outside; asked at every step boundary."""

    take_command: Callable[[str], str | None]   # takes a command by name: its text, or None
    should_quit: Callable[[], bool]             # the process was asked to end: save and return
    shortage: Callable[[int], str] = lambda _: ""   # of so many bytes on the run's disk: a sentence, or empty


NO_CONTROLS = Controls(take_command=lambda name: None, should_quit=lambda: False)   # noqa: ARG005 (as the field says)


class Training:
    """One run of the loop. Iterate over :meth:`events`; afterwards :attr:`result` holds what to keep."""

    def __init__(
        self, recipe: Recipe, config: TrainConfig, folder: Path, accelerator: Accelerator,
        group: ProcessGroup = SINGLE_PROCESS, gpu: GraphBackend | None = None,
    ) -> None:   # fmt: skip
        self.recipe, self.config, self.folder, self.accelerator = recipe, config, folder, accelerator
        self.group, self.parameters = group, list(recipe.adapters.parameters())
        optimizer = make_optimizer(config, recipe.adapters, recipe.companions, recipe.lr_ratio)
        self.optimizer = accelerator.prepare(optimizer)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.recorder = GraphRecorder(recipe, self._backward, gpu) if gpu and recipe.stages else None
        self.average = copy.deepcopy(recipe.adapters) if config.ema else None
        self.step, self.best_step, self.result_step, self.best_loss = 0, 0, 0, math.inf
        self.skipped_steps = 0   # consecutive updates that were skipped, up to now
        self.best: dict[str, Tensor] = {}
        self.damaged: list[str] = []   # sentences about checkpoints that could not be resumed from
        self.validations: dict[int, float] = {}   # losses by step
        self.measured: dict[int, Measured] = {}   # by step
        self.previewed: set[int] = set()          # steps with previews
        self.result: AdapterSet | None = None   # None after a cancel or an interruption

    @property
    def output_adapters(self) -> AdapterSet:
        """The weights that are validated, previewed and saved: the average where there is one."""
        return self.average or self.recipe.adapters

    def resume(self) -> bool:
        """Go back to the newest checkpoint, if there is one."""
        state = checkpoint.read_newest(self.folder / "checkpoints", self.damaged.append)
        if state is None:
            return False
        self.recipe.adapters.load_tensors(state.weights)
        if self.average is not None:
            self.average.load_tensors(state.average)
        self.optimizer.load_state_dict(state.optimizer)
        if self.accelerator.scaler is not None and state.scaler:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.generator.set_state(state.generator)
        self.best, self.step = state.best, state.step
        self.best_step, self.best_loss = state.best_step, state.best_loss
        self._read_history()
        return True

    @property
    def bytes_needed(self) -> int:
        """Room on the disk for a checkpoint and a snapshot: the weights twice, average, best, optimizer's two."""
        return 6 * sum(parameter.numel() * parameter.element_size() for parameter in self.parameters)

    def _read_history(self) -> None:
        """Recall from the run's events what was measured up to this step."""
        for _, event in RunFolder(self.folder).events():
            match event:
                case Validated(step, loss) if step <= self.step:
                    self.validations[step] = loss
                case Measured(step) if step <= self.step:
                    self.measured[step] = event
                case Previewed(step) if step <= self.step:
                    self.previewed.add(step)
                case _:
                    pass

    def events(self, controls: Controls) -> Iterator[Event]:
        """Train to the last step, or until a command ends the run; every event is yielded."""
        yield from self._opening()
        while self.step < self.config.steps:
            if controls.should_quit():
                yield from self._save(controls)
                return
            if controls.take_command("cancel") is not None:
                yield Stopped(self.step, "Cancelled. Nothing was added to the library.")
                return
            if controls.take_command("stop") is not None:
                if self.step:
                    break
                yield Stopped(0, "Stopped before the first step, so there is nothing to save.")
                return
            if controls.take_command("pause") is not None:
                yield from self._pause(controls)
                continue
            if reason := controls.shortage(self.bytes_needed):
                yield from self._wait_for_space(controls, reason)
                continue
            yield from self._requests(controls)
            event = self._train_step()
            if not math.isfinite(event.loss):
                yield from self._stop_unstable(event.step)
                return
            self.step = event.step
            if self.step == self.config.steps // 2:
                self._update_masks()
            yield event
            if self.skipped_steps == MAX_SKIPPED_STEPS:
                yield Warned(f"The gradients were not finite numbers in {MAX_SKIPPED_STEPS} steps in a row, so nothing "
                             f"was learned. {ADVICE}")   # fmt: skip
            yield from self._periodic_events(controls)
            if advice := self._stop_advice():
                yield StoppedEarly(self.step, advice.best_step, f"{advice.reason}. Step {advice.best_step} is saved.")
                yield from self._finish(advice.best_step)
                return
        yield from self._finish()

    def _opening(self) -> Iterator[Event]:
        yield from map(Warned, self.damaged)
        if self.step:
            yield Resumed(self.step)
        elif self.config.preview_every:   # the adapter changes nothing yet: this is what the base model draws
            yield from self._preview(self.output_adapters)

    def _train_step(self) -> Stepped:
        """One optimizer update. Nothing is updated when a loss or a gradient is not finite."""
        started = time.perf_counter()
        lr = learning_rate(self.config, self.step + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("ratio", 1.0)
        # Open during the backward pass too, for checkpointing; a recorder attaches adapters only where it must.
        with self.recipe.mount() if self.recorder is None else nullcontext():
            losses = [self._microstep() for _ in range(self.config.accumulate)]
        subject, prior, norm = reduce_losses(losses, self.parameters, self.group)
        if math.isfinite(subject + prior):
            self._update(lr, finite=math.isfinite(norm))
            self.skipped_steps = 0 if math.isfinite(norm) else self.skipped_steps + 1
            if not self.skipped_steps:
                self._update_average()
        self.optimizer.zero_grad(set_to_none=self.recorder is None)   # recordings add to the tensors that are there
        return Stepped(self.step + 1, self.config.steps, subject + prior, prior, lr, time.perf_counter() - started)

    def _update(self, lr: float, *, finite: bool) -> None:
        """Update the weights; adapters that choose what is trained see it before and after."""
        update = OptimizerUpdate(self.step + 1, self.config.steps, lr, self.optimizer.state)
        if finite:
            self.recipe.before_update(update)
        apply_gradients(self.recipe, self.config, self.accelerator, self.optimizer, finite=finite)
        if finite:
            self.recipe.after_update(update)

    def _microstep(self) -> Losses:
        if self.recorder is not None:
            return self.recorder(self.generator)
        self._backward(losses := self.recipe.microstep(self.generator))
        return Losses(losses.subject.detach(), losses.prior.detach())

    def _backward(self, losses: Losses) -> None:
        """Backward pass: each loss gives gradients only to the parameters that learn from it."""
        loss = (losses.subject + losses.prior) / self.config.accumulate
        companions = {id(parameter) for parameter in self.recipe.companions}
        others = [p for p in self.parameters if id(p) not in companions]
        if loss.requires_grad:   # else no picture of this batch was for this process
            self.accelerator.backward(loss, **({} if losses.companion is None else {"inputs": others}))
        if losses.companion is not None and losses.companion.requires_grad:
            self.accelerator.backward(losses.companion / self.config.accumulate, inputs=list(self.recipe.companions))

    def _update_masks(self) -> None:
        """Let the kind choose which values are trained. Before a checkpoint, so that a resumed run has done it too."""
        self.recipe.update_masks()
        if self.recorder is not None:
            self.recorder.reset()
        if self.average is not None:
            for average, mask in zip(self.average.buffers(), self.recipe.adapters.buffers(), strict=True):
                average.copy_(mask)

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is None:
            return
        decay = min(self.config.ema, (self.step + 1) / (self.step + 10))   # early on it must not keep the start
        for average, value in zip(self.average.parameters(), self.parameters, strict=True):
            average.lerp_(value, 1 - decay)

    def _periodic_events(self, controls: Controls) -> Iterator[Event]:
        config, last = self.config, self.step == self.config.steps
        if config.validate_every and (last or self.step % config.validate_every == 0):
            yield self._validate()
            yield from self._measure()
        if self.step in snapshot_steps(config.steps, config.snapshots):
            self._write_snapshot()
        if config.preview_every and (last or self.step % config.preview_every == 0):
            yield from self._preview(self.output_adapters)
        if config.checkpoint_every and not last and self.step % config.checkpoint_every == 0:
            yield from self._save(controls)

    def _validate(self) -> Validated:
        loss = self.recipe.validate(self.output_adapters)
        self.validations[self.step] = loss
        best = loss < self.best_loss
        if best:
            self.best = checkpoint.cpu_copy(self.output_adapters)
            self.best_step, self.best_loss = self.step, loss
        return Validated(self.step, loss, best)

    def _measure(self) -> Iterator[Event]:
        measured = self.recipe.measure(self.output_adapters, self.step)
        if measured is None:
            return
        self.measured[self.step] = measured
        if self.config.snapshots and best_measured([*self.measured.values()]) is measured:
            self._write_snapshot()
        yield measured

    def _stop_advice(self) -> Advice | None:
        every, last = self.config.validate_every, self.step == self.config.steps
        if last or not every or self.step % every:
            return None
        measured, validations = [*self.measured.values()], [*self.validations.items()]
        return stop_advice(measured, validations, STOP_MEASURES[self.config.stop_when])

    def _preview(self, weights: AdapterSet, prompt: str = "") -> Iterator[Event]:
        previews = self.recipe.preview(weights, self.step, prompt)
        self.previewed |= {self.step} if not prompt else set()
        yield from previews

    def _write_snapshot(self, *, saved: bool = False) -> None:
        """Keep the weights of this step, and of the others those on schedule and the best one."""
        if not self.group.is_main:
            return
        weights = self.recipe.finalize(copy.deepcopy(self.output_adapters))
        try:
            write_snapshot(self.folder, self.step, weights, saved=saved)
        except OSError as error:
            if not is_disk_full(error):   # then the run waits for room before its next step
                raise
        best = best_measured([*self.measured.values()])
        on_schedule = snapshot_steps(self.config.steps, self.config.snapshots)
        drop_snapshots(self.folder, {*on_schedule, self.step, best.step if best else self.step})

    def _save(self, controls: Controls) -> Iterator[Event]:
        """Write a checkpoint. Where the disk is full, wait for room and try once more."""
        saved = self.group.broadcast(self._write_checkpoint() if self.group.is_main else None)
        if saved is None:
            yield from self._wait_for_space(controls, DISK_FULL)
            saved = self.group.broadcast(self._write_checkpoint() if self.group.is_main else None)
        yield saved or Warned(NOT_SAVED)

    def _write_checkpoint(self) -> Saved | None:
        """Write the state; None where the disk is full."""
        state = TrainingState(
            weights=checkpoint.cpu_copy(self.recipe.adapters),
            average=checkpoint.cpu_copy(self.average) if self.average else {},
            best=self.best,
            generator=self.generator.get_state(),
            optimizer=self.optimizer.state_dict(),
            step=self.step,
            best_step=self.best_step,
            best_loss=self.best_loss,
            scaler=self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {},
        )
        try:
            path = checkpoint.write(self.folder / "checkpoints", state)
        except Exception as error:
            if is_disk_full(error):
                return None
            raise
        return Saved(self.step, str(path.relative_to(self.folder)))

    def _pause(self, controls: Controls) -> Iterator[Event]:
        yield from self._save(controls)
        yield Paused(self.step)
        yield from self._wait(controls, lambda: controls.take_command("resume") is not None)

    def _wait_for_space(self, controls: Controls, reason: str) -> Iterator[Event]:
        """Pause without saving, for which there may be no room, until there is some more than was missing."""
        yield Paused(self.step, f"{reason} {CONTINUES}")
        yield from self._wait(controls, lambda: not controls.shortage(self.bytes_needed * 5 // 4))

    def _wait(self, controls: Controls, is_over: Callable[[], bool]) -> Iterator[Event]:
        """Wait until a pause is over, or somebody ends the run; previews are drawn meanwhile."""
        while not is_over() and not controls.should_quit():
            yield from self._requests(controls)
            for name in ("stop", "cancel"):
                text = controls.take_command(name)
                if text is not None:   # put it back for the loop, which handles it
                    if self.group.is_main:
                        atomic_write(self.folder / "control" / name, text.encode())
                    yield Resumed(self.step)
                    return
            time.sleep(PAUSE_SECONDS)
        yield Resumed(self.step)

    def _requests(self, controls: Controls) -> Iterator[Event]:
        """Draw a preview, or save the weights of this step, where somebody asked for it."""
        prompt = controls.take_command("preview")
        if prompt is not None:
            yield from self._preview(self.output_adapters, prompt)
        if controls.take_command("save") is not None and self.step:
            self._write_snapshot(saved=True)
            yield from self._save(controls)

    def _stop_unstable(self, step: int) -> Iterator[Event]:
        """The loss is not finite any more: keep the last good state instead of training on."""
        if self.step and self.best_step != self.step:
            validated = self._validate()
            if math.isfinite(validated.loss):   # otherwise the last update has spoilt the weights
                yield validated
        if not self.best:
            raise FloatingPointError(
                f"Training became unstable at step {step}: the loss is not a finite number. There is no earlier state "
                f"to save. {ADVICE}"
            )
        yield Warned(f"Training became unstable at step {step} and was stopped; step {self.best_step} was saved. "
                     f"{ADVICE}")   # fmt: skip
        self._set_result(best=True)

    def _finish(self, keep: int | None = None) -> Iterator[Event]:
        """Decide which weights are the result: those of the step ``keep``, or as the config says."""
        unfinished = self.step < self.config.steps
        if self.config.validate_every and unfinished and self.best_step != self.step and keep is None:
            yield self._validate()
        snapshots = find_snapshots(self.folder)
        if keep is None or keep == self.best_step or not snapshots:
            self._set_result(best=self.config.keep_best or keep == self.best_step)
        else:
            self.result_step = min(snapshots, key=lambda step: abs(step - keep))
            self.result = load_adapter(snapshots[self.result_step], self.accelerator.device)
        if self.config.preview_every and self.result and self.result_step not in self.previewed:
            yield from self.recipe.preview(self.result, self.result_step, "")

    def _set_result(self, *, best: bool) -> None:
        self.result, self.result_step = copy.deepcopy(self.output_adapters), self.step
        if best and self.best:
            self.result.load_tensors(self.best)
            self.result_step = self.best_step
        self.result = self.recipe.finalize(self.result)

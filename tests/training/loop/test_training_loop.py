"""The training loop, on a layer of twelve weights: what it computes, in which order, and what it obeys."""

# Torch says of a gradient, a buffer and a scaler that they may be missing; here they are there.
# pyright: reportOptionalMemberAccess=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportIncompatibleMethodOverride=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor

from atelier.adapters.core.base import AdapterSet, BaseStatistics, Spec
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.config.events import Event, Paused, Previewed, Resumed, Saved, Stepped, Stopped, Validated, Warned
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig
from atelier.training.loop import checkpoint
from atelier.training.loop import optimizer_step as update
from atelier.training.loop import training_loop as loop
from atelier.training.loop.checkpoint import TrainingState
from atelier.training.loop.factor_gradients import apply_lora_pro
from atelier.training.loop.optimizers import learning_rate
from atelier.training.loop.training_loop import Controls, Losses, Recipe, Training

SPEC = Spec("toy.layer", (3, 4))
GOAL = torch.arange(12.0).reshape(3, 4) / 12 - 0.5
MAX_EFFECT = TrainConfig(
    name="rex", steps=6, lr=0.05, warmup=2, validate_every=0, preview_every=0, checkpoint_every=0, adapter={"rank": 2}
)   # fmt: skip
BASE = torch.tensor([[0.02, -0.9, 0.03, 0.8], [-0.7, 0.01, 0.6, -0.04], [0.05, 0.5, -0.06, -0.4]])
NOBODY = Controls(take_command=lambda name: None, should_quit=lambda: False)


def but(**changes) -> TrainConfig:
    return replace(MAX_EFFECT, **changes)


@torch.no_grad()
def distance(adapters: AdapterSet) -> Tensor:
    return (adapters[SPEC.name].delta(torch.zeros(3, 4)) - GOAL).square().mean()


def toy(adapters: AdapterSet, **parts: Callable) -> Recipe:
    """Learn a small matrix from random inputs."""

    def microstep(generator: torch.Generator) -> Losses:
        x = torch.randn(4, 4, generator=generator)
        delta = adapters[SPEC.name].delta(torch.zeros(3, 4))
        return Losses(F.mse_loss(x @ delta.T, x @ GOAL.T), 0.1 * delta.square().mean())

    return Recipe(
        adapters,
        mount=parts.get("mount", nullcontext),
        microstep=parts.get("microstep", microstep),
        validate=parts.get("validate", lambda weights: distance(weights).item()),
        preview=parts.get("preview", lambda weights, step, prompt: [Previewed(step, prompt, f"{step}.png")]),
        update_masks=lambda: adapters[SPEC.name].update_mask(BASE),
    )


def start(config: TrainConfig, folder: Path, *, seed: int = 0, scaled: bool = False, **parts: Callable) -> Training:
    torch.manual_seed(seed)
    adapters = create_adapters(config.kind, config.adapter, [SPEC])
    for adapter in adapters:
        adapter.initialize(BaseStatistics(BASE))
    (folder / "control").mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=True)
    if scaled:   # as for float16, on a CPU
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024, growth_interval=3)
    return Training(toy(adapters, **parts), config, folder, accelerator)


def weights(adapters: AdapterSet | None) -> Tensor:
    assert adapters is not None
    return torch.cat([tensor.flatten() for tensor in adapters.tensors().values()]).clone()


def told(event: Event) -> tuple[str, int]:
    return type(event).__name__, event.step   # type: ignore[union-attr]


class Script:
    """Gives commands as soon as a step is done, through the files that the real ones come by."""

    def __init__(self, folder: Path, *commands: tuple[int, str, str]) -> None:
        self.run, self.commands, self.training = RunFolder(folder), list(commands), None
        self.quit_at: float = math.inf
        self.shortages: list[str] = []   # what is said of the disk from the first step boundary on

    def take_command(self, name: str) -> str | None:
        assert self.training is not None
        for command in [c for c in self.commands if c[0] <= self.training.step]:
            self.commands.remove(command)
            self.run.send_command(*command[1:])
        return self.run.take_command(name)

    def quitting(self) -> bool:
        assert self.training is not None
        return self.training.step >= self.quit_at

    def play(self, training: Training) -> list[Event]:
        self.training = training
        return list(training.events(Controls(self.take_command, self.quitting, self.shortage)))

    def shortage(self, needed: int) -> str:
        assert needed > 0
        return self.shortages.pop(0) if self.shortages else ""


def played(config: TrainConfig, folder: Path, *commands: tuple[int, str, str]) -> tuple[Training, list[Event]]:
    training = start(config, folder)
    return training, Script(folder, *commands).play(training)


def test_what_happens_in_which_order(tmp_path):
    config = but(validate_every=2, preview_every=3, checkpoint_every=2)
    training, events = played(config, tmp_path)
    assert list(map(told, events)) == [
        ("Previewed", 0), ("Stepped", 1), ("Stepped", 2), ("Validated", 2), ("Saved", 2), ("Stepped", 3),
        ("Previewed", 3), ("Stepped", 4), ("Validated", 4), ("Saved", 4), ("Stepped", 5), ("Stepped", 6),
        ("Validated", 6),
        ("Previewed", 6),
    ]  # fmt: skip
    assert training.result is not None


def test_the_last_step_is_validated_and_previewed_even_out_of_turn(tmp_path):
    _, events = played(but(validate_every=5, preview_every=5, checkpoint_every=3), tmp_path)
    assert [told(e) for e in events if not isinstance(e, Stepped)] == [
        ("Previewed", 0), ("Saved", 3), ("Validated", 5), ("Previewed", 5), ("Validated", 6), ("Previewed", 6),
    ]  # fmt: skip


def test_nothing_but_steps_where_nothing_else_is_asked_for(tmp_path):
    training, events = played(MAX_EFFECT, tmp_path)
    assert list(map(told, events)) == [("Stepped", step) for step in range(1, 7)]
    assert training.result_step == 6
    assert torch.equal(weights(training.result), weights(training.recipe.adapters))


def test_it_learns(tmp_path):
    training, events = played(but(steps=60), tmp_path)
    losses = [event.loss for event in events if isinstance(event, Stepped)]
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])
    assert training.result is not None
    assert distance(training.result) < 0.3 * GOAL.square().mean()


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_the_steps_are_those_of_a_loop_written_out_by_hand(tmp_path, clip):
    config = but(accumulate=2, clip=clip, weight_decay=0.1)
    training, events = played(config, tmp_path)
    torch.manual_seed(0)
    adapters = create_adapters("lora", config.adapter, [SPEC])
    recipe, generator = toy(adapters), torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=1.0, weight_decay=0.1)
    for step, event in enumerate(events, 1):
        optimizer.param_groups[0]["lr"] = learning_rate(config, step)
        parts = [recipe.microstep(generator) for _ in range(2)]
        loss, prior = (torch.stack(x).mean() for x in ([p.subject + p.prior for p in parts], [p.prior for p in parts]))
        loss.backward()
        if clip:
            assert torch.nn.utils.clip_grad_norm_(adapters.parameters(), clip) > clip   # it had something to do
        optimizer.step()
        optimizer.zero_grad()
        assert isinstance(event, Stepped)
        assert (event.step, event.of) == (step, 6)
        assert event.loss == pytest.approx(loss.item())
        assert event.prior_loss == pytest.approx(prior.item())
        assert event.lr == learning_rate(config, step)
        assert event.seconds > 0
    torch.testing.assert_close(weights(training.result), weights(adapters), rtol=1e-5, atol=1e-6)


def test_clipping_bounds_the_gradient_and_keeps_its_direction(tmp_path):
    gradients: dict[float, list[Tensor]] = {0.0: [], 0.01: []}
    for clip, seen in gradients.items():
        training = start(but(clip=clip, steps=1), tmp_path)

        def note(*_, seen=seen, training=training) -> None:
            seen.append(torch.cat([p.grad.flatten() for p in training.parameters]))

        training.optimizer.optimizer.register_step_pre_hook(note)
        list(training.events(NOBODY))
    (free,), (bound,) = gradients.values()
    assert free.norm() > 0.05
    assert bound.norm() == pytest.approx(0.01, rel=1e-3)
    assert F.cosine_similarity(free, bound, dim=0) == pytest.approx(1)


def test_two_microsteps_are_one_of_twice_the_batch(tmp_path):
    data = torch.randn(6, 8, 4)   # step, example, value

    def microsteps(adapters: AdapterSet, size: int) -> Callable[[torch.Generator], Losses]:
        batches = iter(data.reshape(-1, size, 4))

        def microstep(generator: torch.Generator) -> Losses:
            x = next(batches)
            delta = adapters[SPEC.name].delta(torch.zeros(3, 4))
            return Losses(F.mse_loss(x @ delta.T, x @ GOAL.T), torch.zeros(()))

        return microstep

    runs = []
    for accumulate, size in ((2, 4), (1, 8)):
        training = start(but(accumulate=accumulate), tmp_path)
        training.recipe = replace(training.recipe, microstep=microsteps(training.recipe.adapters, size))
        losses = [event.loss for event in training.events(NOBODY) if isinstance(event, Stepped)]
        runs.append((weights(training.result), torch.tensor(losses)))
    torch.testing.assert_close(runs[0], runs[1])


def test_adapters_are_attached_during_every_microstep_and_its_backward_pass(tmp_path):
    attached: list[bool] = []

    class Attached:
        def __enter__(self) -> None:
            attached.append(True)

        def __exit__(self, *_) -> None:
            attached.append(False)

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            assert attached[-1]
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            assert attached[-1]
            return grad

    training = start(but(accumulate=2), tmp_path, mount=Attached)
    plain = training.recipe.microstep

    def watched(generator: torch.Generator) -> Losses:
        losses = plain(generator)
        return Losses(Watched.apply(losses.subject), losses.prior)

    training.recipe = replace(training.recipe, microstep=watched)
    list(training.events(NOBODY))
    assert attached == [True, False] * 6


def test_up_learns_faster_by_its_speed(tmp_path):
    """Adam's first step is as long as the learning rate, whatever the gradient."""
    training = start(but(steps=1, warmup=0, lr_schedule="constant", weight_decay=0.0, up_speed=16.0), tmp_path)
    list(training.events(NOBODY))
    moved = training.recipe.adapters[SPEC.name].up.detach().abs()   # from zero
    torch.testing.assert_close(moved, torch.full_like(moved, 16 * MAX_EFFECT.lr), rtol=1e-3, atol=0)
    rates = [group["lr"] for group in training.optimizer.param_groups]
    assert rates == pytest.approx([MAX_EFFECT.lr, 16 * MAX_EFFECT.lr])


def test_the_product_follows_the_whole_gradient_where_asked_for(tmp_path, monkeypatch):
    given: list[list[Tensor]] = []

    def note(adapters: AdapterSet) -> None:
        raw = [p.grad.clone() for p in adapters.parameters()]
        apply_lora_pro(adapters)
        given.append(raw)

    monkeypatch.setattr(update, "apply_lora_pro", note)
    list(start(MAX_EFFECT, tmp_path / "plain").events(NOBODY))
    assert not given
    training = start(but(whole_gradient=True, clip=0.0), tmp_path / "whole")
    used: list[list[Tensor]] = []
    training.optimizer.optimizer.register_step_pre_hook(
        lambda *_: used.append([p.grad.clone() for p in training.parameters]))   # fmt: skip
    list(training.events(NOBODY))
    assert len(given) == len(used) == 6
    assert all(map(torch.equal, given[0], used[0]))         # `up` is still zero
    assert not any(map(torch.equal, given[5], used[5]))


SARA = {"kind": "sara", "adapter": {"rank": 1}}


def test_a_kind_chooses_anew_once_and_half_way(tmp_path, monkeypatch):
    told_at: list[int] = []
    training = start(but(**SARA), tmp_path)
    training.recipe = replace(training.recipe, update_masks=lambda: told_at.append(training.step))
    list(training.events(NOBODY))
    assert told_at == [3]


def test_adapters_see_every_update_before_and_after(tmp_path):
    training, seen = start(MAX_EFFECT, tmp_path), []
    parameter = training.parameters[0]

    def before(update) -> None:
        seen.append((update.step, update.steps, update.lr, parameter.detach().clone(), len(dict(update.state))))

    def after(update) -> None:
        seen.append((update.step, parameter.detach().clone(), [name for name, _ in update.moments(parameter)]))

    training.recipe = replace(training.recipe, before_update=before, after_update=after)
    rates = [event.lr for event in training.events(NOBODY) if isinstance(event, Stepped)]
    befores, afters = seen[::2], seen[1::2]
    assert [(step, total) for step, total, *_ in befores] == [(n, 6) for n in range(1, 7)]
    assert [each[2] for each in befores] == rates
    assert befores[0][4] == 0 and befores[1][4] == len(training.parameters)
    for (_, _, _, old, _), (_, new, moments) in zip(befores, afters, strict=True):
        assert not torch.equal(old, new)
        assert moments == ["exp_avg", "exp_avg_sq"]


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_what_has_settled_half_way_stays(tmp_path, ema):
    training = start(but(**SARA, ema=ema, steps=20, lr=0.3), tmp_path)
    for event in training.events(NOBODY):
        if told(event) == ("Stepped", 10):
            sara = training.recipe.adapters[SPEC.name]
            settled, kept = sara.settled.clone(), sara.current().detach().clone()
            assert settled.sum() > 0
    for adapters in (training.recipe.adapters, training.output_adapters):
        after = adapters[SPEC.name].current().detach()
        assert torch.equal(after[settled], kept[settled])


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("changes", [SARA, {"up_speed": 4.0}, {"whole_gradient": True}],
                         ids=lambda changes: next(iter(changes)))   # fmt: skip
def test_with_every_option_a_resumed_run_ends_in_the_same_weights(tmp_path, changes, ema):
    config = but(**changes, ema=ema, lr=0.2)
    whole, _ = played(config, tmp_path / "whole")
    for step in range(1, 6):
        folder = tmp_path / f"cut-{step}"
        script = Script(folder)
        script.quit_at = step
        script.play(start(config, folder))
        second = start(config, folder, seed=99)
        assert second.resume()
        list(second.events(NOBODY))
        assert torch.equal(weights(second.result), weights(whole.result))


VARIANTS = list(itertools.product(["adamw", "prodigy"], [0.0, 0.9], [1, 2]))


@pytest.mark.parametrize(("optimizer", "ema", "accumulate"), VARIANTS)
def test_a_resumed_run_ends_in_the_same_weights_bit_for_bit(tmp_path, optimizer, ema, accumulate):
    config = but(optimizer=optimizer, ema=ema, accumulate=accumulate, validate_every=2,
                 lr=1.0 if optimizer == "prodigy" else 0.05)   # fmt: skip
    whole, events = played(config, tmp_path / "whole")
    for step in range(6):
        folder = tmp_path / f"cut-{step}"
        script = Script(folder)
        script.quit_at = step
        first = script.play(start(config, folder))
        assert told(first[-1]) == ("Saved", step)
        assert script.training.result is None
        second = start(config, folder, seed=99)   # in a new process other random numbers are at hand
        assert second.resume()
        rest = list(second.events(NOBODY))
        assert rest[:1] == ([Resumed(step)] if step else rest[:1])
        assert torch.equal(weights(second.result), weights(whole.result))
        assert torch.equal(weights(second.recipe.adapters), weights(whole.recipe.adapters))
        assert second.result_step == whole.result_step
        assert timeless([*first, *rest]) == timeless(events)


def timeless(events: list[Event]) -> list[Event]:
    """Events that must be alike however often a run was interrupted."""
    kept = [event for event in events if isinstance(event, Stepped | Validated | Previewed)]
    return [replace(event, seconds=0.0) if isinstance(event, Stepped) else event for event in kept]


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path):
    config = but(checkpoint_every=2, validate_every=1)
    whole, _ = played(config, tmp_path / "whole")
    for event in start(config, tmp_path / "killed").events(NOBODY):
        if told(event) == ("Stepped", 5):
            break   # nothing gets the chance to save
    again = start(config, tmp_path / "killed", seed=99)
    assert again.resume()
    events = list(again.events(NOBODY))
    assert list(map(told, events))[:2] == [("Resumed", 4), ("Stepped", 5)]
    assert torch.equal(weights(again.result), weights(whole.result))


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path):
    training = start(MAX_EFFECT, tmp_path)
    before = weights(training.recipe.adapters)
    assert not training.resume()
    assert torch.equal(weights(training.recipe.adapters), before)
    assert told(next(training.events(NOBODY))) == ("Stepped", 1)


def test_the_seed_decides_the_run(tmp_path):
    one, two, other = (played(but(seed=seed), tmp_path / str(i))[0] for i, seed in enumerate((1, 1, 2)))
    assert torch.equal(weights(one.result), weights(two.result))
    assert not torch.equal(weights(one.result), weights(other.result))


@pytest.mark.parametrize("ema", [0.9, 0.2])
def test_the_average_is_the_closed_form(tmp_path, ema):
    training = start(but(ema=ema), tmp_path)
    average = weights(training.recipe.adapters)
    for step, _ in enumerate(training.events(NOBODY), 1):
        decay = min(ema, step / (step + 9))
        average = decay * average + (1 - decay) * weights(training.recipe.adapters)
    torch.testing.assert_close(weights(training.result), average)
    assert not torch.allclose(average, weights(training.recipe.adapters))


def test_the_average_is_what_is_validated_shown_and_kept(tmp_path):
    seen: list[Tensor] = []
    training = start(but(ema=0.9, validate_every=3, preview_every=3), tmp_path,
                     validate=lambda w: seen.append(weights(w)) or 1.0,
                     preview=lambda w, step, prompt: seen.append(weights(w)) or [])   # fmt: skip
    assert training.average is not None
    list(training.events(NOBODY))
    assert torch.equal(seen[1], seen[2])   # after the preview of the start
    assert torch.equal(seen[3], weights(training.average))
    assert torch.equal(weights(training.result), seen[1])   # the first of two alike is the best


def scripted(losses: list[float], kept: list[Tensor]) -> Callable[[AdapterSet], float]:
    numbers: Iterator[float] = iter(losses)

    def validate(adapters: AdapterSet) -> float:
        kept.append(weights(adapters))
        return next(numbers)

    return validate


def test_the_best_step_is_kept_and_not_the_last(tmp_path):
    kept: list[Tensor] = []
    training = start(but(validate_every=2), tmp_path, validate=scripted([3.0, 1.0, 2.0], kept))
    validated = [event for event in training.events(NOBODY) if isinstance(event, Validated)]
    assert validated == [Validated(2, 3.0, True), Validated(4, 1.0, True), Validated(6, 2.0, False)]
    assert training.result_step == 4
    assert torch.equal(weights(training.result), kept[1])
    assert not torch.equal(kept[1], kept[2])


def test_the_last_step_is_kept_where_the_best_is_not_asked_for(tmp_path):
    kept: list[Tensor] = []
    training = start(but(validate_every=2, keep_best=False), tmp_path, validate=scripted([3.0, 1.0, 2.0], kept))
    list(training.events(NOBODY))
    assert training.result_step == 6
    assert torch.equal(weights(training.result), kept[2])


def test_pause_waits_at_a_step_and_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch):
    whole, _ = played(MAX_EFFECT, tmp_path / "whole")
    folder = tmp_path / "paused"
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            RunFolder(folder).send_command("resume")

    monkeypatch.setattr(loop.time, "sleep", nap)
    training, events = played(MAX_EFFECT, folder, (3, "pause", ""))
    assert list(map(told, events)) == [
        ("Stepped", 1), ("Stepped", 2), ("Stepped", 3), ("Saved", 3), ("Paused", 3), ("Resumed", 3),
        ("Stepped", 4), ("Stepped", 5), ("Stepped", 6),
    ]  # fmt: skip
    assert len(naps) == 3
    assert torch.equal(weights(training.result), weights(whole.result))


@pytest.mark.parametrize(("command", "ends"), [("cancel", "Stopped"), ("stop", "Validated")])
def test_a_paused_run_can_be_ended(tmp_path, monkeypatch, command, ends):
    monkeypatch.setattr(loop.time, "sleep", lambda _: RunFolder(tmp_path).send_command(command))
    training, events = played(but(validate_every=4), tmp_path, (3, "pause", ""))
    assert list(map(told, events))[3:] == [("Saved", 3), ("Paused", 3), ("Resumed", 3), (ends, 3)]
    assert (training.result is None) == (command == "cancel")


def test_a_paused_run_that_is_told_to_quit_saves_and_leaves(tmp_path, monkeypatch):
    script = Script(tmp_path, (3, "pause", ""))
    monkeypatch.setattr(loop.time, "sleep", lambda _: setattr(script, "quit_at", 0))
    events = script.play(start(MAX_EFFECT, tmp_path))
    assert isinstance(events[-1], Saved)
    assert Paused(3) in events
    assert RunFolder(tmp_path).take_command("pause") is None


def test_a_paused_run_shows_what_it_has(tmp_path, monkeypatch):
    acts = iter([("preview", "a rex at sea"), ("resume", "")])
    monkeypatch.setattr(loop.time, "sleep", lambda _: RunFolder(tmp_path).send_command(*next(acts)))
    _, events = played(MAX_EFFECT, tmp_path, (3, "pause", ""))
    assert events[4:7] == [Paused(3), Previewed(3, "a rex at sea", "3.png"), Resumed(3)]


def test_a_run_that_is_short_of_space_waits_with_the_reason_and_goes_on_by_itself(tmp_path, monkeypatch):
    whole, _ = played(MAX_EFFECT, tmp_path / "whole")
    monkeypatch.setattr(loop.time, "sleep", lambda _: None)
    script, training = Script(tmp_path / "short"), start(MAX_EFFECT, tmp_path / "short")
    script.shortages = ["", "", "Only 3 MB are free.", "Only 3 MB are free.", "Only 4 MB are free."]
    events = script.play(training)
    assert events[2:4] == [Paused(2, "Only 3 MB are free. The run continues by itself."), Resumed(2)]
    assert [event.step for event in events if isinstance(event, Stepped)] == [1, 2, 3, 4, 5, 6]
    assert not script.shortages
    assert torch.equal(weights(training.result), weights(whole.result))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(122, "Disk quota exceeded"),
                                   SafetensorError("Error while serializing: I/O error: No space left on device "
                                                   "(os error 28)")])   # fmt: skip
def test_a_checkpoint_that_the_full_disk_refused_is_written_when_there_is_room(tmp_path, monkeypatch, error):
    errors = [error]

    def write(folder: Path, state: TrainingState) -> Path:
        if errors:
            raise errors.pop()
        return checkpoint_write(folder, state)

    checkpoint_write = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", write)
    training, events = played(but(checkpoint_every=4), tmp_path)
    assert list(map(told, events[3:8])) == [
        ("Stepped", 4), ("Paused", 4), ("Resumed", 4), ("Saved", 4), ("Stepped", 5)
    ]  # fmt: skip
    assert training.result is not None


def test_a_checkpoint_that_can_not_be_written_at_all_is_said_and_does_not_end_the_run(tmp_path, monkeypatch):
    def write(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", write)
    training, events = played(but(checkpoint_every=4), tmp_path)
    assert Warned(loop.NOT_SAVED) in events
    assert training.result is not None


def test_a_damaged_checkpoint_is_said_before_the_run_goes_on(tmp_path):
    played(but(checkpoint_every=2), tmp_path)
    (tmp_path / "checkpoints" / "step-000004" / "weights.safetensors").write_bytes(b"")
    again = start(but(checkpoint_every=2), tmp_path, seed=5)
    assert again.resume()
    first, second, *_ = Script(tmp_path).play(again)
    assert isinstance(first, Warned)
    assert "step-000004" in first.message
    assert second == Resumed(2)


def test_stop_keeps_the_best_so_far(tmp_path):
    kept: list[Tensor] = []
    training = start(but(validate_every=2), tmp_path, validate=scripted([1.0, 2.0, 3.0], kept))
    events = Script(tmp_path, (3, "stop", "")).play(training)
    assert list(map(told, events))[-2:] == [("Stepped", 3), ("Validated", 3)]
    assert training.result_step == 2
    assert torch.equal(weights(training.result), kept[0])


def test_stop_measures_where_it_stopped_once(tmp_path):
    training, events = played(but(validate_every=2), tmp_path, (4, "stop", ""))
    assert list(map(told, events))[-2:] == [("Stepped", 4), ("Validated", 4)]
    assert training.result_step == 4


def test_stop_before_the_first_step_ends_the_run_without_an_adapter(tmp_path):
    training, events = played(MAX_EFFECT, tmp_path, (0, "stop", ""))
    assert [type(event) for event in events] == [Stopped]
    assert training.result is None


def test_cancel_ends_the_run_without_an_adapter(tmp_path):
    training, events = played(but(validate_every=1), tmp_path, (2, "cancel", ""))
    assert isinstance(events[-1], Stopped)
    assert told(events[-1]) == ("Stopped", 2)
    assert training.result is None


def test_a_preview_is_drawn_when_asked_for(tmp_path):
    _, events = played(MAX_EFFECT, tmp_path, (2, "preview", "a rex at sea"), (4, "preview", ""))
    assert [event for event in events if isinstance(event, Previewed)] == [
        Previewed(2, "a rex at sea", "2.png"), Previewed(4, "", "4.png"),
    ]  # fmt: skip


def test_the_weights_do_not_depend_on_previews_and_validations(tmp_path):
    plain, _ = played(MAX_EFFECT, tmp_path / "plain")

    def noisy(result):
        torch.manual_seed(5)
        return result

    busy = start(but(validate_every=1, preview_every=1, checkpoint_every=1, keep_best=False), tmp_path / "busy",
                 validate=lambda _: noisy(1.0), preview=lambda *_: noisy([]))   # fmt: skip
    list(busy.events(NOBODY))
    assert torch.equal(weights(plain.result), weights(busy.result))


def overflowing(training: Training, bad_steps: range) -> Training:
    """The same, with a loss that stays a number while its gradients do not, in some steps."""
    whole = training.recipe.microstep

    def microstep(generator: torch.Generator) -> Losses:
        losses = whole(generator)
        if training.step + 1 in bad_steps:
            nothing = sum(parameter.sum() for parameter in training.parameters) * 0
            losses = replace(losses, subject=losses.subject + nothing.abs().sqrt())   # its slope at 0 is infinite
        return losses

    training.recipe = replace(training.recipe, microstep=microstep)
    return training


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_gradients_that_are_not_finite_change_nothing(tmp_path: Path, clip: float, scaled: bool):
    config = but(clip=clip, ema=0.5, lr_schedule="constant", warmup=0)
    training = overflowing(start(config, tmp_path, scaled=scaled), range(2, 4))
    before: list[Tensor] = []
    for event in training.events(NOBODY):
        assert isinstance(event, Stepped) and math.isfinite(event.loss)
        before.append(torch.cat([weights(training.recipe.adapters), weights(training.average)]))
    assert torch.equal(before[0], before[1]) and torch.equal(before[1], before[2])
    assert not torch.equal(before[2], before[3]) and before[-1].isfinite().all()
    if scaled:
        assert training.accelerator.scaler.get_scale() == 1024 / 4 * 2   # halved twice, doubled after three good ones


def test_many_updates_left_out_in_a_row_are_told_once(tmp_path: Path):
    training = overflowing(start(but(steps=12), tmp_path), range(3, 11))
    told = [event for event in training.events(NOBODY) if isinstance(event, Warned)]
    assert len(told) == 1 and "5 steps in a row" in told[0].message and "learning rate" in told[0].message


def test_the_scale_of_gradients_goes_on_after_a_resume(tmp_path: Path):
    whole = start(but(steps=7), tmp_path / "whole", scaled=True)
    list(whole.events(NOBODY))
    cut = start(but(steps=7), tmp_path / "cut", scaled=True)
    script = Script(tmp_path / "cut")
    script.quit_at = 4   # one step after the scale has grown, two before it grows again
    script.play(cut)
    again = start(but(steps=7), tmp_path / "cut", scaled=True)
    assert again.resume()
    list(again.events(NOBODY))
    assert whole.accelerator.scaler.get_scale() == 4096
    assert again.accelerator.scaler.state_dict() == whole.accelerator.scaler.state_dict()
    assert torch.equal(weights(again.result), weights(whole.result))


def unstable(config: TrainConfig, folder: Path, bad_step: int, **parts: Callable) -> Training:
    """A training whose loss is no number from one step on."""
    training = start(config, folder, **parts)
    plain = training.recipe.microstep

    def microstep(generator: torch.Generator) -> Losses:
        losses = plain(generator)
        factor = math.nan if training.step + 1 >= bad_step else 1.0
        return Losses(losses.subject * factor, losses.prior)

    training.recipe = replace(training.recipe, microstep=microstep)
    return training


@pytest.mark.parametrize("keep_best", [True, False])
@pytest.mark.parametrize("validate_every", [0, 2])
def test_a_loss_that_is_no_number_stops_the_run_at_the_last_good_state(tmp_path, keep_best, validate_every):
    good, _ = played(but(steps=6), tmp_path / "good", (4, "stop", ""))
    training = unstable(but(validate_every=validate_every, keep_best=keep_best), tmp_path / "bad", bad_step=5)
    events = list(training.events(NOBODY))
    assert [event.step for event in events if isinstance(event, Stepped)] == [1, 2, 3, 4]
    last = events[-1]
    assert isinstance(last, Warned)
    assert "unstable at step 5" in last.message
    assert "step 4 was saved" in last.message
    assert "learning rate" in last.message
    assert training.result_step == 4
    assert torch.equal(weights(training.result), weights(good.result))


@pytest.mark.parametrize("keep_best", [True, False])
def test_weights_that_are_spoilt_are_never_kept(tmp_path, keep_best):
    """The loss of the step that spoils them may still look fine: it was measured before the update."""
    training = start(but(validate_every=3, keep_best=keep_best), tmp_path)
    events: list[Event] = []
    for event in training.events(NOBODY):
        events.append(event)
        if isinstance(event, Validated):
            good = weights(training.recipe.adapters)
        if isinstance(event, Stepped) and event.step == 4:
            with torch.no_grad():
                training.parameters[0].fill_(math.nan)
    assert training.result_step == 3
    assert torch.equal(weights(training.result), good)
    assert all(math.isfinite(event.loss) for event in events if isinstance(event, Stepped | Validated))


@pytest.mark.parametrize("bad_step", [1, 3])
def test_without_any_good_state_the_run_fails_with_advice(tmp_path, bad_step):
    training = unstable(MAX_EFFECT, tmp_path, bad_step, validate=lambda _: math.nan)
    with pytest.raises(FloatingPointError, match=rf"step {bad_step}.*half the learning rate"):
        list(training.events(NOBODY))
    assert training.result is None


def test_a_bad_microstep_updates_nothing(tmp_path):
    training = unstable(but(accumulate=2, ema=0.5), tmp_path, bad_step=1)
    before = copy.deepcopy(training.recipe.adapters)
    with pytest.raises(FloatingPointError):
        list(training.events(NOBODY))
    assert torch.equal(weights(before), weights(training.recipe.adapters))
    assert torch.equal(weights(before), weights(training.average))


SCHEDULES = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: math.cos(math.pi * done / 2) ** 2,
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 20])
def test_learning_rates_are_the_closed_forms(schedule, warmup):
    config = but(steps=100, warmup=warmup, lr=0.3, lr_schedule=schedule)
    for step in range(1, 101):
        if step <= warmup:
            expected = 0.3 * step / warmup
        else:
            expected = 0.3 * (0.01 + 0.99 * SCHEDULES[schedule]((step - warmup) / (100 - warmup)))
        assert learning_rate(config, step) == pytest.approx(expected)


def test_a_warm_up_longer_than_the_run_never_stops_rising():
    config = but(steps=5, warmup=20, lr=0.2)
    assert [learning_rate(config, step) for step in range(1, 6)] == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])

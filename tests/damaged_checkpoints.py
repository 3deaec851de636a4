"""Checkpoints damaged in many ways: what is read is what was written, or the older one, and never something else."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from atelier.training.loop.checkpoint import TrainingState, list_checkpoints, read_newest, write

STEPS = (5, 10)
Damage = Callable[[Path, random.Random], None]   # the checkpoint's folder


@dataclass(slots=True)
class DamageFigures:
    """What came of a series of damaged checkpoints."""

    trials: int = 0
    harmless: int = 0     # the bytes are as they were, as where two equal files changed places
    older_used: int = 0
    none_left: int = 0    # both were damaged
    wrong: int = 0        # a state was accepted that is not the one that was written at its step
    restarts: int = 0     # nothing was accepted although one was good
    kinds: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DAMAGES, 0))
    faults: list[str] = field(default_factory=list)


def make_state(step: int, run: int = 0) -> TrainingState:
    """The state of a small training at a step."""
    generator = torch.Generator().manual_seed(1000 * run + step)
    weight = torch.nn.Parameter(torch.randn(6, 5, generator=generator))
    optimizer = torch.optim.AdamW([weight], lr=0.01 * step)
    (weight * torch.randn(6, 5, generator=generator)).sum().backward()
    optimizer.step()
    tensors = {"weights": weight.detach(), "average": torch.randn(6, 5, generator=generator), "best": weight.detach()}
    return TrainingState(
        **{name: {"unet.a.up": value.clone()} for name, value in tensors.items()}, generator=generator.get_state(),
        optimizer=optimizer.state_dict(), step=step, best_step=step, best_loss=1 / (run + step),
    )   # fmt: skip


def fingerprint(state: TrainingState) -> str:
    """Everything a state holds, as text."""
    def plain(value: object) -> object:
        if isinstance(value, torch.Tensor):
            return [str(value.dtype), list(value.shape), value.numpy().tobytes().hex()]
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return json.dumps({name: plain(getattr(state, name)) for name in TrainingState.__slots__}, sort_keys=True)


def run_damage_trials(folder: Path, trials: int, seed: int = 0) -> DamageFigures:
    """Each trial damages the newer of two checkpoints, one in five both, in one or two ways."""
    figures = DamageFigures()
    for run in (0, 1):
        for step in STEPS:
            write(folder / f"run-{run}" / "checkpoints", make_state(step, run))
    right = {step: fingerprint(make_state(step)) for step in STEPS}
    place = folder / "trial" / "run-0"
    for number in range(trials):
        dice = random.Random(f"{seed}-{number}")
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder / "run-0", place)
        before = {path.name: _bytes(path) for path in list_checkpoints(place / "checkpoints")}
        done = _damage(place / "checkpoints", dice)
        _judge(f"trial {number} of seed {seed}: {done}", place / "checkpoints", before, right, figures)
        for kind in done:
            figures.kinds[kind] += 1
    return figures


def _damage(folder: Path, dice: random.Random) -> list[str]:
    older, newest = list_checkpoints(folder)
    done = []
    for target in [newest, older] if dice.random() < 0.2 else [newest]:
        for _ in range(dice.choice((1, 1, 2))):
            name = dice.choice(sorted(DAMAGES))
            if target.is_dir() and any(target.iterdir()):
                DAMAGES[name](target, dice)
                done.append(name)
    return done


def _judge(
    trial: str, folder: Path, before: dict[str, dict[str, bytes]], right: dict[int, str], figures: DamageFigures
) -> None:
    good = [name for name, content in before.items() if (folder / name).is_dir() and _bytes(folder / name) == content]
    state = read_newest(folder)
    figures.trials += 1
    wrong = state is not None and fingerprint(state) != right.get(state.step)
    restart = state is None and bool(good)
    newest = f"step-{STEPS[-1]:06d}"
    figures.harmless += newest in good
    figures.older_used += state is not None and state.step == STEPS[0]
    figures.none_left += state is None and not good
    figures.wrong += wrong
    figures.restarts += restart
    if wrong or restart or (newest in good and (state is None or state.step != STEPS[-1])):
        figures.faults.append(trial)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def _file(folder: Path, dice: random.Random) -> Path:
    return dice.choice(sorted(path for path in folder.iterdir() if path.is_file()))


def _flip_bits(folder: Path, dice: random.Random) -> None:
    path = _file(folder, dice)
    content = bytearray(path.read_bytes())
    for _ in range(dice.choice((1, 1, 1, 8)) if content else 0):
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def _truncate(folder: Path, dice: random.Random) -> None:
    path = _file(folder, dice)
    path.write_bytes(path.read_bytes()[: dice.randrange(max(1, path.stat().st_size))])


def _clear_block(folder: Path, dice: random.Random) -> None:
    path = _file(folder, dice)
    content = bytearray(path.read_bytes())
    at = dice.randrange(len(content) + 1)
    content[at : at + 64] = bytes(len(content[at : at + 64]))
    path.write_bytes(content)


def _append(folder: Path, dice: random.Random) -> None:
    with _file(folder, dice).open("ab") as file:
        file.write(dice.randbytes(dice.choice((1, 16, 512))))


def _remove(folder: Path, dice: random.Random) -> None:
    _file(folder, dice).unlink()


def _exchange(folder: Path, dice: random.Random) -> None:
    one, two = _file(folder, dice), _file(folder, dice)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def _from_other_step(folder: Path, dice: random.Random) -> None:
    other = next(path for path in list_checkpoints(folder.parent) if path != folder)
    for name in dice.sample(sorted(path.name for path in folder.iterdir()), dice.choice((1, 1, 3))):
        if (other / name).is_file():
            shutil.copy(other / name, folder / name)


def _from_other_run(folder: Path, dice: random.Random) -> None:
    other = folder.parents[2].parent / "run-1" / "checkpoints" / folder.name
    for name in dice.sample(sorted(path.name for path in other.iterdir()), dice.choice((1, 3, 7))):
        shutil.copy(other / name, folder / name)


def _whole_of_other_run(folder: Path, _dice: random.Random) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.parents[2].parent / "run-1" / "checkpoints" / folder.name, folder)


def _whole_of_other_step(folder: Path, _dice: random.Random) -> None:
    other = next(path for path in list_checkpoints(folder.parent) if path != folder)
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def _edit_numbers(folder: Path, dice: random.Random) -> None:
    path = folder / "state.json"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "{}"
    digit = dice.choice([i for i, sign in enumerate(text) if sign.isdigit()] or [0])
    path.write_text(text[:digit] + str(dice.randrange(10)) + text[digit + 1 :], encoding="utf-8")


def _empty(folder: Path, dice: random.Random) -> None:
    _file(folder, dice).write_bytes(b"")


def _folder_for_file(folder: Path, dice: random.Random) -> None:
    (path := _file(folder, dice)).unlink()
    path.mkdir()


DAMAGES: dict[str, Damage] = {
    "bits flipped": _flip_bits, "cut short": _truncate, "block of zeros": _clear_block, "bytes appended": _append,
    "file missing": _remove, "files exchanged": _exchange, "files of the other step": _from_other_step,
    "files of another run": _from_other_run, "whole checkpoint of another run": _whole_of_other_run,
    "whole checkpoint of the other step": _whole_of_other_step, "number edited": _edit_numbers, "file empty": _empty,
    "folder in place of a file": _folder_for_file,
}   # fmt: skip

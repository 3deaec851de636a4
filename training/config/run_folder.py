"""A run's folder: the only place where a training process and the people watching it meet.

::

    recipe.toml      the TrainConfig or CompressConfig, written once
    events.jsonl     what happened, appended by the training process alone
    heartbeat        touched every few seconds while that process lives
    process.lock     held by that process, so that there is only one
    control/         commands: small files that the process takes at a step boundary
    checkpoints/     states the run can resume from
    previews/        pictures drawn on the way
    start.safetensors  the adapter that a training continues, if it does
    snapshots/       adapter files of some steps, to compare and to keep
    log.txt          the process's own output, for the curious
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from atelier.adapters.core.atomic_write import atomic_write
from atelier.adapters.core.repeat import repeated
from atelier.training.config.compress_config import CompressConfig, read_compression
from atelier.training.config.events import (
    Event,
    Failed,
    Finished,
    Interrupted,
    Measured,
    Paused,
    Preparing,
    Previewed,
    Resumed,
    Stepped,
    Stopped,
    StoppedEarly,
    Validated,
    Warned,
    from_line,
    to_line,
)
from atelier.training.config.train_config import TrainConfig

HEARTBEAT_SECONDS = 2.0
STALE_SECONDS = 15.0
COMMANDS = ("pause", "resume", "stop", "cancel", "preview", "save")
_OPPOSITE = {"pause": "resume", "resume": "pause"}


class RunBusyError(ValueError):
    """Another process works on a run; the message says so."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths and the few operations on one run's folder."""

    path: Path

    @classmethod
    def create(cls, path: Path, config: TrainConfig | CompressConfig) -> RunFolder:
        """Make the folder of a new run and write its recipe."""
        for name in ("control", "checkpoints", "previews"):
            (path / name).mkdir(parents=True)
        run = cls(path)
        atomic_write(path / "recipe.toml", config.to_toml().encode())
        return run

    @property
    def id(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def start_adapter(self) -> Path:
        """The file of the adapter that this training continues."""
        return self.path / "start.safetensors"

    def config(self) -> TrainConfig:
        """The recipe of a training."""
        return TrainConfig.from_toml(self._recipe())

    def compression(self) -> CompressConfig | None:
        """The recipe of a compression; None where the run is a training."""
        return read_compression(self._recipe())

    def _recipe(self) -> str:
        return (self.path / "recipe.toml").read_text(encoding="utf-8")

    def append(self, event: Event) -> None:
        """Add an event; a line is written at once and whole, on a line of its own even after one that a kill cut."""
        with (self.path / "events.jsonl").open("ab+") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            cut = file.read() not in (b"", b"\n")
            file.write(b"\n" * cut + to_line(event).encode())

    def events(self) -> list[tuple[float, Event]]:
        """All events so far with their times; a half-written last line is left for the next reading."""
        try:
            lines = (self.path / "events.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            return []
        return [event for event in map(from_line, lines) if event is not None]

    def send_command(self, name: str, text: str = "") -> None:
        """Leave a command for the training process: pause, resume, stop (keep the best), cancel, preview, save."""
        if name not in COMMANDS:
            raise ValueError(f"{name!r} is not a command; the commands are: {', '.join(COMMANDS)}")
        if name in _OPPOSITE:
            self.take_command(_OPPOSITE[name])   # of the two, the last word counts
        atomic_write(self.path / "control" / name, text.encode())

    def take_command(self, name: str) -> str | None:
        """Take a command, if it was left: its text, else None."""
        path = self.path / "control" / name
        try:
            text = path.read_text(encoding="utf-8")
            path.unlink()
        except FileNotFoundError:
            return None
        return text

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Touch the heartbeat file from a thread while the context is open; remove it at the end."""
        path = self.path / "heartbeat"

        def touch() -> None:
            """Set the file's time to now."""
            with suppress(OSError):   # a full disk, or the folder is gone: whoever writes there says so
                path.touch()

        touch()
        try:
            with repeated(touch, HEARTBEAT_SECONDS):
                yield
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the one process that works on the run; the kernel frees it when the process dies, however it dies.

        Raises:
            RunBusyError: another process works on it.
        """
        lock = FileLock(self.path / "process.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RunBusyError(f"Another process is working on the run {self.id} already. Wait for it, or stop it "
                               "on the Jobs page.") from None
        try:
            yield
        finally:
            lock.release()

    def is_alive(self) -> bool:
        """Whether a training process touched the heartbeat lately."""
        try:
            return time.time() - (self.path / "heartbeat").stat().st_mtime < STALE_SECONDS
        except FileNotFoundError:
            return False


@dataclass(slots=True)
class RunStatus:
    """What a page shows about a run, read from its folder."""

    id: str
    name: str
    state: str = "queued"        # queued preparing training paused interrupted stopped failed done
    message: str = ""            # what it is doing, or why it ended
    step: int = 0
    total_steps: int = 0
    seconds_left: float | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0
    previews: list[Previewed] = field(default_factory=list)
    learning_rates: list[tuple[int, float]] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    stages: list[tuple[float, str]] = field(default_factory=list)   # time of start and name, before the first step
    early_stop: StoppedEarly | None = None
    kept_step: int = 0           # the step in the finished file
    warnings: list[str] = field(default_factory=list)
    adapter: str = ""            # the finished file
    seconds: float = 0.0
    started: float = 0.0         # time of the first event, seconds since 1970
    compression: bool = False    # of a base model; else a training

    @property
    def is_over(self) -> bool:
        """Nothing more will happen unless somebody resumes it."""
        return self.state in ("interrupted", "stopped", "failed", "done")


def status(run: RunFolder) -> RunStatus:
    """Fold a run's events into what a person wants to know."""
    compression = run.compression()
    config = compression or run.config()
    result = RunStatus(run.id, config.name, total_steps=config.steps, compression=compression is not None)
    recent: list[float] = []
    for moment, event in run.events():
        result.started = result.started or moment
        _apply(result, event)
        if isinstance(event, Preparing) and (not result.stages or result.stages[-1][1] != event.what):
            result.stages = [*result.stages, (moment, event.what)]
        if isinstance(event, Stepped):
            recent = [*recent[-19:], event.seconds]
    if not result.is_over and result.state != "queued" and not run.is_alive():
        result.state = "interrupted"
        result.message = "The training process ended without giving a reason. Resume it to continue."
    if result.state == "training" and recent:
        result.seconds_left = (result.total_steps - result.step) * sum(recent) / len(recent)
    return result


def _apply(result: RunStatus, event: Event) -> None:
    match event:
        case Preparing(what):
            result.state, result.message = "preparing", what
        case Warned(message):
            # Each message once: every resume looks at the pictures again.
            result.warnings = list(dict.fromkeys([*result.warnings, message]))
        case Stepped():
            _step(result, event)
        case Paused(_, reason):
            result.state, result.message = "paused", reason
        case Resumed(step):
            _rewind(result, step)
        case Stopped(_, reason):
            result.state, result.message = "stopped", reason
        case Interrupted(message):
            result.state, result.message = "interrupted", message
        case Failed(message):
            result.state, result.message = "failed", message
        case Finished(step, path, seconds):
            result.state, result.adapter, result.seconds, result.kept_step = "done", path, seconds, step
        case _:
            _record(result, event)


def _record(result: RunStatus, event: Event) -> None:
    """Take down what was measured and drawn on the way."""
    match event:
        case Validated(step, loss, best):
            result.validation.append((step, loss))
            result.best_step = step if best else result.best_step
        case Measured():
            result.measured.append(event)
        case Previewed():
            result.previews.append(event)
        case StoppedEarly():
            result.early_stop = event
        case _:
            pass


def _step(result: RunStatus, event: Stepped) -> None:
    if event.step <= result.step:
        _rewind(result, event.step - 1)   # begun again without a checkpoint
    result.state, result.step, result.total_steps, result.message = "training", event.step, event.of, ""
    result.losses.append((event.step, event.loss))
    result.learning_rates.append((event.step, event.lr))


def _rewind(result: RunStatus, step: int) -> None:
    """After a resume, forget what was measured beyond the checkpoint: it will be measured again."""
    result.state, result.step, result.message = "training", step, ""
    result.losses = [point for point in result.losses if point[0] <= step]
    result.validation = [point for point in result.validation if point[0] <= step]
    result.learning_rates = [point for point in result.learning_rates if point[0] <= step]
    result.previews = [preview for preview in result.previews if preview.step <= step]
    result.measured = [one for one in result.measured if one.step <= step]
    result.early_stop = None

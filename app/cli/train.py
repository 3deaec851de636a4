"""``atelier train``: train an adapter on a folder of pictures, in this process and with a progress bar."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from atelier.app.cli.download import download_base
from atelier.app.jobs.child_process import has_final_event
from atelier.app.jobs.jobs import list_runs, new_run, prepare_resume, read_status
from atelier.app.store.base_settings import base_options
from atelier.app.store.datasets import import_pictures
from atelier.app.store.home import Home, HomeError, absolute_base, new_name
from atelier.training.base_models.identify import identify
from atelier.training.config.base_options import AUTO_PREDICTION, PLAIN_BASE, BaseOptions
from atelier.training.config.events import (
    Event,
    Finished,
    Measured,
    Paused,
    Preparing,
    Resumed,
    Stepped,
    Stopped,
    StoppedEarly,
    Warned,
)
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import EMBEDDED, TrainConfig, load_preset, picture_weights, weights_text
from atelier.training.data.picture_folder import find_files
from atelier.training.loop.health import health_lines
from atelier.training.runs import run as training


def make_run(home: Home, arguments: Namespace) -> RunFolder:
    """Check what was typed, copy the pictures into the home, and make the run's folder.

    Raises:
        HomeError, BaseError, SettingError, PictureError: what was typed can't be used; nothing was changed.
    """
    name = new_name(home, arguments.name)
    config = make_config(name, arguments, home)
    download_base(config.base)
    files, messages = _picture_files(arguments.pictures)
    weights = picture_weights(config.weights) | dict(arguments.weights)
    imported = import_pictures(home, name, files, trigger=config.trigger_word, weights=weights)
    for message in [*messages, *(reason for _, reason in imported.refused), *imported.warnings]:
        _print_line(message)
    config = replace(config, pictures=str(imported.folder), weights=weights_text(imported.weights))
    return new_run(home, config, started=True)


def make_config(name: str, arguments: Namespace, home: Home | None = None) -> TrainConfig:
    """Make the configuration: the preset, overridden by options, overridden by ``--set``.

    What was set for the base model in ``home`` is taken where nothing else was typed.

    Raises:
        BaseError: the base model can't be used.
        SettingError: a setting is unknown or its value can't be used.
    """
    settings = dict(arguments.set)
    base = absolute_base(settings.pop("base", None) or arguments.base or EMBEDDED)
    options = BaseOptions(settings.get("prediction") or arguments.prediction or AUTO_PREDICTION,
                          absolute_base(settings.get("vae") or arguments.vae or ""))   # fmt: skip
    options = options.or_else(base_options(home, base) if home else PLAIN_BASE)
    info = identify(base, options)
    values = load_preset(arguments.preset, info.family, settings.get("kind") or arguments.kind or "")
    names = ("trigger", "subject", "kind", "role", "steps", "precision", "stop_when")
    values |= {key: value for key in names if (value := getattr(arguments, key)) is not None}
    return TrainConfig.from_dict({**values, **settings, **asdict(options), "name": name, "base": base})


def _picture_files(folder: Path | None) -> tuple[list[Path], list[str]]:
    """The files of a folder that are pictures by content or by name, or captions; and warnings."""
    if folder is None:
        raise HomeError("No pictures were given. Name the folder that they are in: atelier train PICTURES --name NAME.")
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise HomeError(f"{folder} {what}, but a folder with pictures is needed. Check the path.")
    files, messages = find_files(folder)
    if not files:
        raise HomeError(" ".join([f"{folder} contains no pictures.", *messages]))
    return files, messages


def find_unfinished(home: Home, name: str) -> RunFolder:
    """Find the newest unfinished run of a name and make it ready to continue.

    Raises:
        HomeError: there is none, or it is running or waiting already.
    """
    for state in list_runs(home):
        if state.name == name and state.state != "done":
            if not state.is_over:
                raise HomeError(f"The run {name!r} is already {state.state}, so there is nothing to resume.")
            return prepare_resume(home, state)
    raise HomeError(f"There is no unfinished run named {name!r} to resume. Start one without --resume.")


def run_training(run: RunFolder, adapters: Path, *, resume: bool) -> Event:
    """Train in this process with a progress bar; returns the run's final event.

    The first Ctrl+C, SIGTERM or SIGHUP lets the step finish and saves the state, so that the run can be resumed.
    """
    progress = _Progress(read_status(run).total_steps)
    with _log_to(run.path / "log.txt"):
        for event in training.run(run, adapters, resume=resume):
            progress.show(event)
    progress.close()
    if not has_final_event(run):
        run.append(Stopped(read_status(run).step, "Stopped by a signal. Resume it to continue."))
    return run.events()[-1][1]


class _Progress:
    """Progress on the terminal: a line for each stage, then a bar with the loss and the time left."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._bar: tqdm | None = None
        self._stage = ""
        self._measured: list[Measured] = []
        self._told: set[str] = set()

    def show(self, event: Event) -> None:
        """Print a line for a new stage or a warning; steps move the bar."""
        match event:
            case Preparing(what) if what != self._stage:
                self._stage = what
                _print_line(f"{what} …")
            case Warned(message):
                _print_line(message)
            case Paused(_, reason) if reason:
                _print_line(reason)
            case StoppedEarly(step, _, reason):
                _print_line(f"Stopped at step {step} of {self._steps}: {reason}")
            case Measured():
                self._measured.append(event)
                for line in health_lines(self._measured):
                    if not line.good and line.text not in self._told:
                        self._told.add(line.text)
                        _print_line(f"Step {event.step}: {line.text}")
            case Resumed(step):
                self._open(step)
            case Stepped():
                bar = self._bar or self._open(event.step - 1)
                bar.set_postfix(loss=f"{event.loss:.4f}", refresh=False)
                bar.update(event.step - bar.n)
            case Finished() if self._bar:
                self._bar.refresh()
            case _:
                pass

    def close(self) -> None:
        """Stop updating the bar and leave it on the terminal."""
        if self._bar:
            self._bar.close()

    def _open(self, done: int) -> tqdm:
        self.close()
        # Without a terminal there is nobody to watch a bar.
        self._bar = tqdm(total=self._steps, initial=done, unit="step", dynamic_ncols=True, disable=None)
        return self._bar


def _print_line(message: str) -> None:
    tqdm.write(message, file=sys.stderr)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Write Atelier's log records to a file, as the child process of a worker does."""
    handler, logger = logging.FileHandler(path, encoding="utf-8"), logging.getLogger("atelier")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()

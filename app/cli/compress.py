"""``atelier compress``: compress a base model in this process, and keep the result."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from atelier.adapters.core.settings import SettingError
from atelier.app.cli.train import find_unfinished, run_training
from atelier.app.jobs.jobs import new_run
from atelier.app.services.compress import accept, make_config, read_report
from atelier.app.store.home import Home
from atelier.app.text.compress import arithmetic, seconds_per_picture, sizes
from atelier.training.config.events import Failed, Finished
from atelier.training.config.run_folder import RunFolder


def run_compress(home: Home, arguments: Namespace) -> dict[str, Any]:
    """Compress with a progress bar and keep the result; returns what to print, or ``error``.

    Raises:
        HomeError, BaseError, SettingError: what was typed can't be used.
    """
    run = find_unfinished(home, arguments.name) if arguments.resume else _make_run(home, arguments)
    last = run_training(run, home.adapters, resume=arguments.resume)
    if not isinstance(last, Finished):
        return {"error": last.message if isinstance(last, Failed) else "Stopped."}
    report = read_report(run)
    path = accept(home, run.id)
    return {
        "name": arguments.name, "path": str(path), "bytes": report["bytes_after"],
        "size": sizes(report["bytes_before"], report["bytes_after"]),
        "time": f"{seconds_per_picture(report['seconds_before'], report['seconds_after'])} per picture, "
                f"{arithmetic(report['whole_numbers'], report['device'])}",
    }   # fmt: skip


def _make_run(home: Home, arguments: Namespace) -> RunFolder:
    given: dict[str, Any] = dict(arguments.set)
    if arguments.steps is not None:
        given["steps"] = arguments.steps
    if arguments.prompts:
        given["prompts"] = "\n".join(arguments.prompts)
    for name in ("job", "name", "base", "adapters", "preset"):
        if name in given:
            raise SettingError(f"{name} can't be given with --set: it has its own option.")
    config = make_config(home, arguments.name, arguments.base, arguments.adapters, arguments.preset, **given)
    return new_run(home, config, started=True)

"""Compressing a base model: what will come of it, the job, and what becomes of its result."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from atelier.adapters.core.settings import SettingError
from atelier.app.jobs.jobs import find_run, list_runs, new_run, run_folders
from atelier.app.services.train import find_unfinished, run_training
from atelier.app.store.home import Home, HomeError, explain_write_errors, new_base_name, write_whole
from atelier.app.store.library import find_adapter
from atelier.app.store.models import check_family
from atelier.app.text.compress import arithmetic, seconds_per_picture, sizes
from atelier.training.base_models.base_info import read_json
from atelier.training.base_models.identify import identify
from atelier.training.compression.compress import RESULT, planned_bytes
from atelier.training.compression.report import REPORT
from atelier.training.config.compress_config import CompressConfig
from atelier.training.config.events import Failed, Finished, Stepped
from atelier.training.config.run_folder import RunFolder
from atelier.training.runs.memory_estimate import PROGRAM_BYTES

ACCEPTED, DISCARDED = "kept", "discarded"
_VERDICT = "verdict.txt"


@dataclass(frozen=True, slots=True)
class CompressionPlan:
    """What can be said before anything is done."""

    before: int             # bytes of the UNet in float16
    after: int              # bytes of it compressed
    memory: int             # bytes at least, for the process
    seconds: float | None   # of the whole job, from how long steps took here before; None when that is unknown


def plan_compression(home: Home, config: CompressConfig) -> CompressionPlan:
    """Look at shapes, and at earlier compressions of the same base here.

    Raises:
        BaseError: the base model can't be used.
        SettingError: there is no such preset.
    """
    before, after = _sizes(config.base, config.preset)
    values = before // 2
    # The model and its rounded copy in float32, and what is learned: about a tenth of it, four numbers a value.
    memory = PROGRAM_BYTES + 4 * values * (1 if config.sparing or not config.steps else 2) + 16 * values // 10
    return CompressionPlan(before, after, memory, _seconds(home, config))


@lru_cache(maxsize=64)
def _sizes(base: str, preset: str) -> tuple[int, int]:
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        values = read_json(identify(base).folder / "unet" / "config.json", base)
        unet: Any = UNet2DConditionModel.from_config(values)
    return planned_bytes(unet, preset)


def _seconds(home: Home, config: CompressConfig) -> float | None:
    for path in reversed(run_folders(home)):
        run = RunFolder(path)
        earlier = run.compression()
        if earlier is not None and earlier.base == config.base and earlier.pictures == config.pictures:
            took = [event.seconds for _, event in run.events() if isinstance(event, Stepped)]
            if took:
                # Between two steps the teacher moves on, which takes about half as long again.
                return 1.5 * config.updates * sum(took) / len(took)
    return None


def make_config(
    home: Home, name: str, base: str, parts: Sequence[tuple[str, float]], preset: str, **values: Any
) -> CompressConfig:
    """Check what a person asks for.

    Args:
        home: whose adapters.
        name: of the new base model.
        base: the one to compress.
        parts: names of adapters and their strengths.
        preset: bits.
        values: other settings.

    Raises:
        HomeError, BaseError, SettingError: something does not exist, is taken or does not fit.
    """
    cards = [(find_adapter(home, each), strength) for each, strength in parts]
    check_family(identify(base), [card for card, _ in cards])
    adapters = {str(card.path): strength for card, strength in cards}
    return CompressConfig.from_dict({
        "name": new_base_name(home, name), "base": base, "adapters": adapters, "preset": preset, **values,
    })   # fmt: skip


def run_compress(home: Home, arguments: Namespace) -> dict[str, Any]:
    """Compress in this process and keep the result; what the command line answers, or ``error``.

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


def read_report(run: RunFolder) -> dict[str, Any]:
    """What a finished compression changed; empty while there is nothing to say."""
    try:
        return json.loads((run.path / REPORT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def verdict(run: RunFolder) -> str:
    """What a person did with the result: ``kept``, ``discarded``, or nothing yet."""
    try:
        return (run.path / _VERDICT).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def accept(home: Home, id: str) -> Path:
    """Put a result among the base models of the home; returns its folder.

    Raises:
        HomeError: there is no such result, or its name was taken in the meantime.
    """
    run, result = _result(home, id)
    name = run.name
    target = home.bases / new_base_name(home, name)
    with explain_write_errors(home.bases):
        result.rename(target)
    write_whole(find_run(home, id).path / _VERDICT, ACCEPTED.encode())
    return target


def discard(home: Home, id: str) -> None:
    """Delete a result; its report stays.

    Raises:
        HomeError: there is no such result.
    """
    _, result = _result(home, id)
    with explain_write_errors(result):
        shutil.rmtree(result)
    write_whole(find_run(home, id).path / _VERDICT, DISCARDED.encode())


def _result(home: Home, id: str) -> tuple[CompressConfig, Path]:
    run = find_run(home, id)
    config, result = run.compression(), run.path / RESULT
    if config is None or not result.is_dir():
        raise HomeError("There is no result to keep or discard: that was already done, or the job is not finished.")
    return config, result


def list_compressions(home: Home) -> list[Any]:
    """All compressions, newest first."""
    return [run for run in list_runs(home) if run.compression]

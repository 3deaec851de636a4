"""Compressing a base model: the plan, the configuration, the report, and keeping or discarding the result."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from atelier.adapters.core.parse import parse_json
from atelier.app.jobs.jobs import find_run, list_runs, run_folders
from atelier.app.store.base_settings import base_options
from atelier.app.store.home import Home, HomeError, explain_write_errors, new_base_name, write_home_file
from atelier.app.store.library import find_adapter
from atelier.app.store.models import check_family
from atelier.training.base_models.base_info import read_json
from atelier.training.base_models.identify import identify
from atelier.training.compression.compress import RESULT, planned_bytes
from atelier.training.compression.report import REPORT
from atelier.training.config.compress_config import CompressConfig
from atelier.training.config.events import Stepped
from atelier.training.config.run_folder import RunFolder, RunStatus
from atelier.training.runs.memory_estimate import PROGRAM_BYTES

ACCEPTED, DISCARDED = "kept", "discarded"
_VERDICT = "verdict.txt"


@dataclass(frozen=True, slots=True)
class CompressionPlan:
    """What a compression will need and give, estimated before it starts."""

    before: int             # bytes of the UNet in float16
    after: int              # bytes of it compressed
    memory: int             # bytes that the process needs at least
    seconds: float | None   # of the whole job, from earlier ones on this machine; None when there was none


def plan_compression(home: Home, config: CompressConfig) -> CompressionPlan:
    """Estimate a compression from the shapes of the base model and from earlier compressions of it.

    Raises:
        BaseError: the base model can't be used.
        SettingError: there is no such preset.
    """
    before, after = _sizes(config.base, config.preset)
    values = before // 2
    # The model and its quantized copy in float32, and what is trained: about a tenth of it, four numbers a value.
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
        try:
            earlier = run.compression()
        except (ValueError, OSError):   # damaged, which the Jobs page says
            continue
        if earlier is not None and earlier.base == config.base and earlier.pictures == config.pictures:
            seconds = [event.seconds for _, event in run.events() if isinstance(event, Stepped)]
            if seconds:
                # Between two steps the teacher denoises, which takes about half as long again.
                return 1.5 * config.updates * sum(seconds) / len(seconds)
    return None


def make_config(
    home: Home, name: str, base: str, adapters: Sequence[tuple[str, float]], preset: str, **values: Any
) -> CompressConfig:
    """Check names and settings and make the configuration of a compression.

    Args:
        home: holds the adapters and the new base model.
        name: of the new base model.
        base: the base model to compress.
        adapters: names and strengths of adapters that are merged into it first.
        preset: bits of weights and activations.
        values: other settings.

    Raises:
        HomeError, BaseError, SettingError: something does not exist, is taken or does not fit.
    """
    cards = [(find_adapter(home, adapter), strength) for adapter, strength in adapters]
    options = base_options(home, base)
    check_family(identify(base, options), [card for card, _ in cards])
    paths = {str(card.path): strength for card, strength in cards}
    return CompressConfig.from_dict({
        "name": new_base_name(home, name), "base": base, "adapters": paths, "preset": preset,
        **asdict(options), **values,
    })   # fmt: skip


def read_report(run: RunFolder) -> dict[str, Any]:
    """The report of a finished compression; empty before it is written, or when it is damaged."""
    try:
        report = parse_json((run.path / REPORT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def verdict(run: RunFolder) -> str:
    """What a person decided about the result: ``kept``, ``discarded``, or "" for nothing yet."""
    try:
        return (run.path / _VERDICT).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def accept(home: Home, id: str) -> Path:
    """Move a result to the base models of the home; returns its folder.

    Raises:
        HomeError: there is no such result, or its name has been taken since.
    """
    run, result = _result(home, id)
    name = run.name
    target = home.bases / new_base_name(home, name)
    with explain_write_errors(home.bases):
        result.rename(target)
    write_home_file(find_run(home, id).path / _VERDICT, ACCEPTED.encode())
    return target


def discard(home: Home, id: str) -> None:
    """Delete a result; its report stays.

    Raises:
        HomeError: there is no such result.
    """
    _, result = _result(home, id)
    with explain_write_errors(result):
        shutil.rmtree(result)
    write_home_file(find_run(home, id).path / _VERDICT, DISCARDED.encode())


def _result(home: Home, id: str) -> tuple[CompressConfig, Path]:
    run = find_run(home, id)
    config, result = run.compression(), run.path / RESULT
    if config is None or not result.is_dir():
        raise HomeError("There is no result to keep or discard: that was already done, or the job is not finished.")
    return config, result


def list_compressions(home: Home) -> list[RunStatus]:
    """The states of all compressions, newest first."""
    return [run for run in list_runs(home) if run.compression]

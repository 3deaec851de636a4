"""One training run as the values of its panel: progress, health, previews and charts, all read from its folder."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Self

from atelier.adapters.core.byte_size import format_bytes
from atelier.adapters.core.parse import parse_json
from atelier.adapters.kinds.catalog import KINDS
from atelier.app.services.create.time_estimate import run_timing, saved_estimate
from atelier.app.services.finished_run import StepGrid
from atelier.app.store.home import Home
from atelier.app.text import jobs as words
from atelier.app.text import shared
from atelier.app.web.components.page_frame import percent
from atelier.app.web.components.plots import line_through, loss_chart
from atelier.app.web.components.urls import file_url, page_url
from atelier.training.base_models.identify import identify
from atelier.training.config.events import Measured, Previewed
from atelier.training.config.run_folder import RunFolder, RunStatus
from atelier.training.config.train_config import EMBEDDED, TrainConfig
from atelier.training.loop.health import NOISE_LEVELS, health_lines

LOG_BYTES = 20_000


@dataclass(frozen=True)
class View:
    """What a person chose to see; kept in the page."""

    preview: int = -1   # step whose previews are shown large; -1 for the newest
    log: bool = False   # whether the loss has a logarithmic axis
    text: bool = False  # whether the run's log is shown

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read what :meth:`to_text` wrote; it comes from a browser and may be anything."""
        try:
            values = parse_json(text)
            return cls(int(values["preview"]), bool(values["log"]), bool(values["text"]))
        except (ValueError, TypeError, KeyError, OverflowError):
            return cls()

    def to_text(self) -> str:
        """Write as JSON."""
        return json.dumps(asdict(self))

    def after(self, action: str, id: str) -> View:
        """The view after a press of one of its buttons."""
        if action == "show-preview" and id.isdecimal():
            return replace(self, preview=int(id))
        if action == "show-log":
            return replace(self, text=not self.text)
        return replace(self, log=not self.log) if action == "log" else self


def run_details(home: Home, run: RunFolder, status: RunStatus, view: View) -> dict[str, Any]:
    """The values of the panel ``run``."""
    config, state = run.config(), status.state
    best = status.kept_step or status.best_step
    return {
        "name": status.name, "state": state, "label": shared.STATES[state], "step": status.step,
        "of": status.total_steps, "message": _message(status), "percent": percent(status), "warnings": status.warnings,
        "time_left": shared.time_left(status.seconds_left) if status.seconds_left is not None else "",
        "memory": words.memory(format_bytes(status.measured[-1].memory)) if status.measured else "",
        "about": words.summary(KINDS[config.kind].title, config.subject, start_time(status)),
        "pause": state == "training", "continue": state == "paused", "stop": state in ("training", "paused"),
        "cancel": not status.is_over, "resume": resume_label(status),
        "open": page_url("studio", adapter=status.name) if state == "done" else "",
        "stages": _stages(status),
        "health": [{"text": line.text, "good": line.good, "tone": "good" if line.good else "poor"}
                   for line in health_lines(status.measured)],
        **_previews(home, status, best, view.preview),
        "facts": [{"name": name, "value": str(value)}
                  for name, value in {**_facts(config), **_time(run, status)}.items() if value],
        "chart": loss_chart(status.losses, status.validation, best, status.total_steps, log=view.log), "best": best,
        "chart_label": shared.loss_at(status.losses[-1][1] if status.losses else 0.0, status.step),
        "log": str(view.log).lower(), "charts": _charts(status), "timesteps": _by_timestep(status.measured),
        "log_shown": str(view.text).lower(), "log_lines": _log_end(run) if view.text else "",
    }   # fmt: skip


def _message(status: RunStatus) -> str:
    if status.early_stop and status.is_over:
        return words.stopped_early(status.early_stop.step, status.total_steps, status.early_stop.reason)
    return status.message


def resume_label(status: RunStatus) -> str:
    """What the button says that takes a run up again; empty where there is nothing to take up."""
    if status.state == "failed":
        return words.RETRY
    return shared.RESUME if status.state in ("interrupted", "stopped") else ""


def start_time(status: RunStatus) -> datetime | None:
    """When a run began, in local time; None before."""
    return datetime.fromtimestamp(status.started, UTC).astimezone() if status.started else None


def _stages(status: RunStatus) -> list[dict[str, Any]]:
    """What a run does before its first step, with times; nothing afterwards."""
    if status.state != "preparing":
        return []
    ends = [*(start for start, _ in status.stages[1:]), time.time()]
    last = len(ends) - 1
    return [{"name": name, "time": words.stage_time(end - start), "done": i < last, "state": "now" if i == last else ""}
            for i, ((start, name), end) in enumerate(zip(status.stages, ends, strict=True))]   # fmt: skip


def _previews(home: Home, status: RunStatus, best: int, chosen: int) -> dict[str, Any]:
    """The strip with one small picture a step, and all pictures of the chosen step."""
    ordered = sorted(status.previews, key=lambda preview: preview.step)
    by_step = {step: list(pictures) for step, pictures in groupby(ordered, key=lambda preview: preview.step)}
    shown = chosen if chosen in by_step else max(by_step, default=-1)
    strip = [
        {"id": step, "src": preview_url(home, status, pictures[0]), "chosen": str(step == shown).lower(),
         "name": words.strip_name(step, best=step == best),
         "label": words.preview(step, "; ".join(dict.fromkeys(picture.prompt for picture in pictures)))}
        for step, pictures in by_step.items()
    ]   # fmt: skip
    pictures = by_step.get(shown, [])
    seeds = len({picture.seed for picture in pictures}) > 1
    large = [
        {"src": preview_url(home, status, picture), "prompt": picture.prompt,
         "label": words.preview(picture.step, picture.prompt, picture.seed if seeds else 0)}
        for picture in pictures
    ]   # fmt: skip
    return {"strip": strip, "large": {"pictures": large, "count": len(large)}}


def preview_url(home: Home, status: RunStatus, preview: Previewed) -> str:
    """Address under which a page loads a preview's file."""
    return file_url(home.runs / status.id / preview.path)


def _facts(config: TrainConfig) -> dict[str, Any]:
    options = {name.replace("_", " ").capitalize(): value for name, value in config.adapter.items()}
    return {
        shared.BASE_MODEL: config.base if config.base != EMBEDDED else identify(EMBEDDED).title, **options,
        shared.STEPS: config.steps, words.BATCH: config.batch, words.LEARNING_RATE: f"{config.lr:g}",
    }   # fmt: skip


def _time(run: RunFolder, status: RunStatus) -> dict[str, str]:
    """What a training took, beside what was estimated."""
    timing = run_timing(run.path) if status.state == "done" else None
    if timing is None:
        return {}
    return {words.TIME: words.time_taken(timing.predict(timing.config), saved_estimate(run))}


def _log_end(run: RunFolder) -> str:
    try:
        with (run.path / "log.txt").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - LOG_BYTES))
            return file.read().decode(errors="replace").strip() or words.LOG_EMPTY
    except OSError:
        return words.LOG_EMPTY


def step_grid(home: Home, run_id: str, grid: StepGrid | None) -> dict[str, Any]:
    """The values of the panel ``step-grid``."""
    if grid is None:
        return {}
    pictures = {(cell.step, cell.strength): cell.path for cell in grid.cells}
    return {
        "prompt": grid.prompt, "strengths": [words.strength(value) for value in grid.strengths],
        "rows": [
            {"step": step, "name": words.step(step), "cells": [
                {"src": file_url(home.runs / run_id / path) if (path := pictures.get((step, value))) else "",
                 "label": words.grid_cell(step, value)}
                for value in grid.strengths
            ]}
            for step in grid.steps
        ],
    }   # fmt: skip


def _charts(status: RunStatus) -> list[dict[str, Any]]:
    charts = []
    if len(status.measured) > 1:
        members = [(one.step, one.member_gain) for one in status.measured]
        others = [(one.step, one.held_out_gain) for one in status.measured]
        lines = [("smooth", words.MEMBERS, members), ("validation", words.OTHERS, others)]
        hint = words.memorization(status.measured[-1].memorization)
        charts.append({"title": words.MEMORIZATION, "hint": hint, "label": hint,
                       **line_through(lines, status.total_steps)})   # fmt: skip
    if len(status.learning_rates) > 1:
        lines = [("smooth", words.LEARNING_RATE, status.learning_rates)]
        label = f"{words.LEARNING_RATE}: {status.learning_rates[-1][1]:.3g}"
        charts.append({"title": words.LEARNING_RATE, "hint": "", "label": label,
                       **line_through(lines, status.total_steps)})   # fmt: skip
    return charts


def _by_timestep(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """A row for each noise level, a cell for each measurement; the shades share one scale."""
    rows = [one for one in measured if len(one.by_timestep) == len(NOISE_LEVELS)]
    largest = max((abs(gain) for one in rows for gain in one.by_timestep), default=0) or 1.0
    return [
        {"name": words.noise_level(share), "cells": [
            {"share": f"{abs(one.by_timestep[i]) / largest:.3f}", "opposed": "opposed" * (one.by_timestep[i] < 0),
             "label": words.gain_at(words.noise_level(share), one.step, one.by_timestep[i])}
            for one in rows
        ]}
        for i, share in enumerate(NOISE_LEVELS)
    ] if rows else []   # fmt: skip

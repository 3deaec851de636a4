"""Compress: pick a base model and a size, see what will come of it, and compare before it is kept."""

from __future__ import annotations

from datetime import UTC, datetime
from statistics import fmean
from typing import Any

import gradio as gr

from atelier.adapters.core.byte_size import format_bytes
from atelier.app.jobs.jobs import cancel, find_run, resume, run_status, submit
from atelier.app.services.compress import (
    ACCEPTED,
    accept,
    discard,
    list_compressions,
    make_config,
    plan_compression,
    read_report,
    verdict,
)
from atelier.app.services.engine import Engine
from atelier.app.store.home import Home, HomeError
from atelier.app.store.models import base_choices
from atelier.app.text import compress as words
from atelier.app.text import shared
from atelier.app.web.components.page_frame import UNQUEUED, heading, percent, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.app.web.components.plots import line_chart, loss_chart
from atelier.app.web.components.urls import file_url, page_url
from atelier.app.web.pages.adapter_choice import AdapterChoice, place_choice, show_choice
from atelier.app.web.pages.studio_adapters import adapter_names
from atelier.training.config.compress_config import CompressConfig
from atelier.training.config.run_folder import RunFolder, RunStatus
from atelier.training.config.train_config import EMBEDDED

_PRESET = "w4a8"
_NO_PROGRESS: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
_COMMANDS = {"pause": "pause", "continue": "resume", "stop": "stop"}   # button → command for the compressing process


def build(demo: gr.Blocks, home: Home, engine: Engine) -> None:   # noqa: ARG001 (as every page)
    """Place the Compress page: the form and the list, or with ``?run=ID`` the details of that compression."""
    with gr.Column(visible=False) as form:
        heading(words.TITLE, words.LEAD)
        with gr.Row(elem_classes="layout"):
            with gr.Column(scale=7, elem_classes="surface"):
                base, adapters, strength = _model_questions(home)
                preset, method, prompts = _size_questions()
            with gr.Column(scale=5, elem_classes="surface"):
                plan = panel("compress-plan", {})
                name = gr.Textbox(label=words.NAME, max_length=64, elem_id="compress-name")
                go = gr.Button(words.COMPRESS, variant="primary", size="lg", elem_id="compress-now")
        list_panel = panel("compressions", [])
    with gr.Column(visible=False) as one:
        details = panel("compression", {})
    # In the page, not in gr.State: an open page finds its run again after the server was started anew.
    run_id, shown = gr.Textbox(visible=False), gr.Textbox(visible=False)
    timer = gr.Timer(1.0)
    choices = [base, adapters.names, strength, preset, method, prompts]

    def on_load(request: gr.Request) -> list[Any]:
        """Fill the page, for the run in its address if there is one."""
        return _on_load(home, dict(request.query_params).get("run", ""))

    def show(chosen: str, seen: str) -> list[Any]:
        """Refresh the list or the opened run."""
        return _show(home, chosen, seen)

    def start(name: str, *choices: Any) -> str:
        """Start a compression; returns the id of its run."""
        with show_errors():
            return submit(home, _config(home, name, *choices)).id

    def on_action(event: gr.EventData, chosen: str) -> list[Any]:
        """A pressed button of the opened run."""
        _on_action(home, chosen, *action_of(event))
        return _show(home, chosen, "")

    outputs = [form, list_panel, one, details, shown]
    gr.on([base.change, preset.change, method.change], lambda *given: _plan(home, *given), [base, preset, method], plan,
          trigger_mode="always_last", **_NO_PROGRESS)   # fmt: skip
    adapters.names.change(lambda chosen: gr.Slider(visible=bool(chosen)), adapters.names, strength, **_NO_PROGRESS)
    go.click(start, [name, *choices], run_id, **_NO_PROGRESS).then(
        None, run_id, None, js=f"id => {{ if (id) location.href = '{page_url('compress')}?run=' + id }}"
    )
    loaded = demo.load(on_load, None, [run_id, base, *adapters, plan], **UNQUEUED)
    loaded.then(show, [run_id, shown], outputs, **UNQUEUED)
    timer.tick(show, [run_id, shown], outputs, **UNQUEUED)
    details.action(on_action, run_id, outputs, **UNQUEUED)


def _model_questions(home: Home) -> tuple[gr.Dropdown, AdapterChoice, gr.Slider]:
    base = gr.Dropdown([], label=shared.BASE_MODEL, elem_id="compress-base", interactive=True)
    adapters = place_choice(home, words.ADAPTERS, words.ADAPTERS_HINT, "compress-adapters")
    strength = gr.Slider(0, 2, 1, step=0.05, label=words.STRENGTH, elem_id="compress-strength",
                         visible=False)   # fmt: skip
    return base, adapters, strength


def _size_questions() -> tuple[Any, Any, Any]:
    presets, methods = ([(title, name) for name, title in titles.items()]
                     for titles in (words.PRESETS, words.METHODS))   # fmt: skip
    preset = gr.Radio(presets, value=_PRESET, label=words.BITS, elem_id="compress-preset")
    method = gr.Radio(methods, value="learn", label=words.METHOD, elem_id="compress-how")
    prompts = gr.Textbox(
        label=words.PROMPTS, placeholder=words.PROMPTS_HINT, lines=2, max_lines=8,
        elem_id="compress-prompts",
    )   # fmt: skip
    return preset, method, prompts


def _on_load(home: Home, chosen: str) -> list[Any]:
    bases = [choice for choice in base_choices(home) if not choice[1].startswith(str(home.bases))]
    return [chosen, gr.Dropdown(choices=bases, value=EMBEDDED), *show_choice(home),
            _plan(home, EMBEDDED, _PRESET, "learn")]   # fmt: skip


def _config(home: Home, name: str, *choices: Any) -> CompressConfig:
    base, adapters, strength, preset, method, prompts = choices
    parts = [(each, float(strength)) for each in adapter_names(adapters)]
    steps: dict[str, Any] = {"steps": 0} if method == "quick" else {}
    return make_config(home, name, base, parts, preset, prompts=prompts or "", **steps)


def _plan(home: Home, base: str, preset: str, method: str) -> dict[str, Any]:
    """The quiet facts before [Compress]."""
    steps: dict[str, Any] = {"steps": 0} if method == "quick" else {}
    with show_errors():
        config = CompressConfig(base=base or EMBEDDED, preset=preset, **steps)
        plan = plan_compression(home, config)
    time = words.TIME_QUICK if not config.steps else words.TIME_UNKNOWN
    if config.steps and plan.seconds is not None:
        time = words.time_needed(plan.seconds)
    return {
        "before": format_bytes(plan.before), "after": format_bytes(plan.after),
        "share": f"{100 * plan.after / plan.before:.1f}", "time": time,
        "memory": words.memory_needed(plan.memory), "note": words.NOTES[preset],
    }   # fmt: skip


def _show(home: Home, chosen: str, seen: str) -> list[Any]:
    """The outputs of a tick. A job that is over is not updated: somebody may be comparing its pictures."""
    if not chosen:
        rows = [_row(home, run) for run in list_compressions(home)]
        return [gr.Column(visible=True), rows, gr.Column(visible=False), gr.skip(), ""]
    try:
        status, run = run_status(home, chosen), find_run(home, chosen)
        config = run.compression()
        assert config is not None
    except (HomeError, AssertionError):
        not_found = {"state": "failed", "label": shared.STATES["failed"], "name": shared.JOB_NOT_FOUND,
                     "chart": {"empty": True}}   # fmt: skip
        return [gr.Column(visible=False), gr.skip(), gr.Column(visible=True), not_found, ""]
    version = f"{chosen} {status.state} {verdict(run)}"
    shown = gr.skip() if status.is_over and version == seen else _job_details(run, config, status)
    return [gr.Column(visible=False), gr.skip(), gr.Column(visible=True), shown, version]


def _row(home: Home, run: RunStatus) -> dict[str, Any]:
    folder = find_run(home, run.id)
    config, report = folder.compression(), read_report(folder)
    assert config is not None
    return {
        "href": page_url("compress", run=run.id), "name": run.name, "state": run.state,
        "label": shared.STATES[run.state], "percent": percent(run),
        "about": words.summary(config.preset, run.total_steps, _moment(run)),
        "picture": file_url(folder.path / report["pairs"][0]["after"]) if report else "",
    }   # fmt: skip


def _job_details(run: RunFolder, config: CompressConfig, status: RunStatus) -> dict[str, Any]:
    state, decision = status.state, verdict(run)
    report = read_report(run) if state == "done" else {}
    return {
        "name": status.name, "state": state, "label": shared.STATES[state],
        "step": status.step, "of": status.total_steps,
        "message": "" if state == "done" else status.message, "percent": percent(status), "warnings": status.warnings,
        "time_left": shared.time_left(status.seconds_left) if status.seconds_left is not None else "",
        "about": words.summary(config.preset, status.total_steps, _moment(status)),
        "pause": state == "training", "continue": state == "paused", "stop": state in ("training", "paused"),
        "cancel": not status.is_over, "resume": state in ("interrupted", "failed", "stopped"),
        "can_decide": bool(report) and not decision,
        "decision": {"": "", ACCEPTED: words.KEPT}.get(decision, words.DISCARDED),
        "chart": loss_chart(_by_trajectory(config, status), status.validation, status.best_step, status.total_steps),
        "best": status.best_step,
        "chart_label": shared.loss_at(status.losses[-1][1] if status.losses else 0.0, status.step),
        "latest": _latest(config, status) if not report else {}, "report": _report(run, report),
    }   # fmt: skip


def _by_trajectory(config: CompressConfig, status: RunStatus) -> list[tuple[int, float]]:
    """Mean loss of each trajectory: from step to step it rises and falls with the timestep, which tells nothing."""
    count = config.timesteps
    means = [(step, fmean(loss for _, loss in status.losses[step - count : step]))
             for step in range(count, len(status.losses) + 1, count)]   # fmt: skip
    return means or status.losses


def _latest(config: CompressConfig, status: RunStatus) -> dict[str, Any]:
    """The last trajectory's losses, from noise to picture."""
    count = status.step // config.timesteps * config.timesteps
    last = [loss for step, loss in status.losses if count - config.timesteps < step <= count]
    return line_chart([last]) if len(last) > 1 else {}


def _report(run: RunFolder, report: dict[str, Any]) -> dict[str, Any]:
    if not report:
        return {}
    by_layer, worst = report["by_layer"], max(error for _, error in report["by_layer"]) or 1.0
    times = report["by_timestep"]
    return {
        "size": words.sizes(report["bytes_before"], report["bytes_after"]),
        "share": f"{100 * report['bytes_after'] / report['bytes_before']:.1f}",
        "time": words.seconds_per_picture(report["seconds_before"], report["seconds_after"]),
        "execution": words.arithmetic(report["whole_numbers"], report["device"]),
        "note": words.NOTES[report["preset"]],
        "pairs": [{**pair, "before": file_url(run.path / pair["before"]),
                   "after": file_url(run.path / pair["after"]),
                   "label": words.likeness(pair["psnr"])} for pair in report["pairs"]],
        "times": line_chart([[error for _, error in times[key]] for key in ("after", "before")]),
        "learned": bool(report["steps"]),
        "layers": [{"name": words.layer(name), "error": f"{error:.3f}",
                    "share": f"{100 * error / worst:.1f}"} for name, error in by_layer],
    }   # fmt: skip


def _moment(run: RunStatus) -> datetime | None:
    return datetime.fromtimestamp(run.started, UTC).astimezone() if run.started else None


def _on_action(home: Home, chosen: str, on_action: str, _id: str) -> None:
    with show_errors():
        if on_action == "cancel":
            cancel(home, chosen)
        elif on_action == "resume":
            resume(home, chosen)
        elif on_action == "keep":
            accept(home, chosen)
        elif on_action == "discard":
            discard(home, chosen)
        elif on_action in _COMMANDS:
            find_run(home, chosen).send_command(_COMMANDS[on_action])

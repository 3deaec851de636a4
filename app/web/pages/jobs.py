"""Jobs: every training run, and the details of one. Everything shown is read from the run's folder."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import gradio as gr

from atelier.adapters.kinds.catalog import KINDS
from atelier.app.jobs.jobs import cancel, find_run, list_runs, resume, run_status
from atelier.app.store.home import Home, HomeError
from atelier.app.text import jobs as words
from atelier.app.text import shared
from atelier.app.web.components.page_frame import UNQUEUED, heading, percent, run_url, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.app.web.components.plots import loss_chart
from atelier.app.web.components.urls import file_url, page_url
from atelier.training.base_models.identify import identify
from atelier.training.config.run_folder import RunStatus
from atelier.training.config.train_config import EMBEDDED, TrainConfig

_COMMANDS = {"pause": "pause", "continue": "resume", "stop": "stop"}   # button → command for the training process


def build(demo: gr.Blocks, home: Home) -> None:
    """Place the Jobs page: the list, or with ``?run=ID`` the details of that run."""
    with gr.Column(visible=False) as list_column:
        heading(words.TITLE, words.LEAD)
        runs = panel("runs", [])
    with gr.Column(visible=False) as details_column:
        details = panel("run", {})
        with gr.Row(elem_classes="surface preview-form", visible=False) as preview_form:
            prompt = gr.Textbox(label=words.TRY_PROMPT, placeholder=shared.PROMPT_HINT, max_length=400, scale=5,
                                elem_id="preview-prompt")   # fmt: skip
            send = gr.Button(words.TRY, elem_id="draw-preview", scale=1)
    # In the page, not in gr.State: an open page finds its run again after the server was started anew.
    run_id, shown_preview_id = gr.Textbox(visible=False), gr.Textbox(visible=False)
    timer = gr.Timer(1.0)
    outputs = [list_column, runs, details_column, details, preview_form]

    def show(chosen: str, shown_preview: str) -> list[Any]:
        return _show(home, chosen, shown_preview)

    def on_action(event: gr.EventData, chosen: str, shown_preview: str) -> list[Any]:
        shown_preview = _on_action(home, chosen, shown_preview, *action_of(event))
        return [shown_preview, *_show(home, chosen, shown_preview)]

    def on_load(request: gr.Request) -> list[Any]:
        chosen = request.query_params.get("run", "")
        return [chosen, *_show(home, chosen, "")]

    demo.load(on_load, None, [run_id, *outputs], **UNQUEUED)
    timer.tick(show, [run_id, shown_preview_id], outputs, **UNQUEUED)
    details.action(on_action, [run_id, shown_preview_id], [shown_preview_id, *outputs], **UNQUEUED)
    gr.on([send.click, prompt.submit], lambda chosen, text: _request_preview(home, chosen, text), [run_id, prompt],
          prompt, api_visibility="private", show_progress="hidden")   # fmt: skip


def _show(home: Home, chosen: str, shown_preview: str) -> list[Any]:
    if not chosen:
        return [gr.Column(visible=True), [_row(home, run) for run in list_runs(home)], gr.Column(visible=False),
                gr.skip(), gr.skip()]   # fmt: skip
    try:
        run = run_status(home, chosen)
    except HomeError as error:
        not_found = {"state": "failed", "label": shared.STATES["failed"], "message": str(error),
                     "name": shared.JOB_NOT_FOUND, "chart": {"empty": True}}   # fmt: skip
        return [gr.Column(visible=False), gr.skip(), gr.Column(visible=True), not_found, gr.Row(visible=False)]
    if run.compression:
        compression = {"state": run.state, "label": shared.STATES[run.state], "name": run.name,
                       "chart": {"empty": True}, "message": words.SEE_COMPRESS}   # fmt: skip
        return [gr.Column(visible=False), gr.skip(), gr.Column(visible=True), compression, gr.Row(visible=False)]
    can_ask = run.state in ("training", "paused")
    shown = _job_details(home, run, shown_preview)
    return [gr.Column(visible=False), gr.skip(), gr.Column(visible=True), shown, gr.Row(visible=can_ask)]


def _row(home: Home, run: RunStatus) -> dict[str, Any]:
    return {
        "href": run_url(run), "name": run.name, "state": run.state, "label": shared.STATES[run.state],
        "percent": percent(run), "about": words.progress(run.step, run.total_steps, _moment(run)),
        "picture": _preview(home, run, run.previews[-1][2]) if run.previews else "",
    }   # fmt: skip


def _job_details(home: Home, run: RunStatus, shown_preview: str) -> dict[str, Any]:
    config = find_run(home, run.id).config()
    previews = [
        {"id": path, "src": _preview(home, run, path), "step": step, "prompt": prompt,
         "label": words.preview(step, prompt)}
        for step, prompt, path in run.previews
    ]
    large = next((preview for preview in previews if preview["id"] == shown_preview), previews[-1] if previews else {})
    state = run.state
    return {
        "name": run.name, "state": state, "label": shared.STATES[state], "step": run.step, "of": run.total_steps,
        "message": run.message, "percent": percent(run), "warnings": run.warnings,
        "time_left": shared.time_left(run.seconds_left) if run.seconds_left is not None else "",
        "about": words.summary(KINDS[config.kind].title, config.subject, _moment(run)),
        "pause": state == "training", "continue": state == "paused", "stop": state in ("training", "paused"),
        "cancel": not run.is_over, "resume": state in ("interrupted", "failed", "stopped"),
        "open": page_url("studio", adapter=run.name) if state == "done" else "",
        "large": large, "previews": [{**preview, "chosen": str(preview is large).lower()} for preview in previews],
        "facts": [{"name": name, "value": str(value)} for name, value in _facts(config).items() if value],
        "chart": loss_chart(run.losses, run.validation, run.best_step, run.total_steps), "best": run.best_step,
        "chart_label": shared.loss_at(run.losses[-1][1] if run.losses else 0.0, run.step),
    }   # fmt: skip


def _facts(config: TrainConfig) -> dict[str, Any]:
    options = {name.replace("_", " ").capitalize(): value for name, value in config.adapter.items()}
    return {
        shared.BASE_MODEL: config.base if config.base != EMBEDDED else identify(EMBEDDED).title, **options,
        shared.STEPS: config.steps, words.BATCH: config.batch, words.LEARNING_RATE: f"{config.lr:g}",
    }   # fmt: skip


def _preview(home: Home, run: RunStatus, path: str) -> str:
    return file_url(home.runs / run.id / path)


def _moment(run: RunStatus) -> datetime | None:
    return datetime.fromtimestamp(run.started, UTC).astimezone() if run.started else None


def _on_action(home: Home, chosen: str, shown_preview: str, action: str, id: str) -> str:
    """Do what was pressed; returns the preview to show large."""
    with show_errors():
        if action == "show-preview":
            return id
        if action == "cancel":
            cancel(home, chosen)
        elif action == "resume":
            resume(home, chosen)
        elif action in _COMMANDS:
            find_run(home, chosen).send_command(_COMMANDS[action])
    return shown_preview


def _request_preview(home: Home, chosen: str, prompt: str) -> str:
    with show_errors():
        if not prompt.strip():
            raise ValueError(shared.NO_PROMPT)
        find_run(home, chosen).send_command("preview", prompt.strip())
    gr.Info(words.TRY_REQUESTED)
    return ""

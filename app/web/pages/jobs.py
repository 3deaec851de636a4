"""Jobs: every training run, and one of them live. Everything shown is read from the run's folder."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import gradio as gr

from atelier.adapters.kinds.catalog import KINDS
from atelier.app.jobs.jobs import cancel, find_run, list_runs, resume, run_status
from atelier.app.store.home import Home, HomeError
from atelier.app.text import jobs as words
from atelier.app.text import shared
from atelier.app.web.components.page_frame import POLL, heading, percent, plainly, run_address
from atelier.app.web.components.panel import acted, panel
from atelier.app.web.components.plots import loss_chart
from atelier.app.web.components.urls import address, file_address
from atelier.training.base_models.identify import identify
from atelier.training.config.run_folder import RunStatus
from atelier.training.config.train_config import EMBEDDED, TrainConfig

_ACTS = {"pause": "pause", "go-on": "resume", "stop": "stop"}   # button → command for the training process


def build(demo: gr.Blocks, home: Home) -> None:
    """Place the page: the list, or with ``?run=ID`` that run."""
    with gr.Column(visible=False) as all_runs:
        heading(words.TITLE, words.LEAD)
        runs = panel("runs", [])
    with gr.Column(visible=False) as one_run:
        live = panel("run", {})
        with gr.Row(elem_classes="sheet try", visible=False) as ask:
            prompt = gr.Textbox(label=words.TRY_PROMPT, placeholder=shared.PROMPT_HINT, max_length=400, scale=5,
                                elem_id="try")   # fmt: skip
            send = gr.Button(words.TRY, elem_id="try-now", scale=1)
    # In the page, not in gr.State: an open page finds its run again after the server was started anew.
    run_id, looked = gr.Textbox(visible=False), gr.Textbox(visible=False)
    timer = gr.Timer(1.0)
    outputs = [all_runs, runs, one_run, live, ask]

    def show(chosen: str, look: str) -> list[Any]:
        return _show(home, chosen, look)

    def act(event: gr.EventData, chosen: str, look: str) -> list[Any]:
        look = _act(home, chosen, look, *acted(event))
        return [look, *_show(home, chosen, look)]

    def opened(request: gr.Request) -> list[Any]:
        chosen = request.query_params.get("run", "")
        return [chosen, *_show(home, chosen, "")]

    demo.load(opened, None, [run_id, *outputs], **POLL)
    timer.tick(show, [run_id, looked], outputs, **POLL)
    live.act(act, [run_id, looked], [looked, *outputs], **POLL)
    gr.on([send.click, prompt.submit], lambda chosen, text: _try(home, chosen, text), [run_id, prompt], prompt,
          api_visibility="private", show_progress="hidden")   # fmt: skip


def _show(home: Home, chosen: str, look: str) -> list[Any]:
    if not chosen:
        return [gr.Column(visible=True), [_row(home, run) for run in list_runs(home)], gr.Column(visible=False),
                gr.skip(), gr.skip()]   # fmt: skip
    try:
        run = run_status(home, chosen)
    except HomeError as error:
        gone = {"state": "failed", "say": shared.STATES["failed"], "message": str(error), "name": shared.JOB_NOT_FOUND,
                "chart": {"empty": True}}   # fmt: skip
        return [gr.Column(visible=False), gr.skip(), gr.Column(visible=True), gone, gr.Row(visible=False)]
    if run.compression:
        elsewhere = {"state": run.state, "say": shared.STATES[run.state], "name": run.name, "chart": {"empty": True},
                     "message": words.SEE_COMPRESS}   # fmt: skip
        return [gr.Column(visible=False), gr.skip(), gr.Column(visible=True), elsewhere, gr.Row(visible=False)]
    asking = run.state in ("training", "paused")
    shown = _live(home, run, look)
    return [gr.Column(visible=False), gr.skip(), gr.Column(visible=True), shown, gr.Row(visible=asking)]


def _row(home: Home, run: RunStatus) -> dict[str, Any]:
    return {
        "href": run_address(run), "name": run.name, "state": run.state, "say": shared.STATES[run.state],
        "percent": percent(run), "about": words.progress(run.step, run.total_steps, _moment(run)),
        "picture": _preview(home, run, run.previews[-1][2]) if run.previews else "",
    }   # fmt: skip


def _live(home: Home, run: RunStatus, look: str) -> dict[str, Any]:
    config = find_run(home, run.id).config()
    strip = [
        {"id": path, "src": _preview(home, run, path), "step": step, "prompt": prompt,
         "say": words.preview(step, prompt)}
        for step, prompt, path in run.previews
    ]
    large = next((preview for preview in strip if preview["id"] == look), strip[-1] if strip else {})
    state = run.state
    return {
        "name": run.name, "state": state, "say": shared.STATES[state], "step": run.step, "of": run.total_steps,
        "message": run.message, "percent": percent(run), "warnings": run.warnings,
        "left": shared.time_left(run.seconds_left) if run.seconds_left is not None else "",
        "about": words.summary(KINDS[config.kind].title, config.subject, _moment(run)),
        "pause": state == "training", "go_on": state == "paused", "stop": state in ("training", "paused"),
        "cancel": not run.is_over, "resume": state in ("interrupted", "failed", "stopped"),
        "open": address("studio", adapter=run.name) if state == "done" else "",
        "large": large, "strip": [{**preview, "chosen": str(preview is large).lower()} for preview in strip],
        "facts": [{"name": name, "value": str(value)} for name, value in _facts(config).items() if value],
        "chart": loss_chart(run.losses, run.validation, run.best_step, run.total_steps), "best": run.best_step,
        "chart_say": shared.loss_at(run.losses[-1][1] if run.losses else 0.0, run.step),
    }   # fmt: skip


def _facts(config: TrainConfig) -> dict[str, Any]:
    options = {name.replace("_", " ").capitalize(): value for name, value in config.adapter.items()}
    return {
        shared.BASE_MODEL: config.base if config.base != EMBEDDED else identify(EMBEDDED).title, **options,
        shared.STEPS: config.steps, words.BATCH: config.batch, words.LEARNING_RATE: f"{config.lr:g}",
    }   # fmt: skip


def _preview(home: Home, run: RunStatus, path: str) -> str:
    return file_address(home.runs / run.id / path)


def _moment(run: RunStatus) -> datetime | None:
    return datetime.fromtimestamp(run.started, UTC).astimezone() if run.started else None


def _act(home: Home, chosen: str, look: str, act: str, id: str) -> str:
    """Do what was pressed; returns the preview to show large."""
    with plainly():
        if act == "look":
            return id
        if act == "cancel":
            cancel(home, chosen)
        elif act == "resume":
            resume(home, chosen)
        elif act in _ACTS:
            find_run(home, chosen).send_command(_ACTS[act])
    return look


def _try(home: Home, chosen: str, prompt: str) -> str:
    with plainly():
        if not prompt.strip():
            raise ValueError(shared.NO_PROMPT)
        find_run(home, chosen).send_command("preview", prompt.strip())
    gr.Info(words.TRY_REQUESTED)
    return ""

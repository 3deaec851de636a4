"""Jobs: every training run, and the details of one. Everything shown is read from the run's folder."""

from __future__ import annotations

from typing import Any

import gradio as gr

from atelier.app.jobs.jobs import cancel, find_run, list_runs, move, resume, run_status
from atelier.app.services.engine import Engine
from atelier.app.services.finished_run import draw_samples, find_step_files
from atelier.app.store.home import Home, HomeError
from atelier.app.text import jobs as words
from atelier.app.text import shared
from atelier.app.web.components.page_frame import UNQUEUED, heading, inform, percent, run_url, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.app.web.components.run_view import View, preview_url, resume_label, run_details, start_time
from atelier.app.web.pages import run_tools
from atelier.training.config.run_folder import RunStatus

_COMMANDS = {"pause": "pause", "continue": "resume", "stop": "stop", "save": "save"}   # button → command
_PLACES = {"sooner": -1, "later": 1}


def build(demo: gr.Blocks, home: Home, engine: Engine) -> None:
    """Place the Jobs page: the list, or with ``?run=ID`` the details of that run; ``engine`` draws its saved steps."""
    with gr.Column(visible=False) as list_column:
        heading(words.TITLE, words.LEAD)
        runs = panel("runs", [])
    with gr.Column(visible=False) as details_column:
        details = panel("run", {})
        with gr.Row(elem_classes="surface preview-form", visible=False) as preview_form:
            prompt = gr.Textbox(label=words.TRY_PROMPT, placeholder=shared.PROMPT_HINT, max_length=400, scale=5,
                                elem_id="preview-prompt")   # fmt: skip
            send = gr.Button(words.TRY, elem_id="draw-preview", scale=1)
        with gr.Column(elem_classes="surface", visible=False) as afterwards:
            tools = run_tools.build(demo, home, engine)
    # In the page, not in gr.State: an open page finds its run again after the server was started anew.
    run_id, view = gr.Textbox(visible=False), gr.Textbox(visible=False)
    timer = gr.Timer(1.0)
    outputs = [list_column, runs, details_column, details, preview_form, afterwards]

    def show(chosen: str, shown: str) -> list[Any]:
        """Refresh the list or the opened run."""
        return _show(home, chosen, View.from_text(shown))

    def on_action(event: gr.EventData, chosen: str, shown: str) -> list[Any]:
        """A pressed button of the opened run."""
        changed = View.from_text(shown).after(*action_of(event))
        _on_action(home, chosen, action_of(event)[0])
        return [changed.to_text(), *_show(home, chosen, changed)]

    def on_load(request: gr.Request) -> list[Any]:
        """Show the list, or the run in the page's address."""
        chosen = request.query_params.get("run", "")
        return [chosen, *_show(home, chosen, View())]

    def on_list_action(event: gr.EventData) -> list[Any]:
        """A pressed button of the list."""
        _on_list_action(home, *action_of(event))
        return _show(home, "", View())

    demo.load(on_load, None, [run_id, *outputs], **UNQUEUED).then(tools.show, run_id, tools.outputs, **UNQUEUED)
    runs.action(on_list_action, None, outputs, **UNQUEUED)
    tools.listen(run_id)
    timer.tick(show, [run_id, view], outputs, **UNQUEUED)
    details.action(on_action, [run_id, view], [view, *outputs], **UNQUEUED)
    gr.on([send.click, prompt.submit], lambda chosen, text: _request_preview(home, engine, chosen, text),
          [run_id, prompt], prompt, api_visibility="private", show_progress="minimal")   # fmt: skip


def _show(home: Home, chosen: str, view: View) -> list[Any]:
    if not chosen:
        return [gr.Column(visible=True), [_row(home, run) for run in list_runs(home)], gr.Column(visible=False),
                gr.skip(), gr.skip(), gr.skip()]   # fmt: skip
    try:
        run = run_status(home, chosen)
    except HomeError as error:
        not_found = {"state": "failed", "label": shared.STATES["failed"], "message": str(error),
                     "name": shared.JOB_NOT_FOUND, "chart": {"empty": True}}   # fmt: skip
        return _details(not_found)
    if run.compression:
        compression = {"state": run.state, "label": shared.STATES[run.state], "name": run.name,
                       "chart": {"empty": True}, "message": words.SEE_COMPRESS}   # fmt: skip
        return _details(compression)
    saved = run.is_over and bool(find_step_files(home, chosen))
    can_draw = run.state in ("training", "paused") or saved
    try:
        values = run_details(home, find_run(home, chosen), run, view)
    except (ValueError, OSError):   # its recipe is damaged, which its state says
        return _details({"state": run.state, "label": shared.STATES[run.state], "name": run.name,
                         "message": run.message, "chart": {"empty": True}})   # fmt: skip
    return _details(values, can_draw=can_draw, saved=saved)


def _details(values: dict[str, Any], *, can_draw: bool = False, saved: bool = False) -> list[Any]:
    return [gr.Column(visible=False), gr.skip(), gr.Column(visible=True), values, gr.Row(visible=can_draw),
            gr.Column(visible=saved)]   # fmt: skip


def _row(home: Home, run: RunStatus) -> dict[str, Any]:
    return {
        "href": run_url(run), "name": run.name, "state": run.state, "label": shared.STATES[run.state],
        "percent": percent(run), "about": words.progress(run.step, run.total_steps, start_time(run)),
        "picture": preview_url(home, run, run.previews[-1]) if run.previews else "",
        "id": run.id, "waiting": run.state == "queued", "retry": "" if run.compression else resume_label(run),
    }   # fmt: skip


def _on_action(home: Home, chosen: str, action: str) -> None:
    """Do what was pressed, where it is about the run and not about the view."""
    with show_errors():
        if action == "cancel":
            cancel(home, chosen)
        elif action == "resume":
            resume(home, chosen)
        elif action in _COMMANDS:
            find_run(home, chosen).send_command(_COMMANDS[action])
        if action == "save":
            inform(words.SAVE_REQUESTED)


def _on_list_action(home: Home, action: str, id: str) -> None:
    with show_errors():
        if action in _PLACES:
            move(home, id, _PLACES[action])
        elif action == "resume":
            resume(home, id)


def _request_preview(home: Home, engine: Engine, chosen: str, prompt: str) -> str:
    with show_errors():
        if not prompt.strip():
            raise ValueError(shared.NO_PROMPT)
        if run_status(home, chosen).is_over:
            draw_samples(home, engine, chosen, prompt)
            return ""
        find_run(home, chosen).send_command("preview", prompt.strip())
    inform(words.TRY_REQUESTED)
    return ""

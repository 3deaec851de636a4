"""Jobs: every training run, and one of them live. Everything shown is read from the run's folder."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import gradio as gr

from atelier.adapters.catalog import KINDS
from atelier.training.runs import RunStatus

from .. import words
from ..frame import POLL, address, file_address, heading, percent, plainly
from ..home import Home, HomeError
from ..icons import icon
from ..jobs import cancel, find_run, list_runs, resume, run_status
from ..panel import acted, panel
from ..plots import HEIGHT, WIDTH, loss_chart

_LIST = f"""<ul class="runs">{{{{#each value}}}}<li><a class="run" href="{{{{this.href}}}}">
{{{{#if this.picture}}}}<img src="{{{{this.picture}}}}" alt="">{{{{else}}}}<span class="blank" aria-hidden="true"></span>{{{{/if}}}}
<span class="run-name"><b>{{{{this.name}}}}</b><small>{{{{this.about}}}}</small></span>
<span class="state state-{{{{this.state}}}}">{{{{this.say}}}}</span>
<span class="meter" aria-hidden="true"><i style="width:{{{{this.percent}}}}%"></i></span></a></li>
{{{{else}}}}<li class="empty"><p>{words.NO_JOBS}</p><a class="press press-first" href="/">{words.GO_CREATE}</a></li>
{{{{/each}}}}</ul>"""

_CHART = f"""{{{{#if value.chart.empty}}}}<p class="hint">{words.NO_LOSS}</p>{{{{else}}}}
<figure class="chart" role="img" aria-label="{{{{value.chart_say}}}}"><span class="y high">{{{{value.chart.high}}}}</span>
<span class="y low">{{{{value.chart.low}}}}</span><div class="plot">
<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" preserveAspectRatio="none" aria-hidden="true"><path class="raw" d="{{{{value.chart.raw}}}}"/>
<path class="validation" d="{{{{value.chart.validation}}}}"/><path class="smooth" d="{{{{value.chart.smooth}}}}"/></svg>
{{{{#each value.chart.dots}}}}<i class="dot {{{{#if this.best}}}}best{{{{/if}}}}" style="left:{{{{this.x}}}}%;top:{{{{this.y}}}}%"
 title="{words.STEP} {{{{this.step}}}}: {{{{this.value}}}}"></i>{{{{/each}}}}</div>
<span class="x first">0</span><span class="x last">{{{{value.chart.last}}}}</span></figure>
<p class="legend"><span class="key smooth"></span>{words.LOSS}<span class="key validation"></span>{words.VALIDATION}
{{{{#if value.best}}}}<span class="key best"></span>{words.BEST} {{{{value.best}}}}{{{{/if}}}}</p>{{{{/if}}}}"""

_RUN = f"""<article class="sheet live" data-state="{{{{value.state}}}}" data-step="{{{{value.step}}}}">
<header class="live-head"><div><a class="back" href="{address("jobs")}">{words.ALL_JOBS}</a><h1>{{{{value.name}}}}</h1>
<p class="hint">{{{{value.about}}}}</p></div><div class="acts">
{{{{#if value.pause}}}}<button type="button" class="press" data-act="pause">{words.PAUSE}</button>{{{{/if}}}}
{{{{#if value.go_on}}}}<button type="button" class="press" data-act="go-on">{words.RESUME}</button>{{{{/if}}}}
{{{{#if value.stop}}}}<button type="button" class="press" data-act="stop">{words.STOP}</button>{{{{/if}}}}
{{{{#if value.cancel}}}}<button type="button" class="press press-bad" data-act="cancel">{words.CANCEL}</button>{{{{/if}}}}
{{{{#if value.resume}}}}<button type="button" class="press press-first" data-act="resume">{words.RESUME}</button>{{{{/if}}}}
{{{{#if value.open}}}}<a class="press press-first" href="{{{{value.open}}}}">{words.OPEN_STUDIO}</a>{{{{/if}}}}</div></header>
<div class="progress"><p class="now" role="status"><span class="state state-{{{{value.state}}}}">{{{{value.say}}}}</span>
<span>{{{{value.message}}}}</span></p><p class="figures">{{{{#if value.step}}}}<span>{words.STEP} <b>{{{{value.step}}}}</b> / {{{{value.of}}}}</span>{{{{/if}}}}
{{{{#if value.left}}}}<span><b>{{{{value.left}}}}</b></span>{{{{/if}}}}</p>
<div class="meter" role="progressbar" aria-label="{words.PROGRESS}" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{{{{value.percent}}}}"><i style="width:{{{{value.percent}}}}%"></i></div></div>
<ul class="refused">{{{{#each value.warnings}}}}<li>{icon("warn")}<span>{{{{this}}}}</span></li>{{{{/each}}}}</ul>
<div class="live-body"><section><h2>{words.PREVIEWS}</h2>{{{{#if value.large.src}}}}<figure class="large"><img src="{{{{value.large.src}}}}" alt="{{{{value.large.prompt}}}}">
<figcaption>{{{{value.large.say}}}}</figcaption></figure>{{{{else}}}}<div class="large well"><p class="hint">{words.NO_PREVIEWS}</p></div>{{{{/if}}}}
<ul class="strip">{{{{#each value.strip}}}}<li><button type="button" data-act="look" data-id="{{{{this.id}}}}" aria-pressed="{{{{this.chosen}}}}"
 aria-label="{{{{this.say}}}}"><img src="{{{{this.src}}}}" alt=""><small>{{{{this.step}}}}</small></button></li>{{{{/each}}}}</ul></section>
<section><h2>{words.LEARNING}</h2>{_CHART}</section></div></article>"""

_ACTS = {"pause": "pause", "go-on": "resume", "stop": "stop"}   # button → command for the training process


def build(demo: gr.Blocks, home: Home) -> None:
    """Place the page: the list, or with ``?run=ID`` that run."""
    with gr.Column(visible=False) as all_runs:
        heading(words.JOBS_TITLE, words.JOBS_LEAD)
        runs = panel(_LIST, [], elem_id="runs")
    with gr.Column(visible=False) as one_run:
        live = panel(_RUN, {}, elem_id="run")
        with gr.Row(elem_classes="sheet try", visible=False) as ask:
            prompt = gr.Textbox(label=words.TRY_PROMPT, placeholder=words.TRY_HINT, max_length=400, elem_id="try", scale=5)
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
        gone = {"state": "failed", "say": words.STATES["failed"], "message": str(error), "name": words.GONE,
                "chart": {"empty": True}}   # fmt: skip
        return [gr.Column(visible=False), gr.skip(), gr.Column(visible=True), gone, gr.Row(visible=False)]
    asking = run.state in ("training", "paused")
    return [gr.Column(visible=False), gr.skip(), gr.Column(visible=True), _live(home, run, look), gr.Row(visible=asking)]


def _row(home: Home, run: RunStatus) -> dict[str, Any]:
    return {
        "href": address("jobs", run=run.id), "name": run.name, "state": run.state, "say": words.STATES[run.state],
        "percent": percent(run), "about": words.run_about(run.step, run.of, _moment(run)),
        "picture": _preview(home, run, run.previews[-1][2]) if run.previews else "",
    }   # fmt: skip


def _live(home: Home, run: RunStatus, look: str) -> dict[str, Any]:
    config = find_run(home, run.id).config()
    strip = [
        {"id": path, "src": _preview(home, run, path), "step": step, "prompt": prompt,
         "say": words.preview(step, prompt)}   # fmt: skip
        for step, prompt, path in run.previews
    ]
    large = next((preview for preview in strip if preview["id"] == look), strip[-1] if strip else {})
    state = run.state
    return {
        "name": run.name, "state": state, "say": words.STATES[state], "step": run.step, "of": run.of,
        "message": run.message, "percent": percent(run), "warnings": run.warnings,
        "left": words.left(run.seconds_left) if run.seconds_left is not None else "",
        "about": words.recipe(KINDS[config.kind].title, config.subject, _moment(run)),
        "pause": state == "training", "go_on": state == "paused", "stop": state in ("training", "paused"),
        "cancel": not run.over, "resume": state in ("interrupted", "failed", "stopped"),
        "open": address("studio", adapter=run.name) if state == "done" else "",
        "large": large, "strip": [{**preview, "chosen": str(preview is large).lower()} for preview in strip],
        "chart": loss_chart(run.losses, run.validation, run.best_step, run.of), "best": run.best_step,
        "chart_say": words.chart(run.losses[-1][1] if run.losses else 0.0, run.step),
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
            find_run(home, chosen).command(_ACTS[act])
    return look


def _try(home: Home, chosen: str, prompt: str) -> str:
    with plainly():
        if not prompt.strip():
            raise ValueError(words.NO_PROMPT)
        find_run(home, chosen).command("preview", prompt.strip())
    gr.Info(words.TRYING)
    return ""

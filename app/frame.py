"""What every page has around it: the name, the way to the other pages, the theme switch and the job bar."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from atelier.training.runs import RunStatus

from . import words
from .home import Home
from .icons import MARK, PATHS, icon
from .jobs import list_runs
from .panel import panel

PAGES = ("create", "studio", "library", "gallery", "jobs", "settings")
POLL: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
RECENT_SECONDS = 600.0

_TOP = f"""<header class="top"><a class="skip" href="#content">{words.SKIP}</a>
<a class="brand" href="/" aria-label="{words.TO_START}"><svg class="mark" viewBox="0 0 24 24" aria-hidden="true">
<path d="{MARK}"/></svg><span>Atelier</span></a>
<nav aria-label="{words.PAGES}">{{{{#each value.pages}}}}<a href="{{{{this.href}}}}"
 {{{{#if this.here}}}}aria-current="page"{{{{/if}}}}><svg class="icon" viewBox="0 0 24 24" aria-hidden="true">
<path d="{{{{this.icon}}}}"/></svg><span>{{{{this.title}}}}</span></a>{{{{/each}}}}</nav>
<button type="button" class="theme" aria-label="{words.THEME}" title="{words.THEME}">{icon("theme")}</button></header>"""
# The choice is kept by the browser; Gradio itself follows the system's theme, and an explicit ?__theme= wins.
_TOP_SCRIPT = """
document.title = props.value.title + ' · Atelier';
document.documentElement.lang = 'en';
const asked = new URLSearchParams(location.search).get('__theme');
const kept = asked || localStorage.getItem('atelier-theme');
if (kept) document.body.classList.toggle('dark', kept === 'dark');
element.querySelector('.theme').addEventListener('click', () => {
  const dark = document.body.classList.toggle('dark');
  localStorage.setItem('atelier-theme', dark ? 'dark' : 'light');
});"""

_JOB = """{{#if value.name}}<a class="job job-{{value.state}}" href="{{value.href}}">
<span class="dot" aria-hidden="true"></span><b>{{value.name}}</b><span class="job-say">{{value.say}}</span>
<span class="job-left">{{value.left}}</span>
<span class="job-bar" aria-hidden="true"><i style="width:{{value.percent}}%"></i></span></a>{{/if}}
<span class="hear" role="status" aria-live="polite">{{value.news}}</span>"""


def frame(home: Home, here: str) -> None:
    """Put the frame at the head of the page that is being built."""
    pages = [{"href": address(name), "title": words.TITLES[name], "icon": PATHS[name], "here": name == here}
             for name in PAGES]
    with gr.Row(elem_id="frame"):
        panel(_TOP, {"pages": pages, "title": words.TITLES[here]}, script=_TOP_SCRIPT, elem_id="top")
        bar = panel(_JOB, job_bar(home), elem_id="jobbar")
    timer = gr.Timer(2.0)
    timer.tick(lambda: job_bar(home), None, bar, **POLL)


def address(page: str, **query: str) -> str:
    """Path of a page, with a query."""
    path = "/" if page == "create" else f"/{page}"
    return path + ("?" + "&".join(f"{key}={quote(value)}" for key, value in query.items()) if query else "")


def file_address(path: Path) -> str:
    """Address of a file of the home that pages may show; it changes when the file does."""
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        changed = 0
    return f"/gradio_api/file={quote(str(path))}?{changed}"


def job_bar(home: Home) -> dict[str, Any]:
    """What the job bar shows: the run at work, else one that ended well a moment ago, else nothing."""
    runs = list_runs(home)
    at_work = [run for run in runs if not run.over]
    fresh = [run for run in runs if run.state == "done" and time.time() - run.started - run.seconds < RECENT_SECONDS]
    if not at_work and not fresh:
        return {"name": "", "news": ""}
    return _job(at_work[-1] if at_work else fresh[0])


def _job(run: RunStatus) -> dict[str, Any]:
    left = words.left(run.seconds_left) if run.seconds_left is not None else ""
    done = run.state == "done"
    return {
        "name": run.name, "state": run.state, "left": left, "percent": percent(run),
        "say": words.READY if done else f"{words.STATES[run.state]} {percent(run)}%" if run.step else words.STATES[run.state],
        "href": address("studio", adapter=run.name) if done else address("jobs", run=run.id),
        "news": f"{run.name}: {words.STATES[run.state]}",
    }


def percent(run: RunStatus) -> int:
    """How much of a run is done, in whole per cent."""
    return 100 if run.state == "done" else 100 * run.step // max(1, run.of)


_HEADING = """<div class="heading"><h1>{{value.title}}</h1><p>{{value.lead}}</p></div>"""


def heading(title: str, lead: str) -> None:
    """Place a page's title and the one sentence under it."""
    panel(_HEADING, {"title": title, "lead": lead}, elem_id="content")


@contextmanager
def plainly() -> Iterator[None]:
    """Show what went wrong as one sentence in the page, instead of a trace in the log.

    Atelier's own errors are ValueErrors written for people; the operating system's are passed on in its own words.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(words.sorry(error), title=words.SORRY, print_exception=False) from error

"""What every page has around it: the name, the way to the other pages, the theme switch and the job bar."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from atelier.app.jobs.jobs import list_runs
from atelier.app.store.home import Home, HomeError
from atelier.app.text import shared
from atelier.app.web.components.icons import PATHS
from atelier.app.web.components.panel import panel
from atelier.app.web.components.urls import address
from atelier.training.config.run_folder import RunStatus

PAGES = ("create", "studio", "mix", "compress", "library", "gallery", "jobs", "settings")
POLL: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
RECENT_SECONDS = 600.0
UNDER = {"fusion": "mix"}   # pages that are reached through another


def frame(demo: gr.Blocks, home: Home, here: str) -> None:
    """Put the frame at the head of the page that is being built."""
    lit = UNDER.get(here, here)
    pages = [{"href": address(name), "title": shared.TITLES[name], "icon": PATHS[name], "here": name == lit}
             for name in PAGES]
    with gr.Row(elem_id="frame"):
        panel("top", {"pages": pages, "title": shared.TITLES[here]})
        bar = panel("job-bar", {})
    timer = gr.Timer(2.0)
    gr.on([demo.load, timer.tick], lambda: job_bar(home), None, bar, **POLL)


def job_bar(home: Home) -> dict[str, Any]:
    """What the job bar shows: the run at work, else one that ended well a moment ago, else nothing."""
    try:
        runs = list_runs(home)
    except HomeError:
        return {"name": "", "news": ""}   # the Jobs page says what is wrong
    at_work = [run for run in runs if not run.is_over]
    fresh = [run for run in runs if run.state == "done" and time.time() - run.started - run.seconds < RECENT_SECONDS]
    if not at_work and not fresh:
        return {"name": "", "news": ""}
    return _job(at_work[-1] if at_work else fresh[0])


def _job(run: RunStatus) -> dict[str, Any]:
    left = shared.time_left(run.seconds_left) if run.seconds_left is not None else ""
    done = run.state == "done"
    return {
        "name": run.name, "state": run.state, "left": left, "percent": percent(run),
        "say": shared.READY if done else shared.state_and_percent(shared.STATES[run.state], percent(run)),
        "href": run_address(run, done=done),
        "news": f"{run.name}: {shared.STATES[run.state]}",
    }


def run_address(run: RunStatus, *, done: bool = False) -> str:
    """Where a run is shown; a training that is done leads to drawing with it."""
    if run.compression:
        return address("compress", run=run.id)
    return address("studio", adapter=run.name) if done else address("jobs", run=run.id)


def percent(run: RunStatus) -> int:
    """How much of a run is done, in whole per cent."""
    return 100 if run.state == "done" else 100 * run.step // max(1, run.total_steps)


def heading(title: str, lead: str) -> None:
    """Place a page's title and the one sentence under it."""
    panel("heading", {"title": title, "lead": lead}, elem_id="content")


def mix_tabs(here: str) -> None:
    """Place the way between the two halves of the Mix Lab."""
    pages = [{"href": address(name), "title": shared.MIX_TABS[name], "here": name == here} for name in shared.MIX_TABS]
    panel("tabs", pages)


@contextmanager
def plainly() -> Iterator[None]:
    """Show what went wrong as one sentence in the page, instead of a trace in the log.

    Atelier's own errors are ValueErrors written for people; the operating system's are passed on in its own words.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(shared.error_message(error), print_exception=False) from error

"""What every page has around it: the header with the navigation and the theme switch, and the job bar."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from atelier.app.jobs.jobs import list_runs
from atelier.app.store.home import Home, HomeError, os_error_text
from atelier.app.text import shared
from atelier.app.web.components.icons import PATHS
from atelier.app.web.components.panel import panel
from atelier.app.web.components.urls import page_url
from atelier.training.config.run_folder import RunStatus

PAGES = ("create", "studio", "mix", "compress", "library", "gallery", "jobs", "settings")
UNQUEUED: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
RECENT_SECONDS = 600.0
WATCHED_RUNS = 20
PARENT_PAGES = {"grid": "studio"}   # pages that are reached through another


def add_frame(demo: gr.Blocks, home: Home, here: str) -> None:
    """Add the header and the job bar at the top of the page that is being built."""
    current = PARENT_PAGES.get(here, here)
    pages = [{"href": page_url(name), "title": shared.TITLES[name], "icon": PATHS[name], "current": name == current}
             for name in PAGES]
    with gr.Row(elem_id="page-frame"):
        panel("page-header", {"pages": pages, "title": shared.TITLES[here]})
        bar = panel("job-bar", {})
    timer = gr.Timer(2.0)
    gr.on([demo.load, timer.tick], lambda: job_bar(home), None, bar, **UNQUEUED)


def job_bar(home: Home) -> dict[str, Any]:
    """What the job bar shows: the running job, else one that was completed recently, else nothing."""
    try:
        runs = list_runs(home)
    except HomeError:
        return {"name": "", "announcement": ""}   # the Jobs page says what is wrong
    running = [run for run in runs if not run.is_over]
    recent = [run for run in runs if run.state == "done" and time.time() - run.started - run.seconds < RECENT_SECONDS]
    # For notifications: a page tells of each run that it has seen at work.
    watched = {"active": [run.id for run in running],
               "over": [{"id": run.id, "text": shared.job_ended(run.name, run.state)}
                        for run in runs[:WATCHED_RUNS] if run.is_over]}   # fmt: skip
    if not running and not recent:
        return {"name": "", "announcement": "", **watched}
    return {**_job(running[-1] if running else recent[0]), **watched}


def _job(run: RunStatus) -> dict[str, Any]:
    left = shared.time_left(run.seconds_left) if run.seconds_left is not None else ""
    done = run.state == "done"
    return {
        "name": run.name, "state": run.state, "time_left": left, "percent": percent(run),
        "label": shared.READY if done else shared.state_and_percent(shared.STATES[run.state], percent(run)),
        "href": run_url(run, done=done),
        "announcement": f"{run.name}: {shared.STATES[run.state]}",
        "title": "" if run.is_over else shared.window_title(run.name, percent(run)),
    }


def run_url(run: RunStatus, *, done: bool = False) -> str:
    """The page of a run; with ``done``, a training leads to drawing with its adapter."""
    if run.compression:
        return page_url("compress", run=run.id)
    return page_url("studio", adapter=run.name) if done else page_url("jobs", run=run.id)


def percent(run: RunStatus) -> int:
    """Progress of a run in whole per cent."""
    return 100 if run.state == "done" else 100 * run.step // max(1, run.total_steps)


def heading(title: str, lead: str) -> None:
    """Place a page's title and the sentence below it."""
    panel("heading", {"title": title, "lead": lead}, elem_id="content")


def press_when_shown(elem_id: str, tries: int = 100) -> str:
    """A script that presses a button as soon as it is there: that of a new file may take a moment to appear.

    It looks ten times a second, and gives up after so many tries.
    """
    return """() => {
  const press = (tries) => {
    const button = document.querySelector("#ID");
    if (button && button.offsetParent) button.click();
    else if (tries) setTimeout(() => press(tries - 1), 100);
  };
  setTimeout(() => press(TRIES), 300);
}""".replace("ID", elem_id).replace("TRIES", str(tries))


def inform(text: str) -> None:
    """Show a sentence at the edge of the page; names in it may come from strangers."""
    gr.Info(shared.error_message(text))


def warn(text: str) -> None:
    """Show what could not be done at the edge of the page."""
    gr.Warning(shared.error_message(text))


@contextmanager
def show_errors(as_page: bool = True) -> Iterator[None]:
    """Show an error as one sentence on the page, instead of a traceback in the log.

    Atelier's own errors are ValueErrors written for people; the operating system's become sentences. A page would read
    angle brackets as HTML; a script, with ``as_page`` False, gets the sentence as it is.
    """
    show = shared.error_message if as_page else str
    try:
        yield
    except OSError as error:
        raise gr.Error(show(os_error_text(error)), print_exception=False) from error
    except ValueError as error:
        raise gr.Error(show(error), print_exception=False) from error

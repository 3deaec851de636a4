"""Grid: a picture drawn again while settings change, cells to press, votes on them, and a picture with labels."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import gradio as gr

from atelier.app.jobs.grid_jobs import GridJob, cancel_grid, submit_grid
from atelier.app.services.grid import MAX_AXES, Cell, Grid, list_grids, new_grid, parse_axis, read_grid, vote
from atelier.app.services.grid_picture import cell_rows, write_labelled_picture
from atelier.app.services.grid_progress import grid_progress
from atelier.app.services.grid_ranking import next_pair, rank_cells, rank_values
from atelier.app.store.gallery import find_picture, read_recipe
from atelier.app.store.gallery_index import recipe_adapters
from atelier.app.store.home import Home, HomeError, time_of_id
from atelier.app.text import grid as words
from atelier.app.text import shared
from atelier.app.web.components.page_frame import UNQUEUED, heading, press_when_shown, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.app.web.components.uploads import offer
from atelier.app.web.components.urls import file_url, page_url

MAX_LISTED = 30
ABOUT_ADAPTERS = ("strength", "checkpoint", "block")   # axes that ask whose
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def build(demo: gr.Blocks, home: Home) -> None:
    """Place the Grid page: ``?picture=ID`` plans a grid around a picture, ``?grid=ID`` shows one."""
    heading(words.TITLE, words.LEAD)
    with gr.Column(visible=False, elem_classes="surface") as plan:
        source = panel("grid-source", {})
        axes = [each for number in range(MAX_AXES) for each in _axis(number)]
        start = gr.Button(words.START, variant="primary", elem_id="start-grid")
    shown = panel("grid-cells", {})
    with gr.Column(visible=False, elem_classes="surface") as votes:
        pair = panel("grid-votes", {})
    listed = panel("grid-list", {})
    labelled = gr.DownloadButton(shared.DOWNLOAD, visible=False, elem_id="labelled-grid")
    picture, grid, showing = gr.Textbox(visible=False), gr.Textbox(visible=False), gr.State("")
    events = _Events(home)
    timer = gr.Timer(1.0)

    state = [shown, votes, pair, showing]
    opened = [picture, grid, plan, source, *(axis for axis in axes[2::3]), listed, *state]
    demo.load(events.on_load, None, opened, **UNQUEUED)
    begun = start.click(events.start, [picture, *axes], grid, **_QUIET)
    begun.success(None, grid, None, js=f"id => {{ location.href = '{page_url('grid')}?grid=' + id }}")
    timer.tick(events.refresh, [grid, showing], state, **UNQUEUED)
    acted = shown.action(events.act, grid, [*state, labelled], **_QUIET)
    acted.success(None, None, None, js=press_when_shown("labelled-grid", tries=8))
    pair.action(events.vote, grid, state, **UNQUEUED)


def _axis(number: int) -> list[Any]:
    """The controls of one axis: what changes, its values, and whose."""
    with gr.Row(elem_classes="grid-axis"):
        kind = gr.Dropdown([(words.NOTHING, ""), *((title, key) for key, title in words.KINDS.items())],
                           value="strength" if number == 0 else "", label=words.AXES[number], scale=2, min_width=160,
                           interactive=True, elem_id=f"axis-{number}")   # fmt: skip
        values = gr.Textbox(label=words.VALUES, placeholder=words.VALUES_HINT["strength"] if number == 0 else "",
                            max_length=2000, scale=4, min_width=180, elem_id=f"values-{number}")   # fmt: skip
        whose = gr.Dropdown([(words.FIRST_ADAPTER, "")], value="", label=words.WHOSE, scale=2, min_width=140,
                            interactive=True, visible=number == 0, elem_id=f"whose-{number}")   # fmt: skip
    kind.change(lambda chosen: [gr.Textbox(placeholder=words.VALUES_HINT.get(chosen, "")),
                                gr.Dropdown(visible=chosen in ABOUT_ADAPTERS)], kind, [values, whose], **UNQUEUED)
    return [kind, values, whose]


@dataclass(frozen=True, slots=True)
class _Events:
    """Event handlers of the page."""

    home: Home

    def on_load(self, request: gr.Request) -> list[Any]:
        """Plan a grid around the picture in the address, or show the grid in it; else list those there are."""
        picture, id = (request.query_params.get(key, "") for key in ("picture", "grid"))
        source = self._source(picture)
        whose = gr.update(choices=[(words.FIRST_ADAPTER, ""), *((name, name) for name in source.get("adapters", ()))])
        listed = {"grids": [] if source or id else [self._row(grid) for grid in list_grids(self.home)[:MAX_LISTED]],
                  "empty": not source and not id}   # fmt: skip
        return [picture, id, gr.Column(visible=bool(source)), source, *[whose] * MAX_AXES, listed, *self._state(id)]

    def start(self, picture: str, *values: Any) -> str:
        """Make the grid that is planned and begin to draw it; returns its id."""
        with show_errors():
            axes = [parse_axis(kind, text or "", whose or "") for kind, text, whose in
                    zip(values[::3], values[1::3], values[2::3], strict=True) if kind]   # fmt: skip
            grid = new_grid(self.home, picture, axes)
            submit_grid(self.home, grid.id)
        return grid.id

    def refresh(self, id: str, showing: str) -> list[Any]:
        """Show new cells; nothing where there are none."""
        state = self._state(id)
        return [gr.skip()] * len(state) if state[-1] == showing else state

    def act(self, event: gr.EventData, id: str) -> list[Any]:
        """A pressed button of the grid."""
        action, _ = action_of(event)
        file: Any = gr.DownloadButton(visible=False)
        with show_errors():
            if action == "stop":
                cancel_grid(self.home, read_grid(self.home, id).id)
            elif action == "continue":
                submit_grid(self.home, read_grid(self.home, id).id)
            elif action == "download":
                labelled = write_labelled_picture(self.home, read_grid(self.home, id))
                file = gr.DownloadButton(value=offer(labelled), visible=True)
        return [*self._state(id), file]

    def vote(self, event: gr.EventData, id: str) -> list[Any]:
        """The better of two cells, as ``better:worse``; or another pair."""
        action, text = action_of(event)
        better, _, worse = text.partition(":")
        with show_errors():
            if action == "better" and better.isdecimal() and worse.isdecimal():
                vote(self.home, id, int(better), int(worse))
        return self._state(id)

    def _state(self, id: str) -> list[Any]:
        """The cells, the next pair to vote on, and what tells whether they have changed."""
        try:
            grid = read_grid(self.home, id) if id else None
        except HomeError as error:
            return [{"problem": str(error)}, gr.Column(visible=False), {}, str(error)]
        if grid is None:
            return [{}, gr.Column(visible=False), {}, ""]
        job, done, _ = grid_progress(self.home, grid)
        return [self._cells(grid, job, done), gr.Column(visible=done > 1), self._votes(grid),
                f"{id} {done} {job.state} {job.message} {len(grid.votes)}"]   # fmt: skip

    def _cells(self, grid: Grid, job: GridJob, done: int) -> dict[str, Any]:
        return {
            "across": list(grid.axes[0].values), "down": words.KINDS[grid.axes[1].kind] if len(grid.axes) > 1 else "",
            "title": " × ".join(words.KINDS[axis.kind] for axis in grid.axes), "prompt": grid.recipe.get("prompt", ""),
            "progress": words.progress(done, len(grid.cells), job.message), "percent": 100 * done // len(grid.cells),
            "running": not job.is_over, "failed": job.state == "failed", "complete": grid.is_complete,
            "rows": [{"block": block, "name": label, "cells": [self._cell(cell) for cell in cells]}
                     for block, label, cells in cell_rows(grid)],
        }   # fmt: skip

    def _cell(self, cell: Cell) -> dict[str, str]:
        try:
            path = find_picture(self.home, cell.picture).path if cell.picture else None
        except HomeError:   # deleted since
            path = None
        return {"src": file_url(path) if path else "", "label": " · ".join(cell.values), "problem": cell.problem,
                "use": page_url("studio", picture=cell.picture) if path else ""}   # fmt: skip

    def _votes(self, grid: Grid) -> dict[str, Any]:
        two = next_pair(grid, random.Random())
        ranked = [{"name": each.name, "score": words.score(each.wins, each.votes), "width": f"{100 * each.score:.0f}"}
                  for _, each in rank_cells(grid)[:8]]   # fmt: skip
        values = [{"title": words.KINDS[axis.kind], "rows": [
            {"name": each.name, "score": words.score(each.wins, each.votes), "width": f"{100 * each.score:.0f}"}
            for each in rank_values(grid, number)]} for number, axis in enumerate(grid.axes) if grid.votes]
        pair = [{**self._cell(grid.cells[number]), "vote": f"{number}:{other}"}
                for number, other in (two, two[::-1])] if two else []   # fmt: skip
        return {"pair": pair, "ranked": ranked, "values": values}

    def _source(self, picture: str) -> dict[str, Any]:
        try:
            path = find_picture(self.home, picture).path if picture else None
        except HomeError:
            return {}
        recipe = (read_recipe(path) or {}) if path else {}
        return {"src": file_url(path), "prompt": str(recipe.get("prompt", "")),
                "adapters": recipe_adapters(recipe)} if path else {}   # fmt: skip

    def _row(self, grid: Grid) -> dict[str, str]:
        created = time_of_id(grid.id)
        drawn = [cell for cell in grid.cells if cell.picture]
        return {"href": page_url("grid", grid=grid.id), "name": str(grid.recipe.get("prompt", "")) or grid.id,
                "about": " × ".join(words.KINDS[axis.kind] for axis in grid.axes),
                "date": shared.date_and_time(created.astimezone()) if created else "",
                "picture": self._cell(drawn[0])["src"] if drawn else ""}   # fmt: skip

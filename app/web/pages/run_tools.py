"""The part of the Jobs page for a run that is over: compare its saved steps, keep another, measure the adapter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import gradio as gr
import pandas as pd

from atelier.adapters.core.byte_size import format_bytes
from atelier.app.jobs.jobs import find_run
from atelier.app.services.engine import Engine
from atelier.app.services.finished_run import (
    draw_step_grid,
    find_step_files,
    keep_average,
    keep_smaller,
    keep_step,
    measure_sizes,
    measure_word_leaks,
    read_step_grid,
)
from atelier.app.store.home import Home, HomeError
from atelier.app.text import jobs as words
from atelier.app.text import shared
from atelier.app.web.components.page_frame import inform, press_when_shown, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.app.web.components.run_view import step_grid
from atelier.app.web.components.uploads import offer

_WAITING: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}


class RunToolControls(NamedTuple):
    """What a person presses and fills in."""

    prompt: gr.Textbox
    compare: gr.Button
    first: gr.Dropdown
    average: gr.Button
    sizes: gr.Button
    leaks: gr.Button
    log: gr.Button


class RunTools(NamedTuple):
    """The placed controls and panels."""

    home: Home
    engine: Engine
    controls: RunToolControls
    grid: Any
    sizes: Any
    curve: gr.LinePlot
    leaks: Any
    log_file: gr.DownloadButton

    @property
    def outputs(self) -> list[Any]:
        """What :meth:`show` fills."""
        return [self.grid, self.controls.first, self.sizes, self.curve, self.leaks]

    def show(self, run_id: str) -> list[Any]:
        """What a run has from earlier: the grid drawn last, and the steps that can be averaged."""
        try:
            grid, steps = read_step_grid(self.home, run_id), list(find_step_files(self.home, run_id))
        except HomeError:
            return [{}, gr.skip(), {}, gr.skip(), {}]
        first = gr.Dropdown(choices=steps, value=steps[len(steps) // 2] if steps else None)
        return [step_grid(self.home, run_id, grid), first, {}, gr.LinePlot(visible=False), {}]

    def listen(self, run_id: gr.Textbox) -> None:
        """Connect every control; ``run_id`` names the run."""
        controls = self.controls
        controls.compare.click(self._compare, [run_id, controls.prompt], self.grid, concurrency_id="draw", **_WAITING)
        controls.average.click(self._keep_average, [run_id, controls.first], None, **_WAITING)
        controls.sizes.click(self._measure_sizes, run_id, [self.sizes, self.curve], **_WAITING)
        controls.leaks.click(self._measure_leaks, run_id, self.leaks, **_WAITING)
        self.grid.action(self._on_action, run_id, None, **_WAITING)
        self.sizes.action(self._on_action, run_id, None, **_WAITING)
        offered = controls.log.click(self._offer_log, run_id, self.log_file, **_WAITING)
        offered.success(None, None, None, js=press_when_shown("log-file"))

    def _compare(self, run_id: str, prompt: str) -> Iterator[dict[str, Any]]:
        with show_errors():
            for grid in draw_step_grid(self.home, self.engine, run_id, prompt):
                yield step_grid(self.home, run_id, grid)

    def _keep_average(self, run_id: str, first: int | None) -> None:
        with show_errors():
            inform(words.kept(keep_average(self.home, run_id, int(first or 0)).name))

    def _on_action(self, event: gr.EventData, run_id: str) -> None:
        action, id = action_of(event)
        with show_errors():
            if action == "keep" and id.isdecimal():
                inform(words.kept(keep_step(self.home, run_id, int(id)).name))
            elif action == "smaller" and id.isdecimal():
                inform(words.kept(keep_smaller(self.home, run_id, int(id)).name))

    def _measure_sizes(self, run_id: str) -> tuple[dict[str, Any], gr.LinePlot]:
        from atelier.training.measures.rank_truncation import knee

        with show_errors():
            points = measure_sizes(self.home, self.engine, run_id)
        best = knee(points)
        rows = [{"rank": one.rank, "size": format_bytes(one.bytes), "error": words.error_share(one.error),
                 "knee": one is best, "tone": "chosen" if one is best else ""} for one in points]   # fmt: skip
        frame = pd.DataFrame({words.RANK: [one.rank for one in points], words.ERROR: [one.error for one in points]})
        return {"rows": rows}, gr.LinePlot(frame, visible=True)

    def _measure_leaks(self, run_id: str) -> dict[str, Any]:
        with show_errors():
            leaks = measure_word_leaks(self.home, self.engine, run_id)
        return {"rows": [
            {"word": leak.word, "share": words.leak_share(leak.share), "tone": "leak" if leak.leaks else "",
             "width": f"{min(100.0, max(0.0, 100 * leak.share)):.0f}"}
            for leak in leaks
        ]}   # fmt: skip

    def _offer_log(self, run_id: str) -> gr.DownloadButton:
        with show_errors():
            log = find_run(self.home, run_id).path / "log.txt"
            if not log.exists():
                raise HomeError(words.LOG_EMPTY)
            return gr.DownloadButton(value=offer(log), visible=True)


def build(demo: gr.Blocks, home: Home, engine: Engine) -> RunTools:   # noqa: ARG001 (as the pages are built)
    """Place the controls; they start to work when :meth:`RunTools.listen` is told where the run's id is."""
    panel("heading-small", {"title": words.AFTERWARDS, "hint": words.AFTERWARDS_HINT})
    with gr.Row(elem_classes="preview-form"):
        prompt = gr.Textbox(label=shared.PROMPT, placeholder=shared.PROMPT_HINT, max_length=400, scale=5,
                            elem_id="grid-prompt")   # fmt: skip
        compare = gr.Button(words.COMPARE, elem_id="compare-steps", scale=1)
    grid = panel("step-grid", {})
    with gr.Row(elem_classes="preview-form"):
        first = gr.Dropdown([], label=words.AVERAGE_FROM, elem_id="average-from", interactive=True, scale=5)
        average = gr.Button(words.KEEP_AVERAGE, elem_id="keep-average", scale=1)
    with gr.Row(elem_classes="preview-form"):
        measure_size = gr.Button(words.MEASURE_SIZES, elem_id="measure-sizes")
        measure_leak = gr.Button(words.MEASURE_LEAKS, elem_id="measure-leaks")
        log = gr.Button(words.DOWNLOAD_LOG, elem_id="offer-log")
    log_file = gr.DownloadButton(shared.DOWNLOAD, visible=False, elem_id="log-file")
    sizes = panel("size-table", {})
    curve = gr.LinePlot(pd.DataFrame({words.RANK: [], words.ERROR: []}), x=words.RANK, y=words.ERROR, height=220,
                        visible=False, elem_id="size-curve")   # fmt: skip
    leaks = panel("word-leaks", {})
    controls = RunToolControls(prompt, compare, first, average, measure_size, measure_leak, log)
    return RunTools(home, engine, controls, grid, sizes, curve, leaks, log_file)

"""Studio: a prompt, adapters with a slider each, and the pictures they give."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gradio as gr

from atelier.app.services.draw import (
    DrawCancelledError,
    DrawPreview,
    Progress,
    draw_preview,
    draw_to_gallery,
)
from atelier.app.services.engine import Engine
from atelier.app.services.studio.wanted_drawings import WantedDrawings
from atelier.app.store.gallery import erase_picture, find_picture
from atelier.app.store.home import Home, HomeError
from atelier.app.store.models import base_choices
from atelier.app.text import shared
from atelier.app.text import studio as words
from atelier.app.web.components.page_frame import UNQUEUED, heading, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.app.web.components.settings_form import controls
from atelier.app.web.pages.studio_adapters import (
    MAX_ADAPTERS,
    adapter_names,
    add_typed_adapters,
    toggle_adapter,
)
from atelier.app.web.pages.studio_details import (
    Entries,
    Regions,
    block_tiles,
    details_of,
    edit_details,
    edit_regions,
    place_details,
    place_memory_line,
    show_details,
    side_by_side,
)
from atelier.app.web.pages.studio_picker import adapter_picker
from atelier.app.web.pages.studio_pictures import (
    Comparison,
    busy,
    idle,
    notice_panel,
    place_comparison,
    preview_grid,
    result_grid,
)
from atelier.app.web.pages.studio_prompt import PromptField, place_prompt
from atelier.app.web.pages.studio_settings import (
    Drawn,
    draw_job,
    fill_from_address,
    fill_from_picture,
    random_seed,
)
from atelier.app.web.pages.studio_start import place_start, start_picture
from atelier.training.config.train_config import EMBEDDED
from atelier.training.sampling.sample import DrawRequest
from atelier.training.sampling.start_picture import StartPicture

_OUTPUTS = 4        # of a drawing: progress, pictures, seed, what is drawn
_NO_PROGRESS: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 4}


def build(demo: gr.Blocks, home: Home, engine: Engine) -> None:
    """Place the Studio page; ``engine`` draws, and the pictures go to the gallery of ``home``."""
    heading(words.TITLE, words.LEAD)
    with gr.Row(elem_classes="layout layout-studio"):
        with gr.Column(scale=5, elem_classes="surface"):
            c, prompt, picker, trigger_words, draw, new_seed = _controls(home)
            place_memory_line(demo, engine, c)
            details = place_details()
            start = place_start()
            dropped = gr.File(file_types=["image"], label=words.OPEN, elem_id="open-picture",
                              elem_classes="drop-zone", height=110)   # fmt: skip
        with gr.Column(scale=7, elem_classes="output"):
            progress = panel("draw-progress", idle())
            results = panel("drawn-pictures", result_grid([]))
            comparison = place_comparison()
            tiles = panel("block-tiles", {})
    drawn, draw_on_load, started = gr.State(Drawn()), gr.Textbox(visible=False), gr.State(None)
    names = list(c)
    inputs, outputs = list(c.values()), [progress, results, c["seed"], drawn]
    sliders = [c[key] for key in names if key.startswith("strength")]
    events = _Events(home, engine, names)

    taken_over = [*inputs, picker, trigger_words, progress, dropped, *start, started]
    dropped.upload(events.open_picture, dropped, taken_over, show_progress="hidden", api_visibility="private")
    opened = [*inputs, picker, trigger_words, results, progress, drawn, draw_on_load, *start, started]
    first = demo.load(events.on_load, None, opened, **UNQUEUED)
    first.then(events.draw_on_opening, [draw_on_load, *inputs, drawn], outputs, **_NO_PROGRESS)
    # An editor sends three pictures whenever it is read, so a moving slider starts from what was last taken from it.
    gr.on([draw.click, c["prompt"].submit], start_picture, start, started, **_NO_PROGRESS).success(
        events.draw_now, [*inputs, drawn, started], outputs, trigger_mode="multiple", **_NO_PROGRESS)   # after Stop too
    # Not its change: it would then send itself in a way that the server does not take.
    given: dict[str, Any] = {"trigger_mode": "always_last", **UNQUEUED}
    gr.on([start[0].upload, start[0].clear, start[1].change], start_picture, start, started, **given)
    live = {"inputs": [*inputs, drawn, started], "outputs": outputs, "trigger_mode": "always_last", **_NO_PROGRESS}
    changed = [c["prompt"], c["base"], c["names"], *sliders, picker, trigger_words]
    _listen_live(events, c, live, [*details, tiles], picker.action(events.toggle, inputs, changed, **UNQUEUED))
    tiles.action(events.view_blocks, inputs, [progress, tiles], **_NO_PROGRESS)
    c["prompt"].blur(events.add_typed, inputs, changed, **UNQUEUED)
    prompt.listen(c["base"], c["seed"], c["prompt_syntax"])
    gr.on([draw.click, c["prompt"].submit], prompt.remember, c["prompt"], prompt.recent, **UNQUEUED)
    demo.load(prompt.offer, None, prompt.recent, **UNQUEUED)
    c["search"].change(events.find, inputs, picker, trigger_mode="always_last", **UNQUEUED)
    progress.action(events.stop, None, progress, **UNQUEUED)
    trigger_words.action(_add_trigger_word, c["prompt"], c["prompt"], **UNQUEUED)
    new_seed.click(random_seed, None, c["seed"], **UNQUEUED)
    c["base"].change(lambda base: base == EMBEDDED, c["base"], c["live"], **UNQUEUED)
    Comparison(home, engine, comparison).listen(results, drawn, start[0], started)


def _listen_live(events: _Events, c: dict[str, Any], live: dict[str, Any], panels: list[Any], toggled: Any) -> None:
    """Draw anew when a slider moves, when an adapter is added or removed, and when its details change."""
    sliders = [component for key, component in c.items() if key.startswith("strength")]
    inputs = [c["live"], c["details"], c["regions"], *sliders]
    wanted: dict[str, Any] = {"fn": events.want, "inputs": inputs, **UNQUEUED}
    for slider in sliders:
        # A drawing is abandoned for a newer value only if that comes by a way of its own.
        slider.input(**wanted, trigger_mode="multiple")
        slider.input(events.draw_live, **live)
    *editors, _ = panels
    shown = [c["names"], c["details"], c["regions"]]
    for each in editors:
        placed = [c["prompt"], c["width"], c["height"]]
        edited = each.action(events.edit_details, [*shown, c["base"], c["prompt"]], [*shown[1:], *placed], **UNQUEUED)
        # The browser does not hear of a changed State from an event that is not queued.
        edited.success(events.show_details, shown, panels, **UNQUEUED)
        edited.success(**wanted).then(events.draw_live, **live)
    toggled.success(**wanted).then(events.draw_live, **live)
    gr.on([each.change for each in shown], events.show_details, shown, panels, **UNQUEUED)


@dataclass(frozen=True, slots=True)
class _Events:
    """Event handlers of the page; their ``values`` are those of the controls ``names``, in their order."""

    home: Home
    engine: Engine
    names: list[str]
    wanted: WantedDrawings = field(default_factory=WantedDrawings)

    def draw_now(self, request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        """Draw and add to the gallery."""
        *given, drawn, start = values
        yield from self._draw(request, self._settings(given), drawn, start=start)

    def draw_live(self, request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        """Draw one small picture while a slider moves, and the whole set when it rests; they replace the last set."""
        *given, drawn, start = values
        settings, page = self._settings(given), str(request.session_hash)
        # Gradio empties what a generator is to fill when it yields nothing at all.
        yield [gr.skip()] * _OUTPUTS
        sliders = (settings[key] for key in self.names if key.startswith("strength"))
        strengths = (settings["details"], settings["regions"], *sliders)
        if not (settings["live"] and settings["prompt"].strip() and self.wanted.wants_soon(page, strengths)):
            return
        settings["keep_seed"] = True
        is_wanted = partial(self.wanted.wants, page, strengths)
        with show_errors():
            job = draw_job(settings, start)
            try:
                picture = draw_preview(self.home, self.engine, job, is_wanted)
            except DrawCancelledError:
                return
        yield [gr.skip(), preview_grid([picture], job.request), gr.skip(), gr.skip()]
        if self.wanted.rests(page, strengths):
            for shown in _draw(self.home, self.engine, settings, drawn, is_wanted=is_wanted, start=start, live=True):
                if isinstance(shown[-1], Drawn):   # another may have ended since this one began
                    for id in self.wanted.live_pictures(page):
                        erase_picture(self.home, id)
                    self.wanted.keep_live(page, shown[-1].ids)
                yield shown

    def draw_on_opening(self, request: gr.Request, wanted: str, *values: Any) -> Iterator[list[Any]]:
        """Draw at once where the page's address asks for it."""
        *given, drawn = values
        yield [gr.skip()] * _OUTPUTS
        if wanted:
            yield from self._draw(request, {**self._settings(given), "keep_seed": True}, drawn)

    def _draw(
        self, request: gr.Request, settings: dict[str, Any], drawn: Drawn, start: StartPicture | None = None
    ) -> Iterator[list[Any]]:
        page, this = str(request.session_hash), secrets.token_hex(8)
        self.wanted.want(page, this)
        self.wanted.keep_live(page, ())   # a press replaces nothing
        is_wanted = partial(self.wanted.wants, page, this)
        yield from _draw(self.home, self.engine, settings, Drawn(drawn.ids), is_wanted=is_wanted, start=start)

    def want(self, request: gr.Request, live: bool, details: Entries, regions: Regions, *strengths: float) -> None:
        """Note what the sliders say now: a drawing of anything else is abandoned."""
        if live:
            self.wanted.want(str(request.session_hash), (details, regions, *strengths))

    def edit_details(
        self, event: gr.EventData, names: str, details: Entries, regions: Regions, base: str, prompt: str
    ) -> list[Any]:
        """Change how an adapter acts in a block, at a step or in a region, or what is drawn in a region."""
        action, text = action_of(event)
        entries = details_of(adapter_names(names), details)
        with show_errors():
            if action == "side-by-side":
                return [*side_by_side(self.home, entries, base, prompt)]
            return [edit_details(entries, action, text), edit_regions(regions, action, text), *[gr.skip()] * 3]

    def show_details(self, names: str, details: Entries, regions: Regions) -> list[Any]:
        """The panels of the adapters in use, and of the regions."""
        return show_details(self.home, details_of(adapter_names(names), details), regions)

    def view_blocks(self, request: gr.Request, event: gr.EventData, *values: Any) -> Iterator[list[Any]]:
        """Draw what each block does, until the page asks for something else."""
        page, this = str(request.session_hash), secrets.token_hex(8)
        self.wanted.want(page, this)
        with show_errors():
            job = draw_job(self._settings(values))
        yield [busy(0, 0), gr.skip()]
        try:
            for tiles in block_tiles(self.home, self.engine, job, event, partial(self.wanted.wants, page, this)):
                yield [gr.skip(), tiles]
        except Exception:   # whatever happened, the page must not stay busy
            yield [idle(), gr.skip()]
            raise
        if self.wanted.wants(page, this):
            yield [idle(), gr.skip()]

    def stop(self, request: gr.Request) -> dict[str, Any]:
        """Abandon what is being drawn for this page."""
        self.wanted.stop(str(request.session_hash))
        return notice_panel(words.STOPPED)

    def toggle(self, event: gr.EventData, *values: Any) -> list[Any]:
        """Add the pressed adapter to the drawing, or remove it."""
        return toggle_adapter(self.home, self._settings(values), action_of(event)[1])

    def add_typed(self, *values: Any) -> list[Any]:
        """Give the adapters in the prompt's text sliders."""
        return add_typed_adapters(self.home, self._settings(values))

    def find(self, *values: Any) -> dict[str, Any]:
        """Show the adapters that fit the search."""
        settings = self._settings(values)
        return adapter_picker(self.home, adapter_names(settings["names"]), settings["search"] or "")

    def open_picture(self, path: str | None) -> list[Any]:
        """Take over the settings of a picture that was dropped."""
        return fill_from_picture(self.home, self.names, path)

    def on_load(self, request: gr.Request) -> list[Any]:
        """Fill the controls from the page's address."""
        return fill_from_address(self.home, self.names, dict(request.query_params))

    def _settings(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.names, values, strict=True))


def _add_trigger_word(event: gr.EventData, prompt: str) -> str:
    """Append a pressed trigger word to the prompt."""
    return f"{prompt.rstrip()} {action_of(event)[1]}".strip()


def _controls(home: Home) -> tuple[dict[str, Any], PromptField, Any, Any, gr.Button, gr.Button]:
    """Everything that decides a picture, by name, and the buttons around it."""
    c: dict[str, Any] = {}
    field = place_prompt(home)
    c["prompt"] = field.prompt
    trigger_words = panel("trigger-words", [])
    c["search"] = gr.Textbox(label=words.ADAPTERS, placeholder=words.FIND_ADAPTER, max_length=100, max_lines=1,
                             elem_id="find-adapter")   # fmt: skip
    picker = panel("adapter-picker", {})
    c["names"], c["details"], c["regions"] = gr.Textbox(visible=False), gr.State(()), gr.State(())
    c["restored"] = gr.State(None)   # the drawing that the controls were filled from
    for i in range(MAX_ADAPTERS):
        c[f"strength{i}"] = gr.Slider(-1, 2, 1.0, step=0.05, visible=False, interactive=True, elem_id=f"strength-{i}",
                                      elem_classes="strength")   # fmt: skip
    with gr.Row(elem_classes="seed-row"):
        c["seed"] = gr.Number(0, label=shared.SEED, precision=0, minimum=0, maximum=2**31 - 1, elem_id="seed")
        new_seed = gr.Button(words.NEW_SEED, elem_id="new-seed", min_width=0)
        c["keep_seed"] = gr.Checkbox(False, label=words.KEEP_SEED, elem_id="keep-seed")
    c["count"] = gr.Slider(1, 8, 4, step=1, label=words.COUNT, elem_id="count")
    draw = gr.Button(words.DRAW, variant="primary", size="lg", elem_id="draw")
    c["live"] = gr.Checkbox(True, label=words.LIVE, elem_id="live")
    with gr.Accordion(words.MORE, open=False, elem_id="more"):
        c["base"] = gr.Dropdown(base_choices(home), value=EMBEDDED, label=shared.BASE_MODEL, allow_custom_value=True,
                                elem_id="base")   # fmt: skip
        with gr.Row(elem_classes="settings"):
            c |= controls(DrawRequest, skip=("prompt", "seed", "count"))
    return c, field, picker, trigger_words, draw, new_seed


def _draw(
    home: Home, engine: Engine, settings: dict[str, Any], drawn: Drawn, *, is_wanted: Callable[[], bool],
    start: StartPicture | None = None, live: bool = False,
) -> Iterator[list[Any]]:   # fmt: skip
    """Draw what the controls say, showing each step; ``live``: for a slider. ``drawn`` is on the page until then."""
    skip = gr.skip()
    with show_errors():
        if not settings["keep_seed"]:
            settings = {**settings, "seed": random_seed()}
        job, notices = draw_job(settings, start), list[str]()
        yield [busy(0, 0), skip, settings["seed"], skip]
        try:
            for event in draw_to_gallery(home, engine, job, is_wanted):
                match event:
                    case str():
                        notices.append(event)
                        yield [busy(0, 0, notices), skip, skip, skip]
                    case Progress(step, of):
                        yield [busy(step, of, notices), skip, skip, skip]
                    case DrawPreview(small):
                        # While a slider moves, the last pictures stay until the next ones are finished.
                        yield [skip, skip if live else preview_grid(small, job.request), skip, skip]
                    case list():
                        for id in drawn.ids if drawn.live else ():
                            erase_picture(home, id)
                        ids = tuple(picture.id for picture in event)
                        yield [notice_panel(" ".join(notices)), result_grid(event), skip, Drawn(ids, live)]
        except DrawCancelledError:
            # A newer drawing shows itself what it does; Stop has said so already.
            yield [skip, skip if live else _shown_again(home, drawn.ids), skip, skip]
        except Exception:   # whatever happened, the page must not stay busy
            yield [idle(), skip, skip, skip]
            raise


def _shown_again(home: Home, ids: Sequence[str]) -> dict[str, Any]:
    """The finished pictures that are still there, in place of unfinished ones."""
    found = []
    for id in ids:
        with suppress(HomeError):
            found.append(find_picture(home, id))
    return result_grid(found)

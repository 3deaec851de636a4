"""Studio: a prompt, adapters with a slider each, and the pictures they give."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from atelier.app.services.draw import (
    DrawJob,
    DrawPreview,
    Progress,
    draw_to_gallery,
    job_from_picture,
    suggested_prompt,
)
from atelier.app.services.engine import Engine
from atelier.app.services.like_picture import job_like
from atelier.app.store.gallery import GalleryPicture, erase_picture, find_picture, read_recipe
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import find_adapter, list_adapters
from atelier.app.store.mixes import MixEntry
from atelier.app.store.models import base_choices
from atelier.app.text import shared
from atelier.app.text import studio as words
from atelier.app.web.components.page_frame import UNQUEUED, heading, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.app.web.components.settings_form import controls
from atelier.app.web.components.urls import file_url
from atelier.training.config.train_config import EMBEDDED
from atelier.training.runs.save_adapter import thumbnail
from atelier.training.sampling.sample import DrawRequest

MAX_ADAPTERS = 6
_OUTPUTS = 4        # of a drawing: progress, pictures, seed, ids of live pictures
_SEPARATOR = "\n"   # no adapter's name holds a line break
_NO_PROGRESS: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 4}


def build(demo: gr.Blocks, home: Home, engine: Engine) -> None:
    """Place the Studio page; ``engine`` draws, and the pictures go to the gallery of ``home``."""
    heading(words.TITLE, words.LEAD)
    with gr.Row(elem_classes="layout layout-studio"):
        with gr.Column(scale=5, elem_classes="surface"):
            c, picker, trigger_words, draw, new_seed = _controls(home)
            dropped = gr.File(file_types=["image"], label=words.OPEN, elem_id="open-picture",
                              elem_classes="drop-zone", height=110)   # fmt: skip
        with gr.Column(scale=7, elem_classes="output"):
            progress = panel("draw-progress", _idle())
            results = panel("drawn-pictures", _results([]))
    # Ids of the pictures that a moving slider drew last: the next ones take their place.
    live_ids, draw_on_load = gr.State([]), gr.Textbox(visible=False)
    names = list(c)
    inputs, drawn = list(c.values()), [progress, results, c["seed"], live_ids]
    sliders = [c[key] for key in names if key.startswith("strength")]
    events = _Events(home, engine, names)

    taken_over = [*inputs, picker, trigger_words, progress, dropped]
    dropped.upload(events.open_picture, dropped, taken_over, show_progress="hidden", api_visibility="private")
    opened = [*inputs, picker, trigger_words, results, progress, draw_on_load]
    first = demo.load(events.on_load, None, opened, **UNQUEUED)
    first.then(events.draw_on_opening, [draw_on_load, *inputs, live_ids], drawn, **_NO_PROGRESS)
    gr.on([draw.click, c["prompt"].submit], events.draw_now, [*inputs, live_ids], drawn, trigger_mode="once",
          **_NO_PROGRESS)   # fmt: skip
    for slider in sliders:
        slider.input(events.draw_live, [*inputs, live_ids], drawn, trigger_mode="always_last", **_NO_PROGRESS)
    changed = [c["names"], c["prompt"], c["base"], *sliders, picker, trigger_words]
    toggled = picker.action(events.toggle, inputs, changed, **UNQUEUED)
    toggled.success(events.draw_live, [*inputs, live_ids], drawn, trigger_mode="always_last", **_NO_PROGRESS)
    trigger_words.action(_add_trigger_word, c["prompt"], c["prompt"], **UNQUEUED)
    new_seed.click(_random_seed, None, c["seed"], **UNQUEUED)
    c["base"].change(lambda base: base == EMBEDDED, c["base"], c["live"], **UNQUEUED)


@dataclass(frozen=True, slots=True)
class _Events:
    """Event handlers of the page; their ``values`` are those of the controls ``names``, in their order."""

    home: Home
    engine: Engine
    names: list[str]

    def draw_now(self, *values: Any) -> Iterator[list[Any]]:
        """Draw and add to the gallery."""
        *given, _ = values
        yield from _draw(self.home, self.engine, self._settings(given), [])

    def draw_live(self, *values: Any) -> Iterator[list[Any]]:
        """Draw while a slider moves, in place of the last such pictures."""
        *given, before = values
        settings = self._settings(given)
        # Gradio empties what a generator is to fill when it yields nothing at all.
        yield [gr.skip()] * _OUTPUTS
        if settings["live"] and settings["prompt"].strip():
            yield from _draw(self.home, self.engine, {**settings, "keep_seed": True}, before, live=True)

    def draw_on_opening(self, wanted: str, *values: Any) -> Iterator[list[Any]]:
        """Draw at once where the page's address asks for it."""
        *given, _ = values
        yield [gr.skip()] * _OUTPUTS
        if wanted:
            yield from _draw(self.home, self.engine, {**self._settings(given), "keep_seed": True}, [])

    def toggle(self, event: gr.EventData, *values: Any) -> list[Any]:
        """Add the pressed adapter to the drawing, or remove it."""
        return _toggle(self.home, self._settings(values), action_of(event)[1])

    def open_picture(self, path: str | None) -> list[Any]:
        """Take over the settings of a picture that was dropped."""
        return _open_picture(self.home, self.names, path)

    def on_load(self, request: gr.Request) -> list[Any]:
        """Fill the controls from the page's address."""
        return _on_load(self.home, self.names, dict(request.query_params))

    def _settings(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.names, values, strict=True))


def _add_trigger_word(event: gr.EventData, prompt: str) -> str:
    """Append a pressed trigger word to the prompt."""
    return f"{prompt.rstrip()} {action_of(event)[1]}".strip()


def _controls(home: Home) -> tuple[dict[str, Any], Any, Any, gr.Button, gr.Button]:
    """Everything that decides a picture, by name, and the buttons around it."""
    c: dict[str, Any] = {}
    c["prompt"] = gr.Textbox(label=shared.PROMPT, placeholder=shared.PROMPT_HINT, max_lines=5, max_length=1000,
                             elem_id="prompt")   # fmt: skip
    trigger_words = panel("trigger-words", [])
    picker = panel("adapter-picker", _picker(home, []))
    c["names"] = gr.Textbox(visible=False)
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
    return c, picker, trigger_words, draw, new_seed


def _draw(
    home: Home, engine: Engine, settings: dict[str, Any], before: Sequence[str], live: bool = False
) -> Iterator[list[Any]]:
    """Draw what the controls say, showing each step. ``live``: drawn while a slider moves, replacing ``before``."""
    skip = gr.skip()
    with show_errors():
        if not settings["keep_seed"]:
            settings = {**settings, "seed": _random_seed()}
        job, notices = _draw_job(settings), list[str]()
        yield [_busy(0, 0), skip, settings["seed"], skip]
        try:
            for event in draw_to_gallery(home, engine, job):
                match event:
                    case str():
                        notices.append(event)
                        yield [_busy(0, 0, notices), skip, skip, skip]
                    case Progress(step, of):
                        yield [_busy(step, of, notices), skip, skip, skip]
                    case DrawPreview(small):
                        # While a slider moves, the last pictures stay until the next ones are finished.
                        yield [skip, skip if live else _preview(small, job.request), skip, skip]
                    case list():
                        for id in before:
                            erase_picture(home, id)
                        drawn = [picture.id for picture in event] if live else []
                        yield [_notice(" ".join(notices)), _results(event), skip, drawn]
        except Exception:   # whatever happened, the page must not stay busy
            yield [_idle(), skip, skip, skip]
            raise


def _draw_job(settings: dict[str, Any]) -> DrawJob:
    entries = [MixEntry(name, float(settings[f"strength{i}"])) for i, name in enumerate(_names(settings["names"]))]
    known = {f.name: settings[f.name] for f in fields(DrawRequest)}
    if not known["prompt"].strip():
        raise ValueError(shared.NO_PROMPT)
    given = {key: value for key, value in known.items() if value is not None}
    return DrawJob(request=DrawRequest.from_dict(given), base=settings["base"] or EMBEDDED, adapters=tuple(entries))


def _names(text: str) -> list[str]:
    return [name for name in (text or "").split(_SEPARATOR) if name][:MAX_ADAPTERS]


def _random_seed() -> int:
    return secrets.randbelow(2**31 - 1)


def _toggle(home: Home, settings: dict[str, Any], name: str) -> list[Any]:
    """Add an adapter or remove it; the others keep their strengths."""
    names = _names(settings["names"])
    strengths = {known: settings[f"strength{i}"] for i, known in enumerate(names)}
    with show_errors():
        card = find_adapter(home, name)
        if name in names:
            names.remove(name)
        elif len(names) == MAX_ADAPTERS:
            raise ValueError(shared.too_many_adapters(MAX_ADAPTERS))
        else:
            names.append(name)
    first = names == [name]
    prompt = suggested_prompt(card) if first and not settings["prompt"].strip() else gr.skip()
    base = card.base or EMBEDDED if first else gr.skip()
    sliders = _sliders(names, strengths)
    return [_SEPARATOR.join(names), prompt, base, *sliders, _picker(home, names), _trigger_words(home, names)]


def _sliders(names: Sequence[str], strengths: dict[str, float]) -> list[Any]:
    """The sliders: one for each adapter in use, the others hidden."""
    used = [gr.Slider(label=name, value=strengths.get(name, 1.0), visible=True) for name in names]
    return used + [gr.Slider(visible=False)] * (MAX_ADAPTERS - len(names))


def _picker(home: Home, names: Sequence[str]) -> dict[str, Any]:
    return {"cards": [
        {"name": card.name, "trigger": card.trigger, "picture": card.thumbnail,
         "pressed": str(card.name in names).lower()}
        for card in list_adapters(home)
    ]}   # fmt: skip


def _trigger_words(home: Home, names: Sequence[str]) -> list[str]:
    return [find_adapter(home, name).trigger for name in names]


def _on_load(home: Home, keys: Sequence[str], query: dict[str, str]) -> list[Any]:
    """Fill the page from its address: ``?adapter=NAME`` or ``?picture=ID``."""
    values: dict[str, Any] = {**dict.fromkeys(keys, gr.skip()), "seed": _random_seed()}
    names: list[str] = []
    strengths: dict[str, float] = {}
    results, draw, progress, base = gr.skip(), "", gr.skip(), EMBEDDED
    try:
        if query.get("adapter"):
            card = find_adapter(home, query["adapter"])
            names, draw, base = [card.name], "yes" if (card.base or EMBEDDED) == EMBEDDED else "", card.base
            values |= {"prompt": suggested_prompt(card)}
        elif query.get("picture"):
            job, missing = job_from_picture(home, query["picture"])
            strengths = {entry.name: entry.strength for entry in job.adapters}
            names = list(strengths)
            values, base = {**values, **job.request.to_dict(), "keep_seed": True}, job.base
            results = _results([find_picture(home, query["picture"])])
            progress = _notice(words.missing(missing)) if missing else progress
    except HomeError as error:
        progress = _notice(str(error))
    # Models may have come since the page was made.
    values["base"] = gr.update(choices=base_choices(home), value=base or EMBEDDED)
    sliders = {f"strength{i}": slider for i, slider in enumerate(_sliders(names, strengths))}
    values |= {"names": _SEPARATOR.join(names), **sliders}
    return [*values.values(), _picker(home, names), _trigger_words(home, names), results, progress, draw]


def _open_picture(home: Home, keys: Sequence[str], path: str | None) -> list[Any]:
    """Fill the page from a picture's file, of Atelier or another tool, and say what is missing."""
    with show_errors():
        job, notes = job_like(home, Path(path or ""))
    given, strengths = job.request.to_dict(), {entry.name: entry.strength for entry in job.adapters[:MAX_ADAPTERS]}
    left_out = [words.too_many(entry.name) for entry in job.adapters[MAX_ADAPTERS:]]
    names = list(strengths)
    values: dict[str, Any] = {**dict.fromkeys(keys, gr.skip()), **given, "keep_seed": True}
    values["base"] = gr.update(choices=base_choices(home), value=job.base)
    sliders = {f"strength{i}": slider for i, slider in enumerate(_sliders(names, strengths))}
    values |= {"names": _SEPARATOR.join(names), **sliders}
    progress = _notice(" ".join([*notes, *left_out]) or words.OPENED)
    return [*(values[key] for key in keys), _picker(home, names), _trigger_words(home, names), progress, None]


def _results(pictures: Sequence[GalleryPicture]) -> dict[str, Any]:
    recipes = [(picture, read_recipe(picture.path) or {}) for picture in pictures]
    shown = [{"id": picture.id, "src": file_url(picture.path), "seed": recipe.get("seed", ""),
              "prompt": recipe.get("prompt", "")} for picture, recipe in recipes]   # fmt: skip
    return _picture_grid(shown)


def _preview(small: Sequence[Image.Image], request: DrawRequest) -> dict[str, Any]:
    """Unfinished pictures, in the places of the finished ones."""
    return _picture_grid([{"id": "", "src": thumbnail(picture), "seed": request.seed + i, "prompt": words.UNFINISHED}
                          for i, picture in enumerate(small)])   # fmt: skip


def _picture_grid(shown: list[dict[str, Any]]) -> dict[str, Any]:
    return {"pictures": shown, "columns": 1 if len(shown) <= 1 else 2 if len(shown) <= 4 else 3}


def _busy(done: int, of: int, notices: Sequence[str] = ()) -> dict[str, Any]:
    label = " · ".join([words.progress(done, of), *notices])
    return {"busy": "true", "percent": 100 * done // of if of else 0, "label": label}


def _idle() -> dict[str, Any]:
    return {"busy": "false", "percent": 0, "label": ""}


def _notice(text: str) -> dict[str, Any]:
    return {"busy": "false", "percent": 0, "label": text}

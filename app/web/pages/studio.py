"""Studio: a prompt, adapters with a slider each, and the pictures they give."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import fields
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
from atelier.app.store.gallery import GalleryPicture, erase_picture, find_picture, read_recipe
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import find_adapter, list_adapters
from atelier.app.store.mixes import MixEntry
from atelier.app.store.models import base_choices
from atelier.app.text import shared
from atelier.app.text import studio as words
from atelier.app.web.components.page_frame import POLL, heading, plainly
from atelier.app.web.components.panel import acted, panel
from atelier.app.web.components.settings_form import controls
from atelier.app.web.components.urls import file_address
from atelier.training.config.train_config import EMBEDDED
from atelier.training.runs.save_adapter import thumbnail
from atelier.training.sampling.sample import DrawRequest

MOST_ADAPTERS = 6
_BETWEEN = "\n"      # no adapter's name holds a line break
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 4}


def build(demo: gr.Blocks, home: Home, engine: Engine) -> None:
    """Place the page."""
    heading(words.TITLE, words.LEAD)
    with gr.Row(elem_classes="bench bench-studio"):
        with gr.Column(scale=5, elem_classes="sheet"):
            c, shelf, triggers, draw, dice = _controls(home)
        with gr.Column(scale=7, elem_classes="easel"):
            progress = panel("drawing", _idle())
            results = panel("results", _results([]))
    # Ids of the pictures that a moving slider drew last: the next ones take their place.
    live_ids, at_once = gr.State([]), gr.Textbox(visible=False)
    names = list(c)
    inputs, drawn = list(c.values()), [progress, results, c["seed"], live_ids]
    sliders = [c[key] for key in names if key.startswith("strength")]

    def draw_now(*values: Any) -> Iterator[list[Any]]:
        *given, _ = values
        yield from _draw(home, engine, dict(zip(names, given, strict=True)), [])

    def draw_live(*values: Any) -> Iterator[list[Any]]:
        *given, before = values
        asked = dict(zip(names, given, strict=True))
        # Gradio empties what a generator is to fill when it yields nothing at all.
        yield [gr.skip()] * len(drawn)
        if asked["live"] and asked["prompt"].strip():
            yield from _draw(home, engine, {**asked, "keep_seed": True}, before, live=True)

    def draw_first(wanted: str, *values: Any) -> Iterator[list[Any]]:
        *given, _ = values
        yield [gr.skip()] * len(drawn)
        if wanted:
            yield from _draw(home, engine, {**dict(zip(names, given, strict=True)), "keep_seed": True}, [])

    def toggle(event: gr.EventData, *values: Any) -> list[Any]:
        return _toggle(home, dict(zip(names, values, strict=True)), acted(event)[1])

    def opened(request: gr.Request) -> list[Any]:
        return _opened(home, names, dict(request.query_params))

    first = demo.load(opened, None, [*inputs, shelf, triggers, results, progress, at_once], **POLL)
    first.then(draw_first, [at_once, *inputs, live_ids], drawn, **_QUIET)
    gr.on([draw.click, c["prompt"].submit], draw_now, [*inputs, live_ids], drawn, trigger_mode="once", **_QUIET)
    for slider in sliders:
        slider.input(draw_live, [*inputs, live_ids], drawn, trigger_mode="always_last", **_QUIET)
    taken = shelf.act(toggle, inputs, [c["names"], c["prompt"], c["base"], *sliders, shelf, triggers], **POLL)
    taken.success(draw_live, [*inputs, live_ids], drawn, trigger_mode="always_last", **_QUIET)
    triggers.act(_add_word, c["prompt"], c["prompt"], **POLL)
    dice.click(_random_seed, None, c["seed"], **POLL)
    c["base"].change(lambda base: base == EMBEDDED, c["base"], c["live"], **POLL)


def _add_word(event: gr.EventData, prompt: str) -> str:
    """Put a pressed trigger word at the end of the prompt."""
    return f"{prompt.rstrip()} {acted(event)[1]}".strip()


def _controls(home: Home) -> tuple[dict[str, Any], Any, Any, gr.Button, gr.Button]:
    """Everything that decides a picture, by name, and the buttons around it."""
    c: dict[str, Any] = {}
    c["prompt"] = gr.Textbox(label=shared.PROMPT, placeholder=shared.PROMPT_HINT, max_lines=5, max_length=1000,
                             elem_id="prompt")   # fmt: skip
    triggers = panel("words", [])
    shelf = panel("shelf", _shelf(home, []))
    c["names"] = gr.Textbox(visible=False)
    for i in range(MOST_ADAPTERS):
        c[f"strength{i}"] = gr.Slider(-1, 2, 1.0, step=0.05, visible=False, interactive=True, elem_id=f"strength-{i}",
                                      elem_classes="strength")   # fmt: skip
    with gr.Row(elem_classes="seeds"):
        c["seed"] = gr.Number(0, label=shared.SEED, precision=0, minimum=0, maximum=2**31 - 1, elem_id="seed")
        dice = gr.Button(words.NEW_SEED, elem_id="dice", min_width=0)
        c["keep_seed"] = gr.Checkbox(False, label=words.KEEP_SEED, elem_id="keep-seed")
    c["count"] = gr.Slider(1, 8, 4, step=1, label=words.COUNT, elem_id="count")
    draw = gr.Button(words.DRAW, variant="primary", size="lg", elem_id="draw")
    c["live"] = gr.Checkbox(True, label=words.LIVE, elem_id="live")
    with gr.Accordion(words.MORE, open=False, elem_id="more"):
        c["base"] = gr.Dropdown(base_choices(home), value=EMBEDDED, label=shared.BASE_MODEL, allow_custom_value=True,
                                elem_id="base")   # fmt: skip
        with gr.Row(elem_classes="settings"):
            c |= controls(DrawRequest, skip=("prompt", "seed", "count"))
    return c, shelf, triggers, draw, dice


def _draw(
    home: Home, engine: Engine, asked: dict[str, Any], before: Sequence[str], live: bool = False
) -> Iterator[list[Any]]:
    """Draw what the controls say, showing each step. ``live``: drawn while a slider moves, replacing ``before``."""
    skip = gr.skip()
    with plainly():
        if not asked["keep_seed"]:
            asked = {**asked, "seed": _random_seed()}
        job, notice = _draw_job(asked), ""
        yield [_busy(0, 0), skip, asked["seed"], skip]
        try:
            for event in draw_to_gallery(home, engine, job):
                match event:
                    case str():
                        notice = event
                    case Progress(step, of):
                        yield [_busy(step, of), skip, skip, skip]
                    case DrawPreview(small):
                        # What a slider moves stays in sight until the next ones are there.
                        yield [skip, skip if live else _preview(small, job.request), skip, skip]
                    case list():
                        for id in before:
                            erase_picture(home, id)
                        drawn = [picture.id for picture in event] if live else []
                        yield [_notice(notice), _results(event), skip, drawn]
        except (ValueError, OSError):
            yield [_idle(), skip, skip, skip]
            raise


def _draw_job(asked: dict[str, Any]) -> DrawJob:
    entries = [MixEntry(name, float(asked[f"strength{i}"])) for i, name in enumerate(_names(asked["names"]))]
    known = {f.name: asked[f.name] for f in fields(DrawRequest)}
    if not known["prompt"].strip():
        raise ValueError(shared.NO_PROMPT)
    given = {key: value for key, value in known.items() if value is not None}
    return DrawJob(request=DrawRequest.from_dict(given), base=asked["base"] or EMBEDDED, adapters=tuple(entries))


def _names(text: str) -> list[str]:
    return [name for name in (text or "").split(_BETWEEN) if name][:MOST_ADAPTERS]


def _random_seed() -> int:
    return secrets.randbelow(2**31 - 1)


def _toggle(home: Home, asked: dict[str, Any], name: str) -> list[Any]:
    """Take an adapter up or put it back; the others keep their strengths."""
    names = _names(asked["names"])
    strengths = {known: asked[f"strength{i}"] for i, known in enumerate(names)}
    with plainly():
        card = find_adapter(home, name)
        if name in names:
            names.remove(name)
        elif len(names) == MOST_ADAPTERS:
            raise ValueError(shared.too_many_adapters(MOST_ADAPTERS))
        else:
            names.append(name)
    first = names == [name]
    prompt = suggested_prompt(card) if first and not asked["prompt"].strip() else gr.skip()
    base = card.base or EMBEDDED if first else gr.skip()
    return [_BETWEEN.join(names), prompt, base, *_rows(names, strengths), _shelf(home, names), _triggers(home, names)]


def _rows(names: Sequence[str], strengths: dict[str, float]) -> list[Any]:
    """The sliders: one for each adapter in use, the others hidden."""
    used = [gr.Slider(label=name, value=strengths.get(name, 1.0), visible=True) for name in names]
    return used + [gr.Slider(visible=False)] * (MOST_ADAPTERS - len(names))


def _shelf(home: Home, names: Sequence[str]) -> dict[str, Any]:
    return {"cards": [
        {"name": card.name, "trigger": card.trigger, "picture": card.thumbnail, "on": str(card.name in names).lower()}
        for card in list_adapters(home)
    ]}   # fmt: skip


def _triggers(home: Home, names: Sequence[str]) -> list[str]:
    return [find_adapter(home, name).trigger for name in names]


def _opened(home: Home, keys: Sequence[str], query: dict[str, str]) -> list[Any]:
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
    values |= {"names": _BETWEEN.join(names), **{f"strength{i}": row for i, row in enumerate(_rows(names, strengths))}}
    return [*values.values(), _shelf(home, names), _triggers(home, names), results, progress, draw]


def _results(pictures: Sequence[GalleryPicture]) -> dict[str, Any]:
    recipes = [(picture, read_recipe(picture.path) or {}) for picture in pictures]
    shown = [{"id": picture.id, "src": file_address(picture.path), "seed": recipe.get("seed", ""),
              "prompt": recipe.get("prompt", "")} for picture, recipe in recipes]   # fmt: skip
    return _picture_grid(shown)


def _preview(small: Sequence[Image.Image], request: DrawRequest) -> dict[str, Any]:
    """Where the pictures will be, what they are becoming."""
    return _picture_grid([{"id": "", "src": thumbnail(picture), "seed": request.seed + i, "prompt": words.UNFINISHED}
                          for i, picture in enumerate(small)])   # fmt: skip


def _picture_grid(shown: list[dict[str, Any]]) -> dict[str, Any]:
    return {"pictures": shown, "columns": 1 if len(shown) <= 1 else 2 if len(shown) <= 4 else 3}


def _busy(done: int, of: int) -> dict[str, Any]:
    return {"busy": "true", "percent": 100 * done // of if of else 0, "say": words.progress(done, of)}


def _idle() -> dict[str, Any]:
    return {"busy": "false", "percent": 0, "say": ""}


def _notice(text: str) -> dict[str, Any]:
    return {"busy": "false", "percent": 0, "say": text}

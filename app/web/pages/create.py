"""Create: pictures, what it is, a name, how long, [Teach it]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from atelier.adapters.kinds.catalog import KINDS
from atelier.app.jobs.jobs import submit
from atelier.app.services.engine import Engine
from atelier.app.services.expert_settings import default_values, draft_preset, form_values, run_settings
from atelier.app.services.memory_hint import memory_lines
from atelier.app.services.trigger_word import trigger_word_hint
from atelier.app.store.create_draft import (
    Draft,
    add_pictures,
    clear_draft,
    edit_draft,
    load_draft,
    picture_files,
    remove_picture,
    save_setting,
)
from atelier.app.store.datasets import import_pictures
from atelier.app.store.home import Home, new_name
from atelier.app.store.models import base_choices
from atelier.app.text import create as words
from atelier.app.web.components.page_frame import POLL, heading, plainly
from atelier.app.web.components.panel import acted, panel
from atelier.app.web.components.settings_form import controls
from atelier.training.config.train_config import EMBEDDED, TrainConfig, load_preset, preset_names
from atelier.training.recipes.companions import with_style_caption

_ON_PAGE = ("name", "pictures", "subject")   # asked for above the Expert settings
_COUNTED: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden", "api_visibility": "private",
                            "concurrency_limit": 4}   # fmt: skip


def build(demo: gr.Blocks, home: Home, engine: Engine) -> None:
    """Place the page."""
    heading(words.TITLE, words.LEAD)
    with gr.Row(elem_classes="bench"):
        with gr.Column(scale=7, elem_classes="sheet"):
            _step(1, words.PICTURES, words.PICTURES_HINT)
            drop = gr.File(file_count="multiple", file_types=[".png", ".jpg", ".jpeg", ".webp", ".txt"],
                           label=words.DROP, elem_id="pics", elem_classes="drop", height=230)   # fmt: skip
            thumbs = panel("pictures", _pictures(Draft()))
        with gr.Column(scale=5, elem_classes="sheet"):
            what, subject, name, word, preset, note = _questions()
            room = panel("room", "")
            teach = gr.Button(words.TRAIN, variant="primary", size="lg", elem_id="teach")
    with gr.Accordion(words.EXPERT, open=False, elem_id="expert", elem_classes="sheet"):
        count, expert = _expert(base_choices(home))
    run = gr.Textbox(visible=False)
    # What the Expert controls are filled from. Whoever picks a preset and presses the button at once is faster than
    # the answer that fills them anew: the old values must then not pass for changes.
    basis = gr.Textbox(visible=False)

    answers = {"what": what, "subject": subject, "name": name}
    keys = list(expert)

    def take(files: list[str] | None) -> Iterator[tuple[dict[str, Any], Any]]:
        yield from _take(home, files)

    quiet = {**POLL, "trigger_mode": "always_last"}
    # Each control keeps its own field: a form sent whole would carry stale values of the others.
    for field, control in answers.items():
        control.change(partial(_keep_answer, home, field), control, None, **quiet)
    for key, control in expert.items():
        # Gradio reports no input when text is pasted with the mouse: leaving the field is the second chance.
        typed = isinstance(control, gr.Textbox | gr.Dropdown)
        events = [control.input, control.blur] if typed else [control.input]
        gr.on(events, partial(_keep_setting, home, keys, key), control, [count, basis, *expert.values()], **quiet)
    preset.input(partial(_choose_preset, home, keys), preset, [count, basis, *expert.values()], **quiet)
    what.change(_asks_for, what, [subject, note], **POLL)
    _let_remove(home, thumbs)
    drop.upload(take, drop, [thumbs, drop], show_progress="hidden", api_visibility="private")
    chosen = [preset, basis, *expert.values()]
    restored = [thumbs, *answers.values(), preset, count, basis, *expert.values()]
    opened = demo.load(lambda: _restore(home, keys), None, restored, **POLL)
    for event in (opened.then, partial(gr.on, [control.change for control in (preset, *expert.values())])):
        event(partial(_room, keys), chosen, room, **_COUNTED)
    _watch_word(home, engine, keys, word, [name, expert["trigger"], expert["base"], count])
    taught = teach.click(lambda *values: _teach(home, keys, values), [*answers.values(), *chosen], run,
                         api_visibility="private")   # fmt: skip
    taught.success(None, run, None, js="run => { location.href = '/jobs?run=' + encodeURIComponent(run) }")


def _step(number: int, title: str, hint: str = "") -> None:
    panel("step", {"number": number, "title": title, "hint": hint}, elem_id=f"step-{number}")


def _questions() -> tuple[gr.Radio, gr.Textbox, gr.Textbox, Any, gr.Radio, gr.Markdown]:
    _step(2, words.WHAT)
    what = gr.Radio([(title, key) for key, title in words.WHAT_CHOICES.items()], value="object", show_label=False,
                    label=words.WHAT, elem_id="what", elem_classes="tiles")   # fmt: skip
    subject = gr.Textbox(label=words.CLASS_WORD, placeholder=words.CLASS_WORD_EXAMPLES["object"], max_length=100,
                         elem_id="subject")   # fmt: skip
    note = gr.Markdown(words.PERSON_NOTE, visible=False, elem_classes="hint")
    _step(3, words.NAME)
    name = gr.Textbox(label=words.NAME, show_label=False, info=words.NAME_HINT, max_length=64, elem_id="name")
    word = panel("word", {})
    _step(4, words.LENGTH)
    # The shortest first; the usual one is what preset_names() begins with.
    presets = sorted(preset_names(), key=lambda name: load_preset(name, EMBEDDED).get("steps", 0))
    choices = [(words.PRESETS.get(name, name.capitalize()), name) for name in presets]
    preset = gr.Radio(choices, value=next(iter(preset_names()), None), show_label=False, label=words.LENGTH,
                      elem_id="preset", elem_classes="tiles")   # fmt: skip
    return what, subject, name, word, preset, note


def _expert(bases: Sequence[tuple[str, str]] = ()) -> tuple[gr.Markdown, dict[str, Any]]:
    """Controls for all settings: the run's own by name, those of an adapter kind as ``kind.name``."""
    count = gr.Markdown(words.AS_PRESET, elem_classes="hint")
    with gr.Row(elem_classes="settings"):
        found: dict[str, Any] = dict(controls(TrainConfig, skip=_ON_PAGE, offered={"base": bases}))
    groups = {}
    for name, kind in KINDS.items():
        with gr.Row(elem_classes="settings", visible=name == "lora") as groups[name]:
            options = controls(kind.settings, prefix=f"set-{name}")
            found |= {f"{name}.{key}": control for key, control in options.items()}
    found["kind"].change(lambda chosen: [gr.Row(visible=name == chosen) for name in groups], found["kind"],
                         list(groups.values()), **POLL)   # fmt: skip
    return count, found


def _pictures(draft: Draft) -> dict[str, Any]:
    refused = [{"id": p.id, "name": p.name, "note": p.note} for p in draft.pictures if p.refused]
    kept = [{"id": p.id, "name": p.name, "note": p.note, "thumb": p.thumb, "caption": p.caption or p.name}
            for p in draft.usable]   # fmt: skip
    count = words.picture_count(len(kept), len(refused))
    tips = [] if draft.pictures else words.TIPS
    return {"kept": kept, "refused": refused, "usable": len(kept), "count": count, "tips": tips}


def _take(home: Home, files: list[str] | None) -> Iterator[tuple[dict[str, Any], Any]]:
    with plainly():
        for draft in add_pictures(home, map(Path, files or [])):
            yield _pictures(draft), gr.skip()
    # Emptied, the field is a place to drop more pictures.
    yield gr.skip(), None


def _let_remove(home: Home, thumbs: Any) -> None:
    def remove(event: gr.EventData) -> dict[str, Any]:
        return _pictures(remove_picture(home, acted(event)[1]))

    thumbs.act(remove, None, thumbs, **POLL)


def _keep_answer(home: Home, field: str, value: Any) -> None:
    edit_draft(home, **{field: value})


def _keep_setting(home: Home, keys: Sequence[str], key: str, value: Any) -> list[Any]:
    draft = load_draft(home)
    usual = default_values(keys, draft_preset(draft), draft.changes.get("base", EMBEDDED))
    count, basis, *values = form_values(keys, save_setting(home, key, value, usual[list(keys).index(key)]))
    # The base model and the kind bring settings of their own; what is being typed must not be written over.
    if key not in ("base", "kind"):
        return [count, gr.skip(), *(gr.skip() for _ in keys)]
    return [count, basis, *(gr.skip() if name == key else shown for name, shown in zip(keys, values, strict=True))]


def _watch_word(home: Home, engine: Engine, keys: Sequence[str], word: Any, controls: Sequence[Any]) -> None:
    """Say whether the word that calls it is a good one, beside the name, and take another where that is pressed."""
    *called, count = controls   # name, trigger, base; how far the settings are from the preset

    def call(event: gr.EventData) -> list[Any]:
        other = acted(event)[1]   # the empty one means the name
        return [_keep_setting(home, keys, "trigger", other)[0], other]

    gr.on([control.change for control in called], lambda *given: trigger_word_hint(home, engine, *given), called, word,
          **_COUNTED)   # fmt: skip
    word.act(call, None, [count, called[1]], **POLL)


def _choose_preset(home: Home, keys: Sequence[str], preset: str) -> list[Any]:
    """Another preset: show its settings; the base model and the kind stay as chosen."""
    stay = {key: value for key, value in load_draft(home).changes.items() if key in ("base", "kind")}
    return form_values(keys, edit_draft(home, preset=preset, changes=stay))


def _restore(home: Home, keys: Sequence[str]) -> list[Any]:
    draft = load_draft(home)
    count, basis, *values = form_values(keys, draft)
    # Models may have come since the page was made.
    values[keys.index("base")] = gr.update(choices=base_choices(home), value=values[keys.index("base")])
    return [_pictures(draft), draft.what, draft.subject, draft.name, draft_preset(draft), count, basis, *values]


def _room(keys: Sequence[str], preset: str | None, basis: str, *values: Any) -> Iterator[str]:
    """What the run on the page takes of the memory here, or why there can be none."""
    try:
        yield from memory_lines(TrainConfig.from_dict(run_settings(keys, values, basis, preset or "")))
    except ValueError as error:
        yield str(error)


def _asks_for(what: str) -> tuple[Any, Any]:
    return gr.Textbox(placeholder=words.CLASS_WORD_EXAMPLES[what]), gr.Markdown(visible=what == "person")


def _teach(home: Home, keys: Sequence[str], values: Sequence[Any]) -> str:
    """Start a run; returns its id. What can't be used is said before anything is copied."""
    what, subject, name, preset, basis, *expert = values
    with plainly():
        draft = load_draft(home)
        if not draft.usable:
            raise ValueError(words.NO_PICTURES)
        if not name.strip():
            raise ValueError(words.NO_NAME)
        answers = {"name": new_name(home, name), "subject": subject.strip() or words.WHAT_CHOICES[what].lower()}
        config = TrainConfig.from_dict({**run_settings(keys, expert, basis, preset), **answers})
        config = with_style_caption(config) if what == "style" else config
        imported = import_pictures(home, config.name, picture_files(home, draft))
        run = submit(home, replace(config, pictures=str(imported.folder)))
        clear_draft(home)
        return run.id

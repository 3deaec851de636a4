"""Create: pictures, what it is, a name, how long, [Start training]."""

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
from atelier.app.services.known_models import downloadable_titles
from atelier.app.services.memory_hint import memory_lines
from atelier.app.services.model_downloads import ModelDownloads
from atelier.app.services.picture_hints import PictureHints, picture_hints, picture_tiles
from atelier.app.services.trigger_word_hint import trigger_word_hint
from atelier.app.store.base_settings import base_options
from atelier.app.store.create_draft import (
    Draft,
    add_pictures,
    checked_files,
    clear_draft,
    edit_draft,
    load_draft,
    picture_files,
    remove_picture,
    save_setting,
    set_weight,
)
from atelier.app.store.datasets import import_pictures
from atelier.app.store.home import Home, new_name
from atelier.app.store.models import base_choices
from atelier.app.text import create as words
from atelier.app.web.components.base_download import connect_base_download
from atelier.app.web.components.page_frame import UNQUEUED, heading, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.app.web.components.settings_form import controls
from atelier.app.web.components.urls import page_url
from atelier.training.base_models.hub import require_download
from atelier.training.config.train_config import (
    EMBEDDED,
    TrainConfig,
    load_preset,
    picture_weights,
    preset_evidence,
    preset_names,
    weights_text,
)
from atelier.training.recipes.companions import with_style_caption

_ASKED_ABOVE = ("name", "pictures", "subject")   # asked for above the Expert settings
# All kinds of picture: those that can't be used are refused in a sentence, where the browser would only say no.
_DROPPED = ["image", ".heic", ".heif", ".avif", ".jxl", ".txt", ".caption", ".cap", ".json", ".jsonl", ".csv"]
# A second drop may come while the first is read.
_UPLOAD: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "multiple"}
_ANSWERS = ("what", "subject", "name")
_CURES = ("trigger_first", "caption_chunks")   # of captions that are not read whole
_LATEST: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden", "api_visibility": "private",
                           "concurrency_limit": 4}   # fmt: skip


def build(demo: gr.Blocks, home: Home, engine: Engine, downloads: ModelDownloads) -> None:
    """Place the Create page; the draft is kept in ``home``, and ``engine`` checks trigger words."""
    heading(words.TITLE, words.LEAD)
    with gr.Row(elem_classes="layout"):
        with gr.Column(scale=7, elem_classes="surface"):
            _step(1, words.PICTURES, words.PICTURES_HINT)
            drop = gr.File(file_count="multiple", file_types=_DROPPED, label=words.DROP, elem_id="add-pictures",
                           elem_classes="drop-zone", height=230)   # fmt: skip
            picture_list = panel("training-pictures", _picture_list(Draft()))
        with gr.Column(scale=5, elem_classes="surface"):
            what, subject, name, trigger_hint, preset, note = _questions()
            memory_hint, base_download = panel("memory-hint", ""), panel("base-download", {})
            start = gr.Button(words.TRAIN, variant="primary", size="lg", elem_id="start-training")
    with gr.Accordion(words.EXPERT, open=False, elem_id="expert", elem_classes="surface"):
        count, expert = _expert(base_choices(home, downloadable_titles()))
    come = connect_base_download(downloads, base_download, expert["base"])
    # What the Expert controls are filled from. Whoever picks a preset and starts at once is faster than the answer
    # that fills them again: the old values must then not be taken for changes.
    filled_from, run = gr.Textbox(visible=False), gr.Textbox(visible=False)

    answers = {"what": what, "subject": subject, "name": name}
    keys = list(expert)

    def upload(files: list[str] | None) -> Iterator[tuple[dict[str, Any], Any]]:
        """Add dropped files to the draft and show each as soon as it is checked."""
        yield from _add_pictures(home, files)

    quiet = {**UNQUEUED, "trigger_mode": "always_last"}
    # Each control keeps its own field: a form sent whole would carry stale values of the others.
    for field, control in answers.items():
        control.change(partial(_save_answer, home, field), control, None, **quiet)
    for key, control in expert.items():
        # Gradio reports no input when text is pasted with the mouse: leaving the field is the second chance.
        typed = isinstance(control, gr.Textbox | gr.Dropdown)
        events = [control.input, control.blur] if typed else [control.input]
        gr.on(events, partial(_save_setting, home, keys, key), control, [count, filled_from, *expert.values()], **quiet)
    preset.input(partial(_choose_preset, home, keys), preset, [count, filled_from, *expert.values()], **quiet)
    what.change(_update_subject_hint, what, [subject, note], **UNQUEUED)
    decisive = {name: expert[name] for name in (*_CURES, "trigger", "base", "caption", "resolution")}
    _connect_pictures(home, keys, picture_list, count, answers | decisive)
    drop.upload(upload, drop, [picture_list, drop], **_UPLOAD)
    chosen = [preset, filled_from, *expert.values()]
    restored = [picture_list, *answers.values(), preset, count, filled_from, *expert.values()]
    loaded = demo.load(lambda: _restore(home, keys), None, restored, **UNQUEUED)
    for event in (loaded.then, partial(gr.on, [control.change for control in (preset, come, *expert.values())])):
        event(partial(_memory_hint, home, keys), chosen, memory_hint, **_LATEST)
    _watch_trigger_word(home, engine, keys, trigger_hint, [name, expert["trigger"], expert["base"], count])
    started = start.click(lambda *values: _start_training(home, keys, values), [*answers.values(), *chosen], run,
                          api_visibility="private")   # fmt: skip
    started.success(None, run, None, js=_open_run())


def _open_run() -> str:
    """The script that opens the page of a run, given its id."""
    return f"run => {{ location.href = '{page_url('jobs')}?run=' + encodeURIComponent(run) }}"


def _step(number: int, title: str, hint: str = "") -> None:
    panel("step-heading", {"number": number, "title": title, "hint": hint}, elem_id=f"step-{number}")


def _questions() -> tuple[gr.Radio, gr.Textbox, gr.Textbox, Any, gr.Radio, gr.Markdown]:
    _step(2, words.WHAT)
    what = gr.Radio([(title, key) for key, title in words.WHAT_CHOICES.items()], value="object", show_label=False,
                    label=words.WHAT, elem_id="what", elem_classes="tiles")   # fmt: skip
    subject = gr.Textbox(label=words.CLASS_WORD, placeholder=words.CLASS_WORD_EXAMPLES["object"], max_length=100,
                         elem_id="subject")   # fmt: skip
    note = gr.Markdown(words.PERSON_NOTE, visible=False, elem_classes="hint")
    _step(3, words.NAME)
    name = gr.Textbox(label=words.NAME, show_label=False, info=words.NAME_HINT, max_length=64, elem_id="name")
    trigger_hint = panel("trigger-hint", {})
    _step(4, words.LENGTH)
    # The shortest first; the usual one is what preset_names() begins with.
    presets = sorted(preset_names(), key=lambda name: load_preset(name, EMBEDDED).get("steps", 0))
    choices = [(words.PRESETS.get(name, name.capitalize()), name) for name in presets]
    preset = gr.Radio(choices, value=next(iter(preset_names()), None), show_label=False, label=words.LENGTH,
                      elem_id="preset", elem_classes="tiles")   # fmt: skip
    evidence = gr.Markdown(preset_evidence(preset.value), elem_classes="hint", elem_id="preset-evidence")
    preset.change(preset_evidence, preset, evidence, **UNQUEUED)
    return what, subject, name, trigger_hint, preset, note


def _expert(bases: Sequence[tuple[str, str]] = ()) -> tuple[gr.Markdown, dict[str, Any]]:
    """Controls for all settings: the run's own by name, those of an adapter kind as ``kind.name``."""
    count = gr.Markdown(words.AS_PRESET, elem_classes="hint")
    with gr.Row(elem_classes="settings"):
        found: dict[str, Any] = dict(controls(TrainConfig, skip=_ASKED_ABOVE, suggestions={"base": bases}))
    groups = {}
    for name, kind in KINDS.items():
        with gr.Row(elem_classes="settings", visible=name == "lora") as groups[name]:
            options = controls(kind.settings, prefix=f"set-{name}")
            found |= {f"{name}.{key}": control for key, control in options.items()}
    found["kind"].change(lambda chosen: [gr.Row(visible=name == chosen) for name in groups], found["kind"],
                         list(groups.values()), **UNQUEUED)   # fmt: skip
    return count, found


def _picture_list(draft: Draft) -> dict[str, Any]:
    rejected = [{"id": p.id, "name": p.name, "note": p.note} for p in draft.pictures if p.refused]
    hints = picture_hints(draft) if draft.usable else PictureHints()
    usable = picture_tiles(draft, hints)
    return {
        "pictures": usable, "rejected": rejected, "usable": len(usable), "sentences": hints.sentences,
        "count": words.picture_count(len(usable), len(rejected)), "tips": [] if draft.pictures else words.TIPS,
        "trigger_first": hints.trigger_first, "chunks": hints.chunks, "read_longer": words.read_longer(hints.chunks),
    }   # fmt: skip


def _add_pictures(home: Home, files: list[str] | None) -> Iterator[tuple[dict[str, Any], Any]]:
    with show_errors():
        for draft in add_pictures(home, map(Path, files or [])):
            yield _picture_list(draft), gr.skip()
    # Emptied, the field is a place to drop more pictures.
    yield gr.skip(), None


def _connect_pictures(home: Home, keys: Sequence[str], picture_list: Any, count: Any, controls: dict[str, Any]) -> None:
    """The buttons in the list of pictures; and the list again when something changes what its captions are."""
    cures = [controls[name] for name in _CURES]

    def press(event: gr.EventData) -> list[Any]:
        """Remove a picture, change its weight, or let captions be read whole."""
        action, pressed = action_of(event)
        changed: dict[str, Any] = {}
        with show_errors():
            if action == "remove":
                remove_picture(home, pressed)
            elif action == "weigh":
                id, _, weight = pressed.partition(" ")
                set_weight(home, id, float(weight))
            else:
                changed = {"trigger_first": True} if action == "trigger-first" else {"caption_chunks": int(pressed)}
        note = [_save_setting(home, keys, name, value)[0] for name, value in changed.items()] or [gr.skip()]
        return [_picture_list(load_draft(home)), *note, *(changed.get(name, gr.skip()) for name in _CURES)]

    def show_again(*values: Any) -> Any:
        """Judge the captions for what the controls say now."""
        # What the controls say: the draft on disk may still have what they said before.
        given = dict(zip(controls, values, strict=True))
        answers = {field: given.pop(field) or "" for field in _ANSWERS}
        draft = load_draft(home)
        draft = replace(draft, changes={**draft.changes, **given}, **answers)
        return _picture_list(draft) if draft.usable else gr.skip()

    picture_list.action(press, None, [picture_list, count, *cures], **UNQUEUED)
    gr.on([control.change for control in controls.values()], show_again, list(controls.values()), picture_list,
          **UNQUEUED, trigger_mode="always_last")   # fmt: skip


def _save_answer(home: Home, field: str, value: Any) -> None:
    edit_draft(home, **{field: value})


def _save_setting(home: Home, keys: Sequence[str], key: str, value: Any) -> list[Any]:
    draft = load_draft(home)
    usual = default_values(keys, draft_preset(draft), draft.changes.get("base", EMBEDDED))
    count, filled_from, *values = form_values(keys, save_setting(home, key, value, usual[list(keys).index(key)]))
    # The base model and the kind bring settings of their own; what is being typed must not be written over.
    if key not in ("base", "kind"):
        return [count, gr.skip(), *(gr.skip() for _ in keys)]
    shown = [gr.skip() if name == key else value for name, value in zip(keys, values, strict=True)]
    return [count, filled_from, *shown]


def _watch_trigger_word(
    home: Home, engine: Engine, keys: Sequence[str], trigger_hint: Any, controls: Sequence[Any]
) -> None:
    """Show whether the trigger word is a good one, beside the name, and use another when its button is pressed."""
    *word_controls, count = controls   # name, trigger, base; how far the settings are from the preset

    def use_word(event: gr.EventData) -> list[Any]:
        """Take the suggested word whose button was pressed."""
        other = action_of(event)[1]   # the empty one means the name
        return [_save_setting(home, keys, "trigger", other)[0], other]

    gr.on([control.change for control in word_controls], lambda *given: trigger_word_hint(home, engine, *given),
          word_controls, trigger_hint, **_LATEST)   # fmt: skip
    trigger_hint.action(use_word, None, [count, word_controls[1]], **UNQUEUED)


def _choose_preset(home: Home, keys: Sequence[str], preset: str) -> list[Any]:
    """Another preset: show its settings; the base model and the kind stay as chosen."""
    kept = {key: value for key, value in load_draft(home).changes.items() if key in ("base", "kind")}
    return form_values(keys, edit_draft(home, preset=preset, changes=kept))


def _restore(home: Home, keys: Sequence[str]) -> list[Any]:
    draft = load_draft(home)
    count, filled_from, *values = form_values(keys, draft)
    # Models may have come since the page was made.
    place, choices = keys.index("base"), base_choices(home, downloadable_titles())
    values[place] = gr.update(choices=choices, value=values[place])
    answers = [draft.what, draft.subject, draft.name, draft_preset(draft)]
    return [_picture_list(draft), *answers, count, filled_from, *values]


def _memory_hint(
    home: Home, keys: Sequence[str], preset: str | None, filled_from: str, *values: Any
) -> Iterator[str]:
    """How much memory the run on the page needs here, or why it can't run."""
    try:
        settings = run_settings(keys, values, filled_from, preset or "", partial(base_options, home))
        yield from memory_lines(TrainConfig.from_dict(settings))
    except ValueError as error:
        yield str(error)


def _update_subject_hint(what: str) -> tuple[Any, Any]:
    return gr.Textbox(placeholder=words.CLASS_WORD_EXAMPLES[what]), gr.Markdown(visible=what == "person")


def _start_training(home: Home, keys: Sequence[str], values: Sequence[Any]) -> str:
    """Start a run; returns its id. What can't be used is said before anything is copied."""
    what, subject, name, preset, filled_from, *expert = values
    with show_errors():
        draft = load_draft(home)
        if not draft.usable:
            raise ValueError(words.NO_PICTURES)
        if not name.strip():
            raise ValueError(words.NO_NAME)
        answers = {"name": new_name(home, name), "subject": subject.strip() or words.WHAT_CHOICES[what].lower()}
        settings = run_settings(keys, expert, filled_from, preset, partial(base_options, home))
        config = TrainConfig.from_dict({**settings, **answers})
        require_download(config.base)
        config = with_style_caption(config) if what == "style" else config
        imported = import_pictures(home, config.name, picture_files(home, draft), checked=checked_files(home, draft),
                                   weights={picture.file: picture.weight for picture in draft.usable})   # fmt: skip
        weights = weights_text(imported.weights | picture_weights(config.weights))
        run = submit(home, replace(config, pictures=str(imported.folder), weights=weights))
        clear_draft(home)
        return run.id

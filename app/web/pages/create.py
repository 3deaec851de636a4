"""Create: pictures, what it is, a name, how long, [Start training]."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr

from atelier.adapters.formats.native import read_header
from atelier.app.jobs.continue_adapter import find_start
from atelier.app.jobs.jobs import submit
from atelier.app.services.create.expert_settings import default_values, draft_preset, form_values, run_settings
from atelier.app.services.create.memory_hint import memory_lines
from atelier.app.services.create.time_estimate import expected_time, save_estimate
from atelier.app.services.create.trigger_word_hint import trigger_word_hint
from atelier.app.services.engine import Engine
from atelier.app.services.known_models import downloadable_titles
from atelier.app.services.model_downloads import ModelDownloads
from atelier.app.store.base_settings import base_options
from atelier.app.store.datasets import import_pictures
from atelier.app.store.drafts.create_draft import (
    checked_files,
    clear_draft,
    edit_draft,
    load_draft,
    picture_files,
    save_setting,
)
from atelier.app.store.home import Home, new_name
from atelier.app.store.library import AdapterCard, find_adapter, find_adapter_by_hash
from atelier.app.store.models import base_choices
from atelier.app.text import create as words
from atelier.app.web.components.base_download import connect_base_download
from atelier.app.web.components.page_frame import UNQUEUED, heading, show_errors, warn
from atelier.app.web.components.panel import action_of, panel
from atelier.app.web.components.urls import page_url
from atelier.app.web.pages.create_expert import connect_recipes, place_expert, take_recipe
from atelier.app.web.pages.create_pictures import (
    CURES,
    connect_editor,
    connect_pictures,
    place_pictures,
    read_pictures,
    show_lists,
)
from atelier.training.base_models.hub import needs_download, require_download
from atelier.training.base_models.identify import identify
from atelier.training.config.train_config import (
    EMBEDDED,
    TrainConfig,
    load_preset,
    picture_weights,
    preset_evidence,
    preset_names,
    preset_notes,
    weights_text,
)
from atelier.training.recipes.companions import with_style_caption

_LATEST: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden", "api_visibility": "private",
                           "concurrency_limit": 4}   # fmt: skip


def build(demo: gr.Blocks, home: Home, engine: Engine, downloads: ModelDownloads) -> None:
    """Place the Create page; the draft is kept in ``home``, and ``engine`` checks trigger words."""
    heading(words.TITLE, words.LEAD)
    with gr.Row(elem_classes="layout"):
        with gr.Column(scale=7, elem_classes="surface"):
            continue_note = panel("continue-note", {})
            _step(1, words.PICTURES, words.PICTURES_HINT)
            pictures, editor = place_pictures(home)
        with gr.Column(scale=5, elem_classes="surface"):
            what, subject, name, trigger_hint, preset, note = _questions()
            preset_note = _place_preset_note(preset)
            memory_hint, base_download = panel("memory-hint", ""), panel("base-download", {})
            start = gr.Button(words.TRAIN, variant="primary", size="lg", elem_id="start-training")
    with gr.Accordion(words.EXPERT, open=False, elem_id="expert", elem_classes="surface"):
        count, expert, recipes = place_expert(base_choices(home, downloadable_titles()))
    come = connect_base_download(downloads, base_download, expert["base"])
    # What the Expert controls are filled from. Whoever picks a preset and starts at once is faster than the answer
    # that fills them again: the old values must then not be taken for changes.
    filled_from, run = gr.Textbox(visible=False), gr.Textbox(visible=False)

    answers, keys = {"what": what, "subject": subject, "name": name}, list(expert)
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
    decisive = {name: expert[name] for name in (*CURES, "trigger", "base", "caption", "resolution")}
    connect_pictures(pictures, lambda name, value: _save_setting(home, keys, name, value)[0], count, answers | decisive)
    connect_editor(pictures, editor)
    chosen = [preset, filled_from, *expert.values()]
    restored = [*pictures.lists, *answers.values(), preset, count, filled_from, *expert.values()]
    loaded = demo.load(_opener(home, keys), None, restored, **UNQUEUED)
    loaded.then(partial(read_pictures, home), None, pictures.lists, **_LATEST)   # what a crash left unread
    for event in (loaded.then, partial(gr.on, [control.change for control in (preset, come, *expert.values())])):
        event(partial(_memory_hint, home, keys), chosen, memory_hint, **_LATEST)
        event(partial(_preset_note, home, engine, keys), chosen, preset_note, **UNQUEUED, trigger_mode="always_last")
    loaded.then(partial(_preset_tiles, home, engine), None, preset, **UNQUEUED)
    connect_recipes(home, keys, recipes, [count, filled_from, *expert.values()], preset,
                    partial(_settings, home, keys))   # fmt: skip
    _watch_continuation(home, keys, continue_note, [count, expert["continue_from"]])
    _watch_trigger_word(home, engine, keys, trigger_hint, [name, expert["trigger"], expert["base"], count])
    started = start.click(lambda *values: _start_training(home, engine, keys, values), [*answers.values(), *chosen],
                          run, api_visibility="private")   # fmt: skip
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
    presets = presets_by_length()   # the usual one is what preset_names() begins with
    choices = [(preset_notes(name)["title"], name) for name in presets]
    preset = gr.Radio(choices, value=next(iter(preset_names()), None), show_label=False, label=words.LENGTH,
                      elem_id="preset", elem_classes="tiles")   # fmt: skip
    return what, subject, name, trigger_hint, preset, note


def _place_preset_note(preset: gr.Radio) -> Any:
    """Place what a preset is and how long it takes, which the caller fills in, and what was measured with it."""
    note = panel("preset-note", {})
    evidence = gr.Markdown(preset_evidence(preset.value), elem_classes="hint", elem_id="preset-evidence")
    preset.change(preset_evidence, preset, evidence, **UNQUEUED)
    return note


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


def _watch_continuation(home: Home, keys: Sequence[str], note: Any, controls: Sequence[Any]) -> None:
    """Say which adapter the training continues, with a button that starts from nothing instead."""
    count, given = controls
    given.change(lambda name: {"text": words.continues_from(_name_of(home, name))} if name else {}, given, note,
                 **UNQUEUED)   # fmt: skip
    note.action(lambda: [_save_setting(home, keys, "continue_from", "")[0], ""], None, [count, given], **UNQUEUED)


def _name_of(home: Home, given: str) -> str:
    """An adapter's name, where a recipe has the hash of its weights."""
    card = find_adapter_by_hash(home, given)
    return card.name if card else given


def _choose_preset(home: Home, keys: Sequence[str], preset: str) -> list[Any]:
    """Another preset: show its settings; the base model and the kind stay as chosen."""
    kept = {key: value for key, value in load_draft(home).changes.items() if key in ("base", "kind")}
    return form_values(keys, edit_draft(home, preset=preset, changes=kept))


def _opener(home: Home, keys: Sequence[str]) -> Callable[[gr.Request], list[Any]]:
    """What fills the page when it opens. No partial: Gradio finds no request among the arguments of one."""

    def on_load(request: gr.Request) -> list[Any]:
        """Show the draft, with the settings of an adapter if the page's address names one."""
        query = request.query_params
        try:
            if like := query.get("like", ""):
                take_recipe(home, keys, read_header(find_adapter(home, like).path).info.recipe)
            if start := query.get("continue", ""):
                _continue_adapter(home, keys, find_start(home, start))
        except ValueError as error:   # the page is shown all the same
            warn(str(error))
        return _restore(home, keys)

    return on_load


def _continue_adapter(home: Home, keys: Sequence[str], card: AdapterCard) -> None:
    """Let the draft continue an adapter: its settings where it has a recipe, else its kind, its options and its base.

    Raises:
        SettingError, BaseError, FileError: they can't be used.
    """
    header = read_header(card.path)
    edit_draft(home, changes={})
    if header.info.recipe:
        take_recipe(home, keys, header.info.recipe)
    options = {f"{card.kind}.{name}": value for name, value in header.settings.items()}
    own = {"kind": card.kind, "base": card.base or EMBEDDED, **options, "trigger": card.trigger,
           "continue_from": card.name}   # fmt: skip
    draft = load_draft(home)
    usual = dict(zip(keys, default_values(keys, draft_preset(draft), own["base"]), strict=True))
    changes = {**draft.changes, **own}
    edit_draft(home, subject=card.subject or draft.subject,
               changes={key: value for key, value in changes.items() if key in usual and value != usual[key]})


def _restore(home: Home, keys: Sequence[str]) -> list[Any]:
    draft = load_draft(home)
    count, filled_from, *values = form_values(keys, draft)
    # Models may have come since the page was made.
    place, choices = keys.index("base"), base_choices(home, downloadable_titles())
    values[place] = gr.update(choices=choices, value=values[place])
    answers = [draft.what, draft.subject, draft.name, draft_preset(draft)]
    return [*show_lists(home, draft), *answers, count, filled_from, *values]


def _memory_hint(
    home: Home, keys: Sequence[str], preset: str | None, filled_from: str, *values: Any
) -> Iterator[str]:
    """How much memory the run on the page needs here, or why it can't run."""
    try:
        settings = _settings(home, keys, preset, filled_from, *values)
        yield from memory_lines(TrainConfig.from_dict(settings))
    except ValueError as error:
        yield str(error)


def _settings(home: Home, keys: Sequence[str], preset: str | None, filled_from: str, *values: Any) -> dict[str, Any]:
    """The settings of the run on the page, but for the answers."""
    return run_settings(keys, values, filled_from, preset or "", partial(base_options, home))


def _preset_note(
    home: Home, engine: Engine, keys: Sequence[str], preset: str | None, filled_from: str, *values: Any
) -> dict[str, str]:
    """What the chosen preset is good for, and how long the run on the page takes here."""
    try:
        config = TrainConfig.from_dict(_settings(home, keys, preset, filled_from, *values))
        estimate = expected_time(home, engine, config)
    except ValueError:   # said beside the memory
        return {}
    time = words.time_needed(estimate.seconds, estimate.runs) if estimate else words.NO_TIME
    return {**preset_notes(preset), "time": time} if preset else {"time": time}


def _preset_tiles(home: Home, engine: Engine) -> Any:
    """The presets with the times they take with the base model of the draft."""
    base, tiles = load_draft(home).changes.get("base", EMBEDDED), []
    for name in presets_by_length():
        try:
            family = identify(base).family if not needs_download(base) else ""
            config = TrainConfig.from_dict({**load_preset(name, family), "base": base})
            estimate = expected_time(home, engine, config)
        except ValueError:   # said beside the memory
            estimate = None
        title = preset_notes(name)["title"]
        tiles.append((words.preset_tile(title, estimate.seconds if estimate else 0), name))
    return gr.Radio(choices=tiles)


def presets_by_length() -> list[str]:
    """Names of the presets, the shortest first."""
    return sorted(preset_names(), key=lambda name: load_preset(name, EMBEDDED).get("steps", 0))


def _update_subject_hint(what: str) -> tuple[Any, Any]:
    return gr.Textbox(placeholder=words.CLASS_WORD_EXAMPLES[what]), gr.Markdown(visible=what == "person")


def _start_training(home: Home, engine: Engine, keys: Sequence[str], values: Sequence[Any]) -> str:
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
        estimate = expected_time(home, engine, config)
        run = submit(home, replace(config, pictures=str(imported.folder), weights=weights))
        save_estimate(run, estimate)
        clear_draft(home)
        return run.id

"""The pictures on the Create page: dropping them, what is wrong with them, captions, weights, cropping and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from atelier.app.services.create.caption_proposals import captioner_hint, propose_captions
from atelier.app.services.create.examples import example_tiles, take_example
from atelier.app.services.create.picture_hints import PictureHints, draft_captioner, picture_hints, picture_tiles
from atelier.app.store.drafts.create_draft import (
    Draft,
    load_draft,
    read_received,
    receive_files,
    remove_pictures,
    set_weight,
    undo_change,
    undo_label,
)
from atelier.app.store.drafts.draft_captions import edit_captions, type_caption
from atelier.app.store.drafts.draft_editing import open_for_editing, save_edit
from atelier.app.store.home import Home
from atelier.app.text import create as words
from atelier.app.web.components.page_frame import UNQUEUED, show_errors
from atelier.app.web.components.panel import action_of, panel, text_of
from atelier.app.web.components.uploads import upload_queue, uploaded_files

CURES = ("trigger_first", "caption_chunks")   # of captions that are not read whole
ANSWERS = ("what", "subject", "name")
# All kinds of picture: those that can't be used are refused in a sentence, where the browser would only say no.
_DROPPED = ["image", ".heic", ".heif", ".avif", ".jxl", ".txt", ".caption", ".cap", ".json", ".jsonl", ".csv"]
_READ: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "always_last",
                         "concurrency_limit": 4}   # fmt: skip

_SCROLL_TO_EDITOR = "() => document.querySelector('#picture-editor')?.scrollIntoView({block: 'center'})"


class PictureParts(NamedTuple):
    """What the page has for the pictures."""

    home: Home
    drop: gr.File
    queue: Any
    tiles: Any
    captions: Any
    examples: Any
    how: gr.Dropdown
    find: gr.Textbox
    text: gr.Textbox
    apply: gr.Button

    @property
    def lists(self) -> list[Any]:
        """The panels that depend on the draft's pictures."""
        return [self.tiles, self.captions, self.examples]


class EditorParts(NamedTuple):
    """The editor of one picture."""

    group: gr.Group
    picture_id: gr.Textbox
    canvas: gr.ImageEditor
    meaning: gr.Radio
    save: gr.Button
    close: gr.Button


def place_pictures(home: Home) -> tuple[PictureParts, EditorParts]:
    """Place the drop zone, the pictures, and what is folded: their captions, weights and the editor."""
    drop = gr.File(file_count="multiple", file_types=_DROPPED, label=words.DROP, elem_id="add-pictures",
                   elem_classes="drop-zone", height=230)   # fmt: skip
    queue = upload_queue("add-pictures")
    tiles, examples = panel("training-pictures", show_tiles(Draft())), panel("examples", {})
    with gr.Accordion(words.CAPTIONS, open=False, elem_id="captions", elem_classes="folded"):
        editor = _place_editor()
        captions = panel("picture-captions", {})
        with gr.Row(elem_classes="bulk-edit"):
            how = gr.Dropdown([(title, key) for key, title in words.CAPTION_EDITS.items()], value="replace",
                              label=words.CHANGE_ALL, elem_id="caption-edit", min_width=150)   # fmt: skip
            find = gr.Textbox(label=words.FIND, max_length=200, elem_id="caption-find", min_width=110)
            text = gr.Textbox(label=words.NEW_TEXT, max_length=500, elem_id="caption-text", min_width=110)
            apply = gr.Button(words.APPLY, elem_id="caption-apply", min_width=90)
    return PictureParts(home, drop, queue, tiles, captions, examples, how, find, text, apply), editor


def _place_editor() -> EditorParts:
    with gr.Group(visible=False, elem_id="picture-editor") as group:
        picture_id = gr.Textbox(visible=False)
        canvas = gr.ImageEditor(
            type="pil", image_mode="RGBA", sources=("clipboard",), transforms=("crop",), layers=False,
            eraser=gr.Eraser(), brush=gr.Brush(default_size=24, colors=["#ffffff"], color_mode="fixed"),
            format="png", buttons=[], label=words.EDITOR, elem_id="picture-canvas",
            canvas_size=(512, 512))   # fmt: skip
        meaning = gr.Radio([(title, key) for key, title in words.MASK_MEANINGS.items()], value="learn",
                           label=words.MASK, info=words.MASK_HINT, elem_id="mask-meaning")   # fmt: skip
        with gr.Row(elem_classes="actions"):
            save = gr.Button(words.SAVE_PICTURE, variant="primary", elem_id="save-picture")
            close = gr.Button(words.CLOSE_EDITOR, elem_id="close-editor")
    return EditorParts(group, picture_id, canvas, meaning, save, close)


def show_tiles(draft: Draft, undo: str = "", left: int = 0) -> dict[str, Any]:
    """What the panel of pictures shows; ``left`` files are still to be read."""
    rejected = [{"id": p.id, "name": p.name, "note": p.note} for p in draft.pictures if p.refused]
    hints = picture_hints(draft) if draft.usable else PictureHints()
    usable = picture_tiles(draft, hints)
    return {
        "pictures": usable, "rejected": rejected, "usable": len(usable), "sentences": hints.sentences,
        "count": words.reading(left) if left else words.picture_count(len(usable), len(rejected)),
        "tips": [] if draft.pictures else words.TIPS, "undo": undo,
        "trigger_first": hints.trigger_first, "chunks": hints.chunks, "read_longer": words.read_longer(hints.chunks),
    }   # fmt: skip


def show_lists(home: Home, draft: Draft, left: int = 0) -> list[dict[str, Any]]:
    """What the panels show."""
    tiles = show_tiles(draft, undo_label(home), left)
    captioner = draft_captioner(draft)
    word = captioner.trigger or words.TRIGGER_WORD
    examples = [] if draft.pictures or tiles["undo"] or left else [*example_tiles()]
    hint = captioner_hint(home)
    captions = {"pictures": tiles["pictures"], "word": word, "hint": words.caption_hint(word), "model_hint": hint,
                "can_propose": not hint}   # fmt: skip
    return [tiles, captions, {"examples": examples}]


def connect_pictures(
    parts: PictureParts, save: Callable[[str, Any], Any], count: Any, controls: dict[str, Any]
) -> None:
    """Connect what is pressed and typed.

    Args:
        parts: what was placed.
        save: saves a setting, given its name and value, and returns a sentence for ``count``.
        count: says how many settings differ from the preset.
        controls: of the answers, and of the settings that decide what captions are.
    """
    home, cures = parts.home, [controls[name] for name in CURES]

    def press(event: gr.EventData) -> list[Any]:
        """Do what was pressed or typed in a list."""
        changed = _setting_of(*(pressed := action_of(event)))
        note = [save(name, value) for name, value in changed.items()] or [gr.skip()]
        with show_errors():
            draft = _do(home, *pressed, text_of(event))
        return [*show_lists(home, draft), *note, *(changed.get(name, gr.skip()) for name in CURES)]

    def fill(event: gr.EventData) -> list[str]:
        """The answers of an example; its pictures follow."""
        with show_errors():
            draft = take_example(home, action_of(event)[1])
        return [draft.what, draft.subject, draft.name]

    def propose(event: gr.EventData) -> Iterator[list[Any]]:
        """Have captions proposed where that was pressed."""
        yield from _propose(home) if action_of(event)[0] == "propose" else [[gr.skip()] * 3]

    def receive(event: gr.EventData) -> None:
        """Note the files of a drop."""
        with show_errors():
            receive_files(home, uploaded_files(event))

    again = partial(_show_again, home, list(controls)), list(controls.values()), parts.lists
    for shown in (parts.tiles, parts.captions):
        shown.action(press, None, [*parts.lists, count, *cures], **UNQUEUED)
    parts.captions.action(propose, None, parts.lists, **_READ)
    chosen = parts.examples.action(fill, None, [controls[name] for name in ANSWERS], **UNQUEUED)
    chosen.then(partial(read_pictures, home), None, parts.lists, **_READ)
    for dropped in (parts.queue.uploaded(receive, None, None, **UNQUEUED, trigger_mode="multiple"),
                    # The field itself hears only of what comes before the queue is there.
                    parts.drop.upload(partial(_receive, home), parts.drop, parts.drop, **UNQUEUED)):
        read = dropped.then(partial(read_pictures, home), None, parts.lists, **_READ)
        read.then(*again, **UNQUEUED)   # while they were read, another name may have been typed
    parts.apply.click(partial(_change_all, home), [parts.how, parts.find, parts.text], parts.lists, **UNQUEUED)
    parts.how.change(lambda how: gr.Textbox(visible=how == "replace"), parts.how, parts.find, **UNQUEUED)
    gr.on([control.change for control in controls.values()], *again, **UNQUEUED, trigger_mode="always_last")


def _receive(home: Home, files: list[str] | None) -> None:
    """Note what was dropped and empty the field at once: only then is it a place to drop more."""
    with show_errors():
        receive_files(home, map(Path, files or []))


def read_pictures(home: Home) -> Iterator[list[Any]]:
    """Add what was received to the draft, and show each picture as soon as it is checked."""
    with show_errors():
        for draft, left in read_received(home):
            yield show_lists(home, draft, left)
    yield show_lists(home, load_draft(home))


def _propose(home: Home) -> Iterator[list[Any]]:
    """Have captions proposed, and show how far that is."""
    try:
        with show_errors():
            for done, count in propose_captions(home):
                tiles, captions, examples = show_lists(home, load_draft(home))
                yield [tiles, {**captions, "can_propose": False, "model_hint": words.captions_proposed(done, count)},
                       examples]   # fmt: skip
    except gr.Error:   # the button comes back, too
        yield show_lists(home, load_draft(home))
        raise
    yield show_lists(home, load_draft(home))


def _setting_of(action: str, pressed: str) -> dict[str, Any]:
    """The setting that a button under the pictures changes."""
    if action == "trigger-first":
        return {"trigger_first": True}
    return {"caption_chunks": int(pressed)} if action == "read-longer" and pressed.isdecimal() else {}


def _do(home: Home, action: str, pressed: str, text: str) -> Draft:
    """Change the draft as a button says; returns it."""
    draft = load_draft(home)
    if action == "remove":
        return remove_pictures(home, [pressed])
    if action == "clear":
        return remove_pictures(home, [picture.id for picture in draft.pictures])
    if action == "undo":
        return undo_change(home)
    if action == "caption":
        return type_caption(home, pressed, text, draft_captioner(draft))
    if action == "weigh":
        id, _, weight = pressed.partition(" ")
        return set_weight(home, id, float(weight))
    return draft


def _change_all(home: Home, how: str, find: str, text: str) -> list[Any]:
    with show_errors():
        return show_lists(home, edit_captions(home, how, find, text, draft_captioner(load_draft(home))))


def _show_again(home: Home, names: list[str], *values: Any) -> list[Any]:
    """Judge the captions for what the controls say now: the draft on disk may still have what they said before."""
    given = dict(zip(names, values, strict=True))
    answers = {field: given.pop(field) or "" for field in ANSWERS}
    draft = load_draft(home)
    draft = replace(draft, changes={**draft.changes, **given}, **answers)
    return show_lists(home, draft) if draft.usable else [gr.skip()] * 3


def connect_editor(parts: PictureParts, editor: EditorParts) -> None:
    """Open a picture in the editor, and save what was done there."""
    home = parts.home
    opened = [editor.group, editor.picture_id, editor.canvas, editor.meaning]

    def open_editor(event: gr.EventData) -> list[Any]:
        """Show the editor: it takes a picture only while it is visible."""
        action, pressed = action_of(event)
        return [gr.Group(visible=True), pressed, None, "learn"] if action == "edit" else [gr.skip()] * 4

    shown = parts.captions.action(open_editor, None, opened, **UNQUEUED)
    shown.then(None, None, None, js=_SCROLL_TO_EDITOR)
    editor.picture_id.change(partial(_open, home), editor.picture_id, editor.canvas, **UNQUEUED)
    saved = editor.save.click(partial(_save, home), opened[1:], parts.lists, show_progress="minimal",
                              api_visibility="private")   # fmt: skip
    for done in (saved.success, editor.close.click):
        done(lambda: [gr.Group(visible=False), "", None, "learn"], None, opened, **UNQUEUED)


def _open(home: Home, picture_id: str) -> dict[str, Any] | None:
    """The picture as the editor shows it, its mask painted on it; nothing when the editor was closed."""
    if not picture_id:
        return None
    with show_errors():
        picture, mask = open_for_editing(home, picture_id)
    paint = Image.new("RGBA", picture.size, "white")
    if mask is not None:
        paint.putalpha(mask)
    return {"background": picture.convert("RGBA"), "layers": [] if mask is None else [paint], "composite": None}


def _save(home: Home, picture_id: str, value: Any, meaning: str) -> list[Any]:
    with show_errors():
        if not value or value["background"] is None:
            raise ValueError(words.PICTURE_GONE)
        layers = value["layers"]
        painted = layers[0].getchannel("A") if layers else None
        draft = save_edit(home, picture_id, value["background"], painted, meaning)
        return show_lists(home, draft)

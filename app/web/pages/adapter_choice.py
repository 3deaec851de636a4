"""Adapters that a form asks for: pressed in a picker of a few, with a search among the rest, however many there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import gradio as gr

from atelier.app.store.home import Home
from atelier.app.store.library import find_adapter
from atelier.app.text import shared
from atelier.app.text import studio as words
from atelier.app.web.components.page_frame import UNQUEUED, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.app.web.pages.studio_adapters import MAX_ADAPTERS, adapter_names, join_names
from atelier.app.web.pages.studio_picker import adapter_picker


class AdapterChoice(NamedTuple):
    """What a form has for it; ``names`` is hidden and holds what is chosen."""

    names: gr.Textbox
    search: gr.Textbox
    picker: Any


def place_choice(home: Home, label: str, hint: str, elem_id: str, most: int = MAX_ADAPTERS) -> AdapterChoice:
    """Place it, filled in by :func:`show_choice`. Where ``most`` is 1, another press chooses another."""
    search = gr.Textbox(label=label, info=hint, placeholder=words.FIND_ADAPTER, max_length=100, max_lines=1,
                        elem_id=elem_id)   # fmt: skip
    parts = AdapterChoice(gr.Textbox(visible=False), search, panel("adapter-picker", {}, elem_id=f"{elem_id}-picker"))

    def toggle(event: gr.EventData, names: str, search: str) -> list[Any]:
        """Choose the adapter that was pressed, or leave it out again."""
        with show_errors():
            chosen = _toggled(home, adapter_names(names), action_of(event)[1], most)
        return [join_names(chosen), adapter_picker(home, chosen, search)]

    parts.picker.action(toggle, [parts.names, search], [parts.names, parts.picker], **UNQUEUED)
    search.input(lambda names, search: adapter_picker(home, adapter_names(names), search), [parts.names, search],
                 parts.picker, **UNQUEUED, trigger_mode="always_last")   # fmt: skip
    return parts


def show_choice(home: Home, names: Sequence[str] = ()) -> list[Any]:
    """Values of the hidden field, the search and the picker."""
    return [join_names(names), "", adapter_picker(home, names)]


def _toggled(home: Home, names: Sequence[str], pressed: str, most: int) -> list[str]:
    """What is chosen after a press.

    Raises:
        ValueError: there is no such adapter, or there are too many.
    """
    name = find_adapter(home, pressed).name
    if name in names:
        return [other for other in names if other != name]
    if most == 1:
        return [name]
    if len(names) >= most:
        raise ValueError(shared.too_many_adapters(most))
    return [*names, name]

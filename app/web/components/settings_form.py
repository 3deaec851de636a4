"""Forms generated from settings: one control for each field, from the field's help, limits and choices."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import Field, fields
from types import MappingProxyType
from typing import Any, get_type_hints

import gradio as gr

from atelier.adapters.core.settings import Settings
from atelier.app.text.shared import FIELD_LABELS


def controls(
    settings: type[Settings], *, skip: Collection[str] = (), only: Sequence[str] = (), prefix: str = "set",
    suggestions: Mapping[str, Sequence[tuple[str, str]]] = MappingProxyType({}),
) -> dict[str, gr.components.Component]:
    """Place a control for every field of a settings class that has plain values, or for ``only`` some, by field name.

    On the page a control has the id ``<prefix>-<field>``. Fields in ``suggestions`` have values to choose from, as
    (title, value), and accept others as well.
    """   # fmt: skip
    hints = get_type_hints(settings)
    wanted = only or [f.name for f in fields(settings) if f.name not in skip]
    plain = [f for f in fields(settings) if hints[f.name] in (bool, int, float, str) and f.name in wanted]
    plain.sort(key=lambda f: wanted.index(f.name))
    return {f.name: _control(f, hints[f.name], f"{prefix}-{f.name}", suggestions.get(f.name)) for f in plain}


def _control(
    f: Field[Any], kind: type, id: str, suggested: Sequence[tuple[str, str]] | None
) -> gr.components.Component:
    low, high, choices = (f.metadata.get(key) for key in ("low", "high", "choices"))
    common: dict[str, Any] = {
        "value": f.default, "label": _label(f.name), "info": f.metadata.get("help"), "interactive": True,
        "elem_id": id,
    }
    if suggested is not None:
        return gr.Dropdown(choices=list(suggested), allow_custom_value=True, **common)
    if choices:
        return gr.Dropdown(choices=list(choices), **common)
    if kind is bool:
        return gr.Checkbox(**common)
    if kind is str:
        return gr.Textbox(max_lines=4, **common)
    return gr.Number(minimum=low, maximum=high, precision=0 if kind is int else None, step=_step(f, kind), **common)


def _step(f: Field[Any], kind: type) -> float:
    """How far one press of an arrow key goes."""
    default: Any = f.default
    return 1 if kind is int or not default else float(default) / 10


def _label(name: str) -> str:
    return FIELD_LABELS.get(name) or name.replace("_", " ").capitalize()

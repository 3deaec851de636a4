"""The adapters of the Studio's drawing: added by the picker or by ``<lora:name:0.8>`` in the prompt, a slider each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import gradio as gr

from atelier.app.services.draw import suggested_prompt
from atelier.app.services.library.adapter_measures import read_measures
from atelier.app.store.adapter_notes import AdapterNotes, read_notes
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import find_adapter
from atelier.app.text import shared
from atelier.app.text import studio as words
from atelier.app.web.components.page_frame import show_errors
from atelier.app.web.pages.studio_picker import adapter_picker
from atelier.training.config.train_config import EMBEDDED
from atelier.training.sampling.prompt_syntax import split_adapters

MAX_ADAPTERS = 6
_SEPARATOR = "\n"   # no adapter's name holds a line break


def adapter_names(text: str) -> list[str]:
    """The adapters in use, from the hidden field that holds them."""
    return [name for name in (text or "").split(_SEPARATOR) if name][:MAX_ADAPTERS]


def join_names(names: Sequence[str]) -> str:
    """The hidden field's value."""
    return _SEPARATOR.join(names)


def strength_sliders(home: Home, names: Sequence[str], strengths: dict[str, float]) -> list[Any]:
    """The sliders: one for each adapter in use, over the range noted for it in the Library; the others hidden."""
    notes = read_notes(home)
    used = [_slider(home, name, strengths.get(name, 1.0), notes.get(name, AdapterNotes())) for name in names]
    return used + [gr.Slider(visible=False)] * (MAX_ADAPTERS - len(names))


def _slider(home: Home, name: str, strength: float, notes: AdapterNotes) -> Any:
    """A slider that goes to the strength it shows, even beyond the noted range, and says what was measured."""
    with suppress(HomeError):   # deleted since
        measures = read_measures(home, find_adapter(home, name))
        hint = words.proposed_strength(measures.low, measures.high) if measures else ""
        return gr.Slider(min(notes.low, strength), max(notes.high, strength), strength, label=name, info=hint,
                         visible=True)   # fmt: skip
    return gr.Slider(label=name, value=strength, visible=True)


def trigger_words_of(home: Home, names: Sequence[str]) -> list[str]:
    """The words that call the adapters in use."""
    return [find_adapter(home, name).trigger for name in names]


def toggle_adapter(home: Home, settings: dict[str, Any], name: str) -> list[Any]:
    """Add an adapter or remove it; the others keep their strengths.

    Returns:
        Values of prompt, base model, hidden field, sliders, picker and trigger words.
    """
    names, strengths = _in_use(settings)
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
    return [prompt, base, *_shown(home, settings, names, strengths)]


def add_typed_adapters(home: Home, settings: dict[str, Any]) -> list[Any]:
    """Give adapters that were typed in the prompt a slider each, and take them out of the text.

    Those among choices, as in ``{<lora:a:1>|<lora:b:1>}``, stay: each picture chooses its own. Returns the same values
    as :func:`toggle_adapter`.
    """
    prompt, typed = _split_outside_choices(settings["prompt"])
    if not typed:
        return [gr.skip()] * (5 + MAX_ADAPTERS)
    names, strengths = _in_use(settings)
    with show_errors():
        for name, strength in typed:
            strengths[find_adapter(home, name).name] = strength
            names += [name] if name not in names else []
        if len(names) > MAX_ADAPTERS:
            raise ValueError(shared.too_many_adapters(MAX_ADAPTERS))
    return [prompt, gr.skip(), *_shown(home, settings, names, strengths)]


def _split_outside_choices(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """As ``split_adapters``, of what stands before the first and after the last brace of a prompt with choices.

    >>> _split_outside_choices("a {red|<lora:x:1>} fox <lora:rex:0.8>")
    ('a {red|<lora:x:1>} fox', [('rex', 0.8)])
    """
    first, last = prompt.find("{"), prompt.rfind("}") + 1
    if not 0 <= first < last:
        return split_adapters(prompt)
    (head, before), (tail, after) = split_adapters(prompt[:first]), split_adapters(prompt[last:])
    if before:
        head = f"{head} ".lstrip()
    return head + prompt[first:last] + (f" {tail}".rstrip() if after else tail), [*before, *after]


def _in_use(settings: dict[str, Any]) -> tuple[list[str], dict[str, float]]:
    names = adapter_names(settings["names"])
    return names, {name: settings[f"strength{i}"] for i, name in enumerate(names)}


def _shown(home: Home, settings: dict[str, Any], names: Sequence[str], strengths: dict[str, float]) -> list[Any]:
    return [join_names(names), *strength_sliders(home, names, strengths),
            adapter_picker(home, names, settings["search"] or ""), trigger_words_of(home, names)]   # fmt: skip

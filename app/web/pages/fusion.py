"""Mix Lab, Fusion: a prompt, the adapters that fit it, how they act together, and what each layer made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from atelier.adapters.core.settings import SettingError
from atelier.adapters.fusion.gates import GateRecord
from atelier.adapters.fusion.methods import DEFAULT_METHOD, METHODS
from atelier.app.services.draw import suggested_prompt
from atelier.app.services.engine import Engine
from atelier.app.services.fuse import (
    can_be_one_adapter,
    draw_by_each_method,
    draw_mix,
    draw_mix_to_gallery,
    fuse_to_adapter,
    mix_interference,
    proposed_adapters,
)
from atelier.app.store.gallery import find_picture, read_recipe
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import find_adapter, list_adapters
from atelier.app.store.mixes import MixEntry, SavedMix, list_mixes, mix_from_recipe, read_mix, save_mix
from atelier.app.text import fusion as words
from atelier.app.text import shared
from atelier.app.web.components.fusion_view import (
    curves,
    gate_maps,
    meeting_map,
    moved,
    painted,
    proposal_cards,
    regions,
)
from atelier.app.web.components.page_frame import POLL, heading, mix_tabs, plainly
from atelier.app.web.components.panel import acted, panel
from atelier.app.web.components.urls import address, file_address
from atelier.training.config.train_config import EMBEDDED
from atelier.training.runs.save_adapter import thumbnail

MOST = 5
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 4}
_LATEST: dict[str, Any] = {"trigger_mode": "always_last", **_QUIET}


def build(demo: gr.Blocks, home: Home, engine: Engine) -> None:
    """Place the page."""
    heading(words.TITLE, words.LEAD)
    mix_tabs("fusion")
    with gr.Row(elem_classes="bench bench-studio"):
        with gr.Column(scale=5, elem_classes="sheet"):
            c, found, when, where = _controls()
        with gr.Column(scale=7, elem_classes="easel"):
            drawn = panel("fused", {"say": words.EMPTY})
            strip = panel("methods", [])
            with gr.Row(elem_classes="acts"):
                keep = gr.Button(words.DRAW_AND_SAVE, variant="primary", elem_id="draw")
                compare = gr.Button(words.COMPARE, elem_id="compare")
            heat, met = panel("heat", [], elem_id="gates"), panel("heat", [], elem_id="meetings")
    acts, entries, picture = _Acts(home, engine), gr.State(()), gr.State("")
    given = [entries, c["method"], c["prompt"], c["seed"], *c["sliders"]]
    parts = [found, entries, *c["sliders"], when]
    filled = [c["method"], c["prompt"], c["seed"], *parts]

    changes = [
        demo.load(acts.opened, None, [c["open"], *filled], **POLL),
        c["open"].input(acts.reopened, c["open"], filled, **POLL),
        gr.on([c["prompt"].submit, c["find"].click], acts.find, given, found, **POLL),
        found.act(acts.toggle, given, [c["prompt"], *parts], **POLL),
        when.act(acts.shape, given, [entries, when], **POLL),
        where.act(acts.paint, [picture, *given], [entries, where], **POLL),
        strip.act(acts.choose, None, c["method"], **POLL),
    ]
    seen = [drawn, heat, met, where, picture, c["one"], c["hint"]]
    for change in changes:
        change.then(acts.show, given, seen, **_LATEST)
    gr.on([c["method"].input, c["seed"].change, *(s.input for s in c["sliders"])], acts.show, given, seen, **_LATEST)
    compare.click(acts.compare, given, strip, **_QUIET)
    keep.click(acts.keep, given, drawn, trigger_mode="once", **_QUIET)
    c["save"].click(acts.save, [c["name"], *given], [c["said"], c["open"]], **_QUIET)
    c["one"].click(acts.unite, [c["name"], *given], c["said"], **_QUIET)


@dataclass(frozen=True, slots=True)
class _Acts:
    """What presses do; the last values of each are what stands on the page, as :func:`_mix` reads it."""

    home: Home
    engine: Engine

    def opened(self, request: gr.Request) -> list[Any]:
        return _opened(self.home, dict(request.query_params))

    def reopened(self, name: str | None) -> list[Any]:
        with plainly():
            return _filled(self.home, read_mix(self.home, name) if name else None)

    def find(self, *values: Any) -> dict[str, Any]:
        return _proposals(self.home, _mix(*values))

    def toggle(self, event: gr.EventData, *values: Any) -> list[Any]:
        with plainly():
            return _taken(self.home, _mix(*values), acted(event)[1])

    def shape(self, event: gr.EventData, *values: Any) -> list[Any]:
        mix, (act, text) = _mix(*values), acted(event)
        entries = moved(mix.entries, text) if act == "handle" else _without(mix, text, "curve")
        return [entries, curves(entries)]

    def paint(self, event: gr.EventData, picture: str, *values: Any) -> list[Any]:
        mix, (act, text) = _mix(*values), acted(event)
        entries = painted(mix.entries, text) if act == "paint" else _without(mix, text, "region")
        return [entries, regions(entries, picture)]

    def choose(self, event: gr.EventData) -> str:
        method = acted(event)[1]
        return method if method in METHODS else DEFAULT_METHOD

    def show(self, *values: Any) -> list[Any]:
        with plainly():
            return _shown(self.home, self.engine, _mix(*values))

    def compare(self, *values: Any) -> Iterator[list[dict[str, Any]]]:
        yield from _tried(self.home, self.engine, _mix(*values))

    def keep(self, *values: Any) -> dict[str, Any]:
        with plainly():
            kept = draw_mix_to_gallery(self.home, self.engine, _based(self.home, _ready(_mix(*values))))
        return {"src": file_address(kept.path), "note": words.IN_GALLERY, "href": address("gallery", picture=kept.id)}

    def save(self, name: str, *values: Any) -> list[Any]:
        with plainly():
            save_mix(self.home, name, _mix(*values))
        return [{"text": words.saved(name)}, gr.Dropdown(choices=list_mixes(self.home))]

    def unite(self, name: str, *values: Any) -> dict[str, Any]:
        with plainly():
            card, error = fuse_to_adapter(self.home, self.engine, _based(self.home, _mix(*values)), name)
        return {"text": words.fused(card.name, error), "href": address("library", adapter=card.name)}


def _controls() -> tuple[dict[str, Any], Any, Any, Any]:
    """Everything that decides the picture, and the panels among it."""
    c: dict[str, Any] = {}
    c["prompt"] = gr.Textbox(label=shared.PROMPT, placeholder=shared.PROMPT_HINT, max_lines=4, max_length=1000,
                             elem_id="prompt")   # fmt: skip
    c["find"] = gr.Button(words.FIND, elem_id="find")
    found = panel("proposals", {"cards": []})
    c["sliders"] = [gr.Slider(-1, 2, 1.0, step=0.05, visible=False, interactive=True, elem_id=f"strength-{i}",
                              elem_classes="strength") for i in range(MOST)]   # fmt: skip
    choices = [(words.METHODS[name], name) for name in METHODS]
    with gr.Row(elem_classes="seeds"):
        c["method"] = gr.Dropdown(choices, value=DEFAULT_METHOD, label=words.METHOD, elem_id="fusion-method",
                                  interactive=True)   # fmt: skip
        c["seed"] = gr.Number(0, label=shared.SEED, precision=0, minimum=0, maximum=2**31 - 1, elem_id="seed")
    with gr.Accordion(words.WHEN, open=False, elem_id="when"):
        when = panel("curves", [])
    with gr.Accordion(words.WHERE, open=False, elem_id="where"):
        where = panel("regions", {"rows": []})
    c["name"] = gr.Textbox(label=words.NAME, max_length=100, elem_id="fusion-name")
    with gr.Row(elem_classes="acts"):
        c["save"] = gr.Button(words.SAVE, elem_id="fusion-save")
        c["one"] = gr.Button(words.FUSE, interactive=False, elem_id="fusion-one")
    c["hint"] = gr.Markdown("", elem_classes="hint", elem_id="one-hint")
    c["said"] = panel("fusion-said", {})
    c["open"] = gr.Dropdown([], value=None, label=words.OPEN, elem_id="fusion-open", interactive=True)
    return c, found, when, where


def _mix(entries: Sequence[MixEntry], method: str, prompt: str, seed: float | None, *strengths: float) -> SavedMix:
    """What stands on the page."""
    now = tuple(replace(entry, strength=float(value or 0)) for entry, value in zip(entries, strengths, strict=False))
    return SavedMix(entries=now, method=method or DEFAULT_METHOD, prompt=prompt or "", seed=int(seed or 0))


def _based(home: Home, mix: SavedMix) -> SavedMix:
    return replace(mix, base=find_adapter(home, mix.entries[0].name).base or EMBEDDED) if mix.entries else mix


def _taken(home: Home, mix: SavedMix, name: str) -> list[Any]:
    """Take an adapter up or put it back; the others keep what they have."""
    others = tuple(entry for entry in mix.entries if entry.name != name)
    new = others if len(others) < len(mix.entries) else (*others, MixEntry(find_adapter(home, name).name))
    if len(new) > MOST:
        raise HomeError(shared.too_many_adapters(MOST))
    prompt = suggested_prompt(find_adapter(home, name)) if new and not mix.prompt.strip() else gr.skip()
    return [prompt, _proposals(home, replace(mix, entries=new)), new, *_rows(new), curves(new)]


def _rows(entries: Sequence[MixEntry]) -> list[Any]:
    used = [gr.Slider(label=entry.name, value=entry.strength, visible=True) for entry in entries]
    return used + [gr.Slider(visible=False)] * (MOST - len(used))


def _proposals(home: Home, mix: SavedMix) -> dict[str, Any]:
    with plainly():
        cards = {card.name: card for card in list_adapters(home)}
        return proposal_cards(proposed_adapters(home, mix.prompt), cards, [entry.name for entry in mix.entries])


def _without(mix: SavedMix, name: str, what: str) -> tuple[MixEntry, ...]:
    return tuple(replace(entry, **{what: ()}) if entry.name == name else entry for entry in mix.entries)


def _shown(home: Home, engine: Engine, mix: SavedMix) -> list[Any]:
    """Picture, gates, meetings, fields to paint on, and whether one file can hold it."""
    mix = _based(home, mix)
    if not mix.entries or not mix.prompt.strip():
        say = words.NO_PROMPT if mix.entries else words.EMPTY
        return [{"say": say}, [], [], regions(mix.entries, ""), "", gr.Button(interactive=False), ""]
    record = GateRecord()
    picture = thumbnail(draw_mix(home, engine, mix, record=record))
    single = can_be_one_adapter(home, engine, mix)
    met = meeting_map(mix_interference(home, engine, mix), mix)
    return [{"src": picture, "prompt": mix.prompt}, gate_maps(record, mix), met, regions(mix.entries, picture), picture,
            gr.Button(interactive=single), "" if single else words.CANNOT_FUSE]   # fmt: skip


def _ready(mix: SavedMix) -> SavedMix:
    if not mix.entries or not mix.prompt.strip():
        raise SettingError(words.NO_PROMPT if mix.entries else words.EMPTY)
    return mix


def _tried(home: Home, engine: Engine, mix: SavedMix) -> Iterator[list[dict[str, Any]]]:
    """The strip of methods, one after the other."""
    tiles: list[dict[str, Any]] = []
    with plainly():
        for method, image in draw_by_each_method(home, engine, _based(home, _ready(mix))):
            tiles.append({"method": method, "src": thumbnail(image), "title": words.METHODS[method],
                          "on": str(method == mix.method).lower()})   # fmt: skip
            yield list(tiles)


def _opened(home: Home, query: dict[str, str]) -> list[Any]:
    """Fill the page from its address: ``?mix=NAME``, ``?picture=ID`` or ``?prompt=TEXT``."""
    mix: SavedMix | None = None
    try:
        if query.get("mix"):
            mix = read_mix(home, query["mix"])
        elif query.get("picture"):
            mix = mix_from_recipe(read_recipe(find_picture(home, query["picture"]).path) or {})
    except HomeError:
        pass   # an address of long ago: the page opens empty
    mix = mix or SavedMix(entries=(), method=DEFAULT_METHOD, prompt=query.get("prompt", ""))
    known = list_mixes(home)
    return [gr.Dropdown(choices=known, value=query["mix"] if query.get("mix") in known else None), *_filled(home, mix)]


def _filled(home: Home, mix: SavedMix | None) -> list[Any]:
    """The controls as a Mix has them, without adapters that are gone."""
    mix = mix or SavedMix(entries=(), method=DEFAULT_METHOD)
    here = {card.name for card in list_adapters(home)}
    mix = replace(mix, entries=tuple(entry for entry in mix.entries if entry.name in here)[:MOST])
    proposed = _proposals(home, mix)
    return [mix.method, mix.prompt, mix.seed, proposed, mix.entries, *_rows(mix.entries), curves(mix.entries)]

"""Mix Lab: two or more adapters in one picture. What they do to each other is said before anything is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from atelier.adapters.core.settings import SettingError
from atelier.adapters.fusion.gates import GateRecord
from atelier.adapters.fusion.methods import ALL_METHODS, DEFAULT_METHOD
from atelier.app.services.combine_two import STYLE_STRENGTHS
from atelier.app.services.draw import suggested_prompt
from atelier.app.services.engine import Engine
from atelier.app.services.fuse import (
    can_fuse,
    draw_by_each_method,
    draw_mix,
    draw_mix_to_gallery,
    fuse_mix,
    mix_interference,
    proposed_adapters,
)
from atelier.app.services.mix_files import mix_file, open_mix_file
from atelier.app.store.gallery import find_picture, read_recipe
from atelier.app.store.home import Home, HomeError, safe_name
from atelier.app.store.library import find_adapter, list_adapters
from atelier.app.store.mixes import MixEntry, SavedMix, list_mixes, mix_from_recipe, read_mix, save_mix
from atelier.app.text import mix as words
from atelier.app.text import shared
from atelier.app.web.components.mix_view import (
    act_everywhere,
    gate_maps,
    interference_map,
    mix_plan,
    move_point,
    region_masks,
    set_region,
    set_region_prompt,
    strength_curves,
    suggestion_cards,
)
from atelier.app.web.components.page_frame import UNQUEUED, heading, press_when_shown, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.app.web.components.uploads import offer
from atelier.app.web.components.urls import file_url, page_url
from atelier.app.web.pages.mix_pad import nine_pictures, place_pad, strength_pad, strengths_at
from atelier.training.config.train_config import EMBEDDED
from atelier.training.runs.save_adapter import thumbnail

MAX_ADAPTERS = 5
_NO_PROGRESS: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 4}
_LATEST: dict[str, Any] = {"trigger_mode": "always_last", **_NO_PROGRESS}


def build(demo: gr.Blocks, home: Home, engine: Engine) -> None:
    """Place the Mix Lab; ``engine`` draws, and mixes are saved in ``home``."""
    heading(words.TITLE, words.LEAD)
    with gr.Row(elem_classes="layout layout-studio"):
        with gr.Column(scale=5, elem_classes="surface"):
            c = {**_controls(), **place_pad(), **_more_controls()}
        with gr.Column(scale=7, elem_classes="output"):
            c |= _output()
    events, entries, picture = _Events(home, engine), gr.State(()), gr.State("")
    inputs = [entries, c["method"], c["prompt"], c["seed"], *c["sliders"]]
    parts = [c["list"], entries, *c["sliders"], c["when"], c["pad"]]
    restored = [c["method"], c["prompt"], c["seed"], *parts]
    chosen = [
        demo.load(events.on_load, None, [c["open"], *restored], **UNQUEUED),
        c["open"].input(events.open_mix, c["open"], restored, **UNQUEUED),
        c["file"].upload(events.open_file, c["file"], [c["message"], *restored], **UNQUEUED),
        c["list"].action(events.toggle, [c["search"], *inputs], [c["prompt"], *parts], **UNQUEUED),
        c["swap"].click(events.swap, [c["search"], *inputs], [c["prompt"], *parts], **UNQUEUED),
        c["when"].action(events.edit_curve, inputs, [entries, c["when"]], **UNQUEUED),
        c["where"].action(events.edit_region, [picture, *inputs], [entries, c["where"]], **UNQUEUED),
        c["previews"].action(events.choose_method, None, c["method"], **UNQUEUED),
        c["plan"].action(events.choose_method, None, c["method"], **UNQUEUED),
    ]
    moved = [c["method"].input, c["seed"].change, c["prompt"].submit, *(slider.input for slider in c["sliders"])]
    planned, drawn = [c["plan"], c["interference"]], [c["drawn"], c["gates"], c["where"], picture, c["fuse"],
                                                      c["fuse_hint"]]   # fmt: skip
    for change in [*chosen, gr.on(moved, events.move, inputs, c["pad"], **UNQUEUED)]:
        change.then(events.plan, inputs, planned, **_LATEST).then(events.redraw, inputs, drawn, **_LATEST)
    pad = c["pad"].action(events.press_pad, inputs, [*c["sliders"], c["pad"]], **UNQUEUED)
    pad.then(events.plan, inputs, planned, **_LATEST).then(events.nine, inputs, c["nine_pictures"], **_LATEST).then(
        events.redraw, inputs, drawn, **_LATEST)   # fmt: skip
    gr.on([c["prompt"].submit, c["search"].change], events.find, [c["search"], *inputs], c["list"], **UNQUEUED)
    c["nine"].click(events.nine, inputs, c["nine_pictures"], **_NO_PROGRESS)
    c["compare"].click(events.compare, inputs, c["previews"], **_NO_PROGRESS)
    c["draw"].click(events.draw_and_save, inputs, c["drawn"], trigger_mode="once", **_NO_PROGRESS)
    c["save"].click(events.save, [c["name"], *inputs], [c["message"], c["open"]], **_NO_PROGRESS)
    c["fuse"].click(events.fuse, [c["name"], *inputs], c["message"], **_NO_PROGRESS)
    shared_file = c["share"].click(events.share, [c["name"], *inputs], c["download"], **_NO_PROGRESS)
    shared_file.success(None, None, None, js=press_when_shown("download-mix"))


@dataclass(frozen=True, slots=True)
class _Events:
    """Event handlers of the page; their ``values`` are those of the controls, as :func:`_mix` reads them."""

    home: Home
    engine: Engine

    def on_load(self, request: gr.Request) -> list[Any]:
        """Fill the controls from the page's address: adapters, a saved Mix or a picture."""
        return _on_load(self.home, dict(request.query_params))

    def open_mix(self, name: str | None) -> list[Any]:
        """Show a saved Mix, or start an empty one."""
        with show_errors():
            return _control_values(self.home, read_mix(self.home, name) if name else None)

    def open_file(self, path: str) -> list[Any]:
        """Show the Mix of a file that somebody shared, and say what is missing here."""
        with show_errors():
            mix, notes = open_mix_file(self.home, Path(path))
        return [{"notes": notes}, *_control_values(self.home, mix)]

    def find(self, search: str, *values: Any) -> dict[str, Any]:
        """List adapters that a search finds, or that fit the prompt."""
        return _suggestions(self.home, _mix(*values), search)

    def toggle(self, event: gr.EventData, search: str, *values: Any) -> list[Any]:
        """Add the pressed adapter to the Mix, or remove it."""
        with show_errors():
            return _toggle(self.home, _mix(*values), action_of(event)[1], search)

    def swap(self, search: str, *values: Any) -> list[Any]:
        """Let the first two change places, strengths with them: methods of two treat them differently."""
        mix = _mix(*values)
        return [gr.skip(), *_parts(self.home, replace(mix, entries=mix.entries[1::-1] + mix.entries[2:]), search)]

    def move(self, *values: Any) -> dict[str, Any]:
        """The pad at the strengths of the sliders."""
        return strength_pad(_mix(*values).entries)

    def press_pad(self, event: gr.EventData, *values: Any) -> list[Any]:
        """Set both strengths to the pressed place of the pad."""
        mix = _mix(*values)
        if len(mix.entries) != 2:
            return [*_sliders(mix.entries), strength_pad(mix.entries)]
        places = strengths_at(action_of(event)[1])
        entries = [replace(entry, strength=value) for entry, value in zip(mix.entries, places, strict=True)]
        return [*_sliders(entries), strength_pad(entries)]

    def plan(self, *values: Any) -> list[Any]:
        """Say what the Mix will do and why, from the weights alone."""
        with show_errors():
            return _plan(self.home, self.engine, _mix(*values))

    def nine(self, *values: Any) -> dict[str, Any]:
        """Draw nine pictures between neither and both of two adapters."""
        with show_errors():
            return nine_pictures(self.home, self.engine, _with_base(self.home, _require_complete(_mix(*values))))

    def share(self, name: str, *values: Any) -> Any:
        """Offer the Mix as a file for others."""
        with show_errors(), TemporaryDirectory(dir=self.home.state) as folder:
            content = mix_file(self.home, _with_base(self.home, _mix(*values)))
            path = Path(folder) / f"{safe_name(name) if name.strip() else 'mix'}.mix.json"
            path.write_bytes(content)
            return gr.DownloadButton(value=offer(path), visible=True)

    def edit_curve(self, event: gr.EventData, *values: Any) -> list[Any]:
        """Move a point of a strength curve, or reset the curve."""
        mix, (action, text) = _mix(*values), action_of(event)
        entries = move_point(mix.entries, text) if action == "handle" else _without(mix, text, "curve")
        return [entries, strength_curves(entries)]

    def edit_region(self, event: gr.EventData, picture: str, *values: Any) -> list[Any]:
        """Paint an adapter's region, or reset it."""
        mix, (action, text) = _mix(*values), action_of(event)
        edits = {"paint": set_region, "region-prompt": set_region_prompt}
        entries = edits.get(action, act_everywhere)(mix.entries, text)
        return [entries, region_masks(entries, picture)]

    def choose_method(self, event: gr.EventData) -> str:
        """The method of the pressed picture; one that does not exist gives the default."""
        method = action_of(event)[1]
        return method if method in ALL_METHODS else DEFAULT_METHOD

    def redraw(self, *values: Any) -> list[Any]:
        """Draw the Mix without saving the picture."""
        with show_errors():
            return _draw(self.home, self.engine, _mix(*values))

    def compare(self, *values: Any) -> Iterator[list[dict[str, Any]]]:
        """Draw with each method in turn, and show each picture when it is there."""
        yield from _draw_each_method(self.home, self.engine, _mix(*values))

    def draw_and_save(self, *values: Any) -> dict[str, Any]:
        """Draw the Mix and add the picture to the gallery."""
        with show_errors():
            mix = _with_base(self.home, _require_complete(_mix(*values)))
            saved = draw_mix_to_gallery(self.home, self.engine, mix)
        return {"src": file_url(saved.path), "note": words.IN_GALLERY, "href": page_url("gallery", picture=saved.id)}

    def save(self, name: str, *values: Any) -> list[Any]:
        """Save the Mix under a name."""
        with show_errors():
            save_mix(self.home, name, _mix(*values))
        return [{"text": words.saved(name)}, gr.Dropdown(choices=list_mixes(self.home))]

    def fuse(self, name: str, *values: Any) -> dict[str, Any]:
        """Make one adapter of the Mix and add it to the library."""
        with show_errors():
            card, error = fuse_mix(self.home, self.engine, _with_base(self.home, _mix(*values)), name)
        return {"text": words.fused(card.name, error), "href": page_url("library", adapter=card.name)}


def _controls() -> dict[str, Any]:
    """What decides the picture."""
    c: dict[str, Any] = {}
    c["prompt"] = gr.Textbox(label=shared.PROMPT, placeholder=shared.PROMPT_HINT, max_lines=4, max_length=1000,
                             elem_id="prompt")   # fmt: skip
    c["search"] = gr.Textbox(label=words.FIND, placeholder=words.FIND_HINT, max_length=200, lines=1, max_lines=1,
                             elem_id="find")   # fmt: skip
    c["list"] = panel("suggested-adapters", {"cards": []})
    c["sliders"] = [gr.Slider(-1, 2, 1.0, step=0.05, visible=False, interactive=True, elem_id=f"strength-{i}",
                              elem_classes="strength") for i in range(MAX_ADAPTERS)]   # fmt: skip
    choices = [(words.METHODS[name], name) for name in ALL_METHODS]
    with gr.Row(elem_classes="seed-row"):
        c["method"] = gr.Dropdown(choices, value=DEFAULT_METHOD, label=words.METHOD, elem_id="mix-method",
                                  interactive=True)   # fmt: skip
        c["seed"] = gr.Number(0, label=shared.SEED, precision=0, minimum=0, maximum=2**31 - 1, elem_id="seed")
    return c


def _more_controls() -> dict[str, Any]:
    """When and where each adapter acts; names, and files."""
    c: dict[str, Any] = {}
    with gr.Accordion(words.WHEN, open=False, elem_id="when"):
        c["when"] = panel("strength-curves", [])
    with gr.Accordion(words.WHERE, open=False, elem_id="where"):
        c["where"] = panel("region-masks", {"rows": []})
    c["name"] = gr.Textbox(label=words.NAME, max_length=100, elem_id="mix-name")
    with gr.Row(elem_classes="actions"):
        c["save"] = gr.Button(words.SAVE, elem_id="mix-save")
        c["share"] = gr.Button(words.SHARE, elem_id="mix-share")
        c["fuse"] = gr.Button(words.FUSE, interactive=False, elem_id="fuse")
    c["download"] = gr.DownloadButton(words.DOWNLOAD_FILE, visible=False, elem_id="download-mix")
    c["fuse_hint"] = gr.Markdown("", elem_classes="hint", elem_id="fuse-hint")
    c["message"] = panel("mix-message", {})
    with gr.Row(elem_classes="actions"):
        c["open"] = gr.Dropdown([], value=None, label=words.OPEN, elem_id="mix-open", interactive=True)
        c["file"] = gr.UploadButton(words.OPEN_FILE, file_types=[".json"], elem_id="mix-file")
    return c


def _output() -> dict[str, Any]:
    """What is said, drawn and compared."""
    c: dict[str, Any] = {"plan": panel("mix-plan", {}), "drawn": panel("fused-picture", {"label": words.EMPTY})}
    c["previews"] = panel("method-previews", [])
    with gr.Row(elem_classes="actions"):
        c["draw"] = gr.Button(words.DRAW_AND_SAVE, variant="primary", elem_id="draw")
        c["compare"] = gr.Button(words.COMPARE, elem_id="compare")
    c["nine_pictures"] = panel("strength-grid", {"cells": []})
    c["gates"], c["interference"] = (panel("heat-maps", [], elem_id=id) for id in ("gates", "interference"))
    return c


def _mix(entries: Sequence[MixEntry], method: str, prompt: str, seed: float | None, *strengths: float) -> SavedMix:
    """The mix that the controls describe."""
    now = tuple(replace(entry, strength=float(value or 0)) for entry, value in zip(entries, strengths, strict=False))
    return SavedMix(entries=now, method=method or DEFAULT_METHOD, prompt=prompt or "", seed=int(seed or 0))


def _with_base(home: Home, mix: SavedMix) -> SavedMix:
    return replace(mix, base=find_adapter(home, mix.entries[0].name).base or EMBEDDED) if mix.entries else mix


def _toggle(home: Home, mix: SavedMix, name: str, search: str = "") -> list[Any]:
    """Add an adapter or remove it; the others keep their settings."""
    others = tuple(entry for entry in mix.entries if entry.name != name)
    new = others if len(others) < len(mix.entries) else (*others, MixEntry(find_adapter(home, name).name))
    if len(new) > MAX_ADAPTERS:
        raise HomeError(shared.too_many_adapters(MAX_ADAPTERS))
    prompt = suggested_prompt(find_adapter(home, name)) if new and not mix.prompt.strip() else gr.skip()
    return [prompt, *_parts(home, replace(mix, entries=new), search)]


def _parts(home: Home, mix: SavedMix, search: str = "") -> list[Any]:
    """All controls that depend on which adapters are in the Mix."""
    return [_suggestions(home, mix, search), mix.entries, *_sliders(mix.entries), strength_curves(mix.entries),
            strength_pad(mix.entries)]   # fmt: skip


def _sliders(entries: Sequence[MixEntry]) -> list[Any]:
    used = [gr.Slider(label=entry.name, value=entry.strength, visible=True) for entry in entries]
    return used + [gr.Slider(visible=False)] * (MAX_ADAPTERS - len(used))


def _suggestions(home: Home, mix: SavedMix, search: str = "") -> dict[str, Any]:
    with show_errors():
        cards = {card.name: card for card in list_adapters(home)}
        found = proposed_adapters(home, mix.prompt, search)
        return suggestion_cards(found, cards, [entry.name for entry in mix.entries])


def _without(mix: SavedMix, name: str, what: str) -> tuple[MixEntry, ...]:
    return tuple(replace(entry, **{what: ()}) if entry.name == name else entry for entry in mix.entries)


def _plan(home: Home, engine: Engine, mix: SavedMix) -> list[Any]:
    """What the Mix does, and the map of where its adapters interfere."""
    mix = _with_base(home, mix)
    found = mix_interference(home, engine, mix)
    return [mix_plan(mix, found), interference_map(found, mix)]


def _draw(home: Home, engine: Engine, mix: SavedMix) -> list[Any]:
    """Picture, gates, masks to paint on, and whether one file can hold the mix."""
    mix = _with_base(home, mix)
    if not mix.entries or not mix.prompt.strip():
        message = words.NO_PROMPT if mix.entries else words.EMPTY
        return [{"label": message}, [], region_masks(mix.entries, ""), "", gr.Button(interactive=False), ""]
    record = GateRecord()
    picture = thumbnail(draw_mix(home, engine, mix, record=record))
    single = can_fuse(home, engine, mix)
    return [{"src": picture, "prompt": mix.prompt}, gate_maps(record, mix), region_masks(mix.entries, picture), picture,
            gr.Button(interactive=single), "" if single else words.CANNOT_FUSE]   # fmt: skip


def _require_complete(mix: SavedMix) -> SavedMix:
    if not mix.entries or not mix.prompt.strip():
        raise SettingError(words.NO_PROMPT if mix.entries else words.EMPTY)
    return mix


def _draw_each_method(home: Home, engine: Engine, mix: SavedMix) -> Iterator[list[dict[str, Any]]]:
    """A preview by each method, one after the other."""
    tiles: list[dict[str, Any]] = []
    with show_errors():
        for method, image in draw_by_each_method(home, engine, _with_base(home, _require_complete(mix))):
            tiles.append({"method": method, "src": thumbnail(image), "title": words.METHODS[method],
                          "name": words.method_title(method),
                          "pressed": str(method == mix.method).lower()})   # fmt: skip
            yield list(tiles)


def _on_load(home: Home, query: dict[str, str]) -> list[Any]:
    """Fill the page from its address: ``?mix=``, ``?picture=``, ``?content=`` and ``?style=``, or ``?prompt=``."""
    mix: SavedMix | None = None
    try:
        if query.get("mix"):
            mix = read_mix(home, query["mix"])
        elif query.get("picture"):
            mix = mix_from_recipe(read_recipe(find_picture(home, query["picture"]).path) or {})
    except HomeError:
        pass   # deleted since: the page opens empty
    strengths = {"content": 1.0, "style": STYLE_STRENGTHS[DEFAULT_METHOD]}
    named = {query[role]: MixEntry(query[role], value) for role, value in strengths.items() if query.get(role)}
    mix = mix or SavedMix(entries=tuple(named.values()), method=DEFAULT_METHOD, prompt=query.get("prompt", ""))
    known = list_mixes(home)
    chosen = query["mix"] if query.get("mix") in known else None
    return [gr.Dropdown(choices=known, value=chosen), *_control_values(home, mix)]


def _control_values(home: Home, mix: SavedMix | None) -> list[Any]:
    """The controls as a Mix has them, without adapters that are gone."""
    mix = mix or SavedMix(entries=(), method=DEFAULT_METHOD)
    existing = {card.name for card in list_adapters(home)}
    mix = replace(mix, entries=tuple(entry for entry in mix.entries if entry.name in existing)[:MAX_ADAPTERS])
    return [mix.method, mix.prompt, mix.seed, *_parts(home, mix)]

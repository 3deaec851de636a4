"""How an adapter acts in the Studio besides its strength: block by block, step by step, and where in the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from atelier.adapters.fusion.blocks import MAX_BLOCK_STRENGTH
from atelier.app.services.draw import DrawCancelledError, DrawJob
from atelier.app.services.engine import Engine
from atelier.app.services.studio.block_view import BlockTile, draw_block_view
from atelier.app.services.studio.side_by_side import fields_of, size_of_fields
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import adapter_blocks, find_adapter
from atelier.app.store.mixes import MAX_REGION_PROMPT, MAX_REGIONS, MixEntry, RegionEntry
from atelier.app.text import mix as mix_words
from atelier.app.text import studio as words
from atelier.app.web.components.mix_view import (
    act_everywhere,
    move_point,
    painted_rows,
    region_masks,
    set_region,
    set_region_prompt,
    strength_curves,
)
from atelier.app.web.components.page_frame import UNQUEUED, show_errors
from atelier.app.web.components.panel import action_of, panel
from atelier.training.config.train_config import EMBEDDED
from atelier.training.runs.save_adapter import thumbnail
from atelier.training.sampling.sample import DrawRequest

Entries = tuple[MixEntry, ...]
Regions = tuple[RegionEntry, ...]   # with prompts, without adapters


def place_details() -> tuple[Any, Any, Any]:
    """Place the panels of blocks, curves and regions."""
    with gr.Accordion(words.DETAILS, open=False, elem_id="details"):
        blocks = panel("block-strengths", {"rows": []})
        gr.Markdown(f"**{mix_words.WHEN}**")
        curves = panel("strength-curves", [])
        gr.Markdown(f"**{mix_words.WHERE}**")
        regions = panel("region-masks", {"rows": []})
    return blocks, curves, regions


def details_of(names: Sequence[str], entries: Sequence[MixEntry]) -> Entries:
    """An entry for each adapter in use: what was set for it, else plain."""
    known = {entry.name: entry for entry in entries}
    return tuple(known.get(name, MixEntry(name)) for name in names)


def show_details(home: Home, entries: Entries, regions: Regions = ()) -> list[Any]:
    """Values of the panels of blocks, curves and regions, and of the one that shows what blocks do."""
    rows = [{"name": entry.name, "blocks": [_block(entry, block) for block in _blocks(home, entry.name)]}
            for entry in entries]   # fmt: skip
    return [{"rows": rows}, strength_curves(entries), region_masks(entries, "", regions), _tiles(entries)]


def edit_details(entries: Entries, action: str, text: str) -> Entries:
    """The entries after something was pressed, moved or painted; what does not fit changes nothing."""
    match action:
        case "block":
            return _with_block(entries, text)
        case "all-blocks":
            return _without(entries, text, "blocks")
        case "handle":
            return move_point(entries, text)
        case "always":
            return _without(entries, text, "curve")
        case "paint":
            return set_region(entries, text)
        case "region-prompt":
            return set_region_prompt(entries, text)
        case "everywhere":
            return act_everywhere(entries, text)
        case _:
            return entries


def side_by_side(home: Home, entries: Entries, base: str, prompt: str) -> tuple[Entries, Regions, str, int, int]:
    """The adapters in fields from left to right, no other regions, the prompt, and the size of all fields together.

    Raises:
        HomeError, SettingError, BaseError: they can't be placed.
    """
    placed, prompt = fields_of(home, entries, prompt)
    return placed, (), prompt, *size_of_fields(len(placed), base or EMBEDDED)


def edit_regions(regions: Regions, action: str, text: str) -> Regions:
    """The regions without adapters after one was added, painted, written in or removed.

    Raises:
        ValueError: there are too many.
    """
    if action == "add-region":
        if len(regions) == MAX_REGIONS:
            raise ValueError(words.too_many_regions(MAX_REGIONS))
        return (*regions, RegionEntry("", ()))
    number, _, value = text.partition("|")
    if not (number.isdecimal() and int(number) < len(regions)):
        return regions
    place, one = int(number), regions[int(number)]
    changed = {"paint-part": lambda: (replace(one, region=painted_rows(value, one.region)),),
               "part-prompt": lambda: (replace(one, prompt=value[:MAX_REGION_PROMPT]),),
               "remove-part": lambda: ()}.get(action, lambda: (one,))()   # fmt: skip
    return (*regions[:place], *changed, *regions[place + 1 :])


def place_memory_line(demo: gr.Blocks, engine: Engine, c: Mapping[str, Any]) -> None:
    """Place what a drawing of this size and number needs of the memory, and what will be saved to fit."""
    line = panel("prompt-status", {}, elem_id="memory-line")
    names = ("count", "width", "height", "upscale")

    def show(base: str, *values: float) -> Any:
        """Plan the drawing that the controls describe; while another is drawn, the line stays."""
        try:
            request = DrawRequest.from_dict(dict(zip(names, values, strict=True)))
            plan = engine.plan_drawing(base or EMBEDDED, request)
        except (ValueError, TypeError) as error:   # it does not fit, or a field is half-typed
            return {"problem": str(error)}
        return {"length": words.memory_line(plan.needed, plan.available, plan.notice)} if plan else gr.skip()

    inputs = [c["base"], *(c[name] for name in names)]
    gr.on([demo.load, *(each.change for each in inputs)], show, inputs, line, trigger_mode="always_last", **UNQUEUED)


def block_tiles(
    home: Home, engine: Engine, job: DrawJob, event: gr.EventData, is_wanted: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """Draw what each block does; the panel's value after each picture."""
    action, name = action_of(event)
    tiles: list[dict[str, str]] = []
    with show_errors():
        try:
            for tile in draw_block_view(home, engine, job, name, alone=action == "alone", is_wanted=is_wanted):
                tiles.append(_tile(tile, words.WITHOUT_BLOCKS if action == "alone" else words.ALL_BLOCKS))
                yield {**_tiles(job.adapters), "tiles": list(tiles)}
        except DrawCancelledError:
            return


def _tile(tile: BlockTile, first: str) -> dict[str, str]:
    return {"src": thumbnail(tile.picture), "name": words.block_title(tile.block) if tile.block else first,
            "about": words.block_difference(tile.difference) if tile.block else ""}   # fmt: skip


def _tiles(entries: Sequence[MixEntry]) -> dict[str, Any]:
    return {"adapters": [entry.name for entry in entries], "tiles": []}


def _blocks(home: Home, name: str) -> list[str]:
    try:
        return adapter_blocks(find_adapter(home, name))
    except HomeError:   # deleted since
        return []


def _block(entry: MixEntry, block: str) -> dict[str, str]:
    return {"id": f"{entry.name}|{block}", "title": words.block_title(block),
            "value": f"{dict(entry.blocks).get(block, 1.0):g}"}   # fmt: skip


def _with_block(entries: Entries, text: str) -> Entries:
    named, _, value = text.rpartition("|")
    name, _, block = named.rpartition("|")
    try:
        strength = float(value)
    except ValueError:
        return entries
    if not abs(strength) <= MAX_BLOCK_STRENGTH:
        return entries
    return tuple(_set_block(entry, block, strength) if entry.name == name else entry for entry in entries)


def _set_block(entry: MixEntry, block: str, strength: float) -> MixEntry:
    blocks = {**dict(entry.blocks), block: strength}
    return replace(entry, blocks=tuple(sorted((each, factor) for each, factor in blocks.items() if factor != 1)))


def _without(entries: Entries, name: str, what: str) -> Entries:
    return tuple(replace(entry, **{what: ()}) if entry.name == name else entry for entry in entries)

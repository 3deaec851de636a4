"""The Mix Lab's panels as plain values: suggestions, strength curves, region masks, heat maps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from atelier.adapters.fusion.curves import StrengthCurve
from atelier.adapters.fusion.gates import GateRecord
from atelier.adapters.fusion.interference import Interference, LayerOverlap, excess_overlap
from atelier.adapters.fusion.methods import PAIR_METHODS
from atelier.app.store.library import AdapterCard
from atelier.app.store.mixes import (
    CURVE_POINTS,
    MAX_REGION_PROMPT,
    REGION_SIDE,
    MixEntry,
    RegionEntry,
    SavedMix,
)
from atelier.app.store.previews import SMALL
from atelier.app.store.search import Proposal
from atelier.app.text import mix as words
from atelier.app.web.components.urls import file_url, thumbnail_url

WORST_LAYERS = 3
UNRELATED = 0.02    # smaller cosines say nothing about directions
NOTICEABLE = 0.05   # overlap beyond chance
LEVELS = (1.0, 0.75, 0.5, 0.25, 0.0)
# Names of the UNet's blocks, in the order in which a picture passes through them.
_BLOCKS = {"text_encoder": "text", "down_blocks": "down", "mid_block": "mid", "up_blocks": "up"}


def suggestion_cards(
    proposals: Sequence[Proposal], cards: Mapping[str, AdapterCard], chosen: Sequence[str]
) -> dict[str, Any]:
    """Proposed adapters with pictures drawn with them; those in the mix are pressed, and always shown."""
    names = {proposal.name for proposal in proposals}
    shown = [*proposals, *(Proposal(name, 0.0, "", ()) for name in chosen if name not in names)]
    return {"cards": [
        {"name": one.name, "reason": one.reason, "percent": round(100 * one.score),
         "pressed": str(one.name in chosen).lower(),
         "pictures": [file_url(path) for path in one.pictures[:3]] or _cover(cards.get(one.name))}
        for one in shown
    ]}   # fmt: skip


def _cover(card: AdapterCard | None) -> list[str]:
    return [thumbnail_url(card, SMALL)] if card and card.thumbnail else []


def strength_curves(entries: Sequence[MixEntry]) -> list[dict[str, Any]]:
    """A small chart with handles for each adapter."""
    return [_curve(entry) for entry in entries]


def _curve(entry: MixEntry) -> dict[str, Any]:
    handles = _handles(entry.curve)
    places = [(100 * (i + 0.5) / CURVE_POINTS, 90 - 80 * level) for i, level in enumerate(handles)]
    line = "M" + "L".join(f"{x:g} {y:g}" for x, y in [(0, places[0][1]), *places, (100, places[-1][1])])
    columns = [[_curve_point(entry.name, i, level, handles[i]) for level in LEVELS] for i in range(CURVE_POINTS)]
    return {"name": entry.name, "line": line, "area": f"{line}L100 100L0 100Z", "columns": columns}


def _handles(curve: tuple[float, ...]) -> tuple[float, ...]:
    """The curve at the chart's handles; scripts may give it with more or fewer of them."""
    if len(curve) in (0, CURVE_POINTS):
        return curve or (1.0,) * CURVE_POINTS
    return tuple(StrengthCurve(curve)(i / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS))


def _curve_point(name: str, place: int, level: float, now: float) -> dict[str, str]:
    return {"id": f"{name}|{place}|{level}", "pressed": str(abs(now - level) < 0.125).lower(),
            "label": words.handle(name, place / (CURVE_POINTS - 1), level)}   # fmt: skip


def move_point(entries: Sequence[MixEntry], text: str) -> tuple[MixEntry, ...]:
    """The entries with one curve point moved; ``text`` comes from a browser, and if it is invalid nothing moves."""
    name, _, rest = text.partition("|")
    place, _, level = rest.partition("|")
    if not (place.isdecimal() and int(place) < CURVE_POINTS) or level not in {str(known) for known in LEVELS}:
        return tuple(entries)
    return tuple(
        replace(entry, curve=_with_point(entry.curve, int(place), float(level))) if entry.name == name else entry
        for entry in entries
    )


def _with_point(curve: tuple[float, ...], place: int, level: float) -> tuple[float, ...]:
    handles = list(_handles(curve))
    handles[place] = level
    return () if set(handles) == {1.0} else tuple(handles)


def region_masks(
    entries: Sequence[MixEntry], picture: str, regions: Sequence[RegionEntry] | None = None
) -> dict[str, Any]:
    """A mask to paint on for each adapter, over the last picture; and one for each region without an adapter.

    ``regions``: None where there can be none.
    """
    rows = [{"id": entry.name, "name": entry.name, "src": picture, "cells": _region_cells(entry.name, entry.region),
             "prompt": entry.prompt, "adapter": True} for entry in entries]   # fmt: skip
    for number, one in enumerate(regions or ()):
        name = words.region_name(number + 1)
        rows.append({"id": str(number), "name": name, "src": picture, "cells": _region_cells(name, one.region),
                     "prompt": one.prompt, "adapter": False})   # fmt: skip
    return {"rows": rows, "can_add": regions is not None, "can_place": regions is not None and len(entries) > 1}


def _region_cells(name: str, region: Sequence[str]) -> list[dict[str, str]]:
    return [{"pressed": str(mark == "1").lower(), "label": words.field(name, i % REGION_SIDE + 1, i // REGION_SIDE + 1)}
            for i, mark in enumerate(_marks(region))]   # fmt: skip


def _marks(region: Sequence[str]) -> str:
    """The page's squares, row after row; a region of a file may have more or fewer, and shows the nearest."""
    if not region:
        return "0" * REGION_SIDE**2
    return "".join(region[y * len(region) // REGION_SIDE][x * len(region[0]) // REGION_SIDE]
                   for y in range(REGION_SIDE) for x in range(REGION_SIDE))   # fmt: skip


def set_region(entries: Sequence[MixEntry], text: str) -> tuple[MixEntry, ...]:
    """The entries with a new region for one; an empty region means everywhere, and invalid text changes nothing."""
    name, _, marks = text.partition("|")

    def painted(entry: MixEntry) -> MixEntry:
        """With what was painted."""
        rows = painted_rows(marks, entry.region)
        return replace(entry, region=rows) if rows else _everywhere(entry)

    return tuple(painted(entry) if entry.name == name else entry for entry in entries)


def act_everywhere(entries: Sequence[MixEntry], name: str) -> tuple[MixEntry, ...]:
    """The entries with one that acts everywhere again."""
    return tuple(_everywhere(entry) if entry.name == name else entry for entry in entries)


def _everywhere(entry: MixEntry) -> MixEntry:
    """Without a region, and so without a prompt and a canvas of its own."""
    return replace(entry, region=(), prompt="", own_canvas=False)


def painted_rows(marks: str, before: tuple[str, ...]) -> tuple[str, ...]:
    """Rows of a region from the page's squares; none where nothing is painted, and ``before`` for invalid text."""
    if len(marks) != REGION_SIDE * REGION_SIDE or not set(marks) <= {"0", "1"}:
        return before
    return tuple(marks[i : i + REGION_SIDE] for i in range(0, len(marks), REGION_SIDE)) if "1" in marks else ()


def set_region_prompt(entries: Sequence[MixEntry], text: str) -> tuple[MixEntry, ...]:
    """The entries with what is drawn in the region of one; without a region there is no prompt."""
    name, _, prompt = text.partition("|")
    prompt = prompt.strip()[:MAX_REGION_PROMPT]
    return tuple(replace(entry, prompt=prompt) if entry.name == name and entry.region else entry for entry in entries)


def gate_maps(record: GateRecord, mix: SavedMix) -> list[dict[str, Any]]:
    """Two heat maps, adapter by layer and adapter by step; none without gates."""
    found, moments = record.by_layer(), record.by_timestep()
    if not found:
        return []
    layers = {layer: found[layer] for layer in _sorted_by_depth(found)}
    names = [entry.name for entry in mix.entries if entry.strength]
    rows = [[(layer_name(layer), row) for layer, row in layers.items()],
            [(words.moment(progress), row) for progress, row in moments.items()]]   # fmt: skip
    ends = [{"name": words.moment(end), "span": 1} for end in (min(moments), max(moments))]
    return [_gate_map(words.GATES_BY_LAYER, names, rows[0], _block_groups(list(layers))),
            _gate_map(words.GATES_BY_STEP, names, rows[1], ends)]   # fmt: skip


def _gate_map(
    title: str, names: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]], groups: list[dict[str, Any]]
) -> dict[str, Any]:
    """One map, scaled from its own smallest to its largest value, because gates differ little."""
    known = [value for _, row in rows for value in row if not math.isnan(value)]
    low, high = min(known), max(known)
    span = high - low or 1.0
    shown = [{"name": name, "cells": [
        {"share": "0" if math.isnan(row[i]) else f"{0.12 + 0.88 * (row[i] - low) / span:.3f}", "opposed": "",
         "label": words.gate(name, where, row[i])} for where, row in rows
    ]} for i, name in enumerate(names)]   # fmt: skip
    return {"title": title, "rows": shown, "groups": groups, "hint": words.gate_scale(low, high)}


def mix_plan(mix: SavedMix, found: Interference | None) -> dict[str, Any]:
    """What a Mix will do and why, before anything is drawn; empty without adapters."""
    active = [entry for entry in mix.entries if entry.strength]
    if len(active) < 2:
        if not mix.entries:
            return {}
        does = words.only_one(active[0].name, active[0].strength) if active else words.ALL_OFF
        return {"does": does, "reasons": [words.ADD_TWO] if len(mix.entries) == 1 else []}
    if mix.method in PAIR_METHODS and len(active) != 2:
        problem = words.only_two(words.method_title(mix.method), len(active))
        return {"does": words.METHODS[mix.method], "problem": problem}
    does = words.what_it_does(mix.method, [entry.name for entry in active], [entry.strength for entry in active])
    if found is None or not found.meetings:
        return {"does": does, "reasons": [words.NO_LAYER_IN_COMMON] if found else []}
    return {"does": does, **_reasons(mix, found)}


def _reasons(mix: SavedMix, found: Interference) -> dict[str, Any]:
    """What the weights say, the layers where it is worst, and the method that helps."""
    pair = max({meeting.pair for meeting in found.meetings}, key=found.overlap)
    one, two = (mix.entries[place].name for place in pair)
    own = [meeting for meeting in found.meetings if meeting.pair == pair]
    opposed = sum(_direction(meeting) < 0 for meeting in own)
    verdict = found.verdict()
    method = {"cancel": "switch", "reinforce": "normalised"}.get(verdict, "")
    return {
        "reasons": [words.advice(verdict, (one, two), found.overlap(pair), found.lost),
                    words.directions(one, two, opposed, len(own))],
        "worst": [_meeting(mix, meeting) for meeting in worst_meetings(found)],
        **({"use": words.use_method(words.method_title(method)), "method": method}
           if method not in ("", mix.method) else {}),
    }   # fmt: skip


def worst_meetings(found: Interference) -> list[LayerOverlap]:
    """The layers in which most is lost: those that push against each other first; none where hardly anything meets."""
    def harm(meeting: LayerOverlap) -> tuple[bool, float]:
        """Opposed layers before others, then by the size of what is shared."""
        opposed = _direction(meeting) < 0
        return opposed, meeting.weight * (abs(meeting.cosine) if opposed else excess_overlap(meeting))

    found_here = [each for each in found.meetings if _direction(each) < 0 or excess_overlap(each) > NOTICEABLE]
    return sorted(found_here, key=harm, reverse=True)[:WORST_LAYERS]


def _direction(meeting: LayerOverlap) -> int:
    """Whether two updates of a layer go the same way (1), against each other (−1), or are unrelated (0)."""
    return 0 if abs(meeting.cosine) < UNRELATED else 1 if meeting.cosine > 0 else -1


def _meeting(mix: SavedMix, meeting: LayerOverlap) -> str:
    names = words.listing([mix.entries[place].name for place in meeting.pair])
    return words.overlap(names, layer_name(meeting.layer), excess_overlap(meeting), _direction(meeting))


def interference_map(found: Interference | None, mix: SavedMix) -> list[dict[str, Any]]:
    """A heat map of every two adapters by layer."""
    if found is None or not found.meetings:
        return []
    names = [entry.name for entry in mix.entries]
    layers = _sorted_by_depth(meeting.layer for meeting in found.meetings)
    known = {(meeting.pair, meeting.layer): meeting for meeting in found.meetings}
    rows = []
    for pair in combinations(range(len(names)), 2):
        title = words.pair(names[pair[0]], names[pair[1]])
        cells = [known.get((pair, layer)) for layer in layers]
        rows.append({"name": title, "cells": [
            {"share": f"{excess_overlap(cell):.3f}", "opposed": "opposed" if _direction(cell) < 0 else "",
             "label": words.overlap(title, layer_name(cell.layer), excess_overlap(cell), _direction(cell))}
            if cell else {"share": "0", "opposed": "", "label": ""} for cell in cells
        ]})   # fmt: skip
    return [{"title": words.INTERFERENCE, "rows": rows, "groups": _block_groups(layers),
             "hint": words.INTERFERENCE_HINT}]   # fmt: skip


def layer_name(layer: str) -> str:
    """A layer, short enough to read.

    >>> layer_name("unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0")
    'up 1 attn2.to_out'
    """
    parts = [part for part in layer.split(".")[1:] if not part.isdigit()]
    return f"{_block(layer)} {'.'.join(parts[-2:])}"


def _block(layer: str) -> str:
    parts = layer.split(".")
    if parts[0].startswith("text"):
        return _BLOCKS["text_encoder"]
    number = f" {parts[2]}" if len(parts) > 2 and parts[2].isdigit() else ""
    return _BLOCKS.get(parts[1], parts[1]) + number


def _sorted_by_depth(layers: Iterable[str]) -> list[str]:
    """Layers in the order in which a picture passes through them; a model lists its middle block last."""
    places = list(_BLOCKS.values())
    return sorted(dict.fromkeys(layers), key=lambda layer: (
        places.index(first) if (first := _block(layer).split()[0]) in places else len(places), _block(layer)))


def _block_groups(layers: Sequence[str]) -> list[dict[str, Any]]:
    """The UNet's blocks: names, and how many of the layers each has."""
    blocks = [_block(layer) for layer in layers]
    return [{"name": block, "span": blocks.count(block)} for block in dict.fromkeys(blocks)]

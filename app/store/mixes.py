"""Mixes of a home: adapters with strengths, the method that fuses them, and a prompt; one JSON file each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.parse import parse_json
from atelier.adapters.fusion.blocks import MAX_BLOCK_STRENGTH, scale_blocks
from atelier.adapters.fusion.curves import StrengthCurve
from atelier.adapters.fusion.live import PromptRegion, WeightedAdapter
from atelier.adapters.fusion.methods import ALL_METHODS
from atelier.app.store.home import Home, HomeError, safe_name, write_home_file
from atelier.training.config.train_config import EMBEDDED

SUFFIX = ".json"
CURVE_POINTS, REGION_SIDE = 5, 8   # of a curve on the page; squares of a region in each direction
RECTANGLE_SIDE = 32                # the same for rectangles that are given in numbers
MAX_REGIONS, MAX_REGION_PROMPT = 8, 1000   # with prompts of their own; characters of one
MAX_STRENGTH = 100.0
_ADDED_LATER = ("blocks", "prompt", "own_canvas")   # to files, which have no key for what is not used


@dataclass(frozen=True, slots=True)
class MixEntry:
    """One adapter of a Mix, by name."""

    name: str
    strength: float = 1.0
    curve: tuple[float, ...] = ()    # factors of the strength, 0 … 1, from the first step to the last; none: constant
    region: tuple[str, ...] = ()     # rows of 0 and 1: where in the picture it acts; none: everywhere
    blocks: tuple[tuple[str, float], ...] = ()   # factors of the strength by block (adapters/fusion/blocks.py)
    prompt: str = ""                 # of its region; empty: the drawing's
    own_canvas: bool = False         # its region is drawn by itself (adapters/fusion/live.py)

    def weighted_adapter(self, adapters: AdapterSet) -> WeightedAdapter:
        """The same with the adapter's weights."""
        adapters = scale_blocks(adapters, dict(self.blocks)) if self.blocks else adapters
        region, curve = region_tensor(self.region) if self.region else None, self.curve
        return WeightedAdapter(adapters, self.strength, StrengthCurve(curve) if curve else None, region, self.prompt,
                               self.own_canvas)


@dataclass(frozen=True, slots=True)
class RegionEntry:
    """A part of the picture with a prompt of its own, and without an adapter."""

    prompt: str
    region: tuple[str, ...]   # rows of 0 and 1

    def prompt_region(self) -> PromptRegion:
        """The same for drawing."""
        return PromptRegion(self.prompt, region_tensor(self.region))


def region_tensor(rows: Sequence[str]) -> torch.Tensor:
    """Rows of 0 and 1 as numbers."""
    return torch.tensor([[float(square) for square in row] for row in rows])


def rectangle_rows(box: Sequence[float]) -> tuple[str, ...]:
    """A rectangle as rows of 0 and 1: left, top, right and bottom as shares of the picture.

    >>> rectangle_rows((0, 0, 0.5, 1))[0].count("1"), len(rectangle_rows((0, 0, 0.5, 1)))
    (16, 32)

    Raises:
        ValueError: it is none.
    """
    left, top, right, bottom = (round(float(side) * RECTANGLE_SIDE) for side in box)
    if not (0 <= left < right <= RECTANGLE_SIDE and 0 <= top < bottom <= RECTANGLE_SIDE):
        raise ValueError("a rectangle needs left, top, right and bottom from 0 to 1, such as 0 0 0.5 1")
    row = "0" * left + "1" * (right - left) + "0" * (RECTANGLE_SIDE - right)
    return tuple(row if top <= y < bottom else "0" * RECTANGLE_SIDE for y in range(RECTANGLE_SIDE))


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedMix:
    """A Mix with what it was drawn with: everything that decides the picture."""

    entries: tuple[MixEntry, ...]
    method: str = "sum"
    prompt: str = ""
    seed: int = 0
    base: str = EMBEDDED


def save_mix(home: Home, name: str, mix: SavedMix) -> Path:
    """Write a Mix; one of the same name is replaced.

    Raises:
        HomeError: the name can't be used, there is nothing to save, or it can't be written.
    """
    if not mix.entries:
        raise HomeError("The mix is empty. Add at least one adapter.")
    path = home.mixes / f"{safe_name(name)}{SUFFIX}"
    write_home_file(path, json.dumps(_values(mix), indent=1, ensure_ascii=False).encode())
    return path


def list_mixes(home: Home) -> list[str]:
    """Names of the Mixes, in alphabetical order."""
    return sorted(path.stem for path in home.mixes.glob(f"*{SUFFIX}") if not path.name.startswith("."))


def read_mix(home: Home, name: str) -> SavedMix:
    """Read a saved Mix.

    Raises:
        HomeError: there is none of this name, or it can't be read.
    """
    path = home.mixes / f"{safe_name(name)}{SUFFIX}"
    try:
        return mix_from_values(parse_json(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise HomeError(f"There is no mix named {name!r}. Saved mixes: {', '.join(list_mixes(home)) or 'none'}."
                        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise HomeError(f"The mix {name!r} can't be read ({error}). Delete {path.name}, or save the mix "
                        "again.") from None


def _values(mix: SavedMix) -> dict[str, Any]:
    """A Mix in plain values, under the keys that files have always had."""
    entries = _plain(mix.entries)
    return {"shares": entries, "method": mix.method, "prompt": mix.prompt, "seed": mix.seed, "base": mix.base}


def _plain(entries: tuple[MixEntry, ...]) -> list[dict[str, Any]]:
    """Entries in plain values; those without what was added later as they have always been written."""
    return [{key: value for key, value in asdict(entry).items() if value or key not in _ADDED_LATER}
            for entry in entries]   # fmt: skip


def fusion_recipe(method: str, entries: tuple[MixEntry, ...]) -> dict[str, Any]:
    """The part of a picture's recipe that says how its adapters act together."""
    return {"fuse": method, "shares": _plain(entries)}


def mix_from_recipe(recipe: Mapping[str, Any]) -> SavedMix | None:
    """The Mix that a picture was drawn with; None where its recipe holds none."""
    try:
        return mix_from_values({**recipe, "method": recipe["fuse"]})
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def mix_from_values(values: Mapping[str, Any]) -> SavedMix:
    """Make a Mix from plain values.

    Raises:
        ValueError, KeyError, TypeError: they are not those of a Mix.
    """
    mix = SavedMix(
        entries=tuple(read_entry(entry) for entry in values["shares"]), method=str(values["method"]),
        prompt=str(values["prompt"]), seed=int(values["seed"]), base=str(values["base"]),
    )   # fmt: skip
    if mix.method not in ALL_METHODS:
        raise ValueError(f"there is no method {mix.method!r}")
    return mix


def read_entry(values: Mapping[str, Any]) -> MixEntry:
    """Make an entry from plain values: name and strength, and what it has of curve, region and blocks.

    Raises:
        ValueError, KeyError, TypeError: they are not those of an entry.
    """
    curve = tuple(float(factor) for factor in values.get("curve", ()))
    region = _region(values.get("region", ()))
    blocks = tuple(sorted((str(block), float(factor)) for block, factor in dict(values.get("blocks", ())).items()))
    strength = float(values["strength"])
    if not abs(strength) <= MAX_STRENGTH or len(curve) == 1 or not all(0 <= factor <= 1 for factor in curve):
        raise ValueError("a strength or a curve is out of range")
    if not all(abs(factor) <= MAX_BLOCK_STRENGTH for _, factor in blocks):
        raise ValueError(f"the strength of a block is not between -{MAX_BLOCK_STRENGTH:g} and {MAX_BLOCK_STRENGTH:g}")
    prompt = _region_prompt(values.get("prompt", ""))
    own_canvas = values.get("own_canvas", False) is True
    if (prompt or own_canvas) and not region:
        raise ValueError("a prompt or a canvas of its own needs a region")
    return MixEntry(str(values["name"]), strength, curve, region, blocks, prompt, own_canvas)


def read_regions(values: Any) -> tuple[RegionEntry, ...]:
    """Make regions from plain values, each with a prompt and a region: rows of 0 and 1, or four numbers of a rectangle.

    Raises:
        ValueError, KeyError, TypeError: they are not those of regions.
    """
    if len(values) > MAX_REGIONS:
        raise ValueError(f"there are {len(values)} regions; at most {MAX_REGIONS} can have prompts of their own")
    found = tuple(RegionEntry(_region_prompt(each["prompt"]), _region(each["region"])) for each in values)
    if not all(one.prompt and one.region for one in found):
        raise ValueError("a region needs a prompt, and a part of the picture")
    return found


def _region(values: Sequence[Any]) -> tuple[str, ...]:
    if len(values) == 4 and not any(isinstance(value, str) for value in values):
        return rectangle_rows(values)
    rows = tuple(str(row) for row in values)
    if len({len(row) for row in rows}) > 1 or not all(row and set(row) <= {"0", "1"} for row in rows):
        raise ValueError("a region is not made of rows of 0 and 1")
    return rows


def _region_prompt(value: Any) -> str:
    prompt = str(value).strip()
    if len(prompt) > MAX_REGION_PROMPT:
        raise ValueError(f"the prompt of a region has more than {MAX_REGION_PROMPT:,} characters")
    return prompt


def entry_details(entry: MixEntry) -> dict[str, Any]:
    """What an entry has besides its name and strength, in plain values; empty for most."""
    details = {"curve": list(entry.curve), "region": list(entry.region), "blocks": dict(entry.blocks),
               "prompt": entry.prompt, "own_canvas": entry.own_canvas}   # fmt: skip
    return {name: value for name, value in details.items() if value}

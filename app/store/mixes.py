"""Mixes of a home: adapters with strengths, the method that fuses them, and a prompt; one JSON file each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.parse import parse_json
from atelier.adapters.fusion.blocks import MAX_BLOCK_STRENGTH, scale_blocks
from atelier.adapters.fusion.curves import StrengthCurve
from atelier.adapters.fusion.live import WeightedAdapter
from atelier.adapters.fusion.methods import ALL_METHODS
from atelier.app.store.home import Home, HomeError, safe_name, write_home_file
from atelier.training.config.train_config import EMBEDDED

SUFFIX = ".json"
CURVE_POINTS, REGION_SIDE = 5, 8   # of a curve on the page; squares of a region in each direction
MAX_STRENGTH = 100.0


@dataclass(frozen=True, slots=True)
class MixEntry:
    """One adapter of a Mix, by name."""

    name: str
    strength: float = 1.0
    curve: tuple[float, ...] = ()    # factors of the strength, 0 … 1, from the first step to the last; none: constant
    region: tuple[str, ...] = ()     # rows of 0 and 1: where in the picture it acts; none: everywhere
    blocks: tuple[tuple[str, float], ...] = ()   # factors of the strength by block (adapters/fusion/blocks.py)

    def weighted_adapter(self, adapters: AdapterSet) -> WeightedAdapter:
        """The same with the adapter's weights."""
        adapters = scale_blocks(adapters, dict(self.blocks)) if self.blocks else adapters
        region = torch.tensor([[float(square) for square in row] for row in self.region]) if self.region else None
        return WeightedAdapter(adapters, self.strength, StrengthCurve(self.curve) if self.curve else None, region)


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
    """Entries in plain values; those without strengths by block as they have always been written."""
    return [{key: value for key, value in asdict(entry).items() if value or key != "blocks"} for entry in entries]


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
    region = tuple(str(row) for row in values.get("region", ()))
    blocks = tuple(sorted((str(block), float(factor)) for block, factor in dict(values.get("blocks", ())).items()))
    strength = float(values["strength"])
    if not abs(strength) <= MAX_STRENGTH or len(curve) == 1 or not all(0 <= factor <= 1 for factor in curve):
        raise ValueError("a strength or a curve is out of range")
    if len({len(row) for row in region}) > 1 or not all(row and set(row) <= {"0", "1"} for row in region):
        raise ValueError("a region is not made of rows of 0 and 1")
    if not all(abs(factor) <= MAX_BLOCK_STRENGTH for _, factor in blocks):
        raise ValueError(f"the strength of a block is not between -{MAX_BLOCK_STRENGTH:g} and {MAX_BLOCK_STRENGTH:g}")
    return MixEntry(str(values["name"]), strength, curve, region, blocks)


def entry_details(entry: MixEntry) -> dict[str, Any]:
    """What an entry has besides its name and strength, in plain values; empty for most."""
    details = {"curve": list(entry.curve), "region": list(entry.region), "blocks": dict(entry.blocks)}
    return {name: value for name, value in details.items() if value}

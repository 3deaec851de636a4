"""What Atelier's own files say about themselves: the text entries ``atelier.*``, named here and nowhere else.

A safetensors header holds text only, so every value is converted here, to text and back. Three kinds of files have such
entries: adapters, gates (``fusion/gates.py``) and compressed models (``quantization/packed.py``). Loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Self

from atelier.adapters.core.parse import parse_json

_PREFIX = "atelier."
SCHEMA = 1
PACKED_SCHEMA = 2   # of files whose values are in a few bits (``tiny.py``)
QUANTIZATION_ENTRY = f"{_PREFIX}quant"    # of a compressed model: its bits and timesteps
INGREDIENTS_ENTRY = f"{_PREFIX}made_of"   # of a compressed model: the base model and the adapters in it
# Of an exported file: its DoRA's lengths follow ComfyUI's rule. A tensor of this name says the same where a tool has
# saved the tensors again without the text.
COMFYUI_LENGTHS_ENTRY = f"{_PREFIX}comfyui_lengths"
_MOST_DIGITS = 9   # a longer count is no count


def _joined(separator: str) -> Any:
    return field(default=(), metadata={"separator": separator})


def _entry(name: str) -> Any:
    return field(default="", metadata={"entry": name})


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """What an adapter file says for people and for other tools. All of it may be missing: then it is empty or None.

    Each field is the entry ``atelier.<name>``, but for the two that ModelSpec has names for.
    """

    kind: str = ""                    # as in the catalog
    name: str = ""
    trigger: str = ""                 # the trigger word
    subject: str = ""                 # what it is, in plain words
    base: str = ""                    # the base model, as given to the training
    title: str = ""                   # the base model's name for people
    family: str = ""                  # the base model's family
    started: str = ""                 # ISO 8601
    created: str = ""                 # ISO 8601
    recipe: str = ""                  # TOML
    run: str = ""                     # name of the run's folder
    pictures: int | None = None       # number of training pictures
    best_step: int | None = None
    parent: str = ""                  # hash of the tensors of the adapter whose training it continued
    basis: str = ""                   # Break-for-Make: hash of the frozen halves
    method: str = ""                  # how several adapters became this one
    content: str = ""                 # the adapters it was combined from
    style: str = ""
    parts: tuple[str, ...] = _joined(", ")
    algorithms: tuple[str, ...] = _joined(", ")   # of a file from another tool: LoRA, LoKr …
    source: str = ""                  # hash of the contents of the file it was imported from
    file_hash: str = ""               # of that file's tensor bytes (SHA-256), by which other tools know it
    sampler: str = ""                 # the sampler it was made for
    notes: tuple[str, ...] = _joined("\n")        # what was unusual about the file it was imported from
    error: float | None = None        # of a file in a few bits: relative error of ΔW, mean over the layers
    worst_error: float | None = None
    thumbnail: str = _entry("modelspec.thumbnail")
    merged_from: str = _entry("modelspec.merged_from")
    other: Mapping[str, str] = field(default_factory=dict)   # of other tools and later versions, under their full names

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self:
        """Read the entries of a header. Counts and errors that are not numbers are taken for missing."""
        own = {f.name: _parse(f, metadata[key]) for key, f in _FIELDS.items() if metadata.get(key)}
        other = {key: text for key, text in metadata.items() if key not in _FIELDS and key not in _LAYOUT}
        return cls(**own, other=other)

    def to_metadata(self) -> dict[str, str]:
        """Return the entries for a header; those that are empty are left out."""
        values = {key: getattr(self, f.name) for key, f in _FIELDS.items()}
        own = {key: _format(_FIELDS[key], value) for key, value in values.items() if value not in ("", None, ())}
        return {**self.other, **own}


_LAYOUT = frozenset(f"{_PREFIX}{name}" for name in ("schema", "settings", "modules", "ranks", "bits"))
_FIELDS = {f.metadata.get("entry", f"{_PREFIX}{f.name}"): f for f in fields(AdapterInfo) if f.name != "other"}


def _parse(f: Field[Any], text: str) -> Any:
    if "separator" in f.metadata:
        return tuple(text.split(f.metadata["separator"]))
    if f.type == "int | None":
        return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None
    return _number(text) if f.type == "float | None" else text


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _format(f: Field[Any], value: Any) -> str:
    if isinstance(value, tuple):
        return f.metadata["separator"].join(value)
    return f"{value:.4f}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLayout:
    """What is needed to rebuild an adapter from the tensors of its file."""

    kind: str
    settings: dict[str, Any]
    modules: dict[str, list[int]]   # name → shape of the weight
    ranks: dict[str, int] = field(default_factory=dict)   # of modules whose rank is not that of the settings
    bits: int = 0                   # of each value; 0: as they are

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self:
        """Read the entries of a header.

        Raises:
            KeyError, ValueError, TypeError, AttributeError: an entry is missing or damaged.
        """
        kind, settings, modules = (metadata[f"{_PREFIX}{name}"] for name in ("kind", "settings", "modules"))
        ranks = parse_json(metadata.get(f"{_PREFIX}ranks", "{}"))
        return cls(kind=kind, settings=parse_json(settings), modules=parse_json(modules),
                   ranks={name: int(rank) for name, rank in ranks.items()},
                   bits=int(metadata.get(f"{_PREFIX}bits", "0")))   # fmt: skip

    def to_metadata(self) -> dict[str, str]:
        """Return the entries for a header."""
        own = {"schema": str(PACKED_SCHEMA if self.bits else SCHEMA), "kind": self.kind,
               "settings": json.dumps(self.settings), "modules": json.dumps(self.modules)}   # fmt: skip
        if self.ranks:
            own["ranks"] = json.dumps(self.ranks)
        if self.bits:
            own["bits"] = str(self.bits)
        return {f"{_PREFIX}{name}": text for name, text in own.items()}


def is_adapter(metadata: Mapping[str, str]) -> bool:
    """Whether a header is that of an adapter in Atelier's own format."""
    return f"{_PREFIX}kind" in metadata


def adapter_header_problem(metadata: Mapping[str, str]) -> str:
    """What keeps a header from being read as an adapter's, to go after the file's name; empty when nothing does."""
    if not is_adapter(metadata):
        return "is a safetensors file, but not one of Atelier's: its header names no adapter kind. Import it first."
    schema = metadata.get(f"{_PREFIX}schema", "0")
    if schema.isdecimal() and int(schema[:_MOST_DIGITS]) > PACKED_SCHEMA:
        return "was written by a newer version of Atelier. Update Atelier to open it."
    if not schema.isdecimal() or not metadata.keys() >= {f"{_PREFIX}settings", f"{_PREFIX}modules"}:
        return "has a damaged header. Download or copy the file again."
    return ""


def is_gates(metadata: Mapping[str, str]) -> bool:
    """Whether a header is that of gates."""
    return f"{_PREFIX}gates" in metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class GateInfo:
    """What a file of gates says about itself."""

    family: str               # of the base model
    widths: dict[str, int]    # module → output features
    settings: dict[str, Any]
    steps: int | None = None   # of their training

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self:
        """Read the entries of a header.

        Raises:
            KeyError, ValueError: an entry is missing or damaged.
        """
        family, widths, settings = (metadata[f"{_PREFIX}{name}"] for name in ("family", "modules", "settings"))
        steps = metadata.get(f"{_PREFIX}steps", "")
        return cls(family=family, widths=parse_json(widths), settings=parse_json(settings),
                   steps=int(steps) if steps.isdecimal() else None)   # fmt: skip

    def to_metadata(self) -> dict[str, str]:
        """Return the entries for a header."""
        own = {"gates": "1", "family": self.family, "modules": json.dumps(self.widths),
               "settings": json.dumps(self.settings)}   # fmt: skip
        if self.steps is not None:
            own["steps"] = str(self.steps)
        return {f"{_PREFIX}{name}": text for name, text in own.items()}

"""``atelier inspect``: what an adapter file of any tool contains, read from its header without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atelier.adapters.formats.adapter_info import AdapterInfo, is_adapter
from atelier.adapters.formats.check_values import find_not_finite, is_zero
from atelier.adapters.formats.compatibility import NO, PARTLY, Verdict, check_tools
from atelier.adapters.formats.detect import AdapterContents, alpha_zero_note, detect
from atelier.adapters.formats.foreign_metadata import find_sampler
from atelier.adapters.formats.safetensors_header import read_safetensors_header
from atelier.adapters.textual_inversion import find_words, is_textual_inversion

DAMAGED = Verdict(PARTLY, "it loads the file, but draws black pictures or noise with it")


def inspect_file(path: Path) -> dict[str, Any]:
    """Describe an adapter file in plain values.

    Raises:
        FileError: it is not an adapter, or one that can't be used; the message says what it is.
    """
    if is_textual_inversion(path):
        return _words(path)
    try:
        own = read_safetensors_header(path)
    except (OSError, ValueError):
        return _foreign(path, detect(path))   # raises the error that says what is wrong with it
    return _native(path, own.metadata) if is_adapter(own.metadata) else _foreign(path, detect(path))


def _native(path: Path, entries: dict[str, str]) -> dict[str, Any]:
    names = ("kind", "name", "trigger", "subject", "family", "title", "created", "best_step", "pictures")
    info = AdapterInfo.from_metadata(entries)
    facts = {name: "" if (value := getattr(info, name)) is None else str(value) for name in names}
    return {"file": path.name, "form": "Atelier's own", **facts, "bytes": path.stat().st_size}


def _words(path: Path) -> dict[str, Any]:
    found = find_words(path)
    return {"file": path.name, "form": "textual inversion", "words": ", ".join(word.token for word in found),
            "family": found[0].family, "vectors": ", ".join(str(word.count) for word in found),
            "bytes": path.stat().st_size}   # fmt: skip


def _foreign(path: Path, contents: AdapterContents) -> dict[str, Any]:
    rules = check_tools(contents.shapes, contents.family,
                        comfyui_lengths=contents.comfyui_lengths)   # fmt: skip
    header = read_safetensors_header(path)
    damaged = find_not_finite(path, header)
    if damaged:
        rules = {tool: verdict if verdict.answer == NO else DAMAGED for tool, verdict in rules.items()}
    alphas = [layer.keys["alpha"] for layer in contents.layers.values() if "alpha" in layer.keys]
    off = sum(is_zero(path, header, key) for key in alphas)
    return {
        "file": path.name,
        "form": ", ".join(f"{name} ({count} layer{'s' if count > 1 else ''})"
                          for name, count in contents.algorithms.items()),
        "family": contents.family,
        "ranks": ", ".join(map(str, contents.ranks[:10])),
        "trigger": contents.trigger,
        "tags": ", ".join(f"{tag} ({count})" for tag, count in contents.tags[:10]),
        "made for sampler": find_sampler(path, contents.metadata),
        "bytes": path.stat().st_size,
        "damaged": f"{damaged} contains NaN or infinity" if damaged else "",
        "loads in": {tool: f"{verdict.answer}{f': {verdict.reason}' if verdict.reason else ''}"
                     for tool, verdict in rules.items()},
        "notes": " ".join([*contents.notes, *([alpha_zero_note(off, len(contents.layers))] if off else [])]),
        "not used": ", ".join(contents.unknown[:5]),
    }   # fmt: skip

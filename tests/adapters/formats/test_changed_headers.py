"""Any one tensor of a valid file dropped, renamed, added or of another shape: refused, or told, never silent."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from header_corpus import ADAPTERS, Header

from atelier.adapters.formats.detect import AdapterContents, detect_entries
from atelier.adapters.formats.safetensors_header import FileError, SafetensorsHeader, TensorEntry

# Parts that a valid file may have or not: without them it is another valid file.
OPTIONAL = {"alpha", "scale", "scalar", "rescale", "dora_scale", "magnitude", "diff_b", "b_norm", "up_bias",
            "set_bias", "set_weight", "w_norm"}   # fmt: skip
# Kinds whose tensors tell the size of the layer only in part: where they don't fit, mounting refuses them.
OPEN = ("IA3", "BOFT", "MiSS", "VeRA")
# Names that end the layer's own in an underscore, or belong to no layer: what is added beside them is told in a note.
LOOSE = ("a doubled prefix", "with a learned word", "PEFT's VeRA")
FEW = 300


def contents(header: Header) -> AdapterContents:
    entries = {key: TensorEntry("F32", shape, 0) for key, shape in header.items()}
    return detect_entries(SafetensorsHeader(entries, {}), "a.safetensors")


def cases() -> Iterator[tuple[str, str, str]]:
    """What file, which tensor, how it is changed."""
    for what, (header, *_) in ADAPTERS.items():
        for key, shape in header.items():
            yield from ((what, key, how) for how in ("dropped", "renamed", "misspelt", "inside"))
            yield from ((what, key, f"side {place}") for place in range(len(shape)))
            yield what, key, "another side"


def changed(header: Header, key: str, how: str) -> Header:
    """The header with one tensor changed."""
    middle = len(key) // 2
    others = {name: shape for name, shape in header.items() if name != key}
    shape = header[key]
    if how == "dropped":
        return others
    if how == "renamed":
        return {**others, f"{key}x": shape}
    if how == "misspelt":
        return {**others, f"{key[:middle]}q{key[middle + 1:]}": shape}
    if how == "inside":
        return {**header, f"{key.rpartition('.')[0] if '.' in key else key}.mystery": (3, 3)}
    if how == "another side":
        return {**others, key: (*shape, 2)}
    place = int(how.removeprefix("side "))
    return {**others, key: (*shape[:place], shape[place] + 1, *shape[place + 1:])}


def check(what: str, key: str, how: str) -> str:
    """What was kept silent; empty when nothing was."""
    header = ADAPTERS[what][0]
    whole, different = contents(header), changed(header, key, how)
    try:
        found = contents(different)
    except FileError:
        return ""
    used = {name for layer in found.layers.values() for name in layer.keys.values()}
    told = used | set(found.unknown) | {name for pair in found.copies for name in pair}
    if missing := set(different) - told:
        return f"{what}, {key} {how}: {sorted(missing)} in no layer and not told"
    new = [name for name in found.unknown if name not in whole.unknown and not name.startswith("bundle_emb.")]
    if new and not any("tensor" in note for note in found.notes):
        return f"{what}, {key} {how}: no note on {found.unknown}"
    name, part = next(((name, part) for name, layer in whole.layers.items() for part, own in layer.keys.items()
                       if own == key), ("", ""))
    if not name or part in OPTIONAL or (how == "inside" and what in LOOSE):
        return ""
    if how.startswith("side") and what.endswith(OPEN):
        return ""
    if name in found.layers and found.layers[name] == whole.layers[name] and how != "inside":
        return f"{what}, {key} {how}: {name} is as before"
    if how == "inside":
        return f"{what}, {key} {how}: taken"
    if how in ("dropped", "renamed", "misspelt") and name in found.layers and found.layers[name].algorithm != "bias":
        return f"{what}, {key} {how}: {name} does without"
    return ""


def test_a_few_hundred_changes_are_refused_or_told():
    drawn = random.Random(7).sample(list(cases()), FEW)
    assert [said for case in drawn if (said := check(*case))] == []


@pytest.mark.slow
def test_every_change_is_refused_or_told():
    every = list(cases())
    assert len(every) >= 5000
    assert [said for case in every if (said := check(*case))] == []

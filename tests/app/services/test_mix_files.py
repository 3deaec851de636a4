"""Mixes that are shared as files: found by hash on another machine, and what is not there is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atelier.adapters.core.base import Spec
from atelier.adapters.formats.low_rank import lora_from_factors
from atelier.adapters.formats.native import save_adapter
from atelier.app.services.mix_files import mix_file, open_mix_file
from atelier.app.store.home import Home, HomeError, open_home
from atelier.app.store.mixes import MixEntry, SavedMix

MIX = SavedMix(entries=(MixEntry("rex", 0.8, (1.0, 0.5, 0.0, 0.0, 0.0)), MixEntry("ink", -0.5, (), ("10", "01"))),
               method="gated", prompt="a rex fox", seed=7, base="/home/somebody/models/base")   # fmt: skip


def add(home: Home, name: str, seed: int) -> None:
    torch.manual_seed(seed)
    spec = Spec("unet.mid_block.attentions.0.proj_in", (4, 4))
    adapters = lora_from_factors({spec: (torch.randn(4, 1), torch.randn(1, 4))})
    known = {"trigger": name, "base": "embedded", "family": "embedded"}
    home.adapters.mkdir(parents=True, exist_ok=True)
    save_adapter(home.adapters / f"{name}.safetensors", adapters, {f"atelier.{k}": v for k, v in known.items()})


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The file of a mix, as another machine has written it."""
    home = open_home(tmp_path / "theirs")
    add(home, "rex", 1)
    add(home, "ink", 2)
    (tmp_path / "shared.mix.json").write_bytes(mix_file(home, MIX))
    return tmp_path / "shared.mix.json"


@pytest.fixture
def ours(tmp_path: Path) -> Home:
    return open_home(tmp_path / "ours")


def test_a_file_names_no_folder_of_the_machine_that_wrote_it(shared: Path):
    text = shared.read_text(encoding="utf-8")
    assert "somebody" not in text and str(shared.parent) not in text
    assert {len(each["sha256"]) for each in json.loads(text)["adapters"]} == {64}


def test_the_same_adapters_are_found_under_any_name(shared: Path, ours: Home):
    add(ours, "rex", 1)
    add(ours, "drawing", 2)
    mix, notes = open_mix_file(ours, shared)
    assert mix == replace(MIX, entries=(MIX.entries[0], replace(MIX.entries[1], name="drawing")), base="embedded")
    assert notes == ["ink is named drawing here."]


def test_what_is_missing_or_another_file_is_named(shared: Path, ours: Home):
    add(ours, "rex", 3)
    mix, notes = open_mix_file(ours, shared)
    assert [entry.name for entry in mix.entries] == ["rex"]
    assert notes[0] == "The rex here is another file than the one of the mix, so pictures may differ."
    assert notes[1].startswith("ink is missing here (lora, ")
    assert json.loads(shared.read_text())["adapters"][1]["sha256"][:12] in notes[1]


def test_a_name_taken_by_another_does_not_hide_the_right_one(shared: Path, ours: Home):
    add(ours, "rex", 2)
    add(ours, "ink", 1)
    mix, notes = open_mix_file(ours, shared)
    assert [entry.name for entry in mix.entries] == ["ink", "rex"]
    assert notes == ["rex is named ink here.", "ink is named rex here."]


@pytest.mark.parametrize("content", [
    b"", b"[]", b"{}", b"\xff", b'{"format": "other"}', b'{"format": "atelier mix", "adapters": 3}', b"[" * 100_000,
    b'{"format": "atelier mix", "method": "sum", "prompt": "", "seed": 0, "adapters": [{"name": "../x"}]}',
    b'{"format": "atelier mix", "method": "magic", "prompt": "", "seed": 0, "adapters": []}', b" " * 2_000_000,
])   # fmt: skip
def test_other_files_are_refused_in_words(tmp_path: Path, ours: Home, content: bytes):
    (path := tmp_path / "x.json").write_bytes(content)
    with pytest.raises(HomeError, match="is no mix of Atelier"):
        open_mix_file(ours, path)


def test_an_empty_mix_is_not_shared(ours: Home):
    with pytest.raises(HomeError, match="mix is empty"):
        mix_file(ours, SavedMix(entries=()))

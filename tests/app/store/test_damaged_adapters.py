"""A damaged file among the adapters, put there by hand: shown as damaged, never used, and no other suffers from it."""

from __future__ import annotations

import json
from pathlib import Path

import gradio as gr
import pytest
import torch
from safetensors.torch import load_file, save_file

from atelier.adapters.core.base import Spec
from atelier.adapters.formats.native import read_metadata, save_adapter
from atelier.adapters.formats.read_foreign import read_foreign
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.cli.main import main
from atelier.app.services.library_list import LibraryFilter
from atelier.app.store import library
from atelier.app.store.home import Home, HomeError, open_home
from atelier.app.store.library import find_adapter, list_adapters, list_unreadable
from atelier.app.store.search import propose_adapters
from atelier.app.web.pages import studio_settings
from atelier.app.web.pages.library import _show as library_page
from atelier.app.web.pages.studio_adapters import toggle_adapter
from atelier.app.web.pages.studio_picker import adapter_picker

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
KOHYA = "lora_" + LAYER.replace(".", "_")


@pytest.fixture
def home(own_home: Path) -> Home:
    """One good adapter, and four that are damaged each in its own way."""
    home = open_home(own_home)
    for name in ("fox", "bad-value", "bad-alpha"):
        alpha = 4e30 if name == "bad-alpha" else 4.0
        adapters = create_adapters("lora", {"rank": 4, "alpha": alpha}, [Spec(LAYER, (192, 192))])
        torch.nn.init.normal_(next(iter(adapters)).get_parameter("up"))
        if name == "bad-value":
            next(iter(adapters)).get_parameter("up").data[0, 0] = torch.nan
        save_adapter(home.adapters / f"{name}.safetensors", adapters, {
            "atelier.family": "embedded", "atelier.base": "embedded", "atelier.trigger": name})   # fmt: skip
    put_imported(home, "bad-fit", {"up": torch.randn(192, 8), "down": torch.randn(4, 192)})
    put_imported(home, "bad-layer", {"up": torch.randn(192, 8)})
    return home


def put_imported(home: Home, name: str, parts: dict[str, torch.Tensor]) -> None:
    own = {"atelier.schema": "1", "atelier.kind": "imported", "atelier.settings": "{}", "atelier.family": "embedded",
           "atelier.modules": json.dumps({LAYER: [192, 192]}), "atelier.algorithms": "LoRA"}   # fmt: skip
    save_file({f"{LAYER}.{part}": value for part, value in parts.items()}, home.adapters / f"{name}.safetensors", own)


DAMAGED = {"bad-value": "up contains values that are not finite", "bad-alpha": "its setting alpha is 4.0e+30",
           "bad-fit": "up has the shape", "bad-layer": "don't form a layer"}   # fmt: skip


def test_the_library_tells_the_damaged_from_the_others(home: Home):
    assert [card.name for card in list_adapters(home)] == ["fox"]
    reasons = {file.path.stem: file.reason for file in list_unreadable(home)}
    assert reasons.keys() == DAMAGED.keys()
    for name, said in DAMAGED.items():
        assert said in reasons[name] and f"{name}.safetensors is damaged" in reasons[name]
        with pytest.raises(HomeError, match=f"'{name}' can't be opened: "):
            find_adapter(home, name)
    shown = library_page(home, LibraryFilter(), 0, "bad-value")[0]
    assert [card["name"] for card in shown["cards"]] == ["fox"] and len(shown["unreadable"]) == len(DAMAGED)


def test_the_studio_offers_the_others_and_says_why_one_is_not_there(home: Home):
    assert [card["name"] for card in adapter_picker(home, [])["cards"]] == ["fox"]
    with pytest.raises(gr.Error, match=r"bad-value\.safetensors is damaged"):
        toggle_adapter(home, {"names": "", "prompt": "", "search": ""}, "bad-value")
    assert "fox" in toggle_adapter(home, {"names": "", "prompt": "", "search": ""}, "fox")[:3]
    filled = studio_settings.fill_from_address(home, [], {"adapter": "bad-value"})
    assert "bad-value.safetensors is damaged" in str(filled)


def test_commands_go_on_without_them_and_say_so(home: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    own = ["--home", str(home.path)]
    assert main(["list", *own]) == 0
    said = capsys.readouterr()
    assert "fox" in said.out and "bad-value.safetensors is damaged" in said.err
    assert main(["find", "a fox", *own]) == 0
    assert [proposal.name for proposal in propose_adapters(home, "fox")] == ["fox"]
    capsys.readouterr()
    out = str(tmp_path / "out.safetensors")
    for command in (["draw", "a fox", "--adapter", "bad-value"], ["export", "bad-value", "--to", "kohya", "--out", out],
                    ["merge", "fox", "bad-value=0.5", "--name", "both"], ["show", "bad-value"],
                    ["resize", "bad-value", "--rank", "1", "--name", "small"]):   # fmt: skip
        assert main([*command, *own]) == 1
        said = capsys.readouterr().err
        assert "'bad-value' can't be opened: bad-value.safetensors is damaged" in said and "Traceback" not in said
    assert not Path(out).exists() and [card.name for card in list_adapters(home)] == ["fox"]
    assert main(["delete", "bad-value", *own]) == 0


def test_each_file_is_read_once_and_again_when_it_changes(home: Home, monkeypatch: pytest.MonkeyPatch):
    read = []
    monkeypatch.setattr(library, "adapter_problem", lambda path, real=library.adapter_problem: read.append(path.stem)
                        or real(path))   # fmt: skip
    list_adapters(home)
    assert sorted(read) == sorted(["fox", *DAMAGED])
    list_adapters(home)
    list_unreadable(home)
    assert len(read) == 5
    path = home.adapters / "bad-value.safetensors"
    tensors = {key: value.nan_to_num() for key, value in load_file(path).items()}
    save_file(tensors | {f"{LAYER}.up": torch.ones(192, 4)}, path, read_metadata(path))
    assert [card.name for card in list_adapters(home)] == ["bad-value", "fox"]
    assert read[5:] == ["bad-value"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"fox.safetensors": 1}', b'{"fox.safetensors": ["a", 1, 2]}'])
def test_a_damaged_index_is_made_again(home: Home, damage: bytes):
    (home.state / library.INDEX).write_bytes(damage)
    assert [card.name for card in list_adapters(home)] == ["fox"]


def test_what_is_odd_about_an_import_stays_with_it(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "owl.safetensors"
    save_file({f"{KOHYA}.lora_up.weight": torch.randn(192, 4), f"{KOHYA}.lora_down.weight": torch.randn(4, 192),
               f"{KOHYA}.alpha": torch.tensor(0.0), "strange": torch.ones(1)}, path)   # fmt: skip
    assert main(["import", str(path), "--home", str(home.path)]) == 0
    notes = find_adapter(home, "owl").notes
    assert notes == read_foreign(path)[1].notes
    assert "1 of 4 tensors are not used" in notes[0] and "alpha is 0" in notes[1]
    capsys.readouterr()
    assert main(["show", "owl", "--home", str(home.path)]) == 0
    assert "alpha is 0" in capsys.readouterr().out

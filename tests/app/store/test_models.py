"""Looking for base models: what is found, what it fits, and what is said about the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from atelier.app.cli.main import main
from atelier.app.services.known_models import known_models
from atelier.app.store import models
from atelier.app.store.home import HomeError, open_home
from atelier.app.store.models import base_choices, find_models, model_folders, save_model_folders, scan_models
from atelier.app.text import settings as settings_words
from atelier.app.web.pages import create, settings, studio_settings
from atelier.training.base_models.identify import EMBEDDED_FOLDER


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models as people have them: one that is good in a folder of its own, and three that are not."""
    monkeypatch.setattr(models, "MIN_CHECKPOINT_BYTES", 50)
    folder = tmp_path / "models"
    (folder / "diffusers").mkdir(parents=True)
    (folder / "diffusers" / "small").symlink_to(EMBEDDED_FOLDER)
    save_file({"lora_unet_mid_block.lora_down.weight": torch.zeros(4, 8)}, folder / "adapter.safetensors")
    (folder / "old.ckpt").write_bytes(b"\x80\x02" + bytes(100))
    (folder / "tiny.safetensors").write_bytes(b"too small to matter")
    (folder / "notes.txt").write_text("no model" * 100)
    return folder


def test_a_folder_is_looked_through(shelf: Path):
    found = {model.path.name: model for model in scan_models(shelf)}
    assert list(found) == ["adapter.safetensors", "small", "old.ckpt"]
    assert found["small"].info is not None
    assert found["small"].info.family == "embedded"
    assert "adapter" in found["adapter.safetensors"].reason
    assert "pickle" in found["old.ckpt"].reason


def test_a_folder_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(HomeError, match="does not exist"):
        scan_models(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(HomeError, match="is a file"):
        scan_models(tmp_path / "file")


def test_a_folder_that_links_to_itself_or_may_not_be_read_is_no_trap(shelf: Path):
    (shelf / "diffusers" / "again").symlink_to(shelf)
    assert {model.path.name for model in scan_models(shelf)} == {"adapter.safetensors", "small", "old.ckpt"}


def test_a_file_that_changed_is_read_again(shelf: Path):
    before = {model.path.name: model.reason for model in scan_models(shelf)}
    (shelf / "old.ckpt").write_bytes(b"<!doctype html>" + bytes(100))
    after = {model.path.name: model.reason for model in scan_models(shelf)}
    assert "pickle" in before["old.ckpt"] and "a web page" in after["old.ckpt"]


def test_folders_are_remembered_and_what_is_in_them_can_be_chosen(shelf: Path, own_home: Path, tmp_path: Path):
    home = open_home(own_home)
    assert base_choices(home) == [("Atelier's own small model", "embedded")]
    save_model_folders(home, f"  {shelf} \n\n{shelf / 'diffusers'}\n")
    assert model_folders(home) == [shelf, shelf / "diffusers"]
    assert [model.path.name for model in find_models(home)] == ["adapter.safetensors", "small", "old.ckpt"]
    (embedded, small) = base_choices(home)
    assert embedded[1] == "embedded"
    assert small == ("small · Atelier's own small model (v-prediction)", str(shelf / "diffusers" / "small"))
    with pytest.raises(HomeError, match=r"nowhere is not a folder.*remove the line"):
        save_model_folders(home, str(tmp_path / "nowhere"))
    assert len(model_folders(home)) == 2   # what can't be used changes nothing
    shelf.rename(tmp_path / "unplugged")
    assert find_models(home) == []


def test_the_settings_page_says_what_each_model_is(shelf: Path, own_home: Path):
    home = open_home(own_home)
    text, shown = settings._scan(home, str(shelf))
    assert text == str(shelf)
    lines = {model["name"]: model["description"] for model in shown["models"]}
    assert lines["small"] == "Atelier's own small model · predicts v_prediction · fp16 · 29.2 MB"
    assert "is an adapter" in lines["adapter.safetensors"]
    (shelf / "empty").mkdir()
    assert settings._scan(home, str(shelf / "empty"))[1] == {"hint": settings_words.NO_MODELS, "models": []}
    assert settings._scan(home, "")[1] == {"hint": "", "models": []}


def test_create_offers_what_was_found_since_the_page_was_made(shelf: Path, own_home: Path):
    home, keys = open_home(own_home), ["base", "kind", "steps"]
    save_model_folders(home, str(shelf))
    restored = create._restore(home, keys)
    offered = [base for _, base in restored[-3]["choices"]]
    assert offered == ["embedded", str(shelf / "diffusers" / "small"), *(model.id for model in known_models())]
    assert restored[-3]["value"] == "embedded"


def test_the_studio_offers_what_was_found_since_the_page_was_made(shelf: Path, own_home: Path):
    home, keys = open_home(own_home), ["prompt", "base", "names"]
    save_model_folders(home, str(shelf))
    opened = dict(zip(keys, studio_settings.fill_from_address(home, keys, {}), strict=False))
    assert [base for _, base in opened["base"]["choices"]] == ["embedded", str(shelf / "diffusers" / "small")]


def test_on_the_command_line(shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    home = ["--home", str(open_home(tmp_path / "home").path)]
    assert main(["models", "scan", str(shelf), "--json", *home]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [model["usable"] for model in said] == [False, True, False]
    assert (said[1]["family"], said[1]["resolution"], said[1]["adapters"]) == ("embedded", 128, [])
    assert main(["models", "scan", str(shelf), *home]) == 0
    text = capsys.readouterr().out
    assert "128 px" in text
    assert "! " in text and "pickle" in text
    assert main(["models", "show", "embedded", *home]) == 0
    assert "v_prediction" in capsys.readouterr().out
    assert main(["models", "show", str(shelf / "adapter.safetensors"), *home]) == 1
    assert "is an adapter" in capsys.readouterr().err

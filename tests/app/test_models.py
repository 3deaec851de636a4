"""Looking for base models: what is found, what it fits, and what is said about the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from atelier.app import models
from atelier.app.cli import main
from atelier.app.home import HomeError, open_home
from atelier.app.models import scan_models
from atelier.training.identify import EMBEDDED_FOLDER


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models as people have them: one that is good in a folder of its own, and three that are not."""
    monkeypatch.setattr(models, "LEAST_BYTES", 50)
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


def test_on_the_command_line(shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    home = ["--home", str(open_home(tmp_path / "home").path)]
    assert main(["models", "scan", str(shelf), "--json", *home]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [model["usable"] for model in said] == [False, True, False]
    assert (said[1]["family"], said[1]["resolution"], said[1]["adapters"]) == ("embedded", 64, [])
    assert main(["models", "scan", str(shelf), *home]) == 0
    text = capsys.readouterr().out
    assert "64 px" in text
    assert "! " in text and "pickle" in text
    assert main(["models", "show", "embedded", *home]) == 0
    assert "v_prediction" in capsys.readouterr().out
    assert main(["models", "show", str(shelf / "adapter.safetensors"), *home]) == 1
    assert "is an adapter" in capsys.readouterr().err

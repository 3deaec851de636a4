"""The file for those who help: secrets are planted wherever a person can type or keep one, and none may be in it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from atelier.adapters.core.base import Spec
from atelier.adapters.formats.low_rank import lora_from_factors
from atelier.adapters.formats.native import save_adapter
from atelier.app.jobs.grid_folders import job_folder
from atelier.app.jobs.jobs import new_run, run_folders
from atelier.app.services.settings import diagnostics
from atelier.app.services.settings.diagnostics import write_diagnostics
from atelier.app.store.adapter_notes import save_notes
from atelier.app.store.api_keys import make_key
from atelier.app.store.gallery import encode_picture
from atelier.app.store.home import Home, open_home
from atelier.app.store.mixes import MixEntry, SavedMix, save_mix
from atelier.training.config.events import Failed
from atelier.training.config.train_config import TrainConfig

SECRET = "sesame"   # part of everything that is planted
LOG = f"""Traceback (most recent call last):
  File "/home/{SECRET}/atelier/app/services/draw.py", line 12, in {SECRET}_is_no_name_of_ours
  File "/home/x/app/{SECRET}.py", line 3, in go
    raise ValueError("{SECRET} token")
ValueError: {SECRET} could not be read
SesameError: {SECRET}
"""


@pytest.fixture
def home(own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home in which every text is secret."""
    home = open_home(own_home.parent / f"{SECRET}-home")
    for name in ("HF_TOKEN", "ATELIER_PASSWORD"):
        monkeypatch.setenv(name, f"{SECRET}-{name}")
    make_key(home, f"{SECRET} key")
    pair = {Spec("unet.a", (4, 4)): (torch.randn(4, 1), torch.randn(1, 4))}
    known = dict.fromkeys(("trigger", "subject", "base", "family", "title", "caption"), SECRET)
    save_adapter(home.adapters / f"{SECRET}.safetensors", lora_from_factors(pair),
                 {f"atelier.{key}": value for key, value in known.items()})   # fmt: skip
    save_notes(home, SECRET, tags=(SECRET,))
    save_mix(home, SECRET, SavedMix(entries=(MixEntry(SECRET),), prompt=SECRET))
    recipe = {"prompt": SECRET, "negative": SECRET, "seed": 1, "steps": 4, "guidance": 3.0, "base": SECRET,
              "adapters": []}   # fmt: skip
    (home.gallery / "20260101-000000-000000-abcdef.png").write_bytes(encode_picture(Image.new("RGB", (4, 4)), recipe))
    run = new_run(home, TrainConfig(name=f"{SECRET}-2", pictures=f"/{SECRET}", base=f"/{SECRET}/base", trigger=SECRET,
                                    subject=SECRET, vae=f"/{SECRET}/vae", steps=77))   # fmt: skip
    run.append(Failed(f"{SECRET} is missing"))
    (home.state / "worker.log").write_text(LOG)
    home.preferences.write_text(json.dumps({"drawing_precision": SECRET}))
    home.models.write_text(f"/{SECRET}/models")
    return home


def contents(home: Home, tmp_path: Path) -> dict[str, str]:
    path = write_diagnostics(home, tmp_path / "out.zip")
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name).decode() for name in file.namelist()}


def test_no_planted_secret_is_in_the_file(home: Home, tmp_path: Path) -> None:
    found = contents(home, tmp_path)
    for name, text in found.items():
        assert SECRET not in (name + text).lower(), name
        assert str(home.path.parent) not in text


def test_what_helps_is_in_it(home: Home, tmp_path: Path) -> None:
    found = {name: json.loads(text) for name, text in contents(home, tmp_path).items()}
    assert found["machine.json"]["packages"]["torch"] == torch.__version__
    assert found["home.json"]["adapters_by_kind"] == {"lora": 1}
    [job] = found["jobs.json"]
    assert (job["state"], job["settings"]["steps"], job["settings"]["kind"]) == ("failed", 77, "lora")
    [errors] = found["errors.json"]
    assert errors["kinds"] == {"ValueError": 1}


def test_the_lines_of_our_own_code_are_named_and_no_others(home: Home, tmp_path: Path) -> None:
    source = Path(diagnostics.__file__).resolve()
    lines = [f'  File "{source}", line 12, in write', '  File "/x/app/no.py", line 1, in f']
    (home.state / "worker.log").write_text("\n".join(lines))
    [errors] = json.loads(contents(home, tmp_path)["errors.json"])
    assert errors["frames"] == ["app/services/settings/diagnostics.py:12"]


def test_the_logs_of_trainings_and_grids_are_looked_at_too(home: Home, tmp_path: Path) -> None:
    (home.state / "worker.log").unlink()
    [run] = run_folders(home)
    grid = job_folder(home, "20260101-000000-000000-abcdef")
    grid.path.mkdir(parents=True)
    (home.runs / run / "log.txt").write_text("RuntimeError: mat1 and mat2")
    (grid.path / "log.txt").write_text("KeyError: 'x'")
    kinds = [errors["kinds"] for errors in json.loads(contents(home, tmp_path)["errors.json"])]
    assert sorted(map(list, kinds)) == [["KeyError"], ["RuntimeError"]]

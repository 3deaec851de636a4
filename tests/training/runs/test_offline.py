"""Without a network: everything but a hub id works, a hub id says so in one sentence, and one in the cache works."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.base_model import load
from atelier.training.base_models.identify import identify
from atelier.training.config.events import Event, Failed, Finished, Previewed, Stepped
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import EMBEDDED, TrainConfig
from atelier.training.recipes import dreambooth
from atelier.training.recipes import prior_preservation as prior
from atelier.training.runs import run as run_module
from atelier.training.sampling.sample import DrawRequest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def short_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two denoising steps ask the network for as much as twenty."""
    monkeypatch.setattr(dreambooth, "DrawRequest", partial(DrawRequest, steps=2))
    monkeypatch.setattr(prior, "PRIOR_STEPS", 2)


def taught(base: str, pictures: Path, place: Path) -> list[Event]:
    """Identify, load, take a step and draw."""
    config = TrainConfig(
        name="rex", subject="fox", pictures=str(pictures), base=base, steps=1, batch=1, prior_count=1, warmup=0,
        resolution=64, precision="fp32", validate_every=0, preview_every=1, checkpoint_every=0, adapter={"rank": 2},
    )   # fmt: skip
    return list(run_module.run(RunFolder.create(place / "run", config), place / "adapters"))


def check(events: list[Event]) -> None:
    assert isinstance(events[-1], Finished), events[-1]
    assert {Stepped, Previewed} <= {type(event) for event in events}


def test_the_network_is_really_blocked(unplugged: list[Any]):
    with pytest.raises(OSError, match="unreachable"):
        socket.create_connection(("127.0.0.1", 9))
    assert unplugged


@pytest.mark.parametrize("form", ["embedded", "folder"])   # for single files see test_single_file.py
def test_what_is_on_the_disk_asks_for_no_network(
    form: str, unplugged: list[Any], request: pytest.FixtureRequest, pictures: Path, tmp_path: Path
):
    base = EMBEDDED if form == "embedded" else str(request.getfixturevalue("base"))
    check(taught(base, pictures, tmp_path))
    assert unplugged == []


def test_a_hub_id_says_in_one_sentence_what_is_missing(unplugged: list[Any], pictures: Path, tmp_path: Path):
    with pytest.raises(BaseError) as caught:
        identify("somebody/their-model")
    assert unplugged, "the hub was not asked"
    said = str(caught.value)
    assert said.startswith("somebody/their-model is not on this machine, and it could not be downloaded from the hub")
    assert "Check the network and try again" in said
    print(f"\n{said}")
    assert "\n" not in said and len(said) < 400, said
    last = taught("somebody/their-model", pictures, tmp_path)[-1]
    assert last == Failed(said)


@pytest.fixture
def cached(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache as the hub's library fills it: ``somebody/tiny`` at one commit, its files links to blobs."""
    hub = tmp_path / "huggingface" / "hub"
    model = hub / "models--somebody--tiny"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    (model / "blobs").mkdir()
    for number, path in enumerate(sorted(filter(Path.is_file, base.rglob("*")))):
        blob = model / "blobs" / f"{number:040x}"
        blob.write_bytes(path.read_bytes())
        link = model / "snapshots" / COMMIT / path.relative_to(base)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    return model


@pytest.mark.parametrize("told", [False, True], ids=["unplugged", "told to stay offline"])
def test_a_hub_id_in_the_cache_works(
    told: bool, cached: Path, unplugged: list[Any], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", told)
    info = identify("somebody/tiny")
    assert (info.title, info.family, info.folder) == ("tiny", "embedded", cached / "snapshots" / COMMIT)
    assert load("somebody/tiny", "cpu").info == info
    check(taught("somebody/tiny", pictures, tmp_path))
    assert not unplugged   # what is complete in the cache asks nobody


def test_a_cache_without_the_weights_is_a_clear_refusal(cached: Path, unplugged: list[Any]):
    for path in (cached / "snapshots" / COMMIT).rglob("*.safetensors"):
        path.unlink()
    assert identify("somebody/tiny").bytes == 0
    with pytest.raises(BaseError, match=r"^somebody/tiny is not on this machine, and it could not be") as caught:
        load("somebody/tiny", "cpu")
    assert "\n" not in str(caught.value)

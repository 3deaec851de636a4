"""The doctor finds what is damaged in a home, says each thing that it repairs, and leaves alone what is good."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from atelier.adapters.core.base import Spec
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.cli.main import main
from atelier.app.jobs.jobs import list_runs, new_run, submit
from atelier.app.services import check_home as check_home_module
from atelier.app.services.check_home import check_home
from atelier.app.store.gallery import save_picture, thumbnail_file
from atelier.app.store.home import Home, open_home
from atelier.app.store.library import list_adapters
from atelier.app.store.mixes import MixEntry, SavedMix, save_mix
from atelier.training.config.events import Saved, Stepped
from atelier.training.config.train_config import TrainConfig
from atelier.training.loop.checkpoint import TrainingState, list_checkpoints, write


def state(step: int) -> TrainingState:
    return TrainingState({"a": torch.ones(2) * step}, torch.Generator().get_state(), {}, step=step)


@pytest.fixture
def home(own_home: Path) -> Home:
    """A home with one good thing of each sort, and nothing wrong."""
    home = open_home(own_home)
    adapters = create_adapters("lora", {"rank": 2}, [Spec("unet.a", (4, 4))])
    save_adapter(home.adapters / "good.safetensors", adapters, {"atelier.name": "good"})
    picture = save_picture(home, Image.new("RGB", (8, 8)), {
        "prompt": "a fox", "negative": "", "seed": 1, "steps": 2, "guidance": 3.0, "base": "embedded",
        "family": "embedded", "adapters": []})   # fmt: skip
    thumbnail_file(home, picture.stem)
    run = new_run(home, TrainConfig(name="goodrun", steps=9))
    for event in (Stepped(1, 9, 0.5, 0.0, 0.1, 0.1), Saved(1, "checkpoints/step-000001")):
        run.append(event)
    for step in (1, 2):
        write(run.path / "checkpoints", state(step))
    submit(home, TrainConfig(name="waits", steps=9))
    save_mix(home, "goodmix", SavedMix(entries=(MixEntry("good"),)))
    (home.datasets / "fox").mkdir()
    Image.effect_noise((64, 64), 90).save(home.datasets / "fox" / "good.png")
    return home


def tree(home: Home) -> dict[str, bytes]:
    """Every file outside the trash and the state."""
    files = [path for path in home.path.rglob("*") if path.is_file()]
    return {str(path.relative_to(home.path)): path.read_bytes() for path in files
            if not path.is_relative_to(home.trash) and not path.is_relative_to(home.state)}   # fmt: skip


def damage(home: Home) -> None:
    """One damaged thing of every sort that can be repaired."""
    run = next(home.runs.glob("*-goodrun"))
    (run / "checkpoints" / "step-000002" / "weights.safetensors").write_bytes(b"")
    (home.adapters / "bad.safetensors").write_bytes(b"nothing")
    (home.gallery / "20250101-000000-000000-abcdef.png").write_bytes(b"nothing")
    (home.gallery / ".thumbs" / "20250101-000000-000001-abcdef.webp").write_bytes(b"nothing")
    (home.mixes / "bad.json").write_bytes(b"[" * 100_000)
    home.preferences.write_bytes(b"[]")
    (home.state / "queue.sqlite").write_bytes(b"no database " * 100)
    (home.state / "adapters.sqlite").write_bytes(b"no database " * 100)
    (home.state / "embeddings.safetensors").write_bytes(b"nothing")
    (home.mixes / f".goodmix.json.{2**30}-1").write_bytes(b"half of it")   # more than any process has
    (partial := run / "checkpoints" / ".step-000003.partial").mkdir()
    (home.runs / ".20250101-000000-000000-x").mkdir()
    old = time.time() - 2 * check_home_module.LEFTOVER_SECONDS
    (run / "heartbeat").touch()
    for path in (partial, home.runs / ".20250101-000000-000000-x", run / "heartbeat"):
        os.utime(path, (old, old))


def test_in_a_good_home_there_is_nothing_to_say(home: Home) -> None:
    assert [finding.problem for finding in check_home(home)] == []


def test_what_is_damaged_is_found_and_repaired_and_the_good_is_left_alone(home: Home, capsys) -> None:
    good = tree(home)
    damage(home)
    assert main(["doctor", "--home", str(home.path), "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    named = ("step-000002", "bad.safetensors", "20250101-000000-000000-abcdef.png", "000001-abcdef.webp", "'bad'",
             "preferences.json", "queue.sqlite", "adapters.sqlite", "embeddings.safetensors", ".goodmix.json",
             ".step-000003.partial", ".20250101-000000-000000-x", "heartbeat")   # fmt: skip
    for name in named:
        assert sum(name in problem for problem in problems) == 1, name

    (home.state / "adapters.sqlite").write_bytes(b"no database " * 100)   # it was made anew when the adapters were read
    main(["doctor", "--home", str(home.path), "--json", "--repair"])
    answer = json.loads(capsys.readouterr().out)
    for name in named:
        assert sum(name in repair for repair in answer["repairs"]) == 1, name
    assert any("continues from step-000001" in repair for repair in answer["repairs"])
    assert [finding.problem for finding in check_home(home)] == []
    damaged = "checkpoints/step-000002/"
    assert tree(home) == {name: content for name, content in good.items() if damaged not in name}
    trashed = {path.name[23:] for path in home.trash.glob("*/*")}
    assert trashed >= {"bad.safetensors", "20250101-000000-000000-abcdef.png", "bad.json", "preferences.json"}
    assert any(name.endswith("goodrun-step-000002") for name in trashed)
    assert {run.name for run in list_runs(home)} == {"goodrun", "waits"}
    assert [card.name for card in list_adapters(home)] == ["good"]


def test_what_only_a_person_can_mend_is_named_with_the_cure(home: Home) -> None:
    (home.adapters / "foreign.safetensors").write_bytes(save({"lora_unet_a.lora_up.weight": torch.zeros(2, 2)}))
    (home.datasets / "fox" / "bad.png").write_bytes(b"nothing")
    run = new_run(home, TrainConfig(name="bad", steps=9))
    (run.path / "recipe.toml").write_bytes(b"steps = 'many'")
    with (next(home.runs.glob("*-goodrun")) / "events.jsonl").open("a") as file:
        file.write("nonsense\n{}\n")
    (home.bases / "bad").mkdir()
    (home.bases / "bad" / "model_index.json").write_bytes(b"{")
    found = list(check_home(home))
    assert all(finding.repair is None for finding in found)
    said = " ".join(finding.problem for finding in found)
    for words in ("atelier import", "bad.png", "recipe.toml from a backup", "2 of 4 events", "model bad can't be"):
        assert words in said


def test_what_a_process_is_writing_is_left_alone(home: Home) -> None:
    (home.mixes / f".goodmix.json.{os.getpid()}-1").write_bytes(b"half of it")
    run = next(home.runs.glob("*-goodrun"))
    (run / "checkpoints" / ".step-000003.partial").mkdir()
    (run / "heartbeat").touch()
    (list_checkpoints(run / "checkpoints")[-1] / "state.json").write_bytes(b"")   # of a run that is alive
    assert [finding.problem for finding in check_home(home)] == []

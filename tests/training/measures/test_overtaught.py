"""A run over-taught on purpose is told apart from a good one before its end, and the word that leaks is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from atelier.adapters.formats.native import load_adapter
from atelier.training.base_models.base_model import load
from atelier.training.config.assets import ASSETS
from atelier.training.config.events import Event, Finished, Measured, StoppedEarly
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig, load_preset
from atelier.training.measures.leak import measure_leaks
from atelier.training.runs.run import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def train(folder: Path, steps: int, caption: str = "") -> list[Event]:
    """Train the embedded base on five pictures of the fox with the preset Normal, but for so many steps."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    for path in sorted((ASSETS / "examples" / "fox").iterdir()):
        if int(path.stem[-2:]) <= 5 and (path.suffix != ".txt" or not caption):
            shutil.copy(path, pictures)
    changes = {"name": "zorp", "subject": "fox", "pictures": str(pictures), "steps": steps, "preview_every": 0,
               "checkpoint_every": 0, "precision": "fp32", "caption": caption}   # fmt: skip
    config = TrainConfig.from_dict({**load_preset("normal", "embedded"), **changes})
    return list(run(RunFolder.create(folder / "run", config), folder / "adapters"))


def test_a_thousand_steps_are_stopped_and_a_hundred_are_not(tmp_path):
    good, over = train(tmp_path / "good", 100), train(tmp_path / "over", 1000)
    last = [next(event for event in reversed(events) if isinstance(event, Measured)) for events in (good, over)]
    print("AUC of the good run and of the over-taught one:", [round(one.memorization, 3) for one in last])
    assert not any(isinstance(event, StoppedEarly) for event in good)
    [stopped] = [event for event in over if isinstance(event, StoppedEarly)]
    assert stopped.step < 700 and stopped.best_step <= 250
    finished = over[-1]
    assert isinstance(finished, Finished) and finished.step == stopped.best_step
    assert last[1].memorization >= last[0].memorization
    assert last[1].held_out_gain < 0.5 * last[0].held_out_gain


def test_the_word_that_leaks_is_found(tmp_path):
    train(tmp_path / "leak", 100, caption="an emoji of a banana {trigger} {subject}")
    [path] = (tmp_path / "leak" / "adapters").glob("*.safetensors")
    leaks = measure_leaks(load("embedded", "cpu"), load_adapter(path), "an emoji of a {}", "zorp fox",
                          ["fox", "banana", "emoji"])   # fmt: skip
    shares = {leak.word: leak.share for leak in leaks}
    print({word: round(share, 2) for word, share in shares.items()})
    others = [share for word, share in shares.items() if word not in ("fox", "banana")]
    assert shares["banana"] > max(others)

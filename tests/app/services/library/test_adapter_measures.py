"""What is measured of an adapter: stored under its hash, shown on its card, and used by its slider."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny_base import write_tiny_base

from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.native import load_adapter, save_adapter
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.services.engine import Engine
from atelier.app.services.library.adapter_measures import AdapterMeasures, measure_adapter, read_measures
from atelier.app.store.adapter_notes import read_notes, save_notes
from atelier.app.store.home import Home, open_home
from atelier.app.store.library import find_adapter
from atelier.app.web.pages import library_tools
from atelier.app.web.pages.studio_adapters import strength_sliders
from atelier.training.base_models.base_model import BaseModel, load


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """A tiny base model with random weights."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    write_tiny_base(folder)
    return load(str(folder), "cpu")


@pytest.fixture
def home(own_home: Path, model: BaseModel) -> Home:
    home = open_home(own_home)
    adapters = create_adapters("lora", {"rank": 2}, find_targets({"unet": model.unet}, "attention"))
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    save_adapter(home.adapters / "rex.safetensors", adapters, {
        "atelier.trigger": "zrx", "atelier.subject": "dog", "atelier.family": "embedded", "atelier.base": "embedded"})
    return home


class ModelAlone:
    """An engine with one model in memory."""

    def __init__(self, model) -> None:
        self.model = model

    def measure(self, _base: str, adapters: list[Path], work: Any) -> Any:
        return work(self.model, [load_adapter(path) for path in adapters])


def test_a_measured_adapter_has_a_range_and_a_leak_under_any_name(home: Home, model) -> None:
    assert read_measures(home, find_adapter(home, "rex")) is None
    assert library_tools.measured_facts(home, find_adapter(home, "rex")) == {}
    assert strength_sliders(home, ["rex"], {})[0].maximum == 2
    measures = measure_adapter(home, cast(Engine, ModelAlone(model)), find_adapter(home, "rex"))
    assert 0 < measures.low <= 1 <= measures.high and measures.word
    (home.adapters / "rex.safetensors").rename(home.adapters / "max.safetensors")
    renamed = find_adapter(home, "max")
    assert read_measures(home, renamed) == measures
    facts = library_tools.measured_facts(home, renamed)
    assert facts["Proposed strength"] == f"{measures.low:g} to {measures.high:g}" and measures.word in facts["Leak"]
    assert (read_notes(home)["rex"].low, read_notes(home)["rex"].high) == (0.0, measures.high)


def test_the_slider_has_the_range_a_person_chose_and_goes_to_the_strength_it_shows(home: Home, model) -> None:
    save_notes(home, "rex", low=-0.5, high=1.5)
    measures = measure_adapter(home, cast(Engine, ModelAlone(model)), find_adapter(home, "rex"))
    [slider, other] = strength_sliders(home, ["rex", "gone"], {"rex": 3.0})[:2]
    assert (slider.minimum, slider.maximum, slider.value) == (-0.5, 3.0, 3.0) and f"{measures.high:g}" in slider.info
    assert other.label == "gone", "deleted since"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"low": "x", "high": 1, "word": "", "share": 0}'])
def test_a_damaged_measurement_counts_as_none(home: Home, damage: bytes) -> None:
    card = find_adapter(home, "rex")
    (home.state / "measures").mkdir()
    (home.state / "measures" / f"{card.hash}.json").write_bytes(damage)
    assert read_measures(home, card) is None and AdapterMeasures(0.5, 1.0).word == ""

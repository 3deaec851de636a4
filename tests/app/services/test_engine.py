"""The engine: what it keeps, how it takes turns, and that it draws what the model draws."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops, ImageStat
from torch import nn

from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.fusion import batched_strengths
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.services import engine as module
from atelier.app.services import resident_base
from atelier.app.services.engine import MAX_ADAPTERS, Engine
from atelier.app.store.mixes import MixEntry
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.base_model import BaseModel
from atelier.training.sampling.draw_memory import DrawPlan
from atelier.training.sampling.draw_savings import DrawSavings
from atelier.training.sampling.sample import DrawRequest

REQUEST = DrawRequest(prompt="a fox", steps=4)


class FakeModel:
    """Has no parts that could be anywhere."""

    def __init__(self, base: str) -> None:
        self.base, self.device, self.text_encoders, self.vae = base, "cpu", [], nn.Module()

    def models(self) -> dict[str, nn.Module]:
        return {}

    def onload(self, *_: Any) -> None:
        pass


class Fakes:
    """Stands in for the model: remembers what was asked and answers at once, or when told."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.read: list[str] = []
        self.mixes: list[list[tuple[Any, float]]] = []
        self.at_work = self.most_at_work = 0
        self.before_step: Callable[[int], None] = lambda _step: None

    def load(self, base: str, *_: Any, **__: Any) -> Any:
        if base == "broken":
            raise BaseError("broken is not a base model")
        self.loaded.append(base)
        return FakeModel(base)

    def load_adapter(self, path: Path, _device: object) -> str:
        self.read.append(path.name)
        return path.read_text()

    def draw(
        self, model: Any, request: DrawRequest, mix: Mix, on_step: Callable[[int, int], None] | None, **_: Any
    ) -> list[Any]:
        self.mixes.append(list(mix.parts))
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            for step in range(1, request.steps + 1):
                self.before_step(step)
                if on_step:
                    on_step(step, request.steps)
        finally:
            self.at_work -= 1
        return [Image.new("RGB", (1, 1)) for _ in range(request.count)]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    fakes = Fakes()
    for name in ("load_adapter", "draw"):
        monkeypatch.setattr(module, name, getattr(fakes, name))
    monkeypatch.setattr(resident_base, "load", fakes.load)
    monkeypatch.setattr(resident_base, "identify", lambda base, *_: base)
    monkeypatch.setattr(resident_base, "plan_drawing", lambda *_, **__: DrawPlan(DrawSavings(), 0, 0))
    return fakes


def adapter_file(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_text(name)
    return path


def test_a_base_is_loaded_once_and_replaced_by_another(fakes: Fakes) -> None:
    engine = Engine()
    assert engine.loaded is None
    for base in ("one", "one", "two", "one"):
        engine.draw(base, [], REQUEST)
    assert fakes.loaded == ["one", "two", "one"]
    assert engine.loaded is not None and engine.loaded.base == "one"


def test_a_base_that_fails_leaves_none_loaded_and_the_engine_working(fakes: Fakes) -> None:
    engine = Engine()
    engine.draw("one", [], REQUEST)
    with pytest.raises(BaseError, match="not a base model"):
        engine.draw("broken", [], REQUEST)
    assert engine.loaded is None
    assert len(engine.draw("one", [], REQUEST)) == 1


def test_an_adapter_is_read_once_until_its_file_changes(fakes: Fakes, tmp_path: Path) -> None:
    engine, path = Engine(), adapter_file(tmp_path, "fox")
    for strength in (1.0, 0.5):
        engine.draw("one", [(path, MixEntry("", strength))], REQUEST)
    path.write_text("another fox")
    engine.draw("one", [(path, MixEntry("", 0.5))], REQUEST)
    assert fakes.read == ["fox", "fox"]
    assert fakes.mixes == [[("fox", 1.0)], [("fox", 0.5)], [("another fox", 0.5)]]


def test_the_adapters_used_last_are_kept(fakes: Fakes, tmp_path: Path) -> None:
    engine = Engine()
    paths = [adapter_file(tmp_path, str(i)) for i in range(MAX_ADAPTERS + 1)]
    for path in [*paths[:-1], paths[0], paths[-1], paths[0], paths[1]]:
        engine.draw("one", [(path, MixEntry(""))], REQUEST)
    # "0" was used again before the last one came, so "1" had to go.
    assert fakes.read == [*(path.name for path in paths), "1"]


def test_an_adapter_at_zero_is_not_even_read(fakes: Fakes, tmp_path: Path) -> None:
    Engine().draw("one", [(tmp_path / "missing", MixEntry("", 0.0))], REQUEST)
    assert fakes.mixes == [[]]


def test_threads_take_turns(fakes: Fakes) -> None:
    fakes.before_step = lambda _step: time.sleep(0.002)
    engine = Engine()
    threads = [threading.Thread(target=engine.draw, args=(base, [], REQUEST)) for base in ("one", "two", "one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fakes.mixes) == 4 and fakes.most_at_work == 1


def test_strength_zero_gives_the_base_models_own_picture_and_one_another(tmp_path: Path) -> None:
    engine = Engine()
    request = DrawRequest(prompt="an emoji of a house", steps=3, seed=5)
    [plain] = engine.draw("embedded", [], request)
    path = wild_adapter(engine, tmp_path / "wild.safetensors")
    [off] = engine.draw("embedded", [(path, MixEntry("", 0.0))], request)
    [on] = engine.draw("embedded", [(path, MixEntry(""))], request)
    [again] = engine.draw("embedded", [], request)
    assert off.tobytes() == plain.tobytes() == again.tobytes()
    assert on.tobytes() != plain.tobytes()


def test_a_moved_pad_draws_only_the_strengths_that_are_new(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine, really = Engine(), module.draw
    drawn: list[int] = []

    def counted(model: BaseModel, request: DrawRequest, *rest: Any, **options: Any) -> list[Image.Image]:
        drawn.append(request.count)
        return really(model, request, *rest, **options)

    monkeypatch.setattr(module, "draw", counted)
    request = DrawRequest(prompt="an emoji of a house", steps=2, seed=5)
    engine.draw("embedded", [], request)
    parts = (wild_adapter(engine, tmp_path / "content.safetensors", 1),
             wild_adapter(engine, tmp_path / "style.safetensors", 2))   # fmt: skip

    def grid(engine: Engine, *cells: tuple[float, float]) -> list[Image.Image]:
        return engine.draw_grid("embedded", parts, "sum", cells, request)

    first = grid(engine, (0.0, 0.0), (1.0, 0.0), (1.0, 1.0))
    moved = grid(engine, (1.0, 1.0), (0.0, 0.0), (0.0, 0.5), (0.0, 0.5))
    assert drawn == [1, 3, 1]
    assert [moved[0], moved[1]] == [first[2], first[0]] and moved[2] is moved[3]
    # Each is what an engine without memory draws, but for the rounding of another batch.
    for cell, picture in zip([(1.0, 1.0), (0.0, 0.0), (0.0, 0.5)], moved, strict=False):
        [alone] = grid(Engine(), cell)
        assert ImageStat.Stat(ImageChops.difference(alone, picture)).mean == pytest.approx([0, 0, 0], abs=0.5)
    wild_adapter(engine, parts[0], seed=3)
    again = grid(engine, (0.0, 0.5), (1.0, 1.0))
    assert drawn[-1] == 2 and again[1].tobytes() != first[2].tobytes()


def test_the_pad_forgets_what_was_not_looked_at_longest(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[int] = []

    def fake(model: Any, request: DrawRequest, *_: Any, **__: Any) -> list[Image.Image]:
        drawn.append(request.count)
        return [Image.new("RGB", (1, 1)) for _ in range(request.count)]

    monkeypatch.setattr(module, "draw", fake)
    monkeypatch.setattr(batched_strengths, "combine_batched", lambda *_: SimpleNamespace(to=lambda _device: "mixed"))
    monkeypatch.setattr(module, "MAX_GRID_PICTURES", 3)
    engine, files = Engine(), (adapter_file(tmp_path, "content"), adapter_file(tmp_path, "style"))

    def look(*strengths: float) -> list[Image.Image]:
        pictures = engine.draw_grid("one", files, "sum", [(strength, 1.0) for strength in strengths], REQUEST)
        assert len(pictures) == len(strengths)
        return pictures

    look(0, 1, 2)
    look(0)      # looked at again, so 1 is the oldest
    look(3)      # 1 has to go
    look(0, 2, 3)
    assert drawn == [3, 1], "those that stayed are not drawn again"
    look(1)
    assert drawn == [3, 1, 1], "the one that went is"
    look(4, 5, 6, 7)
    look(4, 5, 6, 7)
    assert drawn == [3, 1, 1, 4], "a grid larger than the cache stays whole"
    look(8)
    assert len(engine._grid_pictures) == 3


def wild_adapter(engine: Engine, path: Path, seed: int = 0) -> Path:
    """A LoRA with an effect that nobody overlooks."""
    assert engine.loaded
    generator = torch.Generator().manual_seed(seed)
    adapters = create_adapters("lora", {"rank": 2}, find_targets(engine.loaded.models(), "transformer"))
    with torch.no_grad():
        for adapter in adapters:
            for value in adapter.parameters():
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    save_adapter(path, adapters, {})
    return path

"""A base model in the memory of a device: it fits, it does with less where memory runs out, and it lets go."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from pretend_device import Pretended, pretend_device

from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.services import resident_base
from atelier.app.services.engine import DrawCallbacks, Engine
from atelier.app.store.home import open_home
from atelier.app.store.mixes import MixEntry
from atelier.app.store.preferences import save_drawing_device, save_drawing_precision
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.base_model import load
from atelier.training.base_models.device import allocated_memory
from atelier.training.base_models.device_lock import DeviceLock
from atelier.training.base_models.identify import identify
from atelier.training.sampling import draw_memory
from atelier.training.sampling.draw_memory import DrawPlan, estimate_drawing
from atelier.training.sampling.draw_savings import DrawSavings
from atelier.training.sampling.sample import DrawRequest

REQUEST = DrawRequest(prompt="an emoji of a house", steps=1)
FLOAT = "fp32"   # of this many sums, the CPU is quickest in
# without guidance, so that the VAE needs more than the UNet, which then has half the batch
FOUR_LARGE = DrawRequest(prompt="a house", steps=1, count=4, width=256, height=256, guidance=1)


@pytest.fixture
def device() -> Iterator[Pretended]:
    with pretend_device() as one:
        yield one


@pytest.fixture
def engine(device: Pretended) -> Engine:
    return Engine(lambda: FLOAT)


@pytest.fixture
def dora(tmp_path: Path) -> Path:
    """The file of an adapter that looks at the base model's weights."""
    model = load("embedded", "cpu")
    adapters = create_adapters("dora", {"rank": 2}, find_targets({"unet": model.unet}, "attention")[:8])
    save_adapter(tmp_path / "dora.safetensors", adapters, {})
    return tmp_path / "dora.safetensors"


def test_adapters_from_files_act_on_the_device_and_leave_it_when_they_rest(
    device: Pretended, engine: Engine, dora: Path
):
    [picture] = engine.draw("embedded", [(dora, MixEntry(""))], REQUEST)
    assert picture.size == (128, 128)
    [adapters] = engine._adapters.values()
    assert {parameter.device.type for parameter in adapters.parameters()} == {"npu"}
    engine.draw("embedded", [], REQUEST)
    assert {parameter.device.type for parameter in adapters.parameters()} == {"cpu"}


def test_the_next_drawing_uses_the_device_that_was_chosen(device: Pretended, dora: Path, tmp_path: Path):
    home = open_home(tmp_path / "home")
    save_drawing_precision(home, FLOAT)
    engine = Engine.of_home(home)

    def used() -> set[str]:
        """Draw, and say where the model, the adapter and what is left of them on the card are."""
        engine.draw("embedded", [(dora, MixEntry(""))], REQUEST)
        [adapters] = engine._adapters.values()
        assert engine.loaded is not None
        return {p.device.type for part in (*adapters, engine.loaded.unet) for p in part.parameters()}

    assert used() == {"npu"}
    save_drawing_device(home, "cpu")
    assert used() == {"cpu"} and allocated_memory(torch.device("npu")) == 0
    save_drawing_device(home, "npu:0")
    assert used() == {"npu"}
    engine.release()


def test_a_card_that_is_too_small_for_all_at_once_is_enough(monkeypatch: pytest.MonkeyPatch):
    """Nothing is planned for: each shortage is met by the next saving, and said."""
    info, four = identify("embedded"), FOUR_LARGE
    whole, least = (estimate_drawing(info, four, [], torch.float32, savings).peak
                    for savings in (DrawSavings(), DrawSavings(decode_singly=True)))   # fmt: skip
    monkeypatch.setattr(resident_base, "plan_drawing", lambda *_, **__: DrawPlan(DrawSavings(), 0, 0))
    notices: list[str] = []
    with pretend_device(gigabytes=(whole + least) / 2 / 1e9):
        pictures = Engine(lambda: FLOAT).draw("embedded", [], four, callbacks=DrawCallbacks(on_notice=notices.append))
    assert len(pictures) == 4
    assert notices == ["The memory ran out, so the drawing starts again with less: pictures are decoded one at a time."]


def test_a_plan_is_made_for_the_card_and_said(monkeypatch: pytest.MonkeyPatch):
    info, four = identify("embedded"), FOUR_LARGE
    least = estimate_drawing(info, four, [], torch.float32, DrawSavings(decode_singly=True)).peak
    monkeypatch.setattr(draw_memory, "PLENTY", 10**6)
    notices: list[str] = []
    with pretend_device(gigabytes=1.1 * least / 1e9) as device:
        engine = Engine(lambda: FLOAT)
        for _ in range(2):   # what it holds itself does not count against it
            engine.draw("embedded", [], four, callbacks=DrawCallbacks(on_notice=notices.append))
        assert device.peak <= device.capacity
    assert len(notices) == 2 and "one at a time" in notices[0] and notices[0] == notices[1]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), pytest.param(MemoryError(), marks=pytest.mark.slow),
     pytest.param(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
                  marks=pytest.mark.slow),
     pytest.param(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), marks=pytest.mark.slow)],
)   # fmt: skip
def test_where_no_saving_helps_a_sentence_says_so_and_the_memory_is_free(
    device: Pretended, engine: Engine, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    tried: list[DrawSavings] = []

    def short(*_: object, cache: resident_base.DrawCache, **__: object) -> list[Image.Image]:
        tried.append(cache.savings)
        raise type(error)(*error.args)   # the one above would keep what it has come through

    with monkeypatch.context() as patch:
        patch.setattr("atelier.app.services.engine.draw", short)
        with pytest.raises(BaseError, match="not enough memory for this, even with every memory saving"):
            engine.draw("embedded", [], REQUEST)
    assert len(tried) == 7 and tried[-1].in_8_bits
    assert device.allocated == 0
    assert len(engine.draw("embedded", [], REQUEST)) == 1   # and the next drawing works


def test_another_error_is_passed_on_at_once(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    def wrong(*_: object, **__: object) -> list[Image.Image]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("atelier.app.services.engine.draw", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        engine.draw("embedded", [], REQUEST)


def eventually(is_so: Callable[[], bool]) -> bool:
    until = time.monotonic() + 20
    while not (found := is_so()) and time.monotonic() < until:
        time.sleep(0.02)
    return found


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_base, "WATCH_SECONDS", 0.01)


def test_a_job_that_begins_gets_the_memory(device: Pretended, engine: Engine, watchful: None):
    engine.draw("embedded", [], REQUEST)
    assert device.allocated > 0
    lock = DeviceLock(torch.device("npu"))
    assert lock.acquire("rex", Path())
    assert eventually(lambda: engine.loaded is None)
    assert eventually(lambda: device.allocated == 0)
    assert eventually(lambda: not list(Path(tempfile.gettempdir()).rglob("*.drawing")))   # as other processes see it
    engine.draw("embedded", [], REQUEST)   # beside the job, which had the memory first
    time.sleep(0.1)
    assert engine.loaded is not None
    lock.release()
    engine.release()


def test_after_a_while_without_a_drawing_the_memory_is_free(
    device: Pretended, engine: Engine, watchful: None, monkeypatch: pytest.MonkeyPatch
):
    engine.draw("embedded", [], REQUEST)
    time.sleep(0.1)
    assert engine.loaded is not None
    monkeypatch.setattr(resident_base, "IDLE_SECONDS", 0.0)
    assert eventually(lambda: engine.loaded is None)
    assert eventually(lambda: device.allocated == 0)


def test_a_drawing_that_does_not_fit_beside_a_job_names_it(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> DrawPlan:
        raise BaseError("Drawing this needs about 9 GB.")

    monkeypatch.setattr(resident_base, "plan_drawing", full)
    with pytest.raises(BaseError, match=r"^Drawing this needs about 9 GB\.$"):
        engine.draw("embedded", [], REQUEST)
    lock = DeviceLock(torch.device("npu"))
    assert lock.acquire("rex", Path("runs/1"))
    with pytest.raises(BaseError, match=r"9 GB\. “rex” .* uses the device as well: wait until it is done"):
        engine.draw("embedded", [], REQUEST)
    lock.release()


def test_another_precision_loads_the_model_anew(device: Pretended):
    wanted = ["fp32"]
    engine = Engine(lambda: wanted[0])
    dtypes = []
    for wanted[0] in ("fp32", "bf16", "bf16"):
        engine.draw("embedded", [], REQUEST)
        assert engine.loaded is not None
        dtypes.append((engine.loaded.dtype, id(engine.loaded)))
    assert [dtype for dtype, _ in dtypes] == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert dtypes[1] == dtypes[2]


def test_what_a_drawing_needs_is_said_before_it_is_drawn(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_memory, "available_memory", lambda _: 10**12)
    plan = engine.plan_drawing("embedded", DrawRequest(count=4))
    assert plan and plan.notice == "" and engine.loaded is None, "nothing is loaded for it"
    large = DrawRequest(count=8, width=512, height=512, guidance=1)
    needed = estimate_drawing(identify("embedded"), large, (), torch.float32, DrawSavings()).peak
    monkeypatch.setattr(draw_memory, "available_memory", lambda _: int(0.8 * needed))
    plan = engine.plan_drawing("embedded", large)
    assert plan and plan.needed == needed and "To fit" in plan.notice
    with engine._lock:
        assert engine.plan_drawing("embedded", large) is None, "a page that asks meanwhile does not wait"

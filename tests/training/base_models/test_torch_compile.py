"""Compiling parts of the base model: which, that they compute the same, and what happens where it can't be done."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models import less_activation_memory as lean
from atelier.training.base_models.base_model import BaseModel
from atelier.training.base_models.torch_compile import compile_blocks, compile_error
from atelier.training.config.events import Finished, Warned
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig
from atelier.training.runs import run as run_module

CPU = torch.device("cpu")


@pytest.fixture
def unet(model: BaseModel) -> Any:
    return copy.deepcopy(model.unet)


def learned(unet: Any, rounds: int) -> list[torch.Tensor]:
    """Gradients of an adapter after each of some rounds."""
    torch.manual_seed(0)
    adapters = create_adapters("lora", {"rank": 2}, find_targets({"unet": unet}, "attention"))
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    found = []
    for number in range(rounds):
        latents, words = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 192)
        with mount({"unet": unet}, Mix(((adapters, 1.0),))):
            unet(latents, torch.tensor([number]), words, return_dict=False)[0].square().mean().backward()
        found += [p.grad.clone() for p in adapters.parameters() if p.grad is not None]
        adapters.zero_grad()
    return found


@pytest.mark.parametrize(("targets", "share"), [("attention", 1), ("all", 0)])
def test_blocks_are_compiled_that_no_adapter_touches(unet: Any, targets: str, share: int):
    specs = find_targets({"unet": unet}, targets)
    blocks = [block for block in unet.modules() if isinstance(block, ResnetBlock2D)]
    assert compile_blocks(unet, [spec.name for spec in specs], "aot_eager") == share * len(blocks) > -1
    assert {block._compiled_call_impl is not None for block in blocks} == {bool(share)}


@pytest.mark.filterwarnings("ignore:The .grad attribute")   # torch's compiler looks at it on every input
@pytest.mark.parametrize("large", [False, True])
def test_a_lesson_stays_the_same_and_nothing_is_compiled_again(
    large: bool, model: BaseModel, unet: Any, monkeypatch: pytest.MonkeyPatch
):
    if large:
        monkeypatch.setattr(lean, "MIN_PARAMETERS", 0)
        lean.save_less_for_backward(unet)
    compiled: list[int] = []

    def counting(graph: Any, inputs: Any) -> Any:
        compiled.append(len(inputs))
        return graph

    torch._dynamo.reset()
    count = compile_blocks(unet, [], counting)   # type: ignore[arg-type]   a function is a back end too
    learned(unet, 1)
    assert 4 < len(compiled) <= count   # blocks of one shape share what is compiled
    first = len(compiled)
    torch.testing.assert_close(learned(unet, 3), learned(model.unet, 3), rtol=1e-4, atol=1e-6)
    assert len(compiled) == first


def test_where_it_cannot_be_done_the_run_goes_on_and_says_so(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def without(*_: object, **__: object) -> Any:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", without)
    assert compile_error(CPU) == "InvalidCxxCompiler: No working C++ compiler found"
    config = TrainConfig(name="rex", subject="fox", pictures=str(pictures), base=str(base), steps=1, batch=1,
                         prior_count=0, validate_every=0, preview_every=0, checkpoint_every=0, precision="fp32",
                         adapter={"rank": 2}, compile=True)   # fmt: skip
    events = list(run_module.run(RunFolder.create(tmp_path / "run", config), tmp_path / "adapters"))
    assert isinstance(events[-1], Finished)
    assert any("No working C++ compiler" in event.message for event in events if isinstance(event, Warned))

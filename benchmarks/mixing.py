"""What several adapters cost: one answer of the UNet with n of them, over the bare base.

    python -m benchmarks.mixing [--repeats 7] [--rank 8] [--out FILE]

Contenders: constant strengths (merged, which is how they are drawn), gates (each adapter's output kept apart), and
PEFT's own forward with n adapters active. Before anything is timed, all are shown to give the same answer where they
should. CPU time of one thread, contenders in turn, medians; the embedded base's UNet with a guided batch of one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))   # so that `python -m benchmarks.mixing` works too
from atelier.adapters.attach.merge import merge
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.fusion.gates import GateSet
from atelier.adapters.fusion.live import Fusion, WeightedAdapter, mount_fusion
from atelier.adapters.fusion.methods import combine
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_model import BaseModel, load
from benchmarks.support.machine import describe_machine

RESULTS = Path(__file__).resolve().parent / "results"
MERGED, GATED, PEFT = (1, 2, 8, 32), (2, 8, 32), (1, 2, 8, 32)
CLOSE = 1e-4   # of the answers' largest value
Contender = Callable[[], Any]


def main() -> None:
    """Measure all contenders in one run and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS / "mixing.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    models = {name: load("embedded", "cpu") for name in ("ours", "peft")}
    adapters = [made(models["ours"], options.rank, i) for i in range(max(MERGED))]
    inject(models["peft"], adapters, options.rank)
    contenders = dict(contenders_of(models, adapters))
    with torch.inference_mode():
        check(models, contenders)
        seconds = measure(models, contenders, options.repeats)
    rows = [row(name, seconds) for name in contenders if name != ("base", 0)]
    result = {"machine": describe_machine(), "repeats": options.repeats, "rank": options.rank, "rows": rows,
              "reason": reason(models["ours"], options.rank)}   # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def made(model: BaseModel, rank: int, seed: int) -> AdapterSet:
    """A LoRA on all transformer layers, as if it had been trained."""
    torch.manual_seed(seed)
    adapters = create_adapters("lora", {"rank": rank}, find_targets({"unet": model.unet}, "attention"))
    for parameter in adapters.parameters():
        parameter.data.normal_(std=0.02)
    return adapters.requires_grad_(False)


def inject(model: BaseModel, adapters: Sequence[AdapterSet], rank: int) -> None:
    """Give PEFT the same adapters, by its own loading."""
    names = [spec.name.removeprefix("unet.") for spec in adapters[0].specs]
    for i, one in enumerate(adapters):
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), model.unet, f"a{i}")
        for name in names:
            layer = model.unet.get_submodule(name)
            pair = one[f"unet.{name}"].factors()
            assert pair is not None
            layer.lora_B[f"a{i}"].weight.data.copy_(pair[0])
            layer.lora_A[f"a{i}"].weight.data.copy_(pair[1])
    model.unet.requires_grad_(False)


@contextmanager
def active(model: BaseModel, count: int) -> Iterator[None]:
    """PEFT with so many adapters at work."""
    for module in model.unet.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(count > 0)
            if count:
                module.set_adapter([f"a{i}" for i in range(count)])
    yield


def contenders_of(
    models: dict[str, BaseModel], adapters: Sequence[AdapterSet]
) -> Iterator[tuple[tuple[str, int], tuple[str, Contender]]]:
    """(contender, n) → the model that answers, and what is open while it does."""
    ours = models["ours"].models()
    gates = GateSet(adapters[0].specs).requires_grad_(False)
    yield ("base", 0), ("ours", nullcontext)
    for count in MERGED:
        mix = Mix(tuple((one, 1.0) for one in adapters[:count]))
        yield ("constant strengths", count), ("ours", lambda mix=mix: merge(ours, mix))
    for count in GATED:
        fusion = combine(ours, [WeightedAdapter(one) for one in adapters[:count]], "gated", gates=gates)
        assert isinstance(fusion, Fusion)
        yield ("gated", count), ("ours", lambda fusion=fusion: mount_fusion(ours, fusion))
    for count in PEFT:
        yield ("PEFT, several active", count), ("peft", lambda count=count: active(models["peft"], count))


def answer(model: BaseModel) -> Tensor:
    """One guided answer to fixed noise."""
    generator = torch.Generator().manual_seed(0)
    width = model.unet.config.cross_attention_dim
    latents = torch.randn(2, model.unet.config.in_channels, 16, 16, generator=generator)
    text = torch.randn(2, 24, width, generator=generator)
    return model.unet(latents, torch.tensor(500), text, return_dict=False)[0]


def check(models: dict[str, BaseModel], contenders: dict[tuple[str, int], tuple[str, Contender]]) -> None:
    """With the same adapters all give the same answer: gates start as the plain sum."""
    answers: dict[int, list[Tensor]] = {}
    for (_, count), (which, opened) in contenders.items():
        with opened():
            answers.setdefault(count, []).append(answer(models[which]))
    for found in answers.values():
        for other in found[1:]:
            assert (found[0] - other).abs().max() <= CLOSE * found[0].abs().max(), "contenders differ"


def measure(
    models: dict[str, BaseModel], contenders: dict[tuple[str, int], tuple[str, Contender]], repeats: int
) -> dict[tuple[str, int], list[float]]:
    """CPU seconds of every answer, contenders in turn; the first round warms up."""
    seconds: dict[tuple[str, int], list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, (which, opened) in contenders.items():
            with ExitStack() as stack:
                stack.enter_context(opened())
                answer(models[which])   # what is computed once, when adapters are taken up
                started = time.process_time()
                answer(models[which])
                if turn:
                    seconds[name].append(time.process_time() - started)
    return seconds


def row(name: tuple[str, int], seconds: dict[tuple[str, int], list[float]]) -> dict[str, Any]:
    """A contender's time over the base's in the same round."""
    ratios = [mine / base for mine, base in zip(seconds[name], seconds["base", 0], strict=True)]
    low, _, high = quantiles(ratios, n=4)
    return {"contender": name[0], "count": name[1], "ratio": round(median(ratios), 3),
            "spread": round((high - low) / 2, 3), "seconds": round(median(seconds[name]), 4)}   # fmt: skip


def reason(model: BaseModel, rank: int) -> str:
    """Where the time of gates goes, counted."""
    specs = find_targets({"unet": model.unet}, "attention")
    own = sum(spec.rows * spec.columns for spec in specs)
    extra = sum(rank * (spec.rows + spec.columns) for spec in specs)
    rows = sum(spec.rows for spec in specs)
    return (f"Merged adapters cost nothing: they are part of the base's weights. Gates keep each output "
            "apart: every adapter adds "
            f"{100 * extra / own:.0f} % of an adapted layer's multiplications, and for each of its {rows:,} channels "
            "and every token a layer norm, a sigmoid and a weighted sum, which are read and written in memory by "
            "several operations where one would do.")   # fmt: skip


if __name__ == "__main__":
    main()

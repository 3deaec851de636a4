"""Many adapters at once: what a picture of its own adapter costs in a batch, and a queue of requests over a library.

    python -m benchmarks.serving            measures, and writes docs/serving.md from benchmarks/results/serving.json
    python -m benchmarks.serving --render   the page alone

One call of the embedded base's UNet with eight pictures and both halves of guidance, rank 8, by turns: the base alone,
each picture with an adapter of its own (`adapters/attach/mount_batch.py`), the same by PEFT's mixed batch, and picture
by picture. Then 64 requests for adapters out of 1,000 files, each read when it is first asked for: drawn one by one,
and in batches of eight as they came.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from atelier.adapters.attach.mount import mount
from atelier.adapters.attach.mount_batch import mount_batch
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.native import load_adapter, save_adapter
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.sampling.draw_batch import Drawing, draw_batch
from atelier.training.sampling.sample import DrawRequest, draw
from benchmarks.support.machine import describe_machine, in_words

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "serving.json", ROOT / "docs" / "serving.md"
PICTURES, RANK, TURNS, CALLS = 8, 8, 9, 4
LIBRARY, REQUESTS, STEPS = 1000, 64, 8
RANKS = (2, 4, 8)
CHOICES = ("attention", "transformer", "all")
TEXT = """# Many adapters in one batch

Written by `python -m benchmarks.serving` from what is in `benchmarks/results/`. Measured on: {machine}.

## One call of the UNet

The embedded base, {pictures} pictures with both halves of guidance, {pictures} LoRAs of rank {rank}; processor time of
a call over the base model's own, median of {turns} turns of {calls} calls. *Alone* is one call for each picture, with
its adapter mounted.

| layers | base alone | each picture its own adapter | PEFT's mixed batch | alone |
|---|---|---|---|---|
{calls_rows}

## A queue of requests

{requests} requests for adapters out of {library} files of ranks {ranks}, attention layers, {steps} steps at guidance 3;
files are read when they are first asked for. Seconds of processor time; p95 is the time until a request's picture is
there, when all requests come at once.

| drawn | pictures a second | p95, seconds |
|---|---|---|
{queue_rows}
"""


def random_adapter(models: Mapping[str, nn.Module], layers: str, rank: int, seed: int) -> AdapterSet:
    """A LoRA as after training: no factor is zero."""
    torch.manual_seed(seed)
    made = create_adapters("lora", {"rank": rank}, find_targets(models, layers))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.05)
    return made


def calls(model: BaseModel, layers: str) -> dict[str, Callable[[], Any]]:
    """Each contender's call of the UNet, with its adapters in place when it is measured."""
    models = {"unet": model.unet}
    adapters = [random_adapter(models, layers, RANK, seed) for seed in range(PICTURES)]
    mixes = [Mix(((each, 1.0),)) for each in adapters]
    torch.manual_seed(0)
    x, text = torch.randn(2 * PICTURES, 8, 16, 16), torch.randn(2 * PICTURES, 24, 192)
    at = torch.tensor(500)

    def base() -> None:
        """Without adapters."""
        for _ in range(CALLS):
            model.unet(x, at, text)

    def together() -> None:
        """Each picture with its own."""
        with mount_batch(models, mixes):
            base()

    def alone() -> None:
        """One picture after the other."""
        for n, mix in enumerate(mixes):
            with mount(models, mix):
                for _ in range(CALLS):
                    model.unet(x[n::PICTURES], at, text[n::PICTURES])

    return {"base": base, "together": together, "peft": peft_call(adapters, x, at, text), "alone": alone}


def peft_call(adapters: Sequence[AdapterSet], x: Tensor, at: Tensor, text: Tensor) -> Callable[[], None]:
    """PEFT's mixed batch with the same factors, on a UNet of its own."""
    targets = [name.removeprefix("unet.") for name in (spec.name for spec in adapters[0].specs)]
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets)
    mixed: Any = get_peft_model(load("embedded", "cpu").unet, config, adapter_name="0")   # type: ignore[arg-type]
    for n in range(1, len(adapters)):
        mixed.add_adapter(str(n), config)
    for n, each in enumerate(adapters):
        for spec in each.specs:
            layer = mixed.base_model.model.get_submodule(spec.name.removeprefix("unet."))
            up, down = factors(each, spec.name)
            layer.lora_A[str(n)].weight.data.copy_(down.reshape(layer.lora_A[str(n)].weight.shape))
            layer.lora_B[str(n)].weight.data.copy_(up.reshape(layer.lora_B[str(n)].weight.shape))
    names = [str(n) for n in range(len(adapters))] * 2
    mixed.eval()

    def call() -> None:
        """By names of adapters."""
        for _ in range(CALLS):
            mixed(x, at, text, adapter_names=names)

    return call


def factors(adapters: AdapterSet, name: str) -> tuple[Tensor, Tensor]:
    """``up`` and ``down`` of one layer."""
    found = adapters[name].factors()
    assert found is not None
    return found


def measure_calls(model: BaseModel) -> dict[str, dict[str, float]]:
    """For each choice of layers, processor seconds of a call by contender."""
    found: dict[str, dict[str, float]] = {}
    for layers in CHOICES:
        contenders = calls(model, layers)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(TURNS):
            for name, call in contenders.items():
                started = time.process_time()
                with torch.inference_mode():
                    call()
                seconds[name].append((time.process_time() - started) / CALLS)
        found[layers] = {name: median(values) for name, values in seconds.items()}
    return found


def measure_queue(model: BaseModel, folder: Path) -> dict[str, dict[str, float]]:
    """Pictures a second and p95 of both ways, each with files that were not read before."""
    for n in range(LIBRARY):
        made = random_adapter({"unet": model.unet}, "attention", RANKS[n % len(RANKS)], n)
        save_adapter(folder / f"{n}.safetensors", made, {})
    rng = random.Random(0)
    asked = [(folder / f"{rng.randrange(LIBRARY)}.safetensors", rng.choice(model.info.things)) for _ in range(REQUESTS)]

    def draw_all(size: int) -> dict[str, float]:
        """In batches of so many, as they came."""
        known: dict[Path, AdapterSet] = {}
        started, ends = time.process_time(), []
        for first in range(0, REQUESTS, size):
            part = asked[first : first + size]
            known |= {path: load_adapter(path) for path, _ in part if path not in known}
            drawings = [Drawing(DrawRequest(prompt=f"an emoji of a {thing}", seed=first + i, steps=STEPS),
                                Mix(((known[path], 1.0),))) for i, (path, thing) in enumerate(part)]   # fmt: skip
            if size == 1:
                draw(model, drawings[0].request, drawings[0].mix)
            else:
                draw_batch(model, drawings)
            ends += [time.process_time() - started] * len(part)
        return {"rate": REQUESTS / ends[-1], "p95": ends[int(0.95 * REQUESTS) - 1]}

    draw_all(REQUESTS // 2)   # warms up
    return {"one by one": draw_all(1), f"in batches of {PICTURES}": draw_all(PICTURES)}


def render(found: Mapping[str, Any]) -> str:
    """The page."""
    rows = []
    for layers, seconds in found["calls"].items():
        base = seconds["base"]
        others = " | ".join(f"{seconds[name] / base:.2f}" for name in ("together", "peft", "alone"))
        rows.append(f"| {layers} | {1000 * base:.0f} ms | {others} |")
    queue = [f"| {way} | {row['rate']:.2f} | {row['p95']:.1f} |" for way, row in found["queue"].items()]
    return TEXT.format(
        machine=in_words(found["machine"]), pictures=PICTURES, rank=RANK, turns=TURNS, calls=CALLS, steps=STEPS,
        calls_rows="\n".join(rows), requests=REQUESTS, library=f"{LIBRARY:,}",
        ranks=", ".join(map(str, RANKS)), queue_rows="\n".join(queue),
    )   # fmt: skip


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--render", action="store_true")
    if not parser.parse_args().render:
        torch.set_num_threads(1)
        model = load("embedded", "cpu")
        with tempfile.TemporaryDirectory() as folder:
            queue = measure_queue(model, Path(folder))
        found = {"machine": describe_machine(), "calls": measure_calls(model), "queue": queue}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(render(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Memory that drawing and training need on cards of several sizes, counted: nothing is computed, and no card is needed.

    python -m benchmarks.memory_table      benchmarks/results/memory.json and docs/memory.md
    python -m benchmarks.memory_table --known-models      assets/known_models_memory.json, for the Settings page
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any
from unittest.mock import patch

import torch

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.targets import find_targets
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.services.known_models import known_models
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.device import RESERVE
from atelier.training.base_models.memory_count import empty_parts
from atelier.training.base_models.precision import AUTO, drawing_dtype
from atelier.training.config.train_config import TrainConfig, load_preset, preset_names
from atelier.training.runs import memory_estimate, memory_savings
from atelier.training.runs.memory_estimate import estimate_memory
from atelier.training.runs.memory_savings import fit_to_memory, next_saving
from atelier.training.sampling import draw_memory
from atelier.training.sampling.draw_memory import estimate_drawing, plan_drawing
from atelier.training.sampling.draw_savings import DrawSavings
from atelier.training.sampling.sample import DrawRequest
from benchmarks.support.interleaved import ROOT
from benchmarks.support.machine import describe_machine, in_words
from benchmarks.support.random_base import family_info

RESULTS, DOCUMENT = ROOT / "benchmarks" / "results" / "memory.json", ROOT / "docs" / "memory.md"
KNOWN_MODELS = ROOT / "assets" / "known_models_memory.json"
DEVICES = ("cpu", "mps", "cuda", "xpu")   # as ``app/services/known_models.py`` tells them apart
FAMILIES, CARDS = ("sd1", "sdxl"), (8, 12, 16, 24)   # GB
CUDA = torch.device("cuda")
# Counted the same way before there was a plan for drawing, at commit ce40a96: all parts there at once, float32 decoding
# whole, four pictures together, adapters merged.
BEFORE = {
    "sd1": {"draw 1": 3.1, "draw 4": 5.5, "draw 1, two LoRAs": 3.6, "draw 4, two LoRAs": 6.1, "train": 4.2},
    "sdxl": {"draw 1": 10.3, "draw 4": 20.0, "draw 1, two LoRAs": 14.7, "draw 4, two LoRAs": 24.4, "train": 22.9},
}
SHORT = {"decode_singly": "one", "tiles": "tiles", "half_vae": "bf16 VAE", "offload": "offload", "mount": "mount",
         "in_8_bits": "8 bits"}   # fmt: skip
TEXT = """# Memory

Written by `python -m benchmarks.memory_table` ({machine}). Counted in GB from the models' own code, without a GPU:
the largest allocation at any one time, in float16 for drawing and bfloat16 for training, with {reserve:.0%} of a
card left free. *Before*: without a plan. A cell has the peak, and what is done to reach it:

one: pictures are decoded one at a time · tiles: they are decoded in tiles of 512 pixels · bf16 VAE: the VAE decodes in
bfloat16 · offload: text encoders and VAE wait in main memory while the UNet works · mount: adapters act at every step
instead of being merged · 8 bits: the UNet's weights are stored in 8 bits · no recording, checkpointing, batch: of a
training, in this order.

{rows}

Drawing is of pictures of the size that the model was made for (512 and 1024 pixels), with guidance; LoRAs have rank 16
on all layers of the transformer blocks. Training is the preset *Normal* with rank 16: {batch} pictures of the subject
and {prior} prior pictures in a microstep, with previews and validation. *Before*, a training's count left out what a
recorded step keeps and what validation takes.
"""


def main() -> None:
    """Count all, keep, and write the document."""
    result: dict[str, Any] = {"machine": describe_machine(), "needs": {}}
    for family in FAMILIES:
        tasks = {**drawings(family), "train": training(family)}
        result["needs"][family] = {task: {"before": BEFORE[family][task], **row(plan)} for task, plan in tasks.items()}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    config = train_config("sd1")
    text = TEXT.format(machine=in_words(result["machine"]), reserve=RESERVE, rows="\n".join(table(result["needs"])),
                       batch=config.batch, prior=config.prior_batch)   # fmt: skip
    DOCUMENT.write_text(text, encoding="utf-8")
    print("\n".join(table(result["needs"])))


Plan = Callable[[int], tuple[float, str]]   # of the bytes that are free: the peak in GB, and the savings in words


def row(plan: Plan) -> dict[str, str]:
    """A cell for each card."""
    cells = {}
    for size in CARDS:
        try:
            peak, savings = plan(int(size * 1e9 * (1 - RESERVE)))
            cells[f"{size} GB"] = f"{peak:.1f}" + (f" ({savings})" if savings else "")
        except BaseError:
            cells[f"{size} GB"] = "–"
    return cells


def drawings(family: str) -> dict[str, Plan]:
    """One picture and four, bare and with two LoRAs."""
    info, loras = family_info(family), two_loras(family)

    def planned(count: int, adapters: list[AdapterSet]) -> Plan:
        """How a drawing of so many pictures with these adapters is planned."""
        def plan(free: int) -> tuple[float, str]:
            """GB counted and the savings chosen where so many bytes are free."""
            request = DrawRequest(count=count)
            with patch.object(draw_memory, "available_memory", lambda _: free):
                savings = plan_drawing(info, request, adapters, torch.float16, CUDA).savings
            return estimate_drawing(info, request, adapters, torch.float16, savings).peak / 1e9, in_short(savings)

        return plan

    return {f"draw {count}{', two LoRAs' if adapters else ''}": planned(count, adapters)
            for adapters in ([], loras) for count in (1, 4)}   # fmt: skip


def in_short(savings: DrawSavings) -> str:
    """The savings, a word or two each."""
    return ", ".join(SHORT[field.name] for field in fields(savings) if getattr(savings, field.name))


def two_loras(family: str) -> list[AdapterSet]:
    """Without contents."""
    unet = empty_parts(family_info(family), torch.float16)["unet"]
    with torch.device("meta"):
        return [create_adapters("lora", {"rank": 16}, find_targets({"unet": unet}, "transformer")) for _ in range(2)]


def train_config(family: str) -> TrainConfig:
    """The preset that is usual, with rank 16."""
    values = {**load_preset("normal", family), "rank": 16}
    return TrainConfig.from_dict({**values, "name": "rex", "base": family})


def training(family: str) -> Plan:
    """The usual preset."""
    config = train_config(family)

    def plan(free: int) -> tuple[float, str]:
        """GB counted and the savings chosen where so many bytes are free."""
        with (
            patch.object(memory_savings, "available_memory", lambda _: free),
            patch.object(memory_savings, "identify", family_info),
            patch.object(memory_estimate, "identify", family_info),
        ):
            fitting, _ = fit_to_memory(config, "bf16", CUDA)
            return estimate_memory(fitting, "bf16", device="cuda").peak / 1e9, differences(config, fitting)

    return plan


def differences(config: TrainConfig, fitting: TrainConfig) -> str:
    """The savings of a training, a word or two each."""
    said = {"record": "no recording", "gradient_checkpointing": "checkpointing", "batch": f"batch {fitting.batch}",
            "base_in_8_bits": "8 bits"}   # fmt: skip
    return ", ".join(words for name, words in said.items() if getattr(fitting, name) != getattr(config, name))


def table(needs: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Markdown."""
    sizes = [f"{size} GB" for size in CARDS]
    rows = [f"| | before | {' | '.join(sizes)} |", f"|---|{'---|' * (len(sizes) + 1)}"]
    for family, tasks in needs.items():
        for task, cells in tasks.items():
            before = "" if cells["before"] is None else cells["before"]
            rows.append(f"| {family}, {task} | {before} | {' | '.join(cells[size] for size in sizes)} |")
    return rows


# --- what the Settings page shows of known models --------------------------------------------------------------------

def write_known_models() -> None:
    """Count all families of known models and write the file."""
    counts = {}
    for family in sorted({known.family for known in known_models()}):
        counts[family] = count_family(family)
        print(json.dumps({family: counts[family]}), flush=True)
    KNOWN_MODELS.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")


def count_family(family: str) -> dict[str, dict[str, tuple[int, int]]]:
    """By device and work: bytes without savings, and with all that help."""
    return {device: {"draw": _drawings(family, torch.device(device)), "train": _trainings(family, torch.device(device))}
            for device in DEVICES}   # fmt: skip


def _drawings(family: str, device: torch.device) -> tuple[int, int]:
    """Of one picture; without the bfloat16 of the VAE, which not every card has."""
    info, dtype = family_info(family), drawing_dtype(AUTO, device)

    def peak(savings: DrawSavings) -> int:
        """Bytes at most."""
        return estimate_drawing(info, DrawRequest(), [], dtype, savings).peak

    own = device.type in ("cuda", "xpu")
    return peak(DrawSavings()), peak(DrawSavings(decode_singly=True, tiles=True, offload=own, mount=True,
                                                 in_8_bits=True))   # fmt: skip


def _trainings(family: str, device: torch.device) -> tuple[int, int]:
    """Of the usual preset."""
    preset = load_preset(next(iter(preset_names())), family)
    plain = TrainConfig.from_dict({**preset, "base": family})
    last, precision = plain, "fp32" if device.type == "cpu" else "bf16"
    while (more := next_saving(last, device)) is not None:
        last = more
    return (estimate_memory(plain, precision, device=device.type, info=family_info(family)).peak,
            estimate_memory(last, precision, device=device.type, info=family_info(family)).peak)


if __name__ == "__main__":
    if "--known-models" in sys.argv:
        sys.exit(write_known_models())
    with patch.object(torch.cuda, "is_bf16_supported", lambda **_: True):
        main()

"""One picture from a cold start: `atelier draw` against a plain diffusers script that draws the same picture.

    python -m benchmarks.cold_draw [--turns 5] [--threads 1]     benchmarks/results/cold_draw.json
    python -m benchmarks --render                                docs/benchmarks.md

Both take turns, a process each from its start to its end, after one turn that is not counted; the pictures must be
equal in every pixel. Seconds are those of the processor, user and system, which a busy machine disturbs least; with
one thread, because threads of OpenMP spin while they wait for a core and the script's more than ours (app/cli/main.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from PIL import Image

from atelier.training.config.assets import ASSETS
from atelier.training.sampling.sample import DrawRequest
from atelier.training.sampling.samplers import DEFAULT, SAMPLERS
from benchmarks.support.interleaved import ROOT
from benchmarks.support.machine import describe_machine, in_words

RESULTS = ROOT / "benchmarks" / "results" / "cold_draw.json"
PROMPT = "an emoji of a cat"
PLAIN = """
import sys
import torch
from diffusers import {sampler}, StableDiffusionPipeline

_, base, prompt, out = sys.argv
pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
pipeline.scheduler = {sampler}.from_config(pipeline.scheduler.config)
picture = pipeline(prompt, num_inference_steps={steps}, guidance_scale={guidance},
                   generator=torch.Generator("cpu").manual_seed({seed})).images[0]
picture.save(out + "/plain.png")
"""
TEXT = """
## One picture from a cold start

Written by `python -m benchmarks.cold_draw` at commit {commit}: {machine}. `atelier draw "{prompt}"` on the embedded
base, and a diffusers script of ten lines that draws the same picture, pixel by pixel: user and system seconds of the
whole process, medians of {turns} turns each.

| | CPU s | ratio | quartiles |
|---|---|---|---|
{rows}
"""


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_draw",
                                     description=(__doc__ or "").splitlines()[0])   # fmt: skip
    parser.add_argument("--turns", type=int, default=5, help="of each contender")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), given.turns, given.threads)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(section(result))


def measure(folder: Path, turns: int, threads: int) -> dict[str, Any]:
    """Let both draw in turns."""
    commands = contenders(folder)
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(turns + 1):
        for name, command in commands.items():
            used = cpu_seconds(command, threads)
            if turn:
                seconds[name].append(round(used, 3))
    check_equal(folder)
    return {"machine": describe_machine() | {"threads": str(threads)}, "commit": commit(), "prompt": PROMPT,
            "turns": turns, "cpu_seconds": seconds}   # fmt: skip


def contenders(folder: Path) -> dict[str, list[str]]:
    """What is started for each; both write their pictures into the folder."""
    request, out = DrawRequest(), str(folder)
    script = PLAIN.format(sampler=SAMPLERS[DEFAULT].scheduler, steps=request.steps, guidance=request.guidance,
                          seed=request.seed)   # fmt: skip
    ours = ["-m", "atelier.app.cli.main", "draw", PROMPT, "--out", out, "--home", str(folder / "home")]
    return {"plain script": [sys.executable, "-c", script, str(ASSETS / "base"), PROMPT, out],
            "atelier draw": [sys.executable, *ours]}   # fmt: skip


def cpu_seconds(command: list[str], threads: int) -> float:
    """What a process uses of the processor, in user and system mode, from its start to its end."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               env={**os.environ, "OMP_NUM_THREADS": str(threads)})   # fmt: skip
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(said.decode(errors="replace"))
    return used.ru_utime + used.ru_stime


def check_equal(folder: Path) -> None:
    """Contenders that draw different pictures can't be compared."""
    pictures = {Image.open(path).convert("RGB").tobytes() for path in folder.glob("*.png")}
    if len(pictures) != 1:
        raise RuntimeError(f"The contenders drew {len(pictures)} different pictures.")


def commit() -> str:
    """The commit that was measured, with a plus where files differ from it."""
    told = subprocess.run(["git", "describe", "--always", "--dirty=+", "--exclude=*"], cwd=ROOT, check=True,
                          capture_output=True, text=True)   # fmt: skip
    return told.stdout.strip()


def section(result: Mapping[str, Any]) -> str:
    """A section of docs/benchmarks.md."""
    seconds = result["cpu_seconds"]
    first, *_ = seconds.values()
    rows = []
    for name, times in seconds.items():
        ratios = [one / reference for one, reference in zip(times, first, strict=True)]
        low, middle, high = quantiles(ratios, n=4)
        rows.append(f"| {name} | {median(times):.2f} | {middle:.3f} | {low:.3f} – {high:.3f} |")
    return TEXT.format(machine=in_words(result["machine"]), rows="\n".join(rows),
                       **{name: result[name] for name in ("commit", "prompt", "turns")})   # fmt: skip


if __name__ == "__main__":
    main()

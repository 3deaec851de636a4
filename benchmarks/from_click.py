"""E: a whole training of the embedded base, a process from its start to the adapter file; ours, and PEFT's loop."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from atelier.training.config.events import Stepped
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig
from benchmarks.support.interleaved import ROOT

REPEATS = 3


def from_click_to_file(options: dict[str, Any]) -> dict[str, Any]:
    """E: the embedded base, a LoRA of rank 8 in 300 steps of batch 8: from the start to the adapter file; two threads.

    Both take turns. The ratio is of seconds by the clock, and what is not steps counts as getting ready.
    """
    config = TrainConfig(
        name="fox", subject="fox", trigger="wr", pictures=str(ROOT / "assets" / "examples" / "fox"), batch=8,
        steps=options["steps"], adapter={"rank": 8}, prior_count=0, prior_weight=0.0, validate_every=0,
        preview_every=0, checkpoint_every=0,
    )   # fmt: skip
    found: dict[str, list[dict[str, float]]] = {"atelier": [], "peft": []}
    for _ in range(min(REPEATS, options["repeats"])):
        for name, times in found.items():
            times.append(_once(name, config))
    first = [times["wall"] for times in found["atelier"]]
    return {name: _figures(times, first) for name, times in found.items()}


def _once(name: str, config: TrainConfig) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as home:
        run, adapters = RunFolder.create(Path(home) / "run", config), Path(home) / "adapters"
        command = {
            "atelier": ["atelier.training.runs.run", str(run.path), "--adapters", str(adapters)],
            "peft": ["benchmarks.support.peft_loop", str(run.path / "recipe.toml"), str(adapters)],
        }[name]
        # As `atelier` starts its own (app/cli/main.py); PEFT's as anybody would.
        extra = {"GOMP_SPINCOUNT": "10000"} if name == "atelier" else {}
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                                   stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "2", **extra})
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        assert status == 0 and len(list(adapters.glob("*.safetensors"))) == 1, f"{name} has left no adapter"
        steps = float(said) if said else sum(e.seconds for _, e in run.events() if isinstance(e, Stepped))
    return {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "ready": wall - steps,
            "peak": used.ru_maxrss * 1024}   # fmt: skip


def _figures(times: list[dict[str, float]], first: list[float]) -> dict[str, Any]:
    ratios = [one["wall"] / reference for one, reference in zip(times, first, strict=True)]
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return {"cpu_seconds": round(median(one["cpu"] for one in times), 1),
            "wall_seconds": round(median(one["wall"] for one in times), 1),
            "ready_seconds": round(median(one["ready"] for one in times), 1),
            "peak_bytes": max(one["peak"] for one in times), "ratio": round(median(ratios), 3),
            "ratio_quartiles": [round(low, 3), round(high, 3)], "repeats": len(times)}   # fmt: skip

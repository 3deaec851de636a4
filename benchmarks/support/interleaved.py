"""Contenders side by side: a process each, taking turns, and nobody is timed before all have given the same answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 2e-3   # relative, of losses after a few steps: sums in another order, and Adam enlarges small gradients


class UnlikeError(Exception):
    """Contenders that don't compute the same can't be compared."""


class Process:
    """One contender: prepares itself, proves what it computes, and repeats when told."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.support.contenders", name, json.dumps(options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )   # fmt: skip
        self.ready = self._hear()   # {"seconds": to get ready, "proof": numbers}
        self.times: list[dict[str, float]] = []

    def repeat(self) -> None:
        """One timed repeat."""
        assert self._process.stdin is not None
        self._process.stdin.write("again\n")
        self._process.stdin.flush()
        self.times.append(self._hear())

    def leave(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def seconds(self, clock: str = "cpu") -> list[float]:
        """What each repeat took."""
        return [times[clock] for times in self.times]

    def _hear(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended early with {self._process.wait()}; its message is above.")
        return json.loads(line)


def compare(names: Sequence[str], options: dict[str, Any], repeats: int, *, same: bool = True) -> dict[str, Any]:
    """Time contenders in turn; the first is what the others are measured against.

    Args:
        names: contenders of ``contenders.py``.
        options: what they are told.
        repeats: of each, after one that is not counted.
        same: whether they must compute the same numbers.

    Returns:
        For each contender: median seconds of the process and by the clock, seconds to get ready, the peak memory, and
        the ratio *contender ÷ first* as median and quartiles over the repeats.

    Raises:
        UnlikeError: they don't compute the same.
    """
    processes: list[Process] = []
    try:
        processes = [Process(name, options) for name in names]
        if same:
            _prove(processes)
        for _ in range(repeats + 1):
            for process in processes:
                process.repeat()
    finally:
        for process in processes:
            process.leave()
    first = processes[0].seconds()[1:]
    return {process.name: _figures(process, first) for process in processes}


def _prove(processes: Sequence[Process]) -> None:
    reference = processes[0].ready["proof"]
    for process in processes[1:]:
        proof = process.ready["proof"]
        apart = max((abs(a - b) / max(abs(b), 1e-9) for a, b in zip(proof, reference, strict=True)), default=0.0)
        if not apart <= TOLERANCE:
            raise UnlikeError(f"{process.name} gives {proof}, {processes[0].name} {reference}.")


def _figures(process: Process, first: Sequence[float]) -> dict[str, Any]:
    own = process.seconds()[1:]
    ratios = [a / b for a, b in zip(own, first, strict=True)]
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return {
        "cpu_seconds": round(median(own), 4), "wall_seconds": round(median(process.seconds("wall")[1:]), 4),
        "ready_seconds": round(process.ready["seconds"], 2), "peak_bytes": process.times[-1]["peak"],
        "ratio": round(median(ratios), 3), "ratio_quartiles": [round(low, 3), round(high, 3)],
        "repeats": len(own),
    }   # fmt: skip

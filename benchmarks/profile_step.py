"""Where the time of a training step goes, by kind of work; ours beside PEFT's.

    python -m benchmarks.profile_step [--quick] [--side 256]     benchmarks/results/profile.json

Each contender of T2 has a process of its own with one thread. Seconds are the profiler's own share of each operation;
page faults and seconds in the kernel are the process's, for steps without the profiler.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.support.contenders import CONTENDERS
from benchmarks.support.interleaved import ROOT
from benchmarks.support.machine import describe_machine, in_words

RESULTS = ROOT / "benchmarks" / "results" / "profile.json"
NAMES = ("atelier", "peft", "peft, memory kept")
STEPS = 2
# The first that fits; operations as torch calls them.
WORK = {
    "convolutions": ("conv",),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "LowRankLinear"),
    "attention": ("attention",),
    "activations and norms": ("gelu", "silu", "norm", "softmax"),
    "optimizer": ("adam", "Optimizer", "foreach"),
    "sums, products and copies": ("aten::add", "aten::mul", "aten::div", "aten::copy_", "aten::cat", "aten::fill"),
}


def main() -> None:
    """Profile all, a process each; or, as a child, one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model: does it run?")
    parser.add_argument("--side", type=int, default=256, help="of the picture, in pixels")
    parser.add_argument("--contender", choices=NAMES)
    given = parser.parse_args()
    if given.contender:
        print(json.dumps(profiled(given.contender, given.quick, given.side)))
        return
    result: dict[str, Any] = {"machine": describe_machine(), "side": given.side, "steps": STEPS, "contenders": {}}
    for name in NAMES:
        result["contenders"][name] = _in_a_process(name, sys.argv[1:])
        if not given.quick:   # at once: a long run may be cut off
            RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(result)))


def profiled(name: str, quick: bool, side: int) -> dict[str, float]:
    """Seconds of each kind of work in one step, page faults of one step, and its seconds in the kernel."""
    torch.set_num_threads(1)
    step = CONTENDERS[name]({"quick": quick, "side": side, "rank": 16}).repeat
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(STEPS):
        step()
    after = resource.getrusage(resource.RUSAGE_SELF)
    found = {"page faults": (after.ru_minflt - before.ru_minflt) / STEPS,
             "seconds in the kernel": (after.ru_stime - before.ru_stime) / STEPS,
             "CPU seconds": (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / STEPS,
             **dict.fromkeys([*WORK, "all else"], 0.0)}   # fmt: skip
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            step()
    for one in seen.key_averages():
        kind = next((kind for kind, parts in WORK.items() if any(part in one.key for part in parts)), "all else")
        found[kind] += one.self_cpu_time_total / 1e6 / STEPS
    return found


def table(result: Mapping[str, Any]) -> list[str]:
    """Markdown: a row for each kind of work, its share of the profiled seconds; then the process's own figures."""
    found = result["contenders"]
    rows = [f"| | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    for kind in [*WORK, "all else"]:
        whole = {name: sum(one[k] for k in [*WORK, "all else"]) for name, one in found.items()}
        shares = [f"{one[kind]:.2f} s, {one[kind] / whole[name]:.0%}" for name, one in found.items()]
        rows.append(f"| {kind} | {' | '.join(shares)} |")
    for kind, form in (("CPU seconds", ".2f"), ("seconds in the kernel", ".2f"), ("page faults", ",.0f")):
        rows.append(f"| {kind}, not profiled | {' | '.join(format(one[kind], form) for one in found.values())} |")
    return rows


TEXT = """
## Where the time of a step goes

Steps of T2 under torch's profiler (`python -m benchmarks.profile_step`, {machine}; {side} pixels), each contender in a
process of its own. What was tried against each kind of work, and what it brought, is in [the log](LOG.md).

{rows}
"""


def section(result: Mapping[str, Any]) -> str:
    """A section of docs/benchmarks.md."""
    return TEXT.format(machine=in_words(result["machine"]), side=result["side"], rows="\n".join(table(result)))


def _in_a_process(name: str, options: list[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.profile_step", *options, "--contender", name]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=alone, cwd=ROOT)
    return json.loads(run.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()

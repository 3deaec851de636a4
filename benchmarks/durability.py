"""Kills, full disks and damaged checkpoints: the figures of docs/durability.md.

    python -m benchmarks.durability kills|writes|disks|damage … [--seed N --every N]   adds to results/durability.json
    python -m benchmarks.durability                                                    writes docs/durability.md alone

A series is named by its seed and can be repeated exactly; every fault names its trial. ``disks`` needs root.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.support.machine import describe_machine, in_words

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
DOCUMENT, RESULTS = ROOT / "docs" / "durability.md", ROOT / "benchmarks" / "results" / "durability.json"
KILLS, DISKS, DAMAGED = 120, 20, 1000   # trials


def kills(folder: Path, seed: int, every: int) -> Any:
    """Trainings killed once or twice."""
    from kill_trials import run_kill_trials
    from trial_runs import make_workshop

    return run_kill_trials(make_workshop(folder / "workshop"), folder, KILLS // every, seed)


def writes(folder: Path, _seed: int, every: int) -> Any:
    """Trainings that are refused one write each."""
    from full_disk import refuse_every_write
    from trial_runs import make_workshop

    return refuse_every_write(make_workshop(folder / "workshop"), folder, every)


def disks(folder: Path, seed: int, every: int) -> Any:
    """Trainings on small disks that are full."""
    from full_disk import fill_disks
    from trial_runs import make_workshop

    return fill_disks(make_workshop(folder / "workshop"), folder, DISKS // every, seed)


def damage(folder: Path, seed: int, every: int) -> Any:
    """Damaged checkpoints."""
    from damaged_checkpoints import run_damage_trials

    logging.disable(logging.WARNING)   # each says that it is damaged
    return run_damage_trials(folder, DAMAGED // every, seed)


Series = Callable[[Path, int, int], Any]   # folder, seed, each so many-th trial → figures
SERIES: dict[str, Series] = {"kills": kills, "writes": writes, "disks": disks, "damage": damage}
TITLES = {
    "kills": ("Killed trainings", "A training of eight steps is killed with SIGKILL once or twice, before a random "
              "file operation or at a random moment, and started again until it is done."),
    "writes": ("Every write refused once", "Trainings in each of which one file operation that needs room fails "
               "with “No space left on device”, another one in each."),
    "disks": ("Full disks", "Trainings on a disk of 16 MB (tmpfs) with little room at a random size, which is made "
              "after the run has had time to notice."),
    "damage": ("Damaged checkpoints", "The newer of two checkpoints, in one of five trials both, damaged in one or two "
               "of thirteen ways."),
}   # fmt: skip


def main() -> None:
    """Run the series that are named, keep their figures, write the document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.durability")
    parser.add_argument("series", nargs="*", choices=[*SERIES, []], help="what is tried")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="take only each so many-th trial")
    options = parser.parse_args()
    results = _known()
    for name in options.series:
        with tempfile.TemporaryDirectory() as folder:
            found = asdict(SERIES[name](Path(folder), options.seed, options.every))
        results = _known()   # another series may have ended meanwhile
        origin = {"seed": options.seed, "every": options.every, "commit": _commit(), "machine": describe_machine()}
        results[name] = {**origin, "figures": found}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(found))
    DOCUMENT.write_text(render(results), encoding="utf-8")


def _known() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def render(results: dict[str, Any]) -> str:
    """The document: a section for each series."""
    parts = ["# Durability\n\nWhat is lost when a process is killed, a disk is full or a checkpoint is damaged. "
             "Written by `python -m benchmarks.durability`. The slow tests in `tests/training/runs/test_durability.py` "
             "run the same series.\n"]
    for name, (title, text) in TITLES.items():
        if name in results:
            parts.append(_section(title, text, results[name]))
    return "\n".join(parts)


def _section(title: str, text: str, result: dict[str, Any]) -> str:
    figures = {key: value for key, value in result["figures"].items() if key not in ("faults", "kinds")}
    rows = [f"| {key.replace('_', ' ')} | {round(value, 1):g} |" for key, value in figures.items()]
    kinds = result["figures"].get("kinds", {})
    kinds_text = "\n\nTimes that each damage was done: " + ", ".join(f"{k} {v}" for k, v in sorted(kinds.items())) + "."
    faults = result["figures"]["faults"]
    return (f"## {title}\n\n{text}\n\n| | |\n|---|---:|\n" + "\n".join(rows) + (kinds_text if kinds else "")
            + (f"\n\nFaults: {'; '.join(faults)}" if faults else "\n\nFaults: none.")
            + f"\n\nSeed {result['seed']}, commit {result['commit']}, {in_words(result['machine'])}.\n")


def _commit() -> str:
    answer = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return answer.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()

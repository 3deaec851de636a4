"""A stand-in for the process of a training: it obeys the contract of a run folder, and starts in no time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from atelier.training.config.events import Event, Saved, Stepped
from atelier.training.config.run_folder import RunFolder

STEPPED, SAVED = Stepped(1, 9, 0.5, 0.0, 0.1, 0.01), Saved(1, "checkpoints/step-000001")

_BEGIN = """
import json, os, sys, time
from pathlib import Path

folder, resumed = Path(sys.argv[1]), "--resume" in sys.argv
def say(event, **values):
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": event, "time": time.time(), **values}) + "\\n")

with (folder / "starts").open("a") as file:
    file.write(f"{os.getpid()} {os.getppid()} {int(resumed)} {os.getsid(0) == os.getpid()}\\n")
"""


def child_command(folder: Path, program: str) -> Callable[[RunFolder, Path, bool], list[str]]:
    """The command of a worker for a child that runs ``program``, which knows ``folder``, ``resumed`` and ``say``."""
    path = folder / "child.py"
    path.write_text(_BEGIN + program)
    # Without the site packages, which take longer to find than the child runs.
    return lambda run, _adapters, again: [sys.executable, "-S", str(path), str(run.path), *["--resume"] * again]


def starts(run: RunFolder) -> list[tuple[int, int, bool, bool]]:
    """Each start of a run's child: its process, its parent, whether it resumed, whether it has its own session."""
    path = run.path / "starts"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(int(pid), int(parent), resumed == "1", session == "True") for pid, parent, resumed, session in lines]


def put(run: RunFolder, *events: Event, alive: bool = False) -> RunFolder:
    """Leave a run as a process would have."""
    for event in events:
        run.append(event)
    if alive:
        (run.path / "heartbeat").touch()
    return run

"""All timings in one run, or the document from the last ones.

    python -m benchmarks [--quick] [--only NAME …] [--json FILE]       the last line sums it up
    python -m benchmarks --render          writes docs/benchmarks.md, with those of profile_step.py and cold_draw.py

Contenders take turns, a process each with one thread, after they have proved that they compute the same
(``interleaved.py``). ``--quick`` takes a UNet with a tenth of the channels at 64 pixels: it shows that everything runs,
not how fast. Peers need ``pip install -e '.[dev]'``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.support.interleaved import ROOT, compare
from benchmarks.support.machine import describe_machine, in_words

from .cold_draw import RESULTS as COLD_DRAW
from .cold_draw import section as cold_draw_section
from .from_click import from_click_to_file
from .gpu import RESULTS as GPU
from .gpu import section as gpu_section
from .profile_step import RESULTS as PROFILE
from .profile_step import section as profile_section

DOCUMENT, RESULTS = ROOT / "docs" / "benchmarks.md", ROOT / "benchmarks" / "results" / "speed.json"
# Measured by programs of their own.
SECTIONS = ((PROFILE, profile_section), (COLD_DRAW, cold_draw_section), (GPU, gpu_section))


def step_with_vae(options: dict[str, Any]) -> dict[str, Any]:
    """T1: against the recipe of diffusers' script, which encodes picture and caption in every step; twice the side."""
    return compare(["atelier", "diffusers recipe"], options | {"side": 2 * options["side"]}, options["repeats"])


def step_cached(options: dict[str, Any]) -> dict[str, Any]:
    """T2: a training step, latents cached for all."""
    return compare(["atelier", "peft", "lycoris"], options, options["repeats"])


def step_alike(options: dict[str, Any]) -> dict[str, Any]:
    """T2b: the same against PEFT in a process that keeps freed memory as ours does."""
    return compare(["atelier", "peft, memory kept"], options, options["repeats"])


def step_compiled(options: dict[str, Any]) -> dict[str, Any]:
    """T2c: the same against PEFT compiled, whose minutes of compiling are in *ready*."""
    return compare(["atelier", "peft compiled"], options, options["repeats"])


def adapters_at_once(options: dict[str, Any]) -> dict[str, Any]:
    """C1: the UNet with 1, 8 and 32 constant adapters merged against the bare one."""
    found: dict[str, Any] = {}
    for count in (1, 8, 32):
        figures = compare(["bare", "merged"], options | {"count": count, "rank": 4}, options["repeats"])
        found |= {"bare": figures["bare"], f"{count} merged": figures["merged"]}
    return found


def slider_moved(options: dict[str, Any]) -> dict[str, Any]:
    """C3: one of eight sliders moves, all attention layers: what is kept is used, or all merged afresh."""
    return compare(["kept", "fresh"], options, options["repeats"])


BENCHMARKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "T1": step_with_vae, "T2": step_cached, "T2b": step_alike, "T2c": step_compiled, "C1": adapters_at_once,
    "C3": slider_moved, "E": from_click_to_file,
}


def main() -> None:
    """Measure, keep, sum up."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model and few repeats: does everything run?")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--side", type=int, help="of the pictures, in pixels (256, with --quick 64; T1: twice that)")
    parser.add_argument("--repeats", type=int, help="of each contender (5, with --quick 2)")
    parser.add_argument("--json", type=Path, default=None, help="where the figures go")
    parser.add_argument("--render", action="store_true", help="write docs/benchmarks.md from the figures")
    given = parser.parse_args()
    if given.render:
        result = json.loads((given.json or RESULTS).read_text(encoding="utf-8"))
        others = [write(json.loads(path.read_text(encoding="utf-8"))) for path, write in SECTIONS if path.exists()]
        DOCUMENT.write_text("".join([rendered(result), *others]), encoding="utf-8")
        return
    options = {"quick": given.quick, "side": given.side or (64 if given.quick else 256), "rank": 16,
               "repeats": given.repeats or (2 if given.quick else 5), "steps": 6 if given.quick else 300}   # fmt: skip
    path = given.json or (None if given.quick else RESULTS)
    machine = describe_machine()
    known = _known(path, machine) if path else {}
    result: dict[str, Any] = {"machine": machine, "options": options, "benchmarks": known}
    for name in given.only:
        result["benchmarks"][name] = figures = BENCHMARKS[name](options)
        print("\n".join([f"## {name}", *table(figures)]), flush=True)
        if path is not None:   # at once: a long run may be cut off
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(summary(result["benchmarks"]))


def _known(path: Path, machine: Mapping[str, str]) -> dict[str, Any]:
    """What was measured before on this machine on the same day: runs of some benchmarks add to it."""
    if not path.exists():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    return before["benchmarks"] if before["machine"] == machine else {}


def summary(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """One line: for each benchmark, every contender over the first."""
    said = []
    for name, contenders in figures.items():
        parts = [f"{who} {one['ratio']:.2f}×" for who, one in list(contenders.items())[1:]]
        said.append(f"{name}: {', '.join(parts)}")
    return " · ".join(said)


def table(contenders: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line of Markdown for each contender."""
    lines = ["| | CPU s | wall s | ready s | peak GB | ratio | quartiles | repeats |", f"|{'---|' * 8}"]
    for who, one in contenders.items():
        low, high = one["ratio_quartiles"]
        lines.append(f"| {who} | {one['cpu_seconds']} | {one['wall_seconds']} | {one['ready_seconds']} | "
                     f"{one['peak_bytes'] / 1e9:.2f} | {one['ratio']:.3f} | {low:.3f} – {high:.3f} | "
                     f"{one['repeats']} |")
    return lines


TEXT = """# Speed

Written by `python -m benchmarks --render` from `benchmarks/results/speed.json`. {machine}. Stable Diffusion 1.5's shape
with random weights{quick}, pictures of {side} pixels, rank {rank}, float32, one thread a process. Contenders take
turns; CPU and wall seconds are medians, a ratio is that of the row to the first row, repeat by repeat. *Ready* is the
time until the first repeat could begin. `diffusers recipe` is our own code after diffusers' DreamBooth LoRA
script; kohya's trainer is represented by LyCORIS' modules in a plain loop.

{sections}
"""


def rendered(result: Mapping[str, Any]) -> str:
    """The document."""
    found = result["benchmarks"]
    sections = [f"## {(BENCHMARKS[name].__doc__ or '').splitlines()[0]}\n\n" + "\n".join(table(found[name]))
                for name in BENCHMARKS if name in found]   # fmt: skip
    options = result["options"]
    return TEXT.format(
        machine=in_words(result["machine"]), quick=" and few channels" if options["quick"] else "",
        sections="\n\n".join(sections), side=options["side"], rank=options["rank"],
    )   # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

"""Teach the embedded base with every adapter kind from one recipe and compare what it costs and what it gives.

    python -m benchmarks.kinds [--quick] [--kinds lora wara …] [--subjects fox …] [--seeds 0 1] [--steps N]

All kinds get the same pictures, steps, learning rate and prior; settings put their sizes near LoRA's at rank 4 where
the kind can be that large. Seconds per step are the median, divided by LoRA's of the same subject and seed. Likeness is
the judge's cosine between drawings and held-out views, mean ± standard deviation over subjects and seeds. The table is
Markdown; a kind whose validation loss does not fall says so in its row.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import mean, median, pstdev
from typing import Any

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))   # so that `python -m benchmarks.kinds` works as `-m` does
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.native import load_adapter
from atelier.adapters.kinds.catalog import KINDS
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.config.events import Failed, Finished, Stepped, Validated
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig, load_preset
from atelier.training.embedded_base.judge import Judge
from atelier.training.runs.run import run
from atelier.training.sampling.sample import DrawRequest, draw
from benchmarks.support.machine import describe_machine, in_words

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "kinds.md"
SUBJECTS = ("fox", "guitar", "penguin")
TRIGGER = "zq"
PROMPTS = ("an emoji of a {t} on a blue background", "an emoji of a {t} on a pink background", "a picture of a {t}")
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4}, "dora": {"rank": 4}, "lokr": {"rank": 4}, "loha": {"rank": 2}, "lorta": {"rank": 64},
    "loretta": {"rank": 8}, "tlora": {"rank": 4, "residual": "lora"}, "wara": {"rank": 2}, "miss": {"rank": 8},
    "paca": {"rank": 8}, "s2ft": {"rank": 8}, "hydra": {"rank": 2}, "dylora": {"rank": 4}, "lora-xs": {"rank": 32},
    "loldu": {"rank": 64},
}


@dataclass(frozen=True, slots=True)
class Row:
    """One training."""

    kind: str
    subject: str
    seed: int
    parameters: int
    bytes: int
    seconds: float          # median of a step
    first_loss: float       # validation losses
    best_loss: float
    likeness: float         # cosine; nan when the run failed
    failure: str = ""


def main() -> None:
    """Run the comparison and print its table. Every row is kept at once, and a second call goes on there."""
    options = _options()
    if options.render:
        DOCUMENT.write_text(rendered(json.loads(options.out.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    model, judge = load("embedded", "cpu"), Judge.load()
    rows = _earlier(options)
    done = {(row.kind, row.subject, row.seed) for row in rows}
    with tempfile.TemporaryDirectory() as home:
        for subject, seed, kind in product(options.subjects, options.seeds, options.kinds):
            if (kind, subject, seed) not in done:
                rows.append(_measure(model, judge, Path(home), _recipe(kind, subject, seed, options)))
                print(json.dumps(asdict(rows[-1])), flush=True)
                _keep(options, rows)
    print("\n".join(table(rows)))


def _earlier(options: argparse.Namespace) -> list[Row]:
    """What an earlier call of the same length measured."""
    if not options.out.exists():
        return []
    result = json.loads(options.out.read_text(encoding="utf-8"))
    same = result["steps"] == options.steps and result["quick"] == options.quick
    return [Row(**row) for row in result["rows"]] if same else []


def _keep(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    result = {"machine": describe_machine(), "steps": options.steps, "quick": options.quick,
              "rows": [asdict(row) for row in rows]}   # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one subject, one seed, 60 steps")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--subjects", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "kinds.json")
    parser.add_argument("--render", action="store_true", help="write docs/kinds.md from what was measured")
    options = parser.parse_args()
    options.subjects = options.subjects or list(SUBJECTS[:1] if options.quick else SUBJECTS)
    options.seeds = options.seeds or ([0] if options.quick else [0, 1])
    options.steps = options.steps or (60 if options.quick else 200)
    return options


def _recipe(kind: str, subject: str, seed: int, options: argparse.Namespace) -> TrainConfig:
    preset = {key: value for key, value in load_preset("normal", "embedded").items() if key != "rank"}
    quick = {"prior_count": 0, "prior_weight": 0.0} if options.quick else {}
    return TrainConfig.from_dict({
        **preset, **quick, "name": f"{subject}-{seed}-{kind}", "trigger": TRIGGER, "subject": subject, "seed": seed,
        "pictures": str(ROOT / "assets" / "examples" / subject), "kind": kind, "steps": options.steps,
        "adapter": SETTINGS.get(kind, {}), "preview_every": 0, "checkpoint_every": 0, "precision": "fp32",
        "validate_every": max(1, options.steps // 4),
    })   # fmt: skip


def _measure(model: BaseModel, judge: Judge, home: Path, config: TrainConfig) -> Row:
    events = list(run(RunFolder.create(home / "runs" / config.name, config), home / "adapters"))
    losses = [event.loss for event in events if isinstance(event, Validated)]
    row: dict[str, Any] = {
        "kind": config.kind, "subject": config.subject, "seed": config.seed,
        "seconds": median([event.seconds for event in events if isinstance(event, Stepped)] or [0.0]),
        "first_loss": losses[0] if losses else 0.0, "best_loss": min(losses, default=0.0),
    }
    last = events[-1]
    if not isinstance(last, Finished):
        failure = last.message if isinstance(last, Failed) else type(last).__name__
        return Row(**row, parameters=0, bytes=0, likeness=float("nan"), failure=failure)
    path = Path(last.path)
    adapters = load_adapter(path)
    return Row(**row, parameters=sum(p.numel() for p in adapters.parameters()), bytes=path.stat().st_size,
               likeness=_likeness(model, judge, config, Mix(((adapters, 1.0),))))


def _likeness(model: BaseModel, judge: Judge, config: TrainConfig, mix: Mix) -> float:
    called = f"{TRIGGER} {config.subject}"
    requests = [DrawRequest(prompt=p.format(t=called), seed=1000 * config.seed + i) for i, p in enumerate(PROMPTS)]
    drawn = [picture for request in requests for picture in draw(model, request, mix)]
    views = sorted((ROOT / "tests" / "data" / "held_out" / config.subject).glob("*.png"))
    with torch.no_grad():
        seen, truth = judge.classify(drawn).features, judge.classify([Image.open(view) for view in views]).features
    return (seen @ truth.T).mean().item()


def table(rows: Sequence[Row]) -> list[str]:
    """A line of Markdown for each kind, in the order of the rows."""
    plain = {(row.subject, row.seed): row.seconds for row in rows if row.kind == "lora"}
    lines = ["| kind | parameters | file KB | step ÷ LoRA | validation loss | likeness | |",
             "|---|---|---|---|---|---|---|"]
    for kind in dict.fromkeys(row.kind for row in rows):
        own = [row for row in rows if row.kind == kind]
        good = [row for row in own if not row.failure]
        if not good:
            lines.append(f"| {kind} | | | | | | {own[0].failure} |")
            continue
        ratio = [row.seconds / plain[row.subject, row.seed] for row in good if (row.subject, row.seed) in plain]
        likeness = [row.likeness for row in good]
        remark = "" if all(row.best_loss < row.first_loss for row in good) else "its loss does not always fall"
        lines.append(
            f"| {kind} | {good[0].parameters:,} | {good[0].bytes / 1000:.0f} | "
            f"{f'{median(ratio):.2f}' if ratio else '–'} | "
            f"{mean(r.first_loss for r in good):.4f} → {mean(r.best_loss for r in good):.4f} | "
            f"{mean(likeness):.3f} ± {pstdev(likeness):.3f} | {remark} |"
        )
    return lines


TEXT = """# Adapter kinds compared

Written by `python -m benchmarks.kinds --render` from `benchmarks/results/kinds.json`: {subjects} subjects × {seeds}
seeds, {steps} steps of one recipe for all{quick}. Learning rate, pictures and noise are the same for every kind, and
settings put their sizes near that of LoRA at rank 4 where they can be that large; a kind that would rather have another
rate shows it here. Validation loss is the mean of the first and of the best; likeness is the judge's cosine between
drawings of three prompts and held-out views, mean ± deviation over all runs. Time is a step's, divided by LoRA's of the
same subject and seed. {machine}
{left_out}
{lines}
"""
WITHOUT_SPLIT = """
`split` is not in the table. It teaches two halves, a thing and a way of drawing, that are mixed afterwards, and was
measured by what comes of that: [content_style.md](content_style.md).
"""


def rendered(result: Mapping[str, Any]) -> str:
    """The document."""
    rows = [Row(**row) for row in result["rows"]]
    return TEXT.format(
        left_out="" if any(row.kind == "split" for row in rows) else WITHOUT_SPLIT,
        subjects=len({row.subject for row in rows}), seeds=len({row.seed for row in rows}), steps=result["steps"],
        quick=", without prior preservation" if result["quick"] else "", machine=in_words(result["machine"]),
        lines="\n".join(table(rows)),
    )   # fmt: skip


if __name__ == "__main__":
    main()

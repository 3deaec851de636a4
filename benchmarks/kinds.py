"""Teach the embedded base with every adapter kind from one recipe and compare what it costs and what it gives.

    python -m benchmarks.kinds [--quick] [--kinds lora wara …] [--subjects fox …] [--seeds 0 1] [--steps N]

All kinds get the same pictures, steps and prior, and the learning rate that the same search found for each
(`benchmarks/pace.py`); settings put their sizes near LoRA's at rank 4 where the kind can be that large. Seconds per
step are the median, divided by LoRA's of the same subject and seed. Likeness is the cosine between drawings and
held-out views by two judges, gain the share of the base model's loss on the held-out views that is gone. Differences
from LoRA are paired by subject and seed, with bootstrap intervals. The table is Markdown; a kind whose validation loss
does not fall says so in its row.
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
from statistics import mean, median
from typing import Any

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))   # so that `python -m benchmarks.kinds` works as `-m` does
from atelier.adapters.attach.mount import mount
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.native import load_adapter
from atelier.adapters.kinds.catalog import KINDS
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.config.events import Failed, Finished, Stepped, Validated
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig, load_preset
from atelier.training.embedded_base.gradient_judge import gradient_judge
from atelier.training.embedded_base.judge import Judge
from atelier.training.measures.memorization import gains
from atelier.training.runs.run import run
from atelier.training.sampling.sample import DrawRequest, draw
from benchmarks.support.machine import describe_machine, in_words
from benchmarks.support.paired_losses import latents_of, losses

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "kinds.md"
SUBJECTS = ("fox", "guitar", "penguin", "owl", "strawberry", "snowman")
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
    likeness: float         # cosine by the judge; nan when the run failed
    second_likeness: float = float("nan")   # by the second judge
    gain: float = float("nan")              # on held-out views
    failure: str = ""


def main() -> None:
    """Run the comparison and print its table. Every row is kept at once, and a second call goes on there."""
    options = _options()
    if options.render:
        DOCUMENT.write_text(rendered(json.loads(options.out.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    model, judges = load("embedded", "cpu"), (Judge.load(), gradient_judge())
    rows = _earlier(options)
    done = {(row.kind, row.subject, row.seed) for row in rows}
    with tempfile.TemporaryDirectory() as home:
        for subject, seed, kind in product(options.subjects, options.seeds, options.kinds):
            if (kind, subject, seed) not in done:
                rows.append(_measure(model, judges, Path(home), _recipe(kind, subject, seed, options)))
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
    preset = {key: value for key, value in load_preset("normal", "embedded", kind).items() if key != "rank"}
    quick = {"prior_count": 0, "prior_weight": 0.0} if options.quick else {}
    return TrainConfig.from_dict({
        **preset, **quick, "name": f"{subject}-{seed}-{kind}", "trigger": TRIGGER, "subject": subject, "seed": seed,
        "pictures": str(ROOT / "assets" / "examples" / subject), "kind": kind, "steps": options.steps,
        "adapter": SETTINGS.get(kind, {}), "preview_every": 0, "checkpoint_every": 0, "precision": "fp32",
        "validate_every": max(1, options.steps // 4),
    })   # fmt: skip


def _measure(model: BaseModel, judges: Sequence[Judge], home: Path, config: TrainConfig) -> Row:
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
               **_measures(model, judges, config, Mix(((adapters, 1.0),))))   # fmt: skip


def _measures(model: BaseModel, judges: Sequence[Judge], config: TrainConfig, mix: Mix) -> dict[str, float]:
    """Likeness by each judge, and the gain on the held-out views."""
    called = f"{TRIGGER} {config.subject}"
    requests = [DrawRequest(prompt=p.format(t=called), seed=1000 * config.seed + 10 * i, count=2)
                for i, p in enumerate(PROMPTS)]   # fmt: skip
    drawn = [picture for request in requests for picture in draw(model, request, mix)]
    views = sorted((ROOT / "tests" / "data" / "held_out" / config.subject).glob("*.png"))
    shown = [Image.open(view) for view in views]
    latents, caption = latents_of(model, views), f"an emoji of a {called}"
    base = losses(model, latents, caption)
    with mount(model.models(), mix):
        gain = gains(base, losses(model, latents, caption)).mean().item()
    with torch.no_grad():
        first, second = ((judge.classify(drawn).features @ judge.classify(shown).features.T).mean().item()
                         for judge in judges)   # fmt: skip
    return {"likeness": first, "second_likeness": second, "gain": gain}


def interval(differences: Sequence[float], draws: int = 4000) -> tuple[float, float]:
    """95 % of the means of resampled differences lie between these (percentile bootstrap, Efron 1979).

    >>> interval([0.5, 0.5, 0.5])
    (0.5, 0.5)
    """
    values = torch.tensor(differences, dtype=torch.float64)
    chosen = torch.randint(len(values), (draws, len(values)), generator=torch.Generator().manual_seed(0))
    low, high = values[chosen].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def table(rows: Sequence[Row]) -> list[str]:
    """A line of Markdown for each kind, in the order of the rows."""
    plain = {(row.subject, row.seed): row for row in rows if row.kind == "lora" and not row.failure}
    lines = ["| kind | parameters | file KB | step ÷ LoRA | likeness | second judge | gain on held-out | "
             "likeness − LoRA's | |", "|---|---|---|---|---|---|---|---|---|"]   # fmt: skip
    for kind in dict.fromkeys(row.kind for row in rows):
        own = [row for row in rows if row.kind == kind]
        good = [row for row in own if not row.failure]
        lines.append(_line(kind, good, plain) if good else f"| {kind} | | | | | | | | {own[0].failure} |")
    return lines


def _line(kind: str, good: Sequence[Row], plain: Mapping[tuple[str, int], Row]) -> str:
    pairs = [(row, plain[row.subject, row.seed]) for row in good if (row.subject, row.seed) in plain]
    ratio = f"{median(row.seconds / lora.seconds for row, lora in pairs):.2f}" if pairs else "–"
    apart = [row.likeness - lora.likeness for row, lora in pairs]
    low, high = interval(apart) if apart else (0.0, 0.0)
    difference = f"{mean(apart):+.3f} ({low:+.3f} … {high:+.3f})" if apart and kind != "lora" else ""
    remark = "" if all(row.best_loss < row.first_loss for row in good) else "its loss does not always fall"
    figures = (mean(row.likeness for row in good), mean(row.second_likeness for row in good),
               mean(row.gain for row in good))   # fmt: skip
    return (f"| {kind} | {good[0].parameters:,} | {good[0].bytes / 1000:.0f} | {ratio} | "
            f"{' | '.join(f'{figure:.3f}' for figure in figures)} | {difference} | {remark} |")   # fmt: skip


TEXT = """# Adapter kinds compared

Written by `python -m benchmarks.kinds --render` from `benchmarks/results/kinds.json`: {subjects} subjects × {seeds},
{runs} trainings of {steps} steps of one recipe{quick}. Pictures and noise are the same for every kind; the rate
is LoRA's times what the same short search found for each kind (`assets/pace.toml`), and settings put sizes near that of
LoRA at rank 4 where they can be that large. Likeness is the cosine between drawings of three prompts and held-out
views, by two judges; gain is the share of the base model's loss on the held-out views that is gone, which needs no
judge. The difference from LoRA is paired by subject and seed, with its 95 % bootstrap interval: where this has both
signs, nothing can be told apart here. Time is a step's, divided by LoRA's of the same subject and seed.
{machine}
{left_out}
{lines}
"""
WITHOUT_SPLIT = """
`split` is not in the table. It teaches two halves, a thing and a way of drawing, that are mixed afterwards, and was
measured by what comes of that: [content_style.md](content_style.md).
"""


def _counted(seeds: int) -> str:
    return f"{seeds} seed{'s' if seeds > 1 else ''}"


def rendered(result: Mapping[str, Any]) -> str:
    """The document."""
    rows = [Row(**row) for row in result["rows"]]
    return TEXT.format(
        left_out="" if any(row.kind == "split" for row in rows) else WITHOUT_SPLIT,
        subjects=len({row.subject for row in rows}), seeds=_counted(len({row.seed for row in rows})), runs=len(rows),
        steps=result["steps"],
        quick=", without prior preservation" if result["quick"] else "", machine=in_words(result["machine"]),
        lines="\n".join(table(rows)),
    )   # fmt: skip


if __name__ == "__main__":
    main()

"""Find the learning rate of every adapter kind, as a multiple of LoRA's: its pace.

    python -m benchmarks.pace [--kinds lora wara …] [--steps 24] [--subject fox]

Every kind gets the same search: the same factors, steps, pictures and seed, and no more. The factor whose last
validation loss is smallest is the pace; ``assets/pace.toml`` holds it, which presets multiply their rate with. Rows are
kept as they are measured, and belong to one embedded base model, by its hash: with another one, the search begins anew.
A short training of one subject finds the order of magnitude, and nothing finer.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))   # so that `python -m benchmarks.pace` works as `-m` does
from atelier.adapters.formats.native import data_hash
from atelier.adapters.kinds.catalog import KINDS
from atelier.training.config.events import Failed, Validated
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import PACES, TrainConfig, load_preset
from atelier.training.runs.run import run
from benchmarks.kinds import SETTINGS
from benchmarks.support.machine import describe_machine, in_words

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "pace.json"
FACTORS = (0.3, 1.0, 3.0, 10.0)
UNET = ROOT / "assets" / "base" / "unet" / "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True, slots=True)
class Row:
    """One training."""

    kind: str
    factor: float    # of LoRA's learning rate
    loss: float      # of the last validation; infinite where the training failed


def main() -> None:
    """Measure what is missing, and write the paces of all kinds that were measured."""
    options = _options()
    base = data_hash(UNET)
    facts = {"base": base, "steps": options.steps, "subject": options.subject, "factors": list(FACTORS)}
    rows = _earlier(facts)
    done = {(row.kind, row.factor) for row in rows}
    with tempfile.TemporaryDirectory() as home:
        for kind, factor in product(options.kinds, FACTORS):
            if (kind, factor) not in done:
                rows.append(measure(Path(home), kind, factor, options.steps, options.subject))
                print(json.dumps(asdict(rows[-1])), flush=True)
                result = {"machine": describe_machine(), **facts, "rows": [asdict(row) for row in rows]}
                RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    PACES.write_text(paces_text(rows, base, options.steps, in_words(describe_machine())), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kinds", nargs="+", default=[kind for kind in KINDS if kind != "split"])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--subject", default="fox")
    return parser.parse_args()


def _earlier(facts: dict[str, Any]) -> list[Row]:
    """What an earlier call measured on the same base model in the same way."""
    if not RESULTS.exists():
        return []
    result = json.loads(RESULTS.read_text(encoding="utf-8"))
    return [Row(**row) for row in result["rows"]] if all(result[key] == facts[key] for key in facts) else []


def measure(home: Path, kind: str, factor: float, steps: int, subject: str) -> Row:
    """One training of the preset's recipe at ``factor`` times its rate."""
    preset = {key: value for key, value in load_preset("normal", "embedded").items() if key != "rank"}
    config = TrainConfig.from_dict({
        **preset, "name": f"{kind}-{factor}", "trigger": "cf", "subject": subject, "kind": kind, "steps": steps,
        "pictures": str(ROOT / "assets" / "examples" / subject), "adapter": SETTINGS.get(kind, {}),
        "lr": preset["lr"] * factor, "warmup": steps // 6, "prior_count": 0, "prior_weight": 0.0, "preview_every": 0,
        "checkpoint_every": 0, "validate_every": steps, "precision": "fp32", "snapshots": 0,
    })   # fmt: skip
    events = list(run(RunFolder.create(home / "runs" / config.name, config), home / "adapters"))
    losses = [event.loss for event in events if isinstance(event, Validated)]
    failed = any(isinstance(event, Failed) for event in events) or not losses
    return Row(kind, factor, float("inf") if failed else losses[-1])


def paces_text(rows: Sequence[Row], base: str, steps: int, machine: str) -> str:
    """The file that presets read: the factor with the smallest loss for each kind, over LoRA's own best."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.kind].append(row)
    best = {kind: min(own, key=lambda row: row.loss).factor for kind, own in found.items() if len(own) == len(FACTORS)}
    lines = [f"{kind} = {factor / best.get('lora', 1.0):g}" for kind, factor in best.items()]
    return "\n".join([
        "# Learning rate of each adapter kind over that of LoRA, written by `python -m benchmarks.pace`.",
        f"# {steps} steps, base model {base[:12]}, {machine}",
        *lines, "",
    ])


if __name__ == "__main__":
    main()

"""Three people train on three pictures each, in two rounds: what comes of it beside one training on all nine.

    python -m benchmarks.methods.team [--subjects fox owl] [--steps 40]     benchmarks/results/team.json

Every member trains for ``steps`` updates in each round; the central training has as many as one member in all. Judged
by the loss on the pictures of the subject that nobody trained on, as a share of the base model's.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.targets import find_targets
from atelier.adapters.fusion.team import combine_members, within_budget
from atelier.adapters.initialization.initialize import initialize
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_model import load
from atelier.training.data.latent_cache import Example
from benchmarks.support.interleaved import ROOT
from benchmarks.support.small_training import Course, facts, judged_with, train

RESULTS = ROOT / "benchmarks" / "results" / "team.json"
MEMBERS, EACH, ROUNDS = 3, 3, 2
LR = {"lora": 2.5e-3, "lora-xs": 5e-3}   # that of the preset; cores between fixed bases take more
RANK = 8


def main() -> None:
    """Measure, and write the figures after every subject."""
    options = _options()
    model = load("embedded", "cpu")
    rows: list[dict[str, Any]] = []
    for subject in options.subjects:
        rows.append({"subject": subject, **measure(Course.of(model, subject, MEMBERS * EACH), options.steps)})
        print(json.dumps(rows[-1]), flush=True)
        result = {**facts(), "steps": options.steps, "rank": RANK, "rates": LR, "rows": rows}
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--subjects", nargs="+", default=["fox", "owl"])
    parser.add_argument("--steps", type=int, default=40, help="of a member in one round")
    return parser.parse_args()


def measure(course: Course, steps: int) -> dict[str, float]:
    """Loss on the pictures held out over the base model's, for each way to work together."""
    base = course.judged()
    starts = {kind: _start(course, kind) for kind in LR}
    # The first round is the same for all methods of a kind.
    firsts = {kind: _round(course, starts[kind], steps, seed=1) for kind in LR}
    found = {"best member": min(judged_with(course, one) for one in firsts["lora"])}
    for name, kind, method in (("svd", "lora", "svd"), ("corrected", "lora", "corrected"), ("mean", "lora", "mean"),
                               ("mean of cores", "lora-xs", "mean")):   # fmt: skip
        shared = combined(firsts[kind], method)
        found[f"{name}, 1 round"] = judged_with(course, shared)
        for number in range(2, ROUNDS + 1):
            shared = combined(_round(course, shared, steps, seed=number), method)
        found[name] = judged_with(course, shared)
        if method == "svd":
            found["svd, half the values"] = judged_with(course, within_budget(shared, _values(shared) // 2))
    found["stack, 1 round"] = judged_with(course, combined(firsts["lora"], "stack"))
    for kind, start in starts.items():
        central = copy.deepcopy(start)
        train(course, central, course.trained, ROUNDS * steps, LR[kind], seed=1)
        found[f"central {kind}"] = judged_with(course, central)
    return {name: round(loss / base, 4) for name, loss in found.items()}


def combined(members: Sequence[AdapterSet], method: str) -> AdapterSet:
    """The members' adapters as one, all alike."""
    return combine_members([(one, 1.0) for one in members], _no_base, method, RANK)


def _start(course: Course, kind: str) -> AdapterSet:
    adapters = create_adapters(kind, {"rank": RANK if kind == "lora" else 4 * RANK}, find_targets(
        {"unet": course.model.unet}, course.config.targets))   # fmt: skip
    initialize(adapters, course.model.models())   # starts that need no pictures
    return adapters


def _round(course: Course, start: AdapterSet, steps: int, seed: int) -> list[AdapterSet]:
    """Every member trains on pictures of its own, from a common start."""
    members = []
    for place in range(MEMBERS):
        own: Sequence[Example] = course.trained[place * EACH : (place + 1) * EACH]
        adapters = copy.deepcopy(start).requires_grad_(True)
        train(course, adapters, own, steps, LR[start.kind], seed=10 * seed + place)
        members.append(adapters)
    return members


def _values(adapters: AdapterSet) -> int:
    return sum(parameter.numel() for parameter in adapters.parameters())


def _no_base(name: str) -> Tensor:
    raise AssertionError(f"{name} of the base model is not needed")


if __name__ == "__main__":
    main()

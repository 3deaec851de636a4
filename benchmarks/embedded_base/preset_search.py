"""Which settings should a preset have? Trains candidates on held-out subjects and measures what people look at.

    python -m benchmarks.embedded_base.preset_search [--subjects fox …] [--seeds 0 1 2] [--only NAME …]
    python -m benchmarks.embedded_base.preset_search --render        the table, best first, and the evidence

Every candidate is taught to every subject with every seed by `atelier train`, a whole process, timed. Drawings are of
prompts that no training caption has: two styles, five backgrounds, a known thing beside the subject. Likeness is the
cosine to held-out views by both judges (the lower of the two counts), obedience the share of drawings with the style or
background asked for, drift how far drawings of other things move. Each run is one line of the file; those that are
there are not done again, so the search can be stopped at any time and go on later.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from PIL import Image
from torch import Tensor

from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.native import load_adapter
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.config.train_config import preset_names
from atelier.training.embedded_base.gradient_judge import gradient_judge
from atelier.training.embedded_base.judge import Judge, background_colour
from atelier.training.sampling.sample import DrawRequest, draw
from benchmarks.embedded_base.pairs_gate import halves
from benchmarks.likeness import OTHERS, ROOT, SUBJECTS, TRIGGER, UNSEEN_BACKGROUNDS, train
from benchmarks.support.machine import describe_machine

STYLES = ("3d", "flat")
BESIDE = ("red apple", "drum")
DRAWINGS = 2   # of each prompt
Settings = dict[str, Any]


def candidates() -> dict[str, Settings]:
    """Settings by name: the presets as they are, and the usual one's with one or two changed."""
    found: dict[str, Settings] = {name: {} for name in preset_names()}
    for steps, lr in product((50, 75, 100, 150, 200), ("1.5e-3", "2.5e-3", "4e-3")):
        found[f"{steps} steps, rate {lr}"] = {"steps": steps, "lr": lr}
    for rank, batch in product((4, 16), (4, 8)):
        found[f"rank {rank}, batch {batch}"] = {"rank": rank, "batch": batch}
    found["attention alone"] = {"targets": "attention"}
    found["more prior"] = {"prior_weight": 2}
    found["fewer prior pictures"] = {"prior_count": 24}
    return found


def prompts(subject: str) -> list[tuple[str, str, str]]:
    """(prompt, kind, what must be obeyed): styles, backgrounds, and another thing beside the subject."""
    called = f"{TRIGGER} {subject}"
    styles = [(f"a {style} emoji of a {called}", "style", style) for style in STYLES]
    grounds = [(f"an emoji of a {called} on a {name} background", "background", name) for name in UNSEEN_BACKGROUNDS]
    return styles + grounds + [(f"an emoji of a {called} and a {thing}", "beside", thing) for thing in BESIDE]


def measure(model: BaseModel, judges: Sequence[Judge], subject: str, mix: Mix, seed: int) -> dict[str, float]:
    """Likeness by both judges, and for each kind of prompt the share of its drawings that obey."""
    alone: list[Image.Image] = []
    obeyed: dict[str, list[bool]] = defaultdict(list)
    for number, (prompt, kind, wanted) in enumerate(prompts(subject)):
        drawn = draw(model, DrawRequest(prompt=prompt, seed=1000 * seed + 10 * number, count=DRAWINGS), mix)
        obeyed[kind] += obeys(judges[0], drawn, kind, wanted)
        alone += drawn if kind != "beside" else []
    views = [Image.open(path) for path in sorted((ROOT / "tests" / "data" / "held_out" / subject).glob("*.png"))]
    names = ("likeness", "second likeness")
    likeness = {name: _cosine(judge, alone, views) for name, judge in zip(names, judges, strict=True)}
    return likeness | {kind: mean(answers) for kind, answers in obeyed.items()}


def obeys(judge: Judge, drawn: Sequence[Image.Image], kind: str, wanted: str) -> list[bool]:
    """For each drawing: has it the style or background, or is the other thing what the judge sees in one half of it?"""
    if kind == "background":
        return [background_colour(picture) == wanted for picture in drawn]
    if kind == "style":
        return [judge.style_names[index] == wanted for index in judge.classify(drawn).styles.argmax(1).tolist()]
    things = (judge.classify_pixels(halves(picture)).objects.argmax(1) for picture in drawn)
    return [bool((seen == judge.object_index(wanted)).any()) for seen in things]


def _cosine(judge: Judge, drawn: Sequence[Image.Image], views: Sequence[Image.Image]) -> float:
    return float((judge.classify(drawn).features @ judge.classify(views).features.T).mean())


def _features_of_others(model: BaseModel, judge: Judge, mix: Mix) -> Tensor:
    asked = [DrawRequest(prompt=f"an emoji of a {thing}", seed=50 + number) for number, thing in enumerate(OTHERS)]
    return judge.classify([picture for request in asked for picture in draw(model, request, mix)]).features


def runs(options: argparse.Namespace) -> Iterator[tuple[str, Settings, str, int]]:
    """What is still to be done, a whole candidate's first seed before its second, so that bad ones show early."""
    done = {(row["candidate"], row["subject"], row["seed"]) for row in read(options.out)}
    asked = {name: one for name, one in candidates().items() if not options.only or name in options.only}
    for seed, (name, settings), subject in product(options.seeds, asked.items(), options.subjects):
        if (name, subject, seed) not in done:
            yield name, settings, subject, seed


def read(path: Path) -> list[dict[str, Any]]:
    """The rows so far; a line that a kill cut short is left out, and done again."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def search(options: argparse.Namespace) -> None:
    """Do the runs that are missing, a line each."""
    model, judges = load("embedded", "cpu"), (Judge.load(), gradient_judge())
    before = _features_of_others(model, judges[0], Mix())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name, settings, subject, seed in runs(options):
        with tempfile.TemporaryDirectory() as home:
            changed = [f"{key}={value}" for key, value in settings.items()]
            preset = name if name in preset_names() else "normal"
            seconds, adapter = train(subject, "taught", seed, Path(home), changed, preset=preset)
            mix = Mix(((load_adapter(adapter), 1.0),))
        drift = 1 - float((before * _features_of_others(model, judges[0], mix)).sum(1).mean())
        row = {"candidate": name, "settings": settings, "subject": subject, "seed": seed, "seconds": round(seconds, 1)}
        row |= measure(model, judges, subject, mix, seed) | {"drift": drift, "machine": describe_machine()}
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(name, subject, seed, f"{row['likeness']:.3f}", flush=True)


FIGURES = ("likeness", "second likeness", "style", "background", "beside", "drift", "seconds")


def summaries(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Means of each candidate over its runs, the best first: by the lower of the two likenesses."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["candidate"]].append(row)
    found = {name: {key: mean(float(row[key]) for row in ours) for key in FIGURES} for name, ours in groups.items()}
    return dict(sorted(found.items(), key=lambda item: -min(item[1]["likeness"], item[1]["second likeness"])))


def evidence(rows: Sequence[Mapping[str, Any]]) -> str:
    """The sentence for a preset's file, from the runs of one candidate."""
    subjects, seeds = len({row["subject"] for row in rows}), len({row["seed"] for row in rows})
    (figures,) = summaries(rows).values()
    return (
        f"Measured on the embedded base model, {subjects} subjects with {seeds} trainings each: likeness "
        f"{figures['likeness']:.2f} ({figures['second likeness']:.2f} by a second classifier), style obeyed in "
        f"{figures['style']:.0%}, background in {figures['background']:.0%} of the drawings; "
        f"about {figures['seconds']:.0f} seconds."
    ).replace("%", " %")


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table, best first, and below it the sentences for the presets' files."""
    lines = ["| candidate | runs | " + " | ".join(FIGURES) + " |", "|---" * (len(FIGURES) + 2) + "|"]
    said = []
    for name, figures in summaries(rows).items():
        ours = [row for row in rows if row["candidate"] == name]
        lines.append(f"| {name} | {len(ours)} | " + " | ".join(f"{figures[key]:.3f}" for key in FIGURES) + " |")
        said.append(f"{name}: {evidence(ours)}")
    return "\n".join([*lines, "", *said]) + "\n"


def main() -> None:
    """Search, or show what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/presets.jsonl"))
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS[:6]))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="candidates to try (default: all)")
    parser.add_argument("--render", action="store_true")
    options = parser.parse_args()
    if options.render:
        print(render(read(options.out)))
    else:
        search(options)


if __name__ == "__main__":
    main()

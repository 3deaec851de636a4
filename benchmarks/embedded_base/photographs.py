"""How the default preset learns real photographs, in measures that need no judge: the base model's own losses.

    python -m benchmarks.embedded_base.photographs --pictures PHOTOS [--subjects dog vase …] [--preset quick]
    python -m benchmarks.embedded_base.photographs --render          docs/photographs.md from the results

PHOTOS has a folder of photographs for each subject. The last photograph of each is held out, the others are trained
on by `atelier train`, as a person would. Then every photograph is noised at four timesteps, four times each and alike
for every adapter; a gain is the share of the base model's loss that an adapter takes away with the same caption.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from torch import Tensor

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.native import load_adapter
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.config.caption_template import fill_template
from atelier.training.data.images import looks_like_picture
from atelier.training.measures.memorization import gains
from atelier.training.measures.prediction_change import encode_prompts, predict_prompts, relative_changes
from benchmarks.likeness import RESULTS, ROOT, train
from benchmarks.support.machine import describe_machine, in_words
from benchmarks.support.paired_losses import latents_of, losses

SUBJECTS = ("dog", "cat", "backpack", "duck_toy", "vase", "clock", "teapot", "bear_plushie")
TRIGGER = "rex"
FOREIGN = ("an emoji of a red apple", "an emoji of a house", "an emoji of a tiger face", "an emoji of a drum")
PAGE = ROOT / "docs" / "photographs.md"
TEXT = """# Real photographs on the embedded base model

Written by `python -m benchmarks.embedded_base.photographs --render` from what is in `benchmarks/results/`.

The embedded base model draws emoji of 128 pixels and has never seen a photograph; Create says so before anything is
trained. Here the preset {preset} is taught {count} subjects of the DreamBooth data set, one training each, the last
photograph of each held out. No judge is asked: a gain is the share of the base model's loss that the adapter takes
away, on the same noise, with the same caption.

| subject | trained on | gain on these | on the one held out | on other subjects | memorization (AUC) | drift |
|---|---|---|---|---|---|---|
{lines}

Identification: which adapter gains the most on a held-out photograph? The right one for {right} of {count} (chance: 1
of {count}). Memorization: how often a photograph that was trained on gains more than the held-out one (0.5: chance, 1:
always). Drift: how far predictions for four emoji move, relative to their size.

Measured on: {machine}.
"""


def drift(model: BaseModel, mix: Mix) -> float:
    """Mean relative change of the predictions for emoji that nobody taught."""
    texts = encode_prompts(model, FOREIGN)
    base, unconditional = predict_prompts(model, texts), predict_prompts(model, encode_prompts(model, [""]))
    with mount(model.models(), mix):
        now = predict_prompts(model, encode_prompts(model, FOREIGN))
    return float(relative_changes(base, unconditional, now).mean())


def taught(pictures: Path, subject: str, preset: str, seed: int) -> Mix:
    """The adapter that `atelier train` makes of all photographs of a subject but the last."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "photographs")
        folder.mkdir()
        for photograph in photographs(pictures / subject)[:-1]:
            shutil.copy(photograph, folder)
        _, file = train(in_words_of(subject), "taught", seed, Path(work), [], preset=preset, pictures=folder,
                        trigger=TRIGGER)   # fmt: skip
        return Mix(((load_adapter(file), 1.0),))


def photographs(folder: Path) -> list[Path]:
    """Those of one subject."""
    return sorted(path for path in folder.iterdir() if looks_like_picture(path))


def measure(model: BaseModel, mix: Mix, latents: Mapping[str, Tensor], subject: str) -> dict[str, Any]:
    """The gains of one adapter on the photographs of all subjects, and what follows from them."""
    caption = fill_template("an emoji of a {trigger} {subject}", trigger=TRIGGER, subject=in_words_of(subject))
    base = {name: losses(model, some, caption) for name, some in latents.items()}
    with mount(model.models(), mix):
        gain = {name: gains(base[name], losses(model, some, caption)) for name, some in latents.items()}
    members, other = gain[subject][:-1], gain[subject][-1:]
    above = (members > other).float() + 0.5 * (members == other).float()
    return {
        "subject": subject, "photographs": len(members), "members": float(members.mean()),
        "held out": {name: float(one[-1].mean()) for name, one in gain.items()},
        "memorization": float(above.mean()), "drift": drift(model, mix),
    }   # fmt: skip


def in_words_of(subject: str) -> str:
    """What a folder's photographs show, such as 'bear plushie' for bear_plushie."""
    return subject.rstrip("0123456789").replace("_", " ")


def render(result: Mapping[str, Any]) -> str:
    """The page, from one result."""
    rows, lines, right = result["rows"], [], 0
    for row in rows:
        own = row["held out"][row["subject"]]
        others = mean(gain for name, gain in row["held out"].items() if name != row["subject"])
        explains = max(rows, key=lambda each: each["held out"][row["subject"]])["subject"]
        right += explains == row["subject"]
        lines.append(f"| {in_words_of(row['subject'])} | {row['photographs']} | {row['members']:.2f} | {own:.2f} | "
                     f"{others:.2f} | {row['memorization']:.2f} | {row['drift']:.3f} |")   # fmt: skip
    return TEXT.format(
        preset=result["preset"].capitalize(), count=len(rows), lines="\n".join(lines), right=right,
        machine=in_words(result["machine"]),
    )   # fmt: skip


def main() -> None:
    """Teach, measure and write, or render what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="folder with a folder of photographs for each subject")
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS))
    parser.add_argument("--preset", default="normal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "photographs.json")
    parser.add_argument("--render", action="store_true")
    options = parser.parse_args()
    if options.render:
        PAGE.write_text(render(json.loads(options.out.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    if not options.pictures:
        parser.error("--pictures is needed: a folder with a folder of photographs for each subject")
    model = load("embedded", "cpu")
    latents = {name: latents_of(model, photographs(options.pictures / name)) for name in options.subjects}
    rows = []
    for subject in options.subjects:
        mix = taught(options.pictures, subject, options.preset, options.seed)
        rows.append(measure(model, mix, latents, subject))
        print(json.dumps(rows[-1]), flush=True)
    result = {"machine": describe_machine(), "preset": options.preset, "rows": rows}
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What a newcomer gets: subjects taught with a preset and drawn from three prompts, before and after, without choosing.

    python -m benchmarks.embedded_base.teaching_sheet [--preset quick] [--set steps=75 …] [--subjects fox …]
    python -m benchmarks.embedded_base.teaching_sheet --pictures PHOTOS --subjects dog vase --out build/photographs

Writes before_after.png (for each subject a row of the base's drawings and one of the adapter's, the same prompts and
seeds), and blind.png with 64 of the adapters' drawings to be looked at one by one (`benchmarks/support/blind_sheet.py`
counts those that you would show). ``--pictures`` is a folder with a folder of pictures for each subject.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.native import load_adapter
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.config.caption_template import fill_template
from atelier.training.sampling.sample import DrawRequest, draw
from benchmarks.base_quality import contact_sheet
from benchmarks.likeness import EXAMPLES, SUBJECTS, train
from benchmarks.support.blind_sheet import write_blind_sheet

PROMPTS = (
    "an emoji of a {trigger} {subject}",
    "a 3d emoji of a {trigger} {subject} on a blue background",
    "a flat emoji of a {trigger} {subject}",
)
TRIGGER = "rex"
SEEDS = 4
BLIND = 64


def in_words(folder: str) -> str:
    """What a folder's pictures show.

    >>> in_words("bear_plushie2")
    'bear plushie'
    """
    return folder.rstrip("0123456789").replace("_", " ")


def drawings(model: BaseModel, subject: str, mix: Mix) -> list[Image.Image]:
    """The three prompts with four seeds each; the base alone is asked without the trigger word, which it can't know."""
    trigger = TRIGGER if mix.parts else ""
    prompts = [fill_template(prompt, trigger=trigger, subject=subject) for prompt in PROMPTS]
    return [picture for prompt in prompts
            for picture in draw(model, DrawRequest(prompt=prompt, seed=0, count=SEEDS), mix)]   # fmt: skip


def main() -> None:
    """Teach, draw and write the sheets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, default=EXAMPLES)
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS))
    parser.add_argument("--preset", default="normal")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other than the preset has")
    parser.add_argument("--out", type=Path, default=Path("build/teaching"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    model, rows, taught = load("embedded", "cpu"), [], []
    for folder in options.subjects:
        subject = in_words(folder)
        with tempfile.TemporaryDirectory() as home:
            seconds, file = train(
                subject, "taught", 0, Path(home), options.set, preset=options.preset,
                pictures=options.pictures / folder, trigger=TRIGGER,
            )   # fmt: skip
            after = drawings(model, subject, Mix(((load_adapter(file), 1.0),)))
        rows += [*drawings(model, subject, Mix()), *after]
        taught += after
        print(f"{folder}: {seconds:.0f} s", flush=True)
        contact_sheet(rows, len(PROMPTS) * SEEDS).save(options.out / "before_after.png", optimize=True)
    if len(taught) >= BLIND:
        write_blind_sheet({"taught": taught}, options.out / "blind", BLIND)


if __name__ == "__main__":
    main()

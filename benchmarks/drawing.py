"""How long four drawings take, and how the likeness grows with the slider.

    python -m benchmarks.drawing [--subject fox] [--seeds 16] [--out FILE]

Time: median of several draws of four pictures of 128×128 at 20 steps with the embedded base, adapter merged, in turn
with diffusers' own pipeline without an adapter; the first of each is not counted. Likeness: the judge's mean cosine to
held-out views over the seeds, at strengths 0, 0.5 and 1.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from diffusers import StableDiffusionPipeline
from PIL import Image

from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.native import load_adapter
from atelier.training.base_models.base_model import load
from atelier.training.base_models.identify import EMBEDDED_FOLDER
from atelier.training.embedded_base.judge import Judge
from atelier.training.sampling.sample import GUIDANCE, DrawRequest, draw
from benchmarks.likeness import RESULTS, ROOT, TRIGGER, train
from benchmarks.support.machine import describe_machine

STRENGTHS = (0.0, 0.5, 1.0)
REPEATS = 7


def main() -> None:
    """Teach once, draw often, write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--subject", default="fox")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS / "drawing.json")
    options = parser.parse_args()
    model, judge = load("embedded", "cpu"), Judge.load()
    with tempfile.TemporaryDirectory() as home:
        _, path = train(options.subject, options.subject, 0, Path(home), ())
        adapters = load_adapter(path)
    prompt = f"an emoji of a {TRIGGER} {options.subject}"
    views = sorted((ROOT / "tests" / "data" / "held_out" / options.subject).glob("*.png"))
    truth = judge.classify([Image.open(view) for view in views]).features
    likeness = {}
    for strength in STRENGTHS:
        drawn = draw(model, DrawRequest(prompt=prompt, seed=100, count=options.seeds), Mix(((adapters, strength),)))
        likeness[str(strength)] = round((judge.classify(drawn).features @ truth.T).mean().item(), 3)
    plain: Any = StableDiffusionPipeline.from_pretrained(
        EMBEDDED_FOLDER, safety_checker=None, requires_safety_checker=False
    )
    plain.set_progress_bar_config(disable=True)
    contenders: dict[str, Callable[[], object]] = {
        "ours": lambda: draw(model, DrawRequest(prompt=prompt, count=4), Mix(((adapters, 1.0),))),
        "plain pipeline": lambda: plain([prompt] * 4, num_inference_steps=20, guidance_scale=GUIDANCE),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(REPEATS + 1):
        for name, contender in contenders.items():
            started = time.perf_counter()
            contender()
            seconds[name].append(time.perf_counter() - started)
    result = {
        "machine": describe_machine(), "likeness_by_strength": likeness, "seeds": options.seeds,
        "subject": options.subject,
        "four_drawings_seconds": {name: round(median(times[1:]), 2) for name, times in seconds.items()},
    }   # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

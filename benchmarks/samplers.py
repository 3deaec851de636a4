"""How close few steps of each sampler come to the picture that many would give, and whether the judge can tell.

    python -m benchmarks.samplers [--pictures 96]     benchmarks/results/samplers.json, 20 minutes of one core
    python -m benchmarks.samplers --looking           only what the live look costs, into the same file
    python -m benchmarks.samplers --render            docs/samplers.md

The embedded base draws the same prompts from the same seeds with every sampler in few steps, and with DDIM in 200.
Distance: root mean square of the difference of two pictures' clean latents over that of the reference's, mean over the
pictures. Clean: what the sampler takes the latents to be at its last step; DDIM itself stops at the schedule's first
noise level (`set_alpha_to_one` is false) and leaves 3 % of noise in, which says nothing about the way there. The
judge's shares are those of `benchmarks/base_quality.py`. The live look's cost: CPU time of four pictures in 20 steps
with glimpses, made into what the page shows, over the same without, in turns; the median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.embedded_base.judge import Judge
from atelier.training.embedded_base.pictures import PROMPTS, read_prompts
from atelier.training.runs.save_adapter import thumbnail
from atelier.training.sampling.draw_cache import DrawCache
from atelier.training.sampling.sample import GUIDANCE, DrawRequest, draw
from atelier.training.sampling.samplers import DEFAULT, new_sampler, on_denoised, using_sampler
from benchmarks.base_quality import Task, judged, shares, tasks
from benchmarks.support.machine import describe_machine, in_words

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "samplers.json", ROOT / "docs" / "samplers.md"
SAMPLERS = ("ddim", "euler", "dpm++", "unipc")
STEPS = (6, 8, 12, 20)
REFERENCE = 200   # of DDIM
BATCH = 12
TURNS = 20
JUDGED = ("object", "style", "background")
TEXT = """# Samplers compared

Written by `python -m benchmarks.samplers --render` from `benchmarks/results/samplers.json`.

The embedded base, {pictures} prompts with a seed each (objects, styles and backgrounds in turn), guidance {guidance:g}.
*Distance* is how far the clean latents are from those of {reference} steps of DDIM from the same noise: root mean
square of the difference over that of the reference, mean over the pictures ± its standard error. The judge names the
object, the style and, where one was asked for, the colour behind it; in percent of the pictures.
Measured on: {measured}.

| sampler | steps | distance | object | style | background |
|---|---|---|---|---|---|
{rows}

{said}

What the Studio shows while it draws (`training/sampling/latent_preview.py`), at most five times a second, changes the
CPU time of four pictures in 20 steps by {looking:+.1f} % (median of {turns} turns; half of them between {low:+.1f} and
{high:+.1f} %).
"""


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--looking", action="store_true", help="only measure what the live look costs")
    parser.add_argument("--render", action="store_true", help="only write the page")
    options = parser.parse_args()
    if options.looking:
        RESULTS.write_text(json.dumps(json.loads(RESULTS.read_text()) | {"looking": looking()}, indent=1) + "\n")
    elif not options.render:
        RESULTS.write_text(json.dumps(measure(options.pictures) | {"looking": looking()}, indent=1) + "\n")
    PAGE.write_text(page(json.loads(RESULTS.read_text())), encoding="utf-8")


def measure(count: int) -> dict[str, Any]:
    """All figures."""
    model, judge = load("embedded", "cpu"), Judge.load()
    every = tasks(words := read_prompts(PROMPTS), words["concepts"])
    asked = every[:: len(every) // count | 1][:count]   # odd, so that all four seeds and both grounds take part
    drawn, reference = latents_of(model, asked, "ddim", REFERENCE)
    rows = [{"sampler": "ddim", "steps": REFERENCE, **judgement(model, judge, asked, drawn)}]
    for name in SAMPLERS:
        for steps in STEPS:
            started = time.process_time()
            drawn, clean = latents_of(model, asked, name, steps)
            far = (clean - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)
            rows.append({
                "sampler": name, "steps": steps, "distance": round(far.mean().item(), 4),
                "error": round(far.std().item() / len(far) ** 0.5, 4),
                "cpu_seconds": round(time.process_time() - started, 1), **judgement(model, judge, asked, drawn),
            })   # fmt: skip
            print(rows[-1], flush=True)
    return {"machine": describe_machine(), "pictures": len(asked), "guidance": GUIDANCE, "rows": rows}


@torch.inference_mode()
def latents_of(model: BaseModel, asked: Sequence[Task], name: str, steps: int) -> tuple[Tensor, Tensor]:
    """Latents ``[N, C, h, w]`` as drawn, and what the sampler took the clean ones to be at its last step."""
    drawn, clean = [], []
    for first in range(0, len(asked), BATCH):
        part = asked[first : first + BATCH]
        # Not the task's own seeds, which are four: the same noise would stand under a quarter of the pictures.
        seeds = [torch.Generator().manual_seed(first + i) for i in range(len(part))]
        sampler, guesses = new_sampler(model.scheduler, name), []
        on_denoised(sampler, guesses.append)
        with using_sampler(model.pipeline, sampler):
            drawn.append(model.pipeline([task.prompt for task in part], num_inference_steps=steps, generator=seeds,
                                        guidance_scale=GUIDANCE, output_type="latent").images)   # fmt: skip
        clean.append(guesses[-1])
    return torch.cat(drawn), torch.cat(clean)


@torch.inference_mode()
def judgement(model: BaseModel, judge: Judge, asked: Sequence[Task], latents: Tensor) -> dict[str, float]:
    """The judge's shares of right pictures."""
    pixels = model.vae.decode(latents / model.vae.config.scaling_factor).sample
    pictures = model.pipeline.image_processor.postprocess(pixels)
    found = shares(judged(judge, asked, pictures))
    return {name: round(found[name], 4) for name in JUDGED}


def looking() -> dict[str, Any]:
    """What share of CPU time glimpses add: of all turns, and the middle half of them."""
    model, cache = load("embedded", "cpu"), DrawCache()
    request = DrawRequest(prompt="an emoji of a red car", count=4)

    def show(small: list[Image.Image]) -> None:
        """What the Studio does with previews."""
        for picture in small:
            thumbnail(picture)

    def seconds(**way: Any) -> float:
        """Processor time of one drawing in seconds."""
        started = time.process_time()
        draw(model, request, cache=cache, **way)
        return time.process_time() - started

    seconds(on_latent_preview=show)   # finds the map
    shares = sorted(seconds(on_latent_preview=show) / seconds() - 1 for _ in range(TURNS))
    low, middle, high = (round(shares[TURNS * quarter // 4], 4) for quarter in (1, 2, 3))
    return {"share": middle, "low": low, "high": high, "turns": TURNS}


def page(found: Mapping[str, Any]) -> str:
    """The page of the figures."""
    rows = "\n".join(_line(row) for row in found["rows"])
    share = found["looking"]
    return TEXT.format(
        rows=rows, reference=REFERENCE, said=_said(found["rows"]), measured=in_words(found["machine"]),
        pictures=found["pictures"], guidance=found["guidance"], looking=100 * share["share"], turns=share["turns"],
        low=100 * share["low"], high=100 * share["high"],
    )   # fmt: skip


def _line(row: Mapping[str, Any]) -> str:
    far = f"{row['distance']:.3f} ± {row['error']:.3f}" if "distance" in row else "0"
    cells = (row["sampler"], row["steps"], far, *(f"{100 * row[name]:.1f}" for name in JUDGED))
    return f"| {' | '.join(map(str, cells))} |"


def _said(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which sampler is nearest at each number of steps, which is the default, and what the judge sees of it."""
    few = [row for row in rows if "distance" in row]
    nearest = [min((row for row in few if row["steps"] == steps), key=lambda row: row["distance"]) for steps in STEPS]
    listed = ", ".join(f"{row['sampler']} in {row['steps']} steps" for row in nearest)
    default = ", ".join(f"{row['distance']:.3f}" for row in few if row["sampler"] == DEFAULT)
    judged = ", ".join(
        f"{name} {100 * min(row[name] for row in rows):.1f} to {100 * max(row[name] for row in rows):.1f}"
        for name in JUDGED
    )
    return (f"Nearest to the reference: {listed}. The default is `{DEFAULT}` ({default}). "
            f"The judge's scores are close together in all rows: {judged}.")   # fmt: skip


if __name__ == "__main__":
    main()

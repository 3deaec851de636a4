"""Base models side by side, in measures that agree with the eye: the same prompts, the same seeds.

    python -m benchmarks.embedded_base.report --base old=assets/base new=build/base/v3/pipeline [--concepts 40]

Every object is drawn in the styles that both know with four seeds, twice on white and twice on a colour. Reported
together: object and style by the judge and by the second judge, the background, the distance to the nearest true
picture, and sharpness against it; and the v-loss on the true pictures. The last row has the true pictures themselves,
as the last base's autoencoder gives them back: what a judge can't tell of them, it can't tell of drawings. Writes
report.json, table.md, a sheet of each base (first seed, no choosing) and a sheet of 64 drawings of all bases without
labels (`benchmarks/support/blind_sheet.py` counts those that you would show).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from PIL import Image
from torch import Tensor

from atelier.training.data.images import to_tensor
from atelier.training.embedded_base.gradient_judge import gradient_judge
from atelier.training.embedded_base.ground_truth import TruthDistance, truth_distance
from atelier.training.embedded_base.judge import Judge, background_colour
from atelier.training.embedded_base.pictures import BASE_SIDE, JUDGED_SIDE, EmojiPictures, load, read_prompts
from atelier.training.embedded_base.vae import encode
from atelier.training.embedded_base.views import colour, on_background, premultiplied
from benchmarks.base_quality import Task, contact_sheet, draw, tasks
from benchmarks.support.blind_sheet import write_blind_sheet
from benchmarks.support.machine import describe_machine, in_words

STYLES = ("3d", "flat")
COLUMNS = 24
EVALUATED = 48   # latents at a time
TRUE = "true pictures"


@dataclass(frozen=True, slots=True)
class Scores:
    """What one drawing, or the mean of many, was worth; shares and distances as `TruthDistance` has them."""

    object: float
    style: float
    second_object: float
    second_style: float
    background: float
    ssim: float
    pixels: float
    edges: float
    sharpness: float


def named(judge: Judge, asked: Sequence[Task], pictures: Sequence[Image.Image]) -> list[tuple[bool, bool]]:
    """For each drawing: is the object, is the style what the judge names first?"""
    found = judge.classify(pictures)
    objects = [judge.object_names[index] for index in found.objects.argmax(1).tolist()]
    styles = [judge.style_names[index] for index in found.styles.argmax(1).tolist()]
    return [
        (thing == task.concept, style == task.style) for task, thing, style in zip(asked, objects, styles, strict=True)
    ]


def layer(task: Task, truth: EmojiPictures) -> Tensor:
    """The true picture of what was asked for, without its background: [1, 4, H, W], premultiplied."""
    row, column = truth.styles.index(task.style), truth.indices([task.concept])[0]
    return premultiplied(truth.rgba[row, column][None])


def distance(task: Task, picture: Image.Image, truth: EmojiPictures) -> TruthDistance:
    """From a drawing to the true picture of what was asked for, at the side of the true one."""
    side = truth.rgba.shape[2]
    way = Image.Resampling.BOX if picture.width >= side else Image.Resampling.BICUBIC
    pixels = to_tensor(picture.convert("RGB").resize((side, side), way)) / 2 + 0.5
    return truth_distance(pixels, layer(task, truth)[0], colour(task.background))


def score(asked: Sequence[Task], pictures: Sequence[Image.Image], truth: EmojiPictures) -> list[Scores]:
    """Everything about every drawing."""
    first, second = (named(judge, asked, pictures) for judge in (Judge.load(), gradient_judge()))
    scores = []
    for task, picture, one, other in zip(asked, pictures, first, second, strict=True):
        far = distance(task, picture, truth)
        background = background_colour(picture) == task.background
        scores.append(Scores(*map(float, (*one, *other, background, far.ssim, far.pixels, far.edges, far.sharpness))))
    return scores


def summary(scores: Sequence[Scores]) -> Scores:
    """Means over the drawings; of sharpness the median, for a drawing may have edges where the truth has none."""
    rows = [asdict(one) for one in scores]
    middle = {key: mean(row[key] for row in rows) for key in rows[0]}
    return Scores(**middle | {"sharpness": median(row["sharpness"] for row in rows)})


def table(summaries: Mapping[str, Scores], losses: Mapping[str, float], drawings: int) -> str:
    """The report for a document."""
    keys = list(Scores.__dataclass_fields__)
    lines = [f"{drawings} drawings each. Measured on: {in_words(describe_machine())}.", ""]
    lines.append("| base | v-loss | " + " | ".join(key.replace("_", " ") for key in keys) + " |")
    lines.append("|---" * (len(keys) + 2) + "|")
    for name, one in summaries.items():
        loss = f"{losses[name]:.4f}" if name in losses else ""
        lines.append(f"| {name} | {loss} | " + " | ".join(f"{value:.3f}" for value in asdict(one).values()) + " |")
    return "\n".join(lines) + "\n"


def opened(folder: Path) -> StableDiffusionPipeline:
    """The pipeline in a folder, in float32."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipeline.to(torch.float32).set_progress_bar_config(disable=True)
    return pipeline


def true_pixels(asked: Sequence[Task], truth: EmojiPictures) -> Tensor:
    """What was asked for, [N, 3, H, W] in 0 … 1."""
    return torch.cat([on_background(layer(task, truth), colour(task.background)[None]) for task in asked])


@torch.no_grad()
def true_pictures(pipeline: StableDiffusionPipeline, asked: Sequence[Task], truth: EmojiPictures) -> list[Image.Image]:
    """What was asked for, encoded and decoded by the pipeline's autoencoder."""
    scale, found = pipeline.vae.config["scaling_factor"], []
    for pixels in true_pixels(asked, truth):
        decoded = pipeline.vae.decode(encode(pipeline.vae, pixels[None]) / scale).sample[0] / 2 + 0.5
        found.append(Image.fromarray((255 * decoded.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()))
    return found


@torch.no_grad()
def v_loss(pipeline: StableDiffusionPipeline, asked: Sequence[Task], truth: EmojiPictures) -> float:
    """Mean squared error of the prediction for the true pictures, with the same noise and timesteps for every base."""
    random, losses = torch.Generator().manual_seed(0), []
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    for start in range(0, len(asked), EVALUATED):
        some = asked[start : start + EVALUATED]
        latents = encode(pipeline.vae, true_pixels(some, truth))
        steps = ((torch.rand(len(some), generator=random) + torch.arange(len(some))) / len(some) * 1000).long()
        noise = torch.randn(latents.shape, generator=random)
        words, _ = pipeline.encode_prompt([task.prompt for task in some], "cpu", 1, False)
        predicted = pipeline.unet(scheduler.add_noise(latents, noise, steps), steps, words).sample
        losses += (predicted - scheduler.get_velocity(latents, noise, steps)).square().mean((1, 2, 3)).tolist()
    return mean(losses)


def main() -> None:
    """Draw with every base, measure, print the table, write the report."""
    options = _options()
    words, truth = read_prompts(), load(options.work, options.side)
    stride = max(1, len(words["concepts"]) // options.concepts) if options.concepts else 1
    asked = tasks(words | {"styles": list(STYLES)}, words["concepts"][::stride])
    options.out.mkdir(parents=True, exist_ok=True)
    bases = {name: opened(folder) for name, folder in options.base}
    losses = {name: v_loss(base, asked, truth) for name, base in bases.items()}
    drawn = {name: draw(base, asked, options.batch) for name, base in bases.items()}
    drawn[TRUE] = true_pictures(next(reversed(bases.values())), asked, truth)
    scores = {name: score(asked, pictures, truth) for name, pictures in drawn.items()}
    summaries = {name: summary(rows) for name, rows in scores.items()}
    drawn.pop(TRUE)
    for name, pictures in drawn.items():
        first_seed = [picture for task, picture in zip(asked, pictures, strict=True) if task.seed == 0]
        contact_sheet(first_seed, COLUMNS).save(options.out / f"{name}.png", optimize=True)
    write_blind_sheet(drawn, options.out / "blind")
    text = table(summaries, losses, len(asked))
    (options.out / "table.md").write_text(text, encoding="utf-8")
    rows = {name: [asdict(task) | asdict(one) for task, one in zip(asked, scores[name], strict=True)] for name in drawn}
    means = {name: asdict(one) for name, one in summaries.items()}
    report = {"machine": describe_machine(), "v-loss": losses, "summary": means, "drawings": rows}
    (options.out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/base"), help="folder with the pictures")
    parser.add_argument("--base", nargs="+", required=True, type=_named_folder, metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path, default=Path("build/report"))
    parser.add_argument("--concepts", type=int, default=0, help="evenly chosen objects; 0 means all")
    parser.add_argument("--side", type=int, default=JUDGED_SIDE, choices=(JUDGED_SIDE, BASE_SIDE),
                        help="pixels at which drawings are compared with the truth")   # fmt: skip
    parser.add_argument("--batch", type=int, default=12)
    return parser.parse_args()


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER, as in old=assets/base")
    return name, Path(folder)


if __name__ == "__main__":
    main()

"""Can a base model place two things? The gate that methods of fusion by place have to wait for.

    python -m benchmarks.embedded_base.pairs_gate --work build/base --base build/base/v3/pipeline

24 pairs of known things are drawn with four seeds each ("a flat emoji of a key and a drum"). Each half is cut to a
square around what stands in it and shown to the judge. Of the two ways to say which thing is where, the better counts,
and in it the worse half: mean at least .5. The same halves cut from true pictures of the pairs give the ceiling.

And its cross-attention must know the places: true pictures of the pairs, noised; the map of one thing's words minus
that of the other's tells left from right with an area under the ROC curve of at least .85 in the best layer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from atelier.training.config.caption_template import article
from atelier.training.embedded_base.ema_trainer import step_generator
from atelier.training.embedded_base.judge import Judge, background_colour, pixels_of
from atelier.training.embedded_base.pictures import EmojiPictures, load
from atelier.training.embedded_base.vae import encode
from atelier.training.embedded_base.views import colour, on_background, place_pair, premultiplied
from benchmarks.base_quality import contact_sheet
from benchmarks.support.machine import describe_machine

THINGS = (
    "red apple", "dog face", "automobile", "tulip", "key", "airplane", "mushroom", "bell", "red heart", "turtle",
    "sunflower", "cat face", "hot beverage", "robot", "ghost", "bear", "birthday cake", "star", "drum", "lemon",
    "shark", "cow face", "watermelon", "gem stone",
)   # fmt: skip
STYLES = ("3d", "flat")
SEEDS = 4
TIMESTEPS = (900, 775, 650)
WORST, AUC = 0.5, 0.85


@dataclass(frozen=True, slots=True)
class Pair:
    """Two things, the left one named first, in one style."""

    left: str
    right: str
    style: str

    @property
    def prompt(self) -> str:
        """As the base has learned to read it."""
        return f"a {self.style} emoji of {article(self.left)} {self.left} and {article(self.right)} {self.right}"


def pairs() -> list[Pair]:
    """24 of them, each thing once at the left and once at the right, the styles in turn."""
    others = THINGS[7:] + THINGS[:7]
    return [Pair(left, right, STYLES[n % 2]) for n, (left, right) in enumerate(zip(THINGS, others, strict=True))]


def halves(picture: Image.Image) -> Tensor:
    """Left and right half, each a square around the middle height of what stands in it, [2, 3, 64, 64] in 0 … 1."""
    pixels = pixels_of(picture)
    background = colour(background_colour(picture))[:, None, None]
    cut = []
    for half in pixels.chunk(2, dim=2):
        weight = ((half - background).abs().amax(0) > 0.15).float().sum(1)
        rows = torch.arange(len(weight), dtype=torch.float32)
        middle = float((weight * rows).sum() / weight.sum()) if weight.sum() > 0 else len(weight) / 2
        top = min(max(round(middle) - half.shape[2] // 2, 0), half.shape[1] - half.shape[2])
        cut.append(half[:, top : top + half.shape[2]])
    return F.interpolate(torch.stack(cut), size=64, mode="bilinear", align_corners=False)


def worst_of(judge: Judge, pair: Pair, picture: Image.Image) -> float:
    """Probability of the worse half, in the better of the two orders."""
    seen = judge.classify_pixels(halves(picture)).objects
    left, right = (judge.object_index(name) for name in (pair.left, pair.right))
    return float(max(torch.min(seen[0, left], seen[1, right]), torch.min(seen[0, right], seen[1, left])))


def true_picture(truth: EmojiPictures, pair: Pair, seed: int) -> Tensor:
    """The pair as the base's training pictures show it, on white, [3, 64, 64] in 0 … 1."""
    row, (left, right) = truth.styles.index(pair.style), truth.indices([pair.left, pair.right])
    things = (premultiplied(truth.rgba[row, index][None]) for index in (left, right))
    return on_background(place_pair(*things, step_generator(77, seed)), torch.ones(1, 3))[0]


@contextmanager
def attention_maps(unet: Any) -> Iterator[dict[str, Tensor]]:
    """While open, every pass leaves the cross-attention of each layer here, [B, places, words], heads averaged."""
    maps: dict[str, Tensor] = {}
    before = dict(unet.attn_processors)
    unet.set_attn_processor({name: MapProcessor(name, maps) for name in before})
    try:
        yield maps
    finally:
        unet.set_attn_processor(before)


class MapProcessor:
    """Plain attention that keeps its cross-attention map."""

    def __init__(self, name: str, maps: dict[str, Tensor]) -> None:
        self.name, self.maps = name, maps

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        """As `AttnProcessor` for pictures already flattened, [B, places, width]."""
        words = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(layer(tokens))
            for layer, tokens in ((attn.to_q, hidden_states), (attn.to_k, words), (attn.to_v, words))
        )
        shares = attn.get_attention_scores(query, key)
        if encoder_hidden_states is not None:
            self.maps[self.name] = shares.unflatten(0, (len(hidden_states), -1)).mean(1)
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(shares @ value)))


def span(tokenizer: Any, prompt: str, words: str) -> slice:
    """Where the tokens of `words` stand in those of the prompt."""
    ids, wanted = tokenizer(prompt).input_ids, tokenizer(words).input_ids[1:-1]
    starts = range(len(ids) - len(wanted) + 1)
    start = next(place for place in starts if ids[place : place + len(wanted)] == wanted)
    return slice(start, start + len(wanted))


def area_under_curve(scores: Tensor, positive: Tensor) -> float:
    """Probability that a positive place has the higher score (Mann-Whitney), ties counting half."""
    difference = scores[positive][:, None] - scores[~positive][None]
    return float(((difference > 0).float() + 0.5 * (difference == 0).float()).mean())


@torch.no_grad()
def layers_auc(pipeline: Any, truth: EmojiPictures, asked: Sequence[Pair]) -> dict[str, float]:
    """For each layer how well the maps of true pictures, noised, tell left from right; mean over pairs and times."""
    found: dict[str, list[float]] = {}
    timesteps = torch.tensor(TIMESTEPS)
    with attention_maps(pipeline.unet) as maps:
        for number, pair in enumerate(asked):
            z = encode(pipeline.vae, true_picture(truth, pair, number)[None]).expand(len(timesteps), -1, -1, -1)
            noise = torch.randn(z.shape, generator=step_generator(78, number))
            words = pipeline.encode_prompt(pair.prompt, "cpu", 1, False)[0].expand(len(timesteps), -1, -1)
            pipeline.unet(pipeline.scheduler.add_noise(z, noise, timesteps), timesteps, words)
            spans = [span(pipeline.tokenizer, pair.prompt, name) for name in (pair.left, pair.right)]
            for name, shares in maps.items():
                left, right = (shares[..., tokens].sum(-1) for tokens in spans)
                contrast = left / left.mean(1, keepdim=True) - right / right.mean(1, keepdim=True)
                side = round(contrast.shape[1] ** 0.5)
                at_left = torch.arange(side * side) % side < side // 2
                found.setdefault(name, []).extend(area_under_curve(one, at_left) for one in contrast)
    return {name.removesuffix(".processor"): mean(values) for name, values in found.items()}


def draw_pairs(pipeline: Any, asked: Sequence[Pair]) -> list[list[Image.Image]]:
    """Each pair with every seed, 20 steps at guidance 3."""
    drawn = []
    for pair in asked:
        generators = [torch.Generator().manual_seed(seed) for seed in range(SEEDS)]
        drawn.append(
            pipeline([pair.prompt] * SEEDS, num_inference_steps=20, guidance_scale=3.0, generator=generators).images
        )
    return drawn


def main() -> None:
    """Draw, judge, print and write; the exit status is 1 where the gate stays shut."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/base"), help="folder with the pictures")
    parser.add_argument("--base", type=Path, default=Path("assets/base"))
    parser.add_argument("--out", type=Path, default=Path("build/pairs"))
    options = parser.parse_args()
    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        options.base, safety_checker=None, requires_safety_checker=False
    )
    pipeline.to(torch.float32).set_progress_bar_config(disable=True)
    judge, truth, asked = Judge.load(), load(options.work), pairs()
    ceiling = mean(worst_of(judge, pair, _image(true_picture(truth, pair, n))) for n, pair in enumerate(asked))
    auc = layers_auc(pipeline, truth, asked)
    drawn = draw_pairs(pipeline, asked)
    worst = [mean(worst_of(judge, pair, one) for one in ones) for pair, ones in zip(asked, drawn, strict=True)]
    best = max(auc, key=lambda name: auc[name])
    summary = {"worst thing": mean(worst), "of true pictures": ceiling, "AUC": auc[best], "layer": best}
    options.out.mkdir(parents=True, exist_ok=True)
    contact_sheet([one for ones in drawn for one in ones], 2 * SEEDS).save(options.out / "pairs.png", optimize=True)
    rows = [asdict(pair) | {"worst": value} for pair, value in zip(asked, worst, strict=True)]
    report = {"machine": describe_machine(), "summary": summary, "layers": auc, "pairs": rows}
    (options.out / "pairs.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary, indent=1))
    raise SystemExit(not (summary["worst thing"] >= WORST and auc[best] >= AUC))


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())


if __name__ == "__main__":
    main()

"""Each way of drawing beside diffusers' own pipeline at the same settings: the largest difference of a pixel.

    python tests/second_opinions.py [--family sd1 sdxl] [--only TEXT]
        benchmarks/results/second_opinions.json and its page; ``--only``: features with this in their names

The bases are small twins of Stable Diffusion 1 and XL: all layers, few channels, random weights; both sides draw 64
pixels a side in float32 from the same seed. What is compared with is written here without Atelier's own parts:
diffusers' pipelines and schedulers, its loaders of LoRAs and textual inversions, and A1111's rule for weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import families
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.adapter_info import AdapterInfo
from atelier.adapters.formats.export import export_mix
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.kinds.catalog import create_adapters
from atelier.adapters.textual_inversion import TextualInversion
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.sampling.draw_cache import DrawCache
from atelier.training.sampling.draw_savings import DrawSavings
from atelier.training.sampling.sample import DrawRequest, draw
from atelier.training.sampling.start_picture import StartPicture

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))   # for what benchmarks share, where this runs by itself
from benchmarks.support.machine import describe_machine, in_words  # noqa: E402

RESULTS, DOCUMENT = ROOT / "benchmarks" / "results" / "second_opinions.json", ROOT / "docs" / "second_opinions.md"
FAMILIES = ("sd1", "sdxl")
SIDE, STEPS, GUIDANCE, SEED = 64, 6, 4.0, 5
PROMPT, NEGATIVE = "a photo of a fox in the snow", "mud"
LONG = "a photo of a fox, " * 20   # more than one chunk of 75 tokens
INSIDE = (40, 0, 64, 64)   # of a picture whose right half is painted anew: past the edge, which we blend
# Our names → diffusers' classes with their options.
CLASSES: dict[str, tuple[str, dict[str, object]]] = {
    "ddim": ("DDIMScheduler", {}), "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++ sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}), "euler": ("EulerDiscreteScheduler", {}),
    "euler a": ("EulerAncestralDiscreteScheduler", {}), "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}   # fmt: skip
SCHEDULES: dict[str, dict[str, object]] = {
    "karras": {"use_karras_sigmas": True}, "exponential": {"use_exponential_sigmas": True},
    "leading": {"timestep_spacing": "leading"}, "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
}   # fmt: skip
RESPACED = ("dpm++", "dpm++ sde", "unipc", "euler", "heun")   # the samplers with karras and exponential
HEAD = """# Second opinions on drawing

{title} Written by
`python tests/second_opinions.py` ({machine}).

{about}

A difference of 1 is one step of the 255 of a colour: both sides round to whole numbers. *What the feature changes* is
the largest difference between our drawing with and without it, or with another value.

| Feature | {families} | What the feature changes |
|---|{dashes}---|
"""


@dataclass(frozen=True, slots=True)
class Opinion:
    """One feature: how we draw with it, how diffusers does, and how we draw without it."""

    name: str
    ours: Callable[[], Image.Image]
    theirs: Callable[[], Image.Image]
    other: Callable[[], Image.Image]
    box: tuple[int, int, int, int] = (0, 0, 10**6, 10**6)   # what is compared

    def differences(self) -> tuple[int, int]:
        """Of ours and theirs, and of ours with and without the feature, of 255."""
        ours = self.ours()
        return _apart(ours, self.theirs(), self.box), _apart(ours, self.other(), self.box)


class Side:
    """A small base of a family, how we draw with it, and diffusers' pipelines over the same parts."""

    def __init__(self, family: str, folder: Path) -> None:
        configurations = families.write_configurations(folder / "configurations", family)
        self.folder = str(families.write_models(folder, family, configurations=configurations)[0])
        self.model, self.xl, self.files = load(self.folder, "cpu"), family == "sdxl", folder

    def ours(self, mix: Mix = Mix(), start: StartPicture | None = None, savings: DrawSavings = DrawSavings(),
             inversions: tuple[TextualInversion, ...] = (), **settings: Any) -> Image.Image:   # fmt: skip
        """What we draw."""
        given = {"prompt": PROMPT, "negative": NEGATIVE, "seed": SEED, "steps": STEPS, "guidance": GUIDANCE,
                 "sampler": "ddim", "width": SIDE, "height": SIDE, **settings}   # fmt: skip
        return draw(self.model, DrawRequest(**given), mix, start=start,
                    cache=DrawCache(savings, inversions))[0]   # fmt: skip

    def pipeline(
        self, task: str = "", model: BaseModel | None = None, sampler: str = "ddim", schedule: str = ""
    ) -> Any:
        """diffusers' pipeline for a task, with its own scheduler of the model's noise schedule."""
        model = model or self.model
        name = f"StableDiffusion{'XL' if self.xl else ''}{task}Pipeline"
        kind, options = CLASSES[sampler]
        config = model.scheduler.config
        options = {"timestep_spacing": config.timestep_spacing, **options, **SCHEDULES.get(schedule, {})}
        parts = {part: getattr(model, part) for part in ("vae", "text_encoder", "tokenizer", "unet")}
        parts |= {"scheduler": getattr(diffusers, kind).from_config(config, **options)}
        if self.xl:
            parts |= {part: getattr(model, part) for part in ("text_encoder_2", "tokenizer_2")}
            parts |= {"add_watermarker": False}
        else:
            parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        made = getattr(diffusers, name)(**parts)
        made.set_progress_bar_config(disable=True)
        return made

    def theirs(self, pipeline: Any, generator: torch.Generator | None = None, **settings: Any) -> Image.Image:
        """What it draws."""
        given: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, **settings}
        if "prompt_embeds" not in given:
            given = {"prompt": PROMPT, "negative_prompt": NEGATIVE, **given}
        if "image" not in given:
            given |= {"width": SIDE, "height": SIDE}
        with torch.inference_mode():
            return pipeline(**given, generator=generator or torch.Generator().manual_seed(SEED)).images[0]


def opinions(side: Side) -> Iterator[Opinion]:
    """Every feature."""
    yield from _samplers(side)
    yield from _starts(side)
    yield from _enlarged(side)
    yield from _prompts(side)
    yield from _others(side)


def _samplers(side: Side) -> Iterator[Opinion]:
    pairs = [(sampler, "auto") for sampler in CLASSES]
    pairs += [(sampler, schedule) for sampler in RESPACED for schedule in ("karras", "exponential")]
    pairs += [(sampler, schedule) for sampler in ("ddim", "dpm++", "euler a")
              for schedule in ("leading", "linspace", "trailing")]   # fmt: skip
    for sampler, schedule in pairs:
        name = f"text to image: {sampler}" + (f", {schedule}" if schedule != "auto" else "")
        other = {"sampler": "euler a" if sampler == "ddim" else "ddim"} if schedule == "auto" else {
            "sampler": sampler, "schedule": "trailing" if schedule == "leading" else "auto"}   # fmt: skip
        yield Opinion(name, lambda s=sampler, c=schedule: side.ours(sampler=s, schedule=c),
                      lambda s=sampler, c=schedule: side.theirs(side.pipeline(sampler=s, schedule=c)),
                      lambda o=other: side.ours(**o))   # fmt: skip


def _starts(side: Side) -> Iterator[Opinion]:
    for sampler in ("ddim", "dpm++", "dpm++ sde", "unipc", "euler", "euler a"):
        yield Opinion(
            f"image to image: {sampler}",
            lambda s=sampler: side.ours(sampler=s, start=StartPicture(picture(), 0.7)),
            lambda s=sampler: side.theirs(side.pipeline("Img2Img", sampler=s), image=picture(), strength=0.7),
            lambda s=sampler: side.ours(sampler=s))
    for strength, sampler in ((0.7, "dpm++"), (1.0, "euler")):
        given = {"image": picture(), "mask_image": half_mask(), "strength": strength, "width": SIDE, "height": SIDE}
        yield Opinion(
            f"inpainting: {sampler}, strength {strength}",
            lambda s=sampler, f=strength: side.ours(sampler=s, start=StartPicture(picture(), f, half_mask())),
            lambda s=sampler, g=given: side.theirs(side.pipeline("Inpaint", sampler=s), **g),
            lambda s=sampler: side.ours(sampler=s), INSIDE)   # fmt: skip


def _enlarged(side: Side) -> Iterator[Opinion]:
    for upscaler in ("latent", "lanczos"):
        settings = {"upscale": 2.0, "upscaler": upscaler, "upscale_strength": 0.6, "upscale_steps": 10}
        yield Opinion(f"hires fix: {upscaler}", lambda given=settings: side.ours(**given),
                      lambda way=upscaler: _second_pass(side, way),
                      lambda: side.ours().resize((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS))   # fmt: skip


def _second_pass(side: Side, upscaler: str) -> Image.Image:
    """diffusers' drawing, enlarged, and its image to image with the noise that the same generator gives next."""
    small = side.theirs(side.pipeline(), output_type="latent")
    large: Any = F.interpolate(small[None].float(), scale_factor=2, mode="bilinear", antialias=True)
    if upscaler == "lanczos":
        large = side.theirs(side.pipeline()).resize((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS)
    generator = torch.Generator().manual_seed(SEED)
    torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=generator)
    return side.theirs(side.pipeline("Img2Img"), generator, image=large, strength=0.6, num_inference_steps=10)


def _prompts(side: Side) -> Iterator[Opinion]:
    def embedded(prompt: list[str], weights: list[float] | None = None) -> Callable[[], Image.Image]:
        """diffusers' drawing from its own embeddings of each chunk, one after the other."""
        def theirs() -> Image.Image:
            """The drawing."""
            return side.theirs(side.pipeline(), **_embeddings(side, prompt, weights))

        return theirs

    for skip in (1, 2) if not side.xl else (1,):
        # Without guidance: diffusers leaves the layers of the negative prompt in, here both are read alike.
        yield Opinion(f"clip skip {skip}", lambda n=skip: side.ours(clip_skip=n, guidance=1.0),
                      lambda n=skip: _skipping(side, n),
                      lambda: side.ours(guidance=1.0))   # fmt: skip
    tokens = side.model.tokenizer(LONG, add_special_tokens=False).input_ids
    cut = [side.model.tokenizer.decode(tokens[first : first + 75]) for first in range(0, len(tokens), 75)]
    yield Opinion("a prompt of three chunks" if len(cut) == 3 else f"a prompt of {len(cut)} chunks",
                  lambda: side.ours(prompt=LONG), embedded(cut),
                  lambda: side.ours(prompt=LONG, prompt_syntax="plain"))   # fmt: skip
    yield Opinion("BREAK", lambda: side.ours(prompt="a fox BREAK in the snow"), embedded(["a fox", "in the snow"]),
                  lambda: side.ours(prompt="a fox in the snow"))
    words = side.model.tokenizer("a red fox", add_special_tokens=False).input_ids
    weights = [1.0, *(1.4 if word == words[1] else 1.0 for word in words)]
    yield Opinion("a weight, (red:1.4)", lambda: side.ours(prompt="a (red:1.4) fox"), embedded(["a red fox"], weights),
                  lambda: side.ours(prompt="a red fox"))


def _skipping(side: Side, layers: int) -> Image.Image:
    """In transformers 5 the text model of the encoder is the encoder itself; diffusers still asks for it."""
    kind = type(side.model.text_encoder)
    with patch.object(kind, "text_model", property(lambda self: self), create=True):
        return side.theirs(side.pipeline(), clip_skip=layers, guidance_scale=1.0)


def _embeddings(side: Side, chunks: list[str], weights: list[float] | None) -> dict[str, Any]:
    """diffusers' embeddings of every chunk; weights as A1111 applies them: multiplied, and the mean restored."""
    pipeline = side.pipeline()
    with torch.inference_mode():
        given = {"device": torch.device("cpu"), "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
        found = [pipeline.encode_prompt(prompt=chunk, negative_prompt=NEGATIVE, **given) for chunk in chunks]
        blank = pipeline.encode_prompt(prompt="", negative_prompt=NEGATIVE, **given)[0]
    positive = torch.cat([each[0] for each in found], 1)
    if weights is not None:
        scale = torch.ones(positive.shape[1])
        scale[: len(weights)] = torch.tensor(weights)
        weighted = positive * scale[:, None]
        positive = weighted * (positive.mean() / weighted.mean())
    negative = torch.cat([found[0][1], *[blank] * (len(found) - 1)], 1)
    embeddings = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    if side.xl:
        embeddings |= {"pooled_prompt_embeds": found[0][2], "negative_pooled_prompt_embeds": found[0][3]}
    return embeddings


def _others(side: Side) -> Iterator[Opinion]:
    yield Opinion("guidance rescale 0.7", lambda: side.ours(guidance=9.0, guidance_rescale=0.7),
                  lambda: side.theirs(side.pipeline(), guidance_scale=9.0, guidance_rescale=0.7),
                  lambda: side.ours(guidance=9.0))   # fmt: skip
    mix, file = _lora(side)
    for name, savings in (("merged", DrawSavings()), ("mounted", DrawSavings(mount=True))):
        yield Opinion(f"a LoRA of UNet and text encoders at 0.8, {name}", lambda s=savings: side.ours(mix, savings=s),
                      lambda: _with_lora(side, file), side.ours)   # fmt: skip
    word = _word(side)
    prompt = "a photo of <fox>, in the snow"
    yield Opinion("a textual inversion of 3 vectors", lambda: side.ours(prompt=prompt, inversions=(word,)),
                  lambda: _with_word(side, word, prompt), lambda: side.ours(prompt=prompt))


def _lora(side: Side) -> tuple[Mix, Path]:
    """A LoRA with random values, and its file as diffusers reads it."""
    torch.manual_seed(1)
    adapters = create_adapters("lora", {"rank": 4}, find_targets(side.model.models(), "transformer"))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_(std=0.15)
    info = AdapterInfo(name="fox", family=side.model.info.family)
    save_adapter(side.files / "native.safetensors", adapters, info.to_metadata())
    export_mix([(side.files / "native.safetensors", 1.0)], side.files / "lora.safetensors", "diffusers")
    return Mix(((adapters, 0.8),)), side.files / "lora.safetensors"


def _with_lora(side: Side, file: Path) -> Image.Image:
    pipeline = side.pipeline(model=load(side.folder, "cpu"))
    pipeline.load_lora_weights(file, adapter_name="fox")
    pipeline.set_adapters("fox", 0.8)
    return side.theirs(pipeline)


def _word(side: Side) -> TextualInversion:
    """A word with random vectors for each text encoder."""
    generator = torch.Generator().manual_seed(3)
    names = ("text_encoder", "text_encoder_2")
    vectors = {name: torch.randn(3, encoder.get_input_embeddings().embedding_dim, generator=generator)
               for name, encoder in zip(names, side.model.text_encoders, strict=False)}   # fmt: skip
    return TextualInversion("<fox>", side.model.info.family, vectors)


def _with_word(side: Side, word: TextualInversion, prompt: str) -> Image.Image:
    pipeline = side.pipeline(model=load(side.folder, "cpu"))
    for name, vectors in word.vectors.items():
        tokenizer = getattr(pipeline, name.replace("text_encoder", "tokenizer"))
        encoder = getattr(pipeline, name)
        pipeline.load_textual_inversion({word.token: vectors}, token=word.token, text_encoder=encoder,
                                        tokenizer=tokenizer)
        # Where a configuration leaves the end open, the largest id is taken for it: those of new words are larger.
        encoder.config.eos_token_id = encoder.eos_token_id = tokenizer.eos_token_id
    return side.theirs(pipeline, prompt=prompt)


def picture() -> Image.Image:
    """A blue disc on yellow."""
    drawn = Image.new("RGB", (SIDE, SIDE), (240, 200, 60))
    ImageDraw.Draw(drawn).ellipse((SIDE // 4, SIDE // 4, 3 * SIDE // 4, 3 * SIDE // 4), fill=(40, 90, 200))
    return drawn


def half_mask() -> Image.Image:
    """The right half is painted anew."""
    mask = Image.new("L", (SIDE, SIDE), 0)
    ImageDraw.Draw(mask).rectangle((SIDE // 2, 0, SIDE, SIDE), fill=255)
    return mask


def _apart(one: Image.Image, other: Image.Image, box: tuple[int, int, int, int]) -> int:
    box = (box[0], box[1], min(box[2], one.width), min(box[3], one.height))
    a, b = (np.asarray(each.convert("RGB").crop(box), dtype=int) for each in (one, other))
    return int(np.abs(a - b).max())


@contextmanager
def means() -> Iterator[None]:
    """diffusers takes the mean of the VAE's posterior in place of a sample, as we do: nothing is left to chance."""
    modules = [sys.modules[kind.__module__] for kind in (
        diffusers.StableDiffusionImg2ImgPipeline, diffusers.StableDiffusionInpaintPipeline,
        diffusers.StableDiffusionXLImg2ImgPipeline, diffusers.StableDiffusionXLInpaintPipeline)]   # fmt: skip

    def mode(output: Any, **_: object) -> Tensor:
        """The mean."""
        return output.latent_dist.mode()

    patches = [patch.object(module, "retrieve_latents", mode) for module in modules]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


def measure(family: str, only: str = "") -> dict[str, tuple[int, int]]:
    """Both differences of every feature whose name contains ``only``."""
    with tempfile.TemporaryDirectory() as folder, means():
        found = {}
        for opinion in (each for each in opinions(Side(family, Path(folder))) if only in each.name):
            found[opinion.name] = opinion.differences()
            print(family, opinion.name, *found[opinion.name], flush=True)
        return found


def main() -> None:
    """Compare all, keep, and write the page."""
    parser = argparse.ArgumentParser(prog="python tests/second_opinions.py")
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    found = json.loads(RESULTS.read_text(encoding="utf-8"))["differences"] if RESULTS.exists() else {}
    for family in given.family:
        found[family] = {**found.get(family, {}), **measure(family, given.only)}
    result = {"machine": describe_machine(), "differences": found}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    DOCUMENT.write_text(page(result), encoding="utf-8")


def page(result: dict[str, Any]) -> str:
    """The document."""
    found = result["differences"]
    titles = {"sd1": "Stable Diffusion 1", "sdxl": "Stable Diffusion XL"}
    title, _usage, about = (__doc__ or "").strip().split("\n\n", 2)
    head = HEAD.format(title=title, about=about,
                       machine=in_words(result["machine"]), families=" | ".join(titles[each] for each in found),
                       dashes="---|" * len(found))   # fmt: skip
    rows = []
    for name in dict.fromkeys(name for family in found.values() for name in family):
        cells = [str(family[name][0]) if name in family else "" for family in found.values()]
        changes = min(family[name][1] for family in found.values() if name in family)
        rows.append(f"| {name} | {' | '.join(cells)} | {changes} |")
    return head + "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()

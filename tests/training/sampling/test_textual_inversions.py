"""Words of textual inversions in prompts: read as diffusers reads them, in every family, weighted and at any place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from families import write_configurations, write_models
from torch import Tensor
from torch.testing import assert_close

from atelier.adapters.textual_inversion import FIRST, SECOND, TextualInversion, word_pattern
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.sampling.draw_cache import DrawCache
from atelier.training.sampling.prompt_encoding import WEIGHTS, PromptReading, chunks, encode_prompt
from atelier.training.sampling.sample import DrawRequest, draw

PROMPT = "a photo of <fox>, and of a cat"


def word(model: BaseModel, token: str = "<fox>", count: int = 3) -> TextualInversion:
    """A word with random vectors for the text encoders of a model."""
    names = (FIRST, SECOND)[: len(model.text_encoders)]
    generator = torch.Generator().manual_seed(3)
    vectors = {name: torch.randn(count, encoder.get_input_embeddings().embedding_dim, generator=generator)
               for name, encoder in zip(names, model.text_encoders, strict=True)}   # fmt: skip
    return TextualInversion(token, model.info.family, vectors)


def of_diffusers(model: BaseModel, one: TextualInversion, prompt: str) -> tuple[Tensor, Tensor | None]:
    """What its own loader and its own pipeline make of the prompt: features, and the pooled embedding."""
    with_pooled = len(model.text_encoders) == 2
    parts = {name: getattr(model, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    if with_pooled:
        second = {"text_encoder_2": model.text_encoder_2, "tokenizer_2": model.tokenizer_2}
        pipeline: Any = diffusers.StableDiffusionXLPipeline(**parts, **second, add_watermarker=False)
    else:
        pipeline = diffusers.StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None,
                                                     requires_safety_checker=False)
    for name, vectors in one.vectors.items():
        tokenizer = getattr(pipeline, name.replace("text_encoder", "tokenizer"))
        pipeline.load_textual_inversion({one.token: vectors}, token=one.token, text_encoder=getattr(pipeline, name),
                                        tokenizer=tokenizer)
        # Where a configuration leaves it open, the largest id is taken for the end: the new ones are larger.
        getattr(pipeline, name).config.eos_token_id = tokenizer.eos_token_id
        getattr(pipeline, name).eos_token_id = tokenizer.eos_token_id
    with torch.inference_mode():
        found = pipeline.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    return found[0], found[2] if with_pooled else None


@pytest.mark.parametrize("family", ["embedded", *(pytest.param(each, marks=pytest.mark.slow)
                                                  for each in ("sd1", "sd2", "sdxl"))])
def test_a_word_is_read_as_diffusers_reads_it(base: Path, tmp_path: Path, family: str) -> None:
    folder = str(base)
    if family != "embedded":
        configurations = write_configurations(tmp_path / "configurations", family)
        folder = str(write_models(tmp_path, family, configurations=configurations)[0])
    model = load(folder, "cpu")
    one = word(model)
    assert one.family == family
    ours = encode_prompt(model, PROMPT, PromptReading(WEIGHTS, inversions=(one,)))
    features, pooled = of_diffusers(load(folder, "cpu"), one, PROMPT)
    assert_close(ours.features, features, rtol=0, atol=1e-5)
    plain = encode_prompt(model, PROMPT, PromptReading(WEIGHTS))
    assert not torch.allclose(plain.features, features, atol=1e-2)
    if pooled is not None and ours.pooled is not None:
        assert_close(ours.pooled, pooled, rtol=0, atol=1e-5)


def test_words_are_found_whole_in_any_case_and_the_longest_first() -> None:
    pattern = word_pattern(["zwx", "<zwx>", "easy-neg (v2)"])
    assert pattern.findall("ZWX <zwx>,zwxy EASY-neg (v2)") == ["ZWX", "<zwx>", "EASY-neg (v2)"]
    assert not word_pattern([]).search("anything")


def test_a_word_has_its_weight_and_counts_its_vectors(model: BaseModel) -> None:
    one = word(model, count=2)
    [chunk] = chunks(model.tokenizer, "a (<FOX>:1.5) fox", {"<fox>": one.vectors[FIRST]})
    [without] = chunks(model.tokenizer, "a fox")
    size = len(model.tokenizer("a", add_special_tokens=False).input_ids)
    assert list(chunk.vectors) == [size + 1, size + 2]
    assert [chunk.weights[place] for place in chunk.vectors] == [1.5, 1.5]
    assert sum(id != model.tokenizer.pad_token_id for id in chunk.ids) >= sum(
        id != model.tokenizer.pad_token_id for id in without.ids)
    assert torch.equal(chunk.vectors[size + 2], one.vectors[FIRST][1])


def test_a_drawing_uses_the_word_in_both_prompts_and_leaves_the_encoder_as_it_was(model: BaseModel) -> None:
    one, request = word(model), DrawRequest(prompt="a <fox>", negative="<fox>", seed=1, steps=2)
    def pixels(request: DrawRequest, *inversions: TextualInversion) -> bytes:
        return draw(model, request, cache=DrawCache(inversions=inversions))[0].tobytes()

    table = model.text_encoder.get_input_embeddings()
    before = table.weight.clone()
    without, both = pixels(request), pixels(request, one)
    first = DrawRequest(prompt="a <fox>", negative="fox", seed=1, steps=2)
    assert len({without, both, pixels(first, one)}) == 3
    assert pixels(request) == without and torch.equal(table.weight, before) and not table._forward_hooks
    plain = DrawRequest(prompt="a <fox>", seed=1, steps=2, prompt_syntax="plain")
    assert pixels(plain) == pixels(plain, one)   # every sign is a word

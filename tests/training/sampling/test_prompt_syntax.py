"""Prompts with weights, BREAK and adapters, and what the weights do to embeddings."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from atelier.training.base_models.base_model import BaseModel
from atelier.training.data.latent_cache import encode_text, tokenize
from atelier.training.sampling.prompt_encoding import (
    WEIGHTS,
    PromptReading,
    chunks,
    count_tokens,
    encode_prompt,
    same_length,
)
from atelier.training.sampling.prompt_syntax import parse_weights, split_adapters

READING = PromptReading(WEIGHTS)
# From the examples in A1111's modules/prompt_parser.py and its documentation.
PARSED = {
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    r"\(literal\]": [("(literal]", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0), ("house", 1.573), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1),
        ("sky", 1.4641), (".", 1.1)],
    "a:1.2) b": [("a:1.2) b", 1.0)],
    "at 5:30 (x:y:-.5 )": [("at 5:30 ", 1.0), ("x:y", -0.5)],
    "": [],
}   # fmt: skip


@pytest.mark.parametrize("prompt", PARSED)
def test_weights_are_read_as_a1111_reads_them(prompt: str) -> None:
    [found] = parse_weights(prompt)
    assert [piece.text for piece in found] == [text for text, _ in PARSED[prompt]]
    assert [piece.weight for piece in found] == pytest.approx([weight for _, weight in PARSED[prompt]])


def test_break_begins_a_new_part_and_is_a_word_of_its_own() -> None:
    assert [[piece.text for piece in part] for part in parse_weights("a BREAK b BREAK")] == [["a "], [" b "], []]
    assert len(parse_weights("BREAKFAST unBREAKable")) == 1


@pytest.mark.parametrize(("prompt", "left", "found"), [
    ("a <lora:rex v2.1:0.8> fox", "a fox", [("rex v2.1", 0.8)]),
    ("<lora:a><lora:b:-1.5:2>", "", [("a", 1.0), ("b", -1.5)]),
    ("x\ny <lyco:k:nan> z", "x\ny z", [("k", 1.0)]),
    ("a < b > c <lora> <lora:>", "a < b > c <lora> <lora:>", []),
])   # fmt: skip
def test_adapters_are_taken_out_of_a_prompt(prompt: str, left: str, found: list[tuple[str, float]]) -> None:
    assert split_adapters(prompt) == (left, found)


def test_a_plain_prompt_reads_as_ever(model: BaseModel) -> None:
    prompt = "a 3d emoji of a fox, on a blue background"
    ours, plain = encode_prompt(model, prompt, READING), encode_text(model, tokenize(model, [prompt]))
    assert_close(ours.features, plain.features, rtol=0, atol=0)
    assert encode_prompt(model, prompt, READING, copies=3).features.shape[0] == 3


def test_a_weight_multiplies_the_embedding_and_keeps_the_mean(model: BaseModel) -> None:
    plain = encode_prompt(model, "a red fox", READING).features[0]
    ours = encode_prompt(model, "a (red:1.5) fox", READING).features[0]
    first = len(model.tokenizer("a", add_special_tokens=False).input_ids) + 1
    last = first + len(model.tokenizer("red", add_special_tokens=False).input_ids)
    expected = plain.clone()
    expected[first:last] *= 1.5
    assert_close(ours, expected * plain.mean() / expected.mean())
    assert not torch.allclose(ours, plain)


def test_long_prompts_and_break_become_chunks_that_are_read_one_by_one(model: BaseModel) -> None:
    length = model.tokenizer.model_max_length
    words = "a red fox and a blue owl and a green cat and a pink dog and a gray bear and a white duck in snow"
    cut = chunks(model.tokenizer, words)
    assert len(cut) == -(-count_tokens(model.tokenizer, words) // (length - 2)) >= 2
    assert all(len(chunk.ids) == length for chunk in cut)
    features = encode_prompt(model, words, READING).features
    assert features.shape[1] == length * len(cut)
    second = encode_text(model, torch.tensor([cut[1].ids])).features
    assert_close(features[:, length : 2 * length], second, rtol=0, atol=0)
    both = encode_prompt(model, "a fox BREAK an owl", READING).features
    for i, prompt in enumerate(("a fox", "an owl")):
        alone = encode_text(model, tokenize(model, [prompt])).features
        assert_close(both[:, i * length : (i + 1) * length], alone, rtol=0, atol=0)


def test_prompts_of_different_lengths_fit_into_one_batch(model: BaseModel) -> None:
    long, short = (encode_prompt(model, prompt, READING) for prompt in ("a BREAK b BREAK c", "mud"))
    first, second = same_length(model, [long, short], READING)
    assert_close(first.features, long.features, rtol=0, atol=0)
    assert second.features.shape == long.features.shape
    length = model.tokenizer.model_max_length
    assert_close(second.features[:, length : 2 * length], encode_prompt(model, "", READING).features, rtol=0, atol=0)

"""Training a retriever: on adapters made of known directions it finds what it never met, and only then."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from atelier.adapters.core.base import Spec
from atelier.adapters.kinds.catalog import create_adapters
from atelier.adapters.retrieval import RetrieverSizes, load_retriever
from atelier.training.base_models.bundled import RETRIEVER, text_encoder_hash
from atelier.training.base_models.identify import EMBEDDED_FOLDER
from atelier.training.embedded_base.train_retriever import (
    RANK,
    EncodedPrompts,
    StackedAdapters,
    attention_layers,
    best_share,
    chance_scores,
    contrast,
    stack_adapters,
    train,
)
from atelier.training.sampling.prompt_features import PromptEncoder

TEXT, LAYERS = 24, [
    Spec(f"unet.mid_block.attentions.0.transformer_blocks.0.{name}", shape)
    for name, shape in {"attn1.to_q": (10, 10), "attn2.to_k": (10, 24), "attn2.to_v": (10, 24)}.items()
]
TAUGHT, HELD_OUT = 60, 30


def adapters_of(words: Tensor, rng: torch.Generator) -> StackedAdapters:
    """A change along each word's features, under noise of half the size; self-attention knows nothing of words."""
    ups, downs = {}, {}
    for spec in LAYERS:
        up, down = torch.zeros(len(words), spec.rows, RANK), torch.zeros(len(words), RANK, spec.columns)
        up[:, :, :2] = torch.randn(len(words), spec.rows, 2, generator=rng)
        down[:, :2] = 0.5 * torch.randn(len(words), 2, spec.columns, generator=rng)
        if spec.columns == TEXT:
            down[:, 0] += words
        ups[spec.name], downs[spec.name] = up, down
    return StackedAdapters(ups, downs)


def prompts_of(words: Tensor, rng: torch.Generator) -> EncodedPrompts:
    """Two prompts each: the word, and an end that says it less clearly."""
    features = torch.stack([words, 0.5 * words], 1)[:, None].repeat(1, 2, 1, 1)
    features = features + 0.2 * torch.randn(features.shape, generator=rng)
    mask, equivalent = torch.ones(len(words), 2, 2, dtype=torch.bool), torch.eye(len(words), dtype=torch.bool)
    return EncodedPrompts(features, mask, equivalent)


def part_of(adapters: StackedAdapters, chosen: slice) -> StackedAdapters:
    ups, downs = ({name: value[chosen] for name, value in side.items()} for side in (adapters.ups, adapters.downs))
    return StackedAdapters(ups, downs)


def test_it_finds_what_it_never_met_and_with_shuffled_captions_nothing():
    rng = torch.Generator().manual_seed(0)
    words = torch.randn(TAUGHT + HELD_OUT, TEXT, generator=rng)
    dataset, prompts = adapters_of(words, rng), prompts_of(words, rng)
    part = EncodedPrompts(prompts.features[:TAUGHT], prompts.mask[:TAUGHT], prompts.equivalent[:TAUGHT, :TAUGHT])
    learned = part_of(dataset, slice(0, TAUGHT))
    retriever = train(learned, part, LAYERS, RetrieverSizes(TEXT, echo=12, view=2, width=16, heads=2), steps=60)
    rest = torch.arange(TAUGHT, TAUGHT + HELD_OUT)
    rows = retriever.encode(dataset.probe(rest))

    def found_first(captions: Tensor) -> float:
        words = retriever.encode_words(prompts.features[captions, 0], prompts.mask[captions, 0])
        return ((words @ rows.T).argmax(1) == torch.arange(HELD_OUT)).float().mean().item()

    assert found_first(rest) >= 0.6   # chance is 1/30
    back = EncodedPrompts(prompts.features[rest], prompts.mask[rest], prompts.equivalent[TAUGHT:, TAUGHT:])
    held = part_of(dataset, slice(TAUGHT, None))
    assert best_share(retriever, held, back) >= 0.8   # only the echo can know these
    assert found_first(rest.roll(7)) <= 4 / HELD_OUT   # five of thirty by chance: 0.3 %


def test_the_loss_is_what_the_formula_says():
    a, b, c, d = 1.2, -0.3, 0.4, 0.9
    right = [math.exp(a) / (math.exp(a) + math.exp(b)), math.exp(d) / (math.exp(c) + math.exp(d)),
             math.exp(a) / (math.exp(a) + math.exp(c)), math.exp(d) / (math.exp(b) + math.exp(d))]   # fmt: skip
    expected = -sum(math.log(share) for share in right) / 2
    found = contrast(torch.tensor([[a, b], [c, d]]), torch.zeros(2, 2, dtype=torch.bool))
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [2, 32])
def test_at_chance_the_loss_is_twice_the_logarithm(count: int):
    found = contrast(torch.full((count, count), 0.7), torch.eye(count, dtype=torch.bool))
    assert found.item() == pytest.approx(2 * math.log(count), rel=1e-6)


def test_what_would_be_right_as_well_does_not_count_as_wrong():
    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    scores = torch.tensor([[1.0, 50.0, 0.0], [50.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    one = math.log(math.e / (math.e + 1))
    three = math.log(math.e / (math.e + 2))
    assert contrast(scores, same).item() == pytest.approx(-2 * (2 * one + three) / 3, rel=1e-6)


def test_a_stack_answers_as_its_adapters_do():
    torch.manual_seed(1)
    sets = [create_adapters(kind, {}, LAYERS[1:]) for kind in ("lora", "loha", "lokr", "dora")]
    weights = {spec.name: torch.randn(spec.shape) for spec in LAYERS}
    with torch.no_grad():
        for value in (value for adapters in sets for value in adapters.parameters()):
            value.add_(torch.randn_like(value))
    every, probes = stack_adapters(sets, LAYERS, weights.__getitem__), torch.randn(3, TEXT)
    for spec in LAYERS[1:]:
        answers = every.probe(torch.tensor([3, 0, 1, 2]))(spec, probes)
        for row, number in enumerate((3, 0, 1, 2)):
            dense = sets[number][spec.name].delta(weights[spec.name])
            torch.testing.assert_close(answers[row], probes @ dense.T, rtol=1e-4, atol=1e-4)
    missing = every.probe(torch.arange(4))(LAYERS[0], torch.randn(3, 10))
    assert missing.shape == (4, 3, 10) and not missing.any()


def test_words_are_what_stands_between_start_and_first_end():
    prompt_encoder = PromptEncoder.load()
    features, prompts = prompt_encoder(["a fox", ""])
    assert features.shape[2] == prompt_encoder.width == 192
    words = prompt_encoder.tokenizer.tokenize("a fox")
    assert prompts.sum(1).tolist() == [len(words) + 1, 1] and not prompts[:, 0].any()


def test_chance_is_what_unrelated_adapters_score():
    rng = torch.Generator().manual_seed(0)
    words = torch.randn(12, TEXT, generator=rng)
    dataset, prompts = adapters_of(words, rng), prompts_of(words, rng)
    retriever = train(dataset, prompts, LAYERS, RetrieverSizes(TEXT, echo=6, view=1, width=8, heads=2), steps=2)
    first = retriever.encode_words(prompts.features[:, 0], prompts.mask[:, 0])
    rows = retriever.encode(dataset.probe(torch.arange(12)))
    unrelated = [float(first[i] @ rows[j]) for i in range(12) for j in range(12) if i != j]
    mean, deviation = chance_scores(retriever, dataset, prompts).tolist()
    assert mean == pytest.approx(torch.tensor(unrelated).mean().item(), abs=1e-5)
    assert deviation == pytest.approx(torch.tensor(unrelated).std().item(), abs=1e-5)


def test_the_shipped_retriever_is_for_the_shipped_base():
    retriever, known = load_retriever(RETRIEVER)
    assert known["family"] == "embedded" and known["text_encoder"] == text_encoder_hash()
    assert list(retriever.layers) == attention_layers()
    assert RETRIEVER.stat().st_size <= 3_000_000 and EMBEDDED_FOLDER.exists()

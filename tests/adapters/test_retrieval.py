"""The retriever reads ΔW and nothing else: any way to write the same change gives the same embedding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from atelier.adapters.core.base import AdapterSet, BaseStatistics, Spec
from atelier.adapters.formats.low_rank import lora_from_factors
from atelier.adapters.formats.safetensors_header import FileError
from atelier.adapters.kinds.catalog import KINDS, create_adapters
from atelier.adapters.retrieval import RetrieveError, Retriever, RetrieverSizes, load_retriever, save_retriever

BLOCK = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
SHAPES = {"attn1.to_q": (10, 10), "attn2.to_k": (10, 12), "attn2.to_v": (10, 12), "attn2.to_out.0": (10, 10)}
LAYERS = [Spec(f"{BLOCK}.{name}", shape) for name, shape in SHAPES.items()]
OTHER = Spec("unet.conv_in", (10, 4, 3, 3))
SIZES = RetrieverSizes(12, echo=6, view=2, width=8, heads=2)
WEIGHTS = {spec.name: torch.randn(spec.shape, generator=torch.Generator().manual_seed(i))
           for i, spec in enumerate([*LAYERS, OTHER])}   # fmt: skip


@pytest.fixture
def retriever() -> Retriever:
    return Retriever(LAYERS, SIZES).double().requires_grad_(False)


def pairs(rank: int = 3, layers: list[Spec] = LAYERS, seed: int = 1) -> dict[Spec, tuple[Tensor, Tensor]]:
    dice = torch.Generator().manual_seed(seed)
    return {spec: (torch.randn(spec.rows, rank, generator=dice), torch.randn(rank, spec.columns, generator=dice))
            for spec in layers}   # fmt: skip


def embedded(retriever: Retriever, adapters: AdapterSet) -> Tensor:
    return retriever.embed(adapters, WEIGHTS.__getitem__)


def turned(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """(up G⁻¹, G down) with a G of GL(r) that is far from orthogonal."""
    g = torch.randn(len(down), len(down), generator=torch.Generator().manual_seed(5)) + 2 * torch.eye(len(down))
    return up @ torch.linalg.inv(g), g @ down


def padded(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Two directions more that do nothing."""
    return torch.cat([up, torch.zeros(len(up), 2)], 1), torch.cat([down, torch.ones(2, down.shape[1])])


def decomposed(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The pair that the SVD of the product gives."""
    u, s, v = torch.linalg.svd((up.double() @ down.double()), full_matrices=False)
    return (u[:, : len(down)] * s[: len(down)]).float(), v[: len(down)].float()


def stronger(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same at four times the strength."""
    return up * 2, down * 2


@pytest.mark.parametrize("rewrite", [turned, padded, decomposed, stronger])
def test_one_change_has_one_embedding_however_it_is_written(
    retriever: Retriever, rewrite: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
):
    plain = pairs()
    again = {spec: rewrite(*pair) for spec, pair in plain.items()}
    # The rewritten factors are rounded to float32, which is all that may be left of the difference.
    once, twice = (embedded(retriever, lora_from_factors(pairs)) for pairs in (plain, again))
    assert_close(twice, once, rtol=0, atol=3e-6)
    others = embedded(retriever, lora_from_factors(pairs(seed=2)))
    assert (others - embedded(retriever, lora_from_factors(plain))).norm() > 0.1


def test_alpha_is_folded_into_the_change(retriever: Retriever):
    """A scale that differs from layer to layer changes the whole; the same in the factors or in alpha is the same."""
    def one(alpha: float, factor: float) -> AdapterSet:
        adapters = create_adapters("lora", {"rank": 3, "alpha": alpha}, LAYERS)
        with torch.no_grad():
            for adapter, (up, down) in zip(adapters, pairs().values(), strict=True):
                adapter.get_parameter("up").copy_(up * factor)
                adapter.get_parameter("down").copy_(down)
        return adapters.requires_grad_(False)

    assert_close(embedded(retriever, one(6, 1)), embedded(retriever, one(3, 2)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"split"}))
def test_a_kind_and_the_lora_that_does_the_same_are_alike(retriever: Retriever, kind: str):
    torch.manual_seed(3)
    adapters = create_adapters(kind, {}, LAYERS)
    with torch.no_grad():
        for adapter in adapters:
            weight = WEIGHTS[adapter.spec.name]
            adapter.initialize(BaseStatistics(weight, gradient=torch.randn_like(weight)))
        for value in adapters.parameters():
            value.add_(torch.randn_like(value) * 0.3)
    adapters.requires_grad_(False)
    dense = {spec: adapters[spec.name].delta(WEIGHTS[spec.name]).flatten(1) for spec in LAYERS}
    assert all(change.any() for change in dense.values())
    same = lora_from_factors({spec: (change, torch.eye(spec.columns)) for spec, change in dense.items()})
    assert_close(embedded(retriever, adapters), embedded(retriever, same), rtol=0, atol=2e-5)


def test_layers_that_are_missing_or_do_nothing_take_no_part(retriever: Retriever):
    some, changed = pairs(layers=LAYERS[:2]), pairs()
    zero = {spec: some.get(spec, (torch.zeros(spec.rows, 1), torch.zeros(1, spec.columns))) for spec in LAYERS}
    foreign = {**some, **pairs(layers=[OTHER])}
    expected = embedded(retriever, lora_from_factors(some))
    assert expected.isfinite().all() and (expected - embedded(retriever, lora_from_factors(changed))).norm() > 0.05
    for adapters in (lora_from_factors(zero), lora_from_factors(foreign)):
        assert_close(embedded(retriever, adapters), expected, rtol=0, atol=1e-6)


def test_what_can_not_be_compared_says_so(retriever: Retriever):
    other_layers = (lora_from_factors(pairs(layers=[OTHER])), lora_from_factors(pairs(layers=LAYERS[:1])))
    for adapters in (*other_layers, create_adapters("lora", {}, LAYERS)):
        with pytest.raises(RetrieveError, match="no layer"):
            embedded(retriever, adapters)


def test_embeddings_have_length_one_and_words_end_where_they_end(retriever: Retriever):
    features, mask = torch.randn(2, 7, 12).double(), torch.zeros(2, 7, dtype=torch.bool)
    mask[0, 1:4], mask[1, 1:6] = True, True
    words = retriever.encode_words(features, mask)
    assert_close(words.norm(dim=1), torch.ones(2).double())
    assert_close(embedded(retriever, lora_from_factors(pairs())).norm(), torch.tensor(1.0))
    features[0, 4:] = 100.0   # behind the end
    features[0, 0] = 100.0    # before the words
    assert_close(retriever.encode_words(features, mask), words)


def test_an_adapter_is_nearest_to_the_words_that_it_answers_to():
    """Without any training: a change along one direction of text features scores highest with that direction."""
    retriever = Retriever(LAYERS, RetrieverSizes(12, echo=12, view=1, width=8, heads=2)).double().requires_grad_(False)
    for probes in (retriever.echo.probes, retriever.echo.word_probes):
        probes.copy_(torch.eye(12))
    words = torch.linalg.qr(torch.randn(12, 12).double())[0][:5]
    readers = [spec for spec in LAYERS if spec.columns == 12]
    sets = [lora_from_factors({spec: (torch.randn(spec.rows, 1), word[None].float()) for spec in readers})
            for word in words]
    seen = retriever.echo.words(words[:, None], torch.ones(5, 1, dtype=torch.bool))
    length = seen.shape[1]
    scores = torch.stack([embedded(retriever, adapters)[:length].double() for adapters in sets]) @ seen.T
    assert scores.argmax(1).tolist() == list(range(5))


def test_a_retriever_comes_back_from_its_file(retriever: Retriever, tmp_path):
    path = tmp_path / "retriever.safetensors"
    save_retriever(path, retriever, {"family": "embedded"})
    again, known = load_retriever(path)
    assert known["family"] == "embedded" and again.sizes == SIZES and list(again.layers) == LAYERS
    adapters = lora_from_factors(pairs())
    # Half precision in the file moves the embedding a little.
    assert (embedded(again, adapters) - embedded(retriever, adapters)).norm() < 5e-3
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(FileError):
        load_retriever(path)

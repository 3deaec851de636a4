"""Find adapters by their weights: an embedding of what a change does, to be compared with one of a person's words.

After AutoLoRA (arXiv 2508.02107; its code, lzws/AutoLoRA): probes are sent through each layer's change, x ↦ ΔW x, and
nothing else is asked of an adapter. So the embedding knows neither factors nor rank, kind, strength or names. The
answers H = Q ΔWᵀ are read in two ways:

- *view*, as published: a token for each layer from the answers to its own probes, then a transformer over the layers;
- *echo*, ours: which words the change answers to. Cross-attention reads text features, so what an adapter was taught
  to answer is a direction there. G = Σ wₗ HₗHₗᵀ / tr(HₗHₗᵀ) is the change's energy over the probes, and a prompt's
  features z, seen by probes of the same kind, give Σ zzᵀ. The product is large where the change acts on these very
  words, also on words that the retriever never met.

Before it was taught anything, centred on a zoo, the echo finds most adapters whose captions named their thing; the view
knows only what it was taught (docs/retrieval.md). Left out of the published recipe: the causal mask over layers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, AdapterSet, Spec
from atelier.adapters.core.targets import role
from atelier.adapters.formats.low_rank import WeightOf
from atelier.adapters.formats.native import read_metadata, read_tensors, write_tensors

# Sends probes [P, columns] through the change of one layer in B adapters: the answers [B, P, rows]. They are zero
# where an adapter does not change the layer, and such layers take no part.
ProbeResponse = Callable[[Spec, Tensor], Tensor]


class RetrieveError(ValueError):
    """An adapter that can't be compared with words; the message says why."""


@dataclass(frozen=True, slots=True)
class RetrieverSizes:
    """How large a retriever is."""

    text: int            # width of the text features
    echo: int = 32       # probes that all layers share which read text features
    view: int = 2        # probes of a layer's own
    width: int = 64      # of a layer's token
    heads: int = 4


class EchoEncoder(nn.Module):
    """Which words a change answers to."""

    middle: Tensor

    def __init__(self, layers: Sequence[Spec], sizes: RetrieverSizes) -> None:
        super().__init__()
        self.layers = [spec for spec in layers if role(spec.name) in ("attn2.to_k", "attn2.to_v")]
        pairs = sizes.echo * (sizes.echo + 1) // 2
        self.register_buffer("middle", torch.zeros(sizes.text))   # of the text features
        self.probes = nn.Parameter(torch.randn(sizes.echo, sizes.text))
        self.word_probes = nn.Parameter(self.probes.detach().clone())
        self.layer_weights = nn.Parameter(torch.zeros(len(self.layers)))
        self.token_weight = nn.Linear(sizes.text, 1)
        self.usual, self.usual_words = nn.Parameter(torch.zeros(pairs)), nn.Parameter(torch.zeros(pairs))
        self.log_scale = _log_scale()

    def forward(self, probe: ProbeResponse) -> Tensor:
        """B adapters → ``[B, pairs]``."""
        return F.normalize(self.energy(probe) - self.usual, dim=1)

    def words(self, features: Tensor, mask: Tensor) -> Tensor:
        """Text features ``[B, T, D]`` with ``mask [B, T]``, true where a token belongs to the prompt → [B, pairs]."""
        return F.normalize(self.word_energy(features, mask) - self.usual_words, dim=1)

    def energy(self, probe: ProbeResponse) -> Tensor:
        """G of B adapters, of trace 1, before what all have in common is taken off."""
        total = torch.zeros(())
        for spec, weight in zip(self.layers, self.layer_weights.exp(), strict=True):
            answers = probe(spec, self.probes)
            energy = answers @ answers.transpose(1, 2)
            total = total + weight * energy / _or_one(_trace(energy))
        return _pairs(total / _or_one(_trace(total)))

    def word_energy(self, features: Tensor, mask: Tensor) -> Tensor:
        """Σ zzᵀ of prompts, of trace 1, before what all have in common is taken off."""
        features = features - self.middle
        weights = self.token_weight(features).squeeze(-1).masked_fill(~mask, -torch.inf).softmax(1)
        seen = F.normalize(features @ self.word_probes.T, dim=-1)
        return _pairs(torch.einsum("bt,btk,btj->bkj", weights, seen, seen))


class ViewEncoder(nn.Module):
    """What a change does, layer by layer."""

    middle: Tensor

    def __init__(self, layers: Sequence[Spec], sizes: RetrieverSizes) -> None:
        super().__init__()
        self.layers = list(layers)
        self.register_buffer("middle", torch.zeros(sizes.text))
        self.probes = nn.ParameterList(torch.randn(sizes.view, spec.columns) for spec in layers)
        widths = {_type(spec): sizes.view * spec.rows for spec in layers}
        self.into = nn.ModuleDict({kind: nn.Linear(width, sizes.width) for kind, width in widths.items()})
        self.place = nn.Parameter(torch.zeros(len(layers), sizes.width))
        self.blocks = nn.ModuleList([
            nn.TransformerEncoderLayer(sizes.width, sizes.heads, 4 * sizes.width, 0.0, F.gelu, batch_first=True,
                                       norm_first=True)])   # fmt: skip
        self.out, self.from_words = nn.LayerNorm(sizes.width), nn.Linear(sizes.text, sizes.width)
        self.log_scale = _log_scale()

    def forward(self, probe: ProbeResponse) -> Tensor:
        """B adapters → ``[B, width]``."""
        tokens, missing = [], []
        for spec, probes, place in zip(self.layers, self.probes, self.place, strict=True):
            answers = probe(spec, probes).flatten(1)
            length = answers.norm(dim=1, keepdim=True)
            answers = answers / _or_one(length) * answers.shape[1] ** 0.5
            tokens.append(self.into[_type(spec)](answers) + place)
            missing.append(length[:, 0] == 0)
        row, absent = torch.stack(tokens, 1), torch.stack(missing, 1)
        absent = absent & ~absent.all(1, keepdim=True)   # attention to nothing would be no number
        for block in self.blocks:
            row = block(row, src_key_padding_mask=absent)
        present = (~absent).unsqueeze(-1)
        mean = (self.out(row) * present).sum(1) / present.sum(1)
        return F.normalize(mean, dim=1)

    def words(self, features: Tensor, mask: Tensor) -> Tensor:
        """As :meth:`EchoEncoder.words`, from the token that ends the prompt → [B, width]."""
        ends = features[torch.arange(len(features)), mask.long().cumsum(1).argmax(1)]
        return F.normalize(self.from_words(ends - self.middle), dim=1)


class Retriever(nn.Module):
    """Two encoders into one space, of adapters and of prompts. Embeddings have length 1; their product is the score.

    Both readings stand side by side in an embedding, so the score is share · echo + (1 − share) · view.
    """

    share: Tensor
    chance: Tensor

    def __init__(self, layers: Sequence[Spec], sizes: RetrieverSizes) -> None:
        super().__init__()
        self.layers, self.sizes = tuple(layers), sizes
        self.echo, self.view = EchoEncoder(layers, sizes), ViewEncoder(layers, sizes)
        self.register_buffer("share", torch.tensor(0.5))
        self.register_buffer("chance", torch.tensor([0.0, 1.0]))   # mean and deviation of scores with strangers

    def encode(self, probe: ProbeResponse) -> Tensor:
        """B adapters, each with at least one layer that is looked at → ``[B, E]``."""
        return self._joined(self.echo(probe), self.view(probe))

    def encode_words(self, features: Tensor, mask: Tensor) -> Tensor:
        """Prompts → ``[B, E]``; for the arguments see :meth:`EchoEncoder.words`."""
        return self._joined(self.echo.words(features, mask), self.view.words(features, mask))

    def _joined(self, echo: Tensor, view: Tensor) -> Tensor:
        return torch.cat([echo * self.share.sqrt(), view * (1 - self.share).sqrt()], 1)

    @torch.no_grad()
    def embed(self, adapters: AdapterSet, weight_of: WeightOf) -> Tensor:
        """One adapter → ``[E]`` float32. Meant for a retriever in float64, where all factorizations give the same.

        ``weight_of`` is asked for the base's weights where a kind's update depends on them.

        Raises:
            RetrieveError: it changes none of the layers that read text features.
        """
        changes = {spec.name: update_function(adapters[spec.name], weight_of) for spec in adapters.specs
                   if spec in self.layers}   # fmt: skip
        responses: list[Tensor] = []

        def probe(spec: Spec, probes: Tensor) -> Tensor:
            """The layer's answers ``[1, P, rows]`` to the probes ``[P, columns]``; zeros where it is not changed."""
            change = changes.get(spec.name)
            answers = probes.new_zeros(1, len(probes), spec.rows) if change is None else change(probes)[None]
            if spec in self.echo.layers:
                responses.append(answers.any())
            return answers

        embedding = self.encode(probe)[0].float()
        if not any(responses):
            raise RetrieveError("It changes no layer that reads the prompt.")
        return embedding


def update_function(adapter: Adapter, weight_of: WeightOf) -> Callable[[Tensor], Tensor]:
    """One layer's x ↦ ΔW x, for rows ``x [P, columns]``, in the precision of x."""
    factors = adapter.factors()
    if factors is not None:
        up, down = factors
        return lambda x: x @ down.to(x).T @ up.to(x).T
    delta = adapter.delta(weight_of(adapter.spec.name)).flatten(1)
    return lambda x: x @ delta.to(x).T


def save_retriever(path: Path, retriever: Retriever, known: Mapping[str, str]) -> None:
    """Write a retriever in half precision, with what it is for in the header."""
    tensors = {name: value.half().contiguous() for name, value in retriever.state_dict().items()}
    layers = json.dumps({spec.name: spec.shape for spec in retriever.layers})
    write_tensors(path, tensors, {**known, "layers": layers, "sizes": json.dumps(asdict(retriever.sizes))})


def load_retriever(path: Path) -> tuple[Retriever, dict[str, str]]:
    """Read what :func:`save_retriever` wrote, in float64, and the header's words.

    Raises:
        FileError: it is damaged.
    """
    known = read_metadata(path)
    layers = [Spec(name, tuple(shape)) for name, shape in json.loads(known["layers"]).items()]
    with torch.random.fork_rng(devices=[]):
        retriever = Retriever(layers, RetrieverSizes(**json.loads(known["sizes"])))
    retriever.double().load_state_dict(read_tensors(path))
    return retriever.eval().requires_grad_(False), known


def _log_scale() -> nn.Parameter:
    """Logarithm of 1 / temperature, learned; the temperature starts at 0.07."""
    return nn.Parameter(torch.tensor(1 / 0.07).log())


def _pairs(energy: Tensor) -> Tensor:
    """Symmetric matrices ``[B, K, K]`` → ``[B, K(K + 1)/2]`` with the same inner products."""
    row, column = torch.triu_indices(*energy.shape[1:])
    return energy[:, row, column] * torch.where(row == column, 1.0, 2**0.5).to(energy)


def _trace(energy: Tensor) -> Tensor:
    return energy.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]


def _or_one(size: Tensor) -> Tensor:
    """What to divide by: nothing becomes of nothing."""
    return size.where(size > 0, torch.ones_like(size))


def _type(spec: Spec) -> str:
    """Layers of one type share what reads them: the same role and width."""
    return f"{role(spec.name)} {spec.rows}".replace(".", "-")

"""Trains the retriever on adapters of known subjects and prompts for them; the base's text encoder stays frozen.

    python -m atelier.training.embedded_base.train_retriever --dataset build/retrieval

AutoLoRA's recipe (arXiv 2508.02107) with a learned temperature, and prompts that fit two adapters taken out of the
contrast. Only the numbers in the files are read, never a name or what a header says.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atelier.adapters.core.base import Adapter, AdapterSet, Spec
from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.low_rank import LowRankLimits, Pair, WeightChange, WeightOf, nearest_low_rank
from atelier.adapters.formats.native import load_adapter
from atelier.adapters.retrieval import ProbeResponse, Retriever, RetrieverSizes, save_retriever
from atelier.training.base_models.base_model import load
from atelier.training.base_models.bundled import RETRIEVER, text_encoder_hash
from atelier.training.base_models.weights import weight_lookup
from atelier.training.config.train_config import EMBEDDED
from atelier.training.embedded_base.retriever_dataset import DatasetEntry, read_index
from atelier.training.sampling.prompt_features import PromptEncoder

RANK = 16        # of the pairs that training reads; kinds of a higher rank are cut, embedding them later is exact
STEPS, BATCH = 60, 128
ECHO_RATE, VIEW_RATE = 3e-4, 2e-3   # the echo begins where it works; the view begins with nothing
LAYER_DROP = 0.15
SHARES = (1.0, 0.9, 0.8, 0.65, 0.5)   # of the echo in a score: the best on adapters that are left out is taken
VALIDATION_EVERY = 5                  # one adapter in so many is left out of training, to choose the share


@dataclass(frozen=True, slots=True)
class StackedAdapters:
    """Many adapters side by side: for every layer ``up [N, rows, r]`` and ``down [N, r, columns]``."""

    ups: dict[str, Tensor]
    downs: dict[str, Tensor]

    def probe(self, chosen: Tensor, keep: Tensor | None = None) -> ProbeResponse:
        """Send probes through the chosen ones; ``keep [layers, B]`` is 0 where a layer is left out."""
        kept = dict(zip(self.ups, keep if keep is not None else torch.ones(len(self.ups), 1), strict=True))

        def respond(spec: Spec, probes: Tensor) -> Tensor:
            """ΔW of every chosen adapter times the probes ``[P, columns]`` → ``[B, P, rows]``."""
            up, down = self.ups[spec.name][chosen], self.downs[spec.name][chosen]
            return torch.einsum("pn,brn,bmr->bpm", probes, down, up) * kept[spec.name][:, None, None]

        return respond


def stack_adapters(sets: Sequence[AdapterSet], layers: Sequence[Spec], weight_of: WeightOf) -> StackedAdapters:
    """Put adapters side by side, each layer's change at length 1; what has no low rank is cut."""
    ups = {spec.name: torch.zeros(len(sets), spec.rows, RANK) for spec in layers}
    downs = {spec.name: torch.zeros(len(sets), RANK, spec.columns) for spec in layers}
    for number, adapters in enumerate(sets):
        for adapter in adapters:
            if adapter.spec in layers:
                up, down = _pair(adapter, weight_of)
                ups[adapter.spec.name][number, :, : up.shape[1]] = up
                downs[adapter.spec.name][number, : down.shape[0]] = down
    return StackedAdapters(ups, downs)


def _pair(adapter: Adapter, weight_of: WeightOf) -> Pair:
    factors = adapter.factors()
    if factors is None:
        dense = adapter.delta(weight_of(adapter.spec.name)).flatten(1)
        return nearest_low_rank(WeightChange(adapter.spec, dense=dense), LowRankLimits(None, RANK))[0]
    if factors[1].shape[0] <= RANK:
        return factors
    return nearest_low_rank(WeightChange(adapter.spec, factors), LowRankLimits(None, RANK))[0]


@dataclass(frozen=True, slots=True)
class EncodedPrompts:
    """The prompts for each adapter, read once: features ``[N, P, T, D]``, tokens that count ``[N, P, T]``."""

    features: Tensor
    mask: Tensor
    equivalent: Tensor   # [N, N] where one's prompts would be right for the other

    @classmethod
    def read(cls, prompt_encoder: PromptEncoder, entries: Sequence[DatasetEntry]) -> EncodedPrompts:
        """Encode each entry's prompts; where there are fewer, the first ones repeat."""
        most = max(len(entry.prompts) for entry in entries)
        prompts = [(entry.prompts * most)[:most] for entry in entries]
        features, mask = prompt_encoder([prompt for row in prompts for prompt in row])
        things = [entry.thing for entry in entries]
        equivalent = torch.tensor([[one == other for other in things] for one in things])
        return cls(features.unflatten(0, (-1, most)), mask.unflatten(0, (-1, most)), equivalent)

    def pick(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Features ``[B, T, D]`` and mask ``[B, T]`` of one random prompt for each chosen adapter."""
        which = torch.randint(self.mask.shape[1], (len(chosen),), generator=generator)
        return self.features[chosen, which], self.mask[chosen, which]


def train(
    dataset: StackedAdapters, prompts: EncodedPrompts, layers: Sequence[Spec], sizes: RetrieverSizes, steps: int = STEPS
) -> Retriever:
    """Train both encoders, each with a loss of its own: one that learns by heart would leave the other no gradient."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    retriever = untrained_retriever(dataset, prompts, layers, sizes)
    rates = {retriever.echo: ECHO_RATE, retriever.view: VIEW_RATE}
    groups: list[dict[str, Any]] = [{"params": list(part.parameters()), "rate": rate} for part, rate in rates.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.02)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * min((step + 1) / 10, 0.5 * (1 + math.cos(math.pi * step / steps)))
        chosen = torch.randperm(len(prompts.equivalent), generator=generator)[:BATCH]
        keep = (torch.rand(len(layers), len(chosen), generator=generator) > LAYER_DROP).float()
        probe, words = dataset.probe(chosen, keep), prompts.pick(chosen, generator)
        same = prompts.equivalent[chosen][:, chosen]
        losses = [contrast(part.words(*words) @ part(probe).T * part.log_scale.exp().clamp(max=100), same)
                  for part in (retriever.echo, retriever.view)]   # fmt: skip
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(retriever.parameters(), 1.0)
        optimizer.step()
    return retriever.eval().requires_grad_(False)


def contrast(scores: Tensor, same: Tensor) -> Tensor:
    """Symmetric InfoNCE (van den Oord et al. 2018, arXiv 1807.03748): both directions' mean cross-entropy, added.

    ``scores [N, N]`` are those of prompts with adapters, divided by the temperature, the right ones on the diagonal.
    ``same [N, N]`` says which others would be right as well: they count neither way. At chance it is 2 ln N.
    """
    others = same & ~torch.eye(len(scores), dtype=torch.bool)
    scores, right = scores.masked_fill(others, -torch.inf), torch.arange(len(scores))
    return F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)


def untrained_retriever(
    dataset: StackedAdapters, prompts: EncodedPrompts, layers: Sequence[Spec], sizes: RetrieverSizes
) -> Retriever:
    """A retriever whose echo works before training: its probes are the prompts' main directions, means are removed."""
    retriever = Retriever(layers, sizes)
    rows = prompts.features[prompts.mask]
    middle = rows.mean(0)
    _, values, directions = torch.linalg.svd(rows - middle, full_matrices=False)
    # Half way to whitening: rare directions count for more, but the noise along them is not raised as far.
    probes = directions[: sizes.echo] * (values[0] / values[: sizes.echo, None]).sqrt()
    echo = retriever.echo
    with torch.no_grad():
        for part in (echo, retriever.view):
            part.middle.copy_(middle)
        for own in (echo.probes, echo.word_probes):
            own.copy_(probes)
        echo.token_weight.weight.zero_()
        echo.usual.copy_(echo.energy(dataset.probe(torch.arange(len(prompts.equivalent)))).mean(0))
        echo.usual_words.copy_(echo.word_energy(prompts.features.flatten(0, 1), prompts.mask.flatten(0, 1)).mean(0))
    return retriever


@torch.no_grad()
def best_share(retriever: Retriever, dataset: StackedAdapters, prompts: EncodedPrompts) -> float:
    """The share of the echo that ranks these adapters best, by mean reciprocal rank; the largest where several do."""
    every = torch.arange(len(prompts.equivalent))
    parts = (retriever.echo, retriever.view)
    rows = [part(dataset.probe(every)) for part in parts]
    ranks: dict[float, float] = {}
    for share in SHARES:
        reciprocal = []
        for prompt in range(prompts.mask.shape[1]):
            echo, view = (part.words(prompts.features[:, prompt], prompts.mask[:, prompt]) @ row.T
                          for part, row in zip(parts, rows, strict=True))   # fmt: skip
            scores = share * echo + (1 - share) * view
            above = ((scores > scores.diag()[:, None]) & ~prompts.equivalent).sum(1)
            reciprocal.append((1 / (above + 1)).mean())
        ranks[share] = torch.stack(reciprocal).mean().item()
    return max(SHARES, key=lambda share: ranks[share])


def attention_layers() -> list[Spec]:
    """The layers that a retriever of the embedded base reads: attention, which every choice of targets covers."""
    return find_targets({"unet": load(EMBEDDED, "cpu").unet}, "attention")


@torch.no_grad()
def chance_scores(retriever: Retriever, dataset: StackedAdapters, prompts: EncodedPrompts) -> Tensor:
    """Mean and standard deviation ``[2]`` of the scores of prompts with adapters of other subjects."""
    every = torch.arange(len(prompts.equivalent))
    words = retriever.encode_words(prompts.features[:, 0], prompts.mask[:, 0])
    scores = words @ retriever.encode(dataset.probe(every)).T
    unrelated = scores[~prompts.equivalent]
    return torch.stack([unrelated.mean(), unrelated.std()])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on what is not held out of the dataset, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=Path("build/retrieval"))
    parser.add_argument("--out", type=Path, default=RETRIEVER)
    options = parser.parse_args(arguments)
    entries = [entry for entry in read_index(options.dataset) if not entry.held_out]
    layers, prompt_encoder, weight_of = attention_layers(), PromptEncoder.load(), weight_lookup(EMBEDDED)

    def read(chosen: Sequence[DatasetEntry]) -> tuple[StackedAdapters, EncodedPrompts]:
        """Load the adapters of some entries and encode their prompts."""
        files = [options.dataset / f"{entry.file}.safetensors" for entry in chosen]
        adapters = stack_adapters([load_adapter(file) for file in files], layers, weight_of)
        return adapters, EncodedPrompts.read(prompt_encoder, chosen)

    back = read(entries[::VALIDATION_EVERY])
    sizes = RetrieverSizes(prompt_encoder.width)
    retriever = train(*read([e for i, e in enumerate(entries) if i % VALIDATION_EVERY]), layers, sizes)
    retriever.share.fill_(best_share(retriever, *back))
    retriever.chance.copy_(chance_scores(retriever, *back))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_retriever(options.out, retriever, {"family": EMBEDDED, "text_encoder": text_encoder_hash(),
                                            "taught_with": str(len(entries))})   # fmt: skip
    print(f"share of the echo {retriever.share.item():.2f}")   # noqa: T201 (a command)


if __name__ == "__main__":
    main()

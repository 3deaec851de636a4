"""Teach a retriever: adapters of a zoo against prompts for them, through the base's own frozen text encoder.

    python -m atelier.training.embedded_base.train_retriever --zoo build/zoo

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
from atelier.training.embedded_base.retriever_dataset import Exhibit, read_index
from atelier.training.sampling.prompt_features import PromptEncoder

RANK = 16        # of the pairs that training reads; kinds of a higher rank are cut, embedding them later is exact
STEPS, BATCH = 60, 128
ECHO_RATE, VIEW_RATE = 3e-4, 2e-3   # the echo begins where it works; the view begins with nothing
LAYER_DROP = 0.15
SHARES = (1.0, 0.9, 0.8, 0.65, 0.5)   # of the echo in a score; what is best on adapters that were not taught with
KEPT_BACK = 5                         # one adapter in so many, to choose it


@dataclass(frozen=True, slots=True)
class Stack:
    """Many adapters side by side: for every layer ``up [N, rows, r]`` and ``down [N, r, columns]``."""

    ups: dict[str, Tensor]
    downs: dict[str, Tensor]

    def look(self, chosen: Tensor, keep: Tensor | None = None) -> ProbeResponse:
        """Send probes through the chosen ones; ``keep [layers, B]`` leaves layers out, in the order of the stack."""
        kept = dict(zip(self.ups, keep if keep is not None else torch.ones(len(self.ups), 1), strict=True))

        def look(spec: Spec, probes: Tensor) -> Tensor:
            up, down = self.ups[spec.name][chosen], self.downs[spec.name][chosen]
            return torch.einsum("pn,brn,bmr->bpm", probes, down, up) * kept[spec.name][:, None, None]

        return look


def stack(sets: Sequence[AdapterSet], layers: Sequence[Spec], weight_of: WeightOf) -> Stack:
    """Put adapters side by side, each layer's change at length 1; what has no low rank is cut."""
    ups = {spec.name: torch.zeros(len(sets), spec.rows, RANK) for spec in layers}
    downs = {spec.name: torch.zeros(len(sets), RANK, spec.columns) for spec in layers}
    for number, adapters in enumerate(sets):
        for adapter in adapters:
            if adapter.spec in layers:
                up, down = _pair(adapter, weight_of)
                ups[adapter.spec.name][number, :, : up.shape[1]] = up
                downs[adapter.spec.name][number, : down.shape[0]] = down
    return Stack(ups, downs)


def _pair(adapter: Adapter, weight_of: WeightOf) -> Pair:
    factors = adapter.factors()
    if factors is None:
        dense = adapter.delta(weight_of(adapter.spec.name)).flatten(1)
        return nearest_low_rank(WeightChange(adapter.spec, dense=dense), LowRankLimits(None, RANK))[0]
    if factors[1].shape[0] <= RANK:
        return factors
    return nearest_low_rank(WeightChange(adapter.spec, factors), LowRankLimits(None, RANK))[0]


@dataclass(frozen=True, slots=True)
class Said:
    """The prompts for each adapter, read once: features ``[N, P, T, D]``, tokens that count ``[N, P, T]``."""

    features: Tensor
    said: Tensor
    alike: Tensor   # [N, N] where one's prompts would be right for the other

    @classmethod
    def read(cls, prompt_encoder: PromptEncoder, exhibits: Sequence[Exhibit]) -> Said:
        """Read the prompts of exhibits; who has fewer says the first more often."""
        most = max(len(exhibit.prompts) for exhibit in exhibits)
        prompts = [(exhibit.prompts * most)[:most] for exhibit in exhibits]
        features, said = prompt_encoder([prompt for row in prompts for prompt in row])
        things = [exhibit.thing for exhibit in exhibits]
        alike = torch.tensor([[one == other for other in things] for one in things])
        return cls(features.unflatten(0, (-1, most)), said.unflatten(0, (-1, most)), alike)

    def pick(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One prompt for each of the chosen."""
        which = torch.randint(self.said.shape[1], (len(chosen),), generator=generator)
        return self.features[chosen, which], self.said[chosen, which]


def teach(zoo: Stack, said: Said, layers: Sequence[Spec], sizes: RetrieverSizes, steps: int = STEPS) -> Retriever:
    """Train both readings on a stack, each by itself: the one that learns by heart would leave the other no work."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    retriever = begun(zoo, said, layers, sizes)
    rates = {retriever.echo: ECHO_RATE, retriever.view: VIEW_RATE}
    groups: list[dict[str, Any]] = [{"params": list(part.parameters()), "rate": rate} for part, rate in rates.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.02)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * min((step + 1) / 10, 0.5 * (1 + math.cos(math.pi * step / steps)))
        chosen = torch.randperm(len(said.alike), generator=generator)[:BATCH]
        keep = (torch.rand(len(layers), len(chosen), generator=generator) > LAYER_DROP).float()
        look, prompts, same = zoo.look(chosen, keep), said.pick(chosen, generator), said.alike[chosen][:, chosen]
        losses = [contrast(part.words(*prompts) @ part(look).T * part.log_scale.exp().clamp(max=100), same)
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


def begun(zoo: Stack, said: Said, layers: Sequence[Spec], sizes: RetrieverSizes) -> Retriever:
    """A fresh retriever whose echo needs no lesson: probes along which prompts differ, and what is usual taken off."""
    retriever = Retriever(layers, sizes)
    rows = said.features[said.said]
    middle = rows.mean(0)
    _, values, directions = torch.linalg.svd(rows - middle, full_matrices=False)
    # Half way to whitening: rare directions are louder than they are, and not as loud as the noise along them.
    probes = directions[: sizes.echo] * (values[0] / values[: sizes.echo, None]).sqrt()
    echo = retriever.echo
    with torch.no_grad():
        for part in (echo, retriever.view):
            part.middle.copy_(middle)
        for own in (echo.probes, echo.word_probes):
            own.copy_(probes)
        echo.token_weight.weight.zero_()
        echo.usual.copy_(echo.energy(zoo.look(torch.arange(len(said.alike)))).mean(0))
        echo.usual_words.copy_(echo.word_energy(said.features.flatten(0, 1), said.said.flatten(0, 1)).mean(0))
    return retriever


@torch.no_grad()
def best_share(retriever: Retriever, zoo: Stack, said: Said) -> float:
    """The share of the echo that ranks these adapters best, by mean reciprocal rank; the largest where several do."""
    every = torch.arange(len(said.alike))
    parts = (retriever.echo, retriever.view)
    rows = [part(zoo.look(every)) for part in parts]
    ranks: dict[float, float] = {}
    for share in SHARES:
        reciprocal = []
        for prompt in range(said.said.shape[1]):
            echo, view = (part.words(said.features[:, prompt], said.said[:, prompt]) @ row.T
                          for part, row in zip(parts, rows, strict=True))   # fmt: skip
            scores = share * echo + (1 - share) * view
            above = ((scores > scores.diag()[:, None]) & ~said.alike).sum(1)
            reciprocal.append((1 / (above + 1)).mean())
        ranks[share] = torch.stack(reciprocal).mean().item()
    return max(SHARES, key=lambda share: ranks[share])


def looked_at() -> list[Spec]:
    """The layers that a retriever of the embedded base reads: its attention, which every choice of targets covers."""
    return find_targets({"unet": load(EMBEDDED, "cpu").unet}, "attention")


@torch.no_grad()
def chance(retriever: Retriever, zoo: Stack, said: Said) -> Tensor:
    """Mean and deviation of the scores of prompts with adapters that were made for something else."""
    every = torch.arange(len(said.alike))
    scores = retriever.encode_words(said.features[:, 0], said.said[:, 0]) @ retriever.encode(zoo.look(every)).T
    strangers = scores[~said.alike]
    return torch.stack([strangers.mean(), strangers.std()])


def main(arguments: Sequence[str] | None = None) -> None:
    """Teach on what is not held out of the zoo, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=Path("build/zoo"))
    parser.add_argument("--out", type=Path, default=RETRIEVER)
    options = parser.parse_args(arguments)
    exhibits = [exhibit for exhibit in read_index(options.zoo) if not exhibit.held_out]
    layers, prompt_encoder, weight_of = looked_at(), PromptEncoder.load(), weight_lookup(EMBEDDED)

    def those(chosen: Sequence[Exhibit]) -> tuple[Stack, Said]:
        files = [options.zoo / f"{exhibit.file}.safetensors" for exhibit in chosen]
        return stack([load_adapter(file) for file in files], layers, weight_of), Said.read(prompt_encoder, chosen)

    back = those(exhibits[::KEPT_BACK])
    sizes = RetrieverSizes(prompt_encoder.width)
    retriever = teach(*those([e for i, e in enumerate(exhibits) if i % KEPT_BACK]), layers, sizes)
    retriever.share.fill_(best_share(retriever, *back))
    retriever.chance.copy_(chance(retriever, *back))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_retriever(options.out, retriever, {"family": EMBEDDED, "text_encoder": text_encoder_hash(),
                                            "taught_with": str(len(exhibits))})   # fmt: skip
    print(f"share of the echo {retriever.share.item():.2f}")   # noqa: T201 (a command)


if __name__ == "__main__":
    main()

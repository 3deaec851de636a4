"""Find held-out adapters of the dataset by prompts for them: recall and rank against chance and against file names.

    python -m atelier.training.embedded_base.retriever_dataset                  the dataset, if need be
    python -m atelier.training.embedded_base.train_retriever                    the retriever, if need be
    python -m benchmarks.retrieval [--dataset build/retrieval]         measure, keep as JSON, write the page
    python -m benchmarks.retrieval --render                                     write the page from what was measured

Each held-out adapter, whose thing no adapter in training had, is looked for in the whole dataset, by prompts that don't
know trigger words. Where several candidates tie, as file names do that say nothing, the expectation over their orders
is taken. Intervals are 95 % bootstrap over the adapters that are looked for.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))   # so that `python -m benchmarks.retrieval` works as `-m` does
from torch import Tensor

from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.formats.low_rank import Pair, WeightOf, lora_from_factors
from atelier.adapters.formats.native import load_adapter
from atelier.adapters.retrieval import Retriever, RetrieverSizes, load_retriever
from atelier.app.store.adapter_embeddings import PromptRetriever
from atelier.app.store.search import content_words
from atelier.training.base_models.bundled import RETRIEVER
from atelier.training.base_models.weights import weight_lookup
from atelier.training.config.train_config import EMBEDDED
from atelier.training.embedded_base.retriever_dataset import ROLES, DatasetEntry, read_index
from atelier.training.embedded_base.train_retriever import (
    EncodedPrompts,
    StackedAdapters,
    attention_layers,
    stack_adapters,
    train,
    untrained_retriever,
)
from atelier.training.sampling.prompt_features import PromptEncoder
from benchmarks.support.machine import describe_machine, in_words

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "retrieval.json"
PAGE = ROOT / "docs" / "retrieval.md"
RESAMPLES = 2000
LIBRARY = 10_000
TEXT = """# Finding adapters by their weights

Written by `python -m benchmarks.retrieval` from `benchmarks/results/retrieval.json`.

{held_out} adapters of a dataset of {total} (`training/embedded_base/retriever_dataset.py`), whose subjects no adapter
in training had, are searched for among all {total}, with prompts that do not contain their trigger words ({prompts}
prompts each). Brackets are 95 %
bootstrap intervals over the adapters that are looked for.

| adapters | what is read | of them | recall@1 | recall@5 | MRR |
|---|---|---|---|---|---|
{lines}

*plain*: captions named the thing in plain words. *called*: a made-up trigger word stood before the name, as in
Atelier's own captions. *nameless*: the trigger word alone. *style*: a way of drawing, any adapter of it is right.

A third of the file names are right, a third say nothing and a third are wrong. Controls, *plain* and *called* together:

| control | recall@1 | recall@5 | MRR |
|---|---|---|---|
{controls}

The same adapters with other factors, largest change of an embedding of length 1: {rewritten}.

Search over {library:,} adapters: {search:.1f} ms of one core; reading the prompt before it: {prompt:.1f} ms (medians
of 50, processor time of one thread, because the machine had other work to do).

{machine}
"""


def main() -> None:
    """Measure and write, or write alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--dataset", type=Path, default=ROOT / "build" / "retrieval")
    parser.add_argument("--render", action="store_true", help="write docs/retrieval.md from what was measured")
    options = parser.parse_args()
    if not options.render:
        RESULTS.write_text(json.dumps(measure(options.dataset), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(rendered(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


def measure(folder: Path) -> dict[str, Any]:
    """Everything that is published."""
    entries, weight_of, prompt_encoder = read_index(folder), weight_lookup(EMBEDDED), PromptEncoder.load()
    sets = [load_adapter(folder / f"{entry.file}.safetensors") for entry in entries]
    retriever, known = load_retriever(RETRIEVER)
    reader = PromptRetriever(retriever, prompt_encoder, known["text_encoder"])
    rows = embedded(retriever, sets, weight_of)
    return {
        "machine": describe_machine(), "total": len(entries),
        "held_out": sum(entry.held_out for entry in entries),
        "prompts": max(len(entry.prompts) for entry in entries), "rows": _by_role(entries, rows, reader),
        "controls": _controls(entries, sets, rows, reader, weight_of),
        "rewritten": _rewritten(retriever, sets[0], weight_of), "search": _timed(reader, rows.shape[1]),
    }   # fmt: skip


def embedded(retriever: Retriever, sets: Sequence[AdapterSet], weight_of: WeightOf) -> Tensor:
    """Adapters → ``[N, E]``."""
    return torch.stack([retriever.embed(adapters, weight_of) for adapters in sets])


def scores_of(entries: Sequence[DatasetEntry], rows: Tensor, reader: PromptRetriever) -> Tensor:
    """``[prompts, N, N]``: of each adapter's p-th prompt with every adapter; who has fewer says the first again."""
    prompts = EncodedPrompts.read(reader.prompt_encoder, entries)
    words = [reader.retriever.encode_words(prompts.features[:, p].double(), prompts.mask[:, p])
             for p in range(prompts.mask.shape[1])]   # fmt: skip
    return torch.stack([word.float() @ rows.T for word in words])


def by_names(entries: Sequence[DatasetEntry]) -> Tensor:
    """The same from the words of file names: the share of the prompt's words that a name has."""
    most = max(len(entry.prompts) for entry in entries)
    names = [content_words(entry.file) for entry in entries]
    wanted = [[content_words((entry.prompts * most)[p]) for entry in entries] for p in range(most)]
    return torch.tensor([[[len(name & words) / len(words) for name in names] for words in row] for row in wanted])


def found(scores: Tensor, entries: Sequence[DatasetEntry], roles: Sequence[str]) -> dict[str, Any]:
    """Recall and mean reciprocal rank ``[value, low, high]`` of held-out adapters of these roles, and chance's.

    Candidates that would be right as well stand aside: each adapter is looked for among unrelated.
    """
    wanted = [i for i, entry in enumerate(entries) if entry.held_out and entry.role in roles]
    unrelated = torch.tensor([[entries[i].thing != other.thing for other in entries] for i in wanted])
    scores = scores[:, wanted]
    right = scores[:, torch.arange(len(wanted)), wanted][:, :, None]
    above = ((scores > right) & unrelated).sum(2)              # [prompts, wanted]
    level = ((scores == right) & unrelated).sum(2) + 1
    each = {f"recall@{k}": ((k - above) / level).clamp(0, 1).mean(0) for k in (1, 5)}
    steps = torch.cat([torch.zeros(1), (1 / torch.arange(1, len(entries) + 1)).cumsum(0)])
    each["mrr"] = ((steps[above + level] - steps[above]) / level).mean(0)
    among = unrelated.sum(1) + 1
    by_chance = {"recall@1": (1 / among).mean(), "recall@5": (5 / among).clamp(max=1).mean(),
                 "mrr": (steps[among] / among).mean()}   # fmt: skip
    return {"count": len(wanted), "chance": {name: value.item() for name, value in by_chance.items()},
            **{name: _interval(values) for name, values in each.items()}}   # fmt: skip


def _interval(values: Tensor) -> list[float]:
    dice = torch.Generator().manual_seed(0)
    means = values[torch.randint(len(values), (RESAMPLES, len(values)), generator=dice)].mean(1)
    return [values.mean().item(), *torch.quantile(means, torch.tensor([0.025, 0.975])).tolist()]


def _by_role(entries: Sequence[DatasetEntry], rows: Tensor, reader: PromptRetriever) -> list[dict[str, Any]]:
    scores = {"weights": scores_of(entries, rows, reader), "file names": by_names(entries)}
    return [{"role": role, "read": read, **found(values, entries, (role,))}
            for role in dict.fromkeys(ROLES) for read, values in scores.items()]   # fmt: skip


def _controls(
    entries: Sequence[DatasetEntry], sets: Sequence[AdapterSet], rows: Tensor, reader: PromptRetriever,
    weight_of: WeightOf,
) -> list[dict[str, Any]]:   # fmt: skip
    """What is left without one part or the other, on adapters with a name in their captions."""
    prompt_encoder, layers, sizes = reader.prompt_encoder, attention_layers(), reader.retriever.sizes
    taught = [i for i, entry in enumerate(entries) if not entry.held_out]
    dataset = stack_adapters([sets[i] for i in taught], layers, weight_of)
    prompts = EncodedPrompts.read(prompt_encoder, [entries[i] for i in taught])
    scores = scores_of(entries, rows, reader)
    view = deepcopy(reader.retriever)
    view.share.fill_(0.0)
    tried = {"view alone, as published": view,
             "echo, not taught at all": untrained_retriever(dataset, prompts, layers, sizes),
             "echo, taught with shuffled captions": _misled(dataset, prompts, layers, sizes)}   # fmt: skip
    result = {f"as it is ({reader.retriever.share.item():.0%} echo)": scores,
              "the same, captions shuffled among all": _shuffled(scores)}   # fmt: skip
    for title, other in tried.items():
        other = other.double().requires_grad_(False)
        if other is not view:
            other.share.fill_(1.0)
        retriever = PromptRetriever(other, prompt_encoder, "")
        result[title] = scores_of(entries, embedded(other, sets, weight_of), retriever)
    return [{"control": title, **found(values, entries, ("plain", "called"))} for title, values in result.items()]


def _shuffled(scores: Tensor) -> Tensor:
    """The captions of all adapters dealt out anew, so that none keeps its own."""
    return scores.roll(scores.shape[1] // 2, 1)


def _misled(
    dataset: StackedAdapters, prompts: EncodedPrompts, layers: Sequence[Spec], sizes: RetrieverSizes
) -> Retriever:
    order = torch.randperm(len(prompts.equivalent), generator=torch.Generator().manual_seed(0))
    wrong = EncodedPrompts(prompts.features[order], prompts.mask[order], prompts.equivalent[order][:, order])
    return train(dataset, wrong, layers, sizes)


def _rewritten(retriever: Retriever, adapters: AdapterSet, weight_of: WeightOf) -> dict[str, float]:
    """How far an embedding moves when the same change is written otherwise."""
    pairs = {a.spec: pair for a in adapters if (pair := a.factors()) is not None}
    dice = torch.Generator().manual_seed(0)

    def turned(up: Tensor, down: Tensor) -> Pair:
        """The same product from factors in another basis."""
        g = torch.randn(len(down), len(down), generator=dice, dtype=torch.float64) + 2 * torch.eye(len(down))
        return (up.double() @ torch.linalg.inv(g)).float(), (g @ down.double()).float()

    def padded(up: Tensor, down: Tensor) -> Pair:
        """The same product at a rank that is higher by three."""
        return torch.cat([up, torch.zeros(len(up), 3)], 1), torch.cat([down, torch.randn(3, down.shape[1])])

    def decomposed(up: Tensor, down: Tensor) -> Pair:
        """The same product from its singular value decomposition."""
        u, s, v = torch.linalg.svd(up.double() @ down.double(), full_matrices=False)
        return (u[:, : len(down)] * s[: len(down)]).float(), v[: len(down)].float()

    ways: dict[str, Callable[[Tensor, Tensor], Pair]] = {
        "GL(r)": turned, "zero-padding": padded, "SVD": decomposed, "scale folded": lambda up, down: (up * 2, down / 2),
    }
    plain = retriever.embed(adapters, weight_of)
    changed = {name: lora_from_factors({spec: way(*pair) for spec, pair in pairs.items()})
               for name, way in ways.items()}
    return {name: (retriever.embed(lora, weight_of) - plain).norm().item() for name, lora in changed.items()}


def _timed(reader: PromptRetriever, width: int) -> dict[str, float]:
    """Milliseconds of a search over a large library, and of reading the prompt alone."""
    rows = torch.nn.functional.normalize(torch.randn(LIBRARY, width), dim=1)
    prompt = "an emoji of a violin on a blue background"
    embedding = reader.embed_prompt(prompt)

    def milliseconds(work: Callable[[], object]) -> float:
        """Processor time of one call in ms, the median of 50."""
        times = []
        for _ in range(50):
            start = time.process_time()
            work()
            times.append(1000 * (time.process_time() - start))
        return median(times)

    return {"search": milliseconds(lambda: reader.percentiles(rows @ embedding).topk(8)),
            "prompt": milliseconds(lambda: reader.embed_prompt(prompt))}   # fmt: skip


def rendered(result: Mapping[str, Any]) -> str:
    """The page."""
    lines = []
    for row in result["rows"]:
        if row["read"] == "weights":
            lines.append(_line([row["role"], "nothing: chance", str(row["count"])],
                               {name: [value] for name, value in row["chance"].items()}))   # fmt: skip
        lines.append(_line([row["role"], row["read"], str(row["count"])], row))
    controls = [_line([row["control"]], row) for row in result["controls"]]
    rewritten = ", ".join(f"{name} {value:.0e}" for name, value in result["rewritten"].items())
    return TEXT.format(
        held_out=result["held_out"], total=result["total"], prompts=result["prompts"], lines="\n".join(lines),
        controls="\n".join(controls), rewritten=rewritten, library=LIBRARY, **result["search"],
        machine=f"Measured on: {in_words(result['machine'])}.",
    )   # fmt: skip


def _line(cells: Sequence[str], row: Mapping[str, Sequence[float]]) -> str:
    numbers = []
    for name in ("recall@1", "recall@5", "mrr"):
        value, *interval = row[name]
        numbers.append(f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""))
    return f"| {' | '.join([*cells, *numbers])} |"


if __name__ == "__main__":
    main()

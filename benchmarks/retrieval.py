"""Find held-out adapters of the zoo by prompts for them: recall and rank against chance and against file names.

    python -m atelier.training.zoo && python -m atelier.training.retriever      the zoo and the retriever, if need be
    python -m benchmarks.retrieval [--zoo build/zoo]                            measure, keep as JSON, write the page
    python -m benchmarks.retrieval --render                                     write the page from what was measured

Candidates are all held-out adapters, whose things no adapter in training had. A prompt does not know trigger words.
Where several candidates tie, as file names do that say nothing, the expectation over their orders is taken. Intervals
are 95 % bootstrap over adapters.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))   # so that `python benchmarks/retrieval.py` works as `-m` does
from machine import describe_machine, in_words
from torch import Tensor

from atelier.adapters.base import AdapterSet, Spec
from atelier.adapters.files import load_adapter
from atelier.adapters.fuse import Pair, WeightOf, lora_of
from atelier.adapters.retrieve import Retriever, Sizes, load_retriever
from atelier.app.embeddings import Reader, search
from atelier.app.finding import words_of
from atelier.training.config import EMBEDDED
from atelier.training.retriever import WEIGHTS, Said, Stack, begun, looked_at, stack, teach
from atelier.training.weights import weights_of
from atelier.training.wording import Wording
from atelier.training.zoo import ROLES, Exhibit, read_index

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "retrieval.json"
PAGE = ROOT / "docs" / "retrieval.md"
RESAMPLES = 2000
LIBRARY = 10_000
TEXT = """# Finding adapters by their weights

Written by `python -m benchmarks.retrieval` from `benchmarks/results/retrieval.json`.

{held_out} held-out adapters of a zoo of {total} (`training/zoo.py`), whose things no adapter in training had, are
looked for with prompts that don't know their trigger words ({prompts} prompts each). Every row is among the adapters of
its role; brackets are 95 % bootstrap intervals over adapters.

| adapters | what is read | N | recall@1 | recall@5 | MRR |
|---|---|---|---|---|---|
{lines}

*plain*: captions named the thing in plain words. *called*: a made-up trigger word stood before the name, as in
Atelier's own captions. *nameless*: the trigger word alone. *style*: a way of drawing, any adapter of it is right.

File names tell the truth, nothing or a lie, a third each. Controls, *plain* and *called* together:

| control | recall@1 | recall@5 | MRR |
|---|---|---|---|
{controls}

The same adapters written otherwise, largest change of an embedding of length 1: {rewritten}.

Search over {library:,} adapters, prompt included: {search:.1f} ms (median of 50; the prompt alone {prompt:.1f} ms).

{machine}
"""


def main() -> None:
    """Measure and write, or write alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--zoo", type=Path, default=ROOT / "build" / "zoo")
    parser.add_argument("--render", action="store_true", help="write docs/retrieval.md from what was measured")
    options = parser.parse_args()
    if not options.render:
        RESULTS.write_text(json.dumps(measure(options.zoo), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(rendered(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


def measure(folder: Path) -> dict[str, Any]:
    """Everything that is published."""
    exhibits, weight_of, wording = read_index(folder), weights_of(EMBEDDED), Wording.load()
    sets = [load_adapter(folder / f"{exhibit.file}.safetensors") for exhibit in exhibits]
    held = [i for i, exhibit in enumerate(exhibits) if exhibit.held_out]
    retriever, known = load_retriever(WEIGHTS)
    reader = Reader(retriever, wording, known["text_encoder"])
    rows = torch.stack([retriever.embed(sets[i], weight_of) for i in held])
    seen = [exhibits[i] for i in held]
    return {
        "machine": describe_machine(), "total": len(exhibits), "held_out": len(held),
        "prompts": max(len(exhibit.prompts) for exhibit in exhibits), "rows": _by_role(seen, rows, reader),
        "controls": _controls(exhibits, sets, weight_of, wording, (seen, rows, reader)),
        "rewritten": _rewritten(retriever, sets[held[0]], weight_of), "search": _timed(reader, rows.shape[1]),
    }   # fmt: skip


def scores_of(exhibits: Sequence[Exhibit], rows: Tensor, reader: Reader) -> Tensor:
    """``[prompts, N, N]``: of each adapter's p-th prompt with every adapter; who has fewer says the first again."""
    said = Said.read(reader.wording, exhibits)
    words = [reader.retriever.encode_words(said.features[:, p].double(), said.said[:, p])
             for p in range(said.said.shape[1])]   # fmt: skip
    return torch.stack([word.float() @ rows.T for word in words])


def by_names(exhibits: Sequence[Exhibit]) -> Tensor:
    """The same from the words of file names: the share of the prompt's words that a name has."""
    most = max(len(exhibit.prompts) for exhibit in exhibits)
    names = [words_of(exhibit.file) for exhibit in exhibits]
    wanted = [[words_of((exhibit.prompts * most)[p]) for exhibit in exhibits] for p in range(most)]
    return torch.tensor([[[len(name & words) / len(words) for name in names] for words in row] for row in wanted])


def found(scores: Tensor, exhibits: Sequence[Exhibit]) -> dict[str, Any]:
    """Recall and mean reciprocal rank ``[value, low, high]`` over adapters, and what chance gives.

    Candidates that would be right as well stand aside: each adapter is looked for among strangers.
    """
    count = len(exhibits)
    alike = torch.tensor([[a.thing == b.thing for b in exhibits] for a in exhibits])
    others = ~alike
    right = scores.diagonal(dim1=1, dim2=2)[:, :, None]
    above = ((scores > right) & others).sum(2)              # [prompts, N]
    level = ((scores == right) & others).sum(2) + 1
    each = {f"recall@{k}": ((k - above) / level).clamp(0, 1).mean(0) for k in (1, 5)}
    steps = torch.cat([torch.zeros(1), (1 / torch.arange(1, count + 1)).cumsum(0)])
    each["mrr"] = ((steps[above + level] - steps[above]) / level).mean(0)
    among = others.sum(1) + 1
    by_chance = {"recall@1": (1 / among).mean(), "recall@5": (5 / among).clamp(max=1).mean(),
                 "mrr": (steps[among] / among).mean()}   # fmt: skip
    return {"count": count, "chance": {name: value.item() for name, value in by_chance.items()},
            **{name: _interval(values) for name, values in each.items()}}   # fmt: skip


def _interval(values: Tensor) -> list[float]:
    dice = torch.Generator().manual_seed(0)
    means = values[torch.randint(len(values), (RESAMPLES, len(values)), generator=dice)].mean(1)
    return [values.mean().item(), *torch.quantile(means, torch.tensor([0.025, 0.975])).tolist()]


def _by_role(exhibits: Sequence[Exhibit], rows: Tensor, reader: Reader) -> list[dict[str, Any]]:
    result = []
    for role in dict.fromkeys(ROLES):
        where = [i for i, exhibit in enumerate(exhibits) if exhibit.role == role]
        own = [exhibits[i] for i in where]
        if own:
            result += [{"role": role, "read": "weights", **found(scores_of(own, rows[where], reader), own)},
                       {"role": role, "read": "file names", **found(by_names(own), own)}]   # fmt: skip
    return result


def _controls(
    exhibits: Sequence[Exhibit], sets: Sequence[AdapterSet], weight_of: WeightOf, wording: Wording,
    judged: tuple[Sequence[Exhibit], Tensor, Reader],
) -> list[dict[str, Any]]:   # fmt: skip
    """What is left without one part or the other, on adapters with a name in their captions."""
    seen, rows, reader = judged
    where = [i for i, exhibit in enumerate(seen) if exhibit.role in ("plain", "called")]
    own, rows = [seen[i] for i in where], rows[where]
    scores = scores_of(own, rows, reader)
    echo = len(reader.retriever.echo.usual)
    result = [{"control": "as it is", **found(scores, own)},
              {"control": "captions shuffled among the adapters", **found(_shuffled(scores), own)}]   # fmt: skip
    for title, part in (("echo alone", slice(echo)), ("view alone, as published", slice(echo, None))):
        result.append({"control": title, **found(_part_scores(own, rows, reader, part), own)})
    taught = [i for i, exhibit in enumerate(exhibits) if not exhibit.held_out]
    layers = looked_at()
    zoo, said = stack([sets[i] for i in taught], layers, weight_of), Said.read(wording, [exhibits[i] for i in taught])
    held = [i for i, exhibit in enumerate(exhibits) if exhibit.held_out and exhibit.role in ("plain", "called")]
    for title, other in (("not taught at all", begun(zoo, said, layers, reader.retriever.sizes)),
                         ("taught with shuffled captions", _misled(zoo, said, layers, reader.retriever.sizes))):
        other = other.double().requires_grad_(False)
        other.share.copy_(reader.retriever.share)
        embedded = torch.stack([other.embed(sets[i], weight_of) for i in held])
        result.append({"control": title, **found(scores_of(own, embedded, Reader(other, wording, "")), own)})
    return result


def _part_scores(exhibits: Sequence[Exhibit], rows: Tensor, reader: Reader, part: slice) -> Tensor:
    """Scores from a part of the embeddings."""
    kept = torch.zeros_like(rows)
    kept[:, part] = rows[:, part]
    return scores_of(exhibits, kept, reader)


def _shuffled(scores: Tensor) -> Tensor:
    """The captions of all adapters dealt out anew, so that almost none keeps its own."""
    order = torch.randperm(scores.shape[1], generator=torch.Generator().manual_seed(0))
    return scores[:, order]


def _misled(zoo: Stack, said: Said, layers: Sequence[Spec], sizes: Sizes) -> Retriever:
    order = torch.randperm(len(said.alike), generator=torch.Generator().manual_seed(0))
    return teach(zoo, Said(said.features[order], said.said[order], said.alike[order][:, order]), layers, sizes)


def _rewritten(retriever: Retriever, adapters: AdapterSet, weight_of: WeightOf) -> dict[str, float]:
    """How far an embedding moves when the same change is written otherwise."""
    pairs = {a.spec: pair for a in adapters if (pair := a.factors()) is not None}
    dice = torch.Generator().manual_seed(0)

    def turned(up: Tensor, down: Tensor) -> Pair:
        g = torch.randn(len(down), len(down), generator=dice, dtype=torch.float64) + 2 * torch.eye(len(down))
        return (up.double() @ torch.linalg.inv(g)).float(), (g @ down.double()).float()

    def padded(up: Tensor, down: Tensor) -> Pair:
        return torch.cat([up, torch.zeros(len(up), 3)], 1), torch.cat([down, torch.randn(3, down.shape[1])])

    def decomposed(up: Tensor, down: Tensor) -> Pair:
        u, s, v = torch.linalg.svd(up.double() @ down.double(), full_matrices=False)
        return (u[:, : len(down)] * s[: len(down)]).float(), v[: len(down)].float()

    ways: dict[str, Callable[[Tensor, Tensor], Pair]] = {
        "GL(r)": turned, "zero-padding": padded, "SVD": decomposed, "scale folded": lambda up, down: (up * 2, down / 2),
    }
    plain = retriever.embed(adapters, weight_of)
    return {name: (retriever.embed(lora_of({spec: way(*pair) for spec, pair in pairs.items()}), weight_of) - plain)
            .norm().item() for name, way in ways.items()}   # fmt: skip


def _timed(reader: Reader, width: int) -> dict[str, float]:
    """Milliseconds of a search over a large library, and of reading the prompt alone."""
    rows = torch.nn.functional.normalize(torch.randn(LIBRARY, width), dim=1)
    prompt = "an emoji of a violin on a blue background"

    def milliseconds(work: Callable[[], object]) -> float:
        times = []
        for _ in range(50):
            start = time.perf_counter()
            work()
            times.append(1000 * (time.perf_counter() - start))
        return median(times)

    return {"search": milliseconds(lambda: search(rows, reader, prompt).topk(8)),
            "prompt": milliseconds(lambda: reader.read(prompt))}   # fmt: skip


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

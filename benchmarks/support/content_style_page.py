"""What is written of ``content_style.py``'s figures: the table, the summary, the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch

DRAWINGS = 4   # of every pair by every method
CHOSEN_ON = ("fox", "guitar")   # with mono: the pairs that the strength ¾ was chosen on


@dataclass(frozen=True, slots=True)
class Row:
    """What the judge says of one method on one pair: means over the drawings."""

    method: str
    object: str
    style: str
    object_score: float     # probability of the object
    style_score: float      # probability of the style
    distance: float         # 1 − cosine to the true pictures
    seconds: float          # to mix

    @property
    def harmonic(self) -> float:
        """High only where both scores are."""
        both = self.object_score + self.style_score
        return 2 * self.object_score * self.style_score / both if both else 0.0


def ways(rows: Sequence[Row]) -> list[str]:
    """The methods, in the order of the rows."""
    return list(dict.fromkeys(row.method for row in rows))


def interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """95 % of the means of as many values drawn again from these (bootstrap over pairs)."""
    generator = torch.Generator().manual_seed(0)
    data = torch.tensor(values)
    means = data[torch.randint(len(data), (draws, len(data)), generator=generator)].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def table(rows: Sequence[Row]) -> Iterator[str]:
    """A line of Markdown for each method."""
    yield "| method | object | style | harmonic mean (95 % over pairs) | distance to the truth | seconds to mix |"
    yield "|---|---|---|---|---|---|"
    for name in ways(rows):
        own = [row for row in rows if row.method == name]
        low, high = interval([row.harmonic for row in own])
        cells = [mean(row.object_score for row in own), mean(row.style_score for row in own)]
        yield (f"| {name} | {cells[0]:.2f} | {cells[1]:.2f} | {mean(row.harmonic for row in own):.2f} "
               f"({low:.2f} – {high:.2f}) | {mean(row.distance for row in own):.2f} "
               f"| {mean(row.seconds for row in own):.1f} |")


def against_sum(rows: Sequence[Row], name: str) -> str:
    """One method against the sum at full strengths, pair by pair, in a line."""
    ours, theirs = ([row.harmonic for row in rows if row.method == method] for method in (name, "sum"))
    low, high = interval([a - b for a, b in zip(ours, theirs, strict=True)])
    relative = f"{100 * (mean(ours) / mean(theirs) - 1):+.0f} %" if mean(theirs) else "no ratio"
    return f"{name} {mean(ours):.3f} against sum {mean(theirs):.3f} ({relative}; gain {low:+.3f} to {high:+.3f})"


def summary(rows: Sequence[Row]) -> str:
    """One line: the best method, and what came of Break-for-Make, each against the sum."""
    means = {name: mean(row.harmonic for row in rows if row.method == name) for name in ways(rows)}
    best = max(means, key=lambda name: means[name])
    pairs = len({(row.object, row.style) for row in rows})
    ours = max((name for name in means if name.startswith("break")), key=lambda name: means[name])
    return f"content_style: {pairs} pairs × {DRAWINGS} drawings; {against_sum(rows, best)}; {against_sum(rows, ours)}"


def render(result: dict[str, Any]) -> str:
    """The page of results."""
    rows = [Row(**row) for row in result["rows"]]
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    others = [row for row in rows if (row.object in CHOSEN_ON, row.style) != (True, "mono")]
    lines = "\n".join(table(rows))
    methods = ", ".join(ways(rows))
    return f"""# Content and style, mixed

Written by `python -m benchmarks.content_style --render` from what is in `benchmarks/results/`.

Objects and styles that the embedded base has never seen are trained separately and drawn together, from one prompt and
four seeds. Scores are the judge's probabilities; the truth is the object's own picture in that style. Both adapters of
a mix hold the same number of values in every method.

{lines}

{summary(rows)}

The strength ¾ of the style was chosen on {" and ".join(CHOSEN_ON)} in mono, with other seeds. Without those two pairs:
{against_sum(others, "sum, style ¾")}.

![Rows: {methods}, truth; columns: pairs](../benchmarks/results/content_style.png)

Measured on: {machine}; the seconds while other work shared the cores.
"""

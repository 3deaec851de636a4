"""Votes on the cells of a grid: which two to compare next, and a ranking that is fair to cells with few votes."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from atelier.app.services.grid import Grid


class Ranked(NamedTuple):
    """A cell or a value of an axis with its votes."""

    name: str
    wins: int
    votes: int
    score: float   # lower end of the confidence interval of the share of wins


def wilson_score(wins: int, votes: int, z: float = 1.96) -> float:
    """Lower end of Wilson's interval (1927) of a share: few votes count for little, however good they are.

    >>> round(wilson_score(1, 1), 3), round(wilson_score(9, 10), 3), wilson_score(0, 0)
    (0.207, 0.596, 0.0)
    """
    if not votes:
        return 0.0
    share, square = wins / votes, z * z / votes
    middle = share + square / 2
    return (middle - z * math.sqrt((share * (1 - share) + square / 4) / votes)) / (1 + square)


def next_pair(grid: Grid, dice: random.Random) -> tuple[int, int] | None:
    """Two drawn cells to compare: those that were compared least, never the same two again; in random order.

    None where there is nothing left to compare.
    """
    drawn = [number for number, cell in enumerate(grid.cells) if cell.picture]
    seen = Counter(number for pair in grid.votes for number in pair)
    met = {frozenset(pair) for pair in grid.votes}
    order = sorted(drawn, key=lambda number: (seen[number], dice.random()))
    for at, first in enumerate(order):
        for second in order[at + 1 :]:
            if frozenset((first, second)) not in met:
                return (first, second) if dice.random() < 0.5 else (second, first)
    return None


def rank_cells(grid: Grid) -> list[tuple[int, Ranked]]:
    """The cells that have votes with their numbers, best first."""
    wins, votes = _counted(grid, [str(number) for number in range(len(grid.cells))])
    found = [(number, Ranked(" · ".join(cell.values), wins[str(number)], votes[str(number)],
                             wilson_score(wins[str(number)], votes[str(number)])))
             for number, cell in enumerate(grid.cells) if votes[str(number)]]   # fmt: skip
    return sorted(found, key=lambda each: -each[1].score)


def rank_values(grid: Grid, axis: int) -> list[Ranked]:
    """The values of an axis, best first; a vote between two cells with the same value says nothing about it."""
    wins, votes = _counted(grid, [cell.values[axis] for cell in grid.cells])
    ranked = [Ranked(value, wins[value], votes[value], wilson_score(wins[value], votes[value]))
              for value in grid.axes[axis].values]   # fmt: skip
    return sorted(ranked, key=lambda each: -each.score)


def _counted(grid: Grid, names: Sequence[str]) -> tuple[Counter[str], Counter[str]]:
    """Wins and votes by the name that each cell counts for."""
    pairs = [(names[better], names[worse]) for better, worse in grid.votes if names[better] != names[worse]]
    return Counter(better for better, _ in pairs), Counter(name for pair in pairs for name in pair)

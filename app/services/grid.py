"""Grids: one drawing repeated while up to three of its settings change.

A grid is a file with its axes, its cells and the votes on them; each cell is a picture of the gallery with a recipe of
its own. So a grid that was interrupted goes on where it stopped, and a cell is like any other picture.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from atelier.adapters.core.parse import parse_json
from atelier.adapters.fusion.methods import METHODS
from atelier.app.services.draw import ALONE, DrawCancelledError, DrawJob, check_job, draw
from atelier.app.services.draw_again import job_from_recipe
from atelier.app.services.engine import DrawCallbacks, Engine
from atelier.app.services.finished_run import find_step_files
from atelier.app.store.gallery import find_picture, read_recipe, save_picture
from atelier.app.store.home import Home, HomeError, time_id, time_of_id, write_home_file
from atelier.app.store.library import find_adapter
from atelier.app.store.mixes import MixEntry
from atelier.app.text import grid as words
from atelier.training.sampling.sample import DrawRequest

SETTINGS = ("seed", "steps", "guidance", "sampler", "schedule", "clip_skip", "width", "height")
KINDS = ("strength", "prompt", *SETTINGS, "adapter", "method", "base", "checkpoint", "block")
MAX_AXES, MAX_CELLS = 3, 400
NO_ADAPTER = NO_BLOCK = "none"
_FLOAT = r"\s*(-?\d*\.?\d+)\s*"
_RANGE = re.compile(rf"{_FLOAT}\.\.{_FLOAT}:\s*(\d+)\s*")
_WRITE_LOCK = threading.Lock()   # votes come while cells are drawn: each reads the file and writes it


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting that changes, and its values as they are shown."""

    kind: str
    values: tuple[str, ...]
    adapter: str = ""   # whose strength or checkpoint changes; empty: the first one's


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of a grid."""

    values: tuple[str, ...]   # one of each axis
    picture: str = ""         # id of the picture, once it is drawn
    problem: str = ""         # why it could not be drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Axes, cells, and votes as pairs of cell numbers: the better one first."""

    id: str
    recipe: dict[str, Any]
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    votes: tuple[tuple[int, int], ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every cell was drawn or can't be."""
        return all(cell.picture or cell.problem for cell in self.cells)


def parse_axis(kind: str, text: str, adapter: str = "") -> Axis:
    """Read an axis: values separated by commas (for prompts by ``|``), or ``0..1.5:4`` for four evenly spaced ones.

    >>> parse_axis("strength", "0..1.5:4").values
    ('0', '0.5', '1', '1.5')
    >>> parse_axis("prompt", "fox | an owl, asleep").values
    ('fox', 'an owl, asleep')

    Raises:
        HomeError: there is no such setting, or no value.
    """
    if kind not in KINDS:
        raise HomeError(words.no_such_axis(kind))
    if kind != "prompt" and (found := _RANGE.fullmatch(text)):
        values = _evenly(float(found[1]), float(found[2]), int(found[3][:4]))
    else:
        values = [value.strip() for value in text.split("|" if kind == "prompt" else ",")]
    given = tuple(dict.fromkeys(value for value in values if value))
    if not given:
        raise HomeError(words.no_values(words.KINDS[kind]))
    return Axis(kind, given, adapter)


def _evenly(low: float, high: float, count: int) -> list[str]:
    if not 1 < count <= MAX_CELLS:
        raise HomeError(words.too_many_cells(count, MAX_CELLS))
    return [f"{low + (high - low) * i / (count - 1):g}" for i in range(count)]


def new_grid(home: Home, picture: str | Path, axes: Sequence[Axis]) -> Grid:
    """Make a grid around a picture: its id in the gallery, or a file; nothing is drawn yet.

    Raises:
        HomeError: the picture is gone or holds no recipe, there are no axes or too many cells, or a value is wrong.
    """
    path = picture if isinstance(picture, Path) else find_picture(home, picture).path
    recipe = read_recipe(path) or {}
    job, _ = job_from_recipe(home, recipe)
    if not 0 < len(axes) <= MAX_AXES:
        raise HomeError(words.NO_AXES)
    cells = tuple(Cell(values) for values in product(*(axis.values for axis in axes)))
    if len(cells) > MAX_CELLS:
        raise HomeError(words.too_many_cells(len(cells), MAX_CELLS))
    for axis in axes:   # what can't be used is said before anything is drawn
        for value in axis.values:
            _with_value(home, job, axis, value)
    grid = Grid(id=time_id(), recipe=recipe, axes=tuple(axes), cells=cells)
    _write(home, grid)
    return grid


def list_grids(home: Home) -> list[Grid]:
    """All grids that can be read, newest first."""
    ids = sorted((path.stem for path in home.grids.glob("*.json") if time_of_id(path.stem)), reverse=True)
    grids = []
    for id in ids:
        try:
            grids.append(read_grid(home, id))
        except HomeError:   # damaged
            continue
    return grids


def read_grid(home: Home, id: str) -> Grid:
    """Read a grid.

    Raises:
        HomeError: there is none, or it is damaged.
    """
    path = _path(home, id)
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        axes = tuple(Axis(axis["kind"], tuple(axis["values"]), axis["adapter"]) for axis in values["axes"])
        cells = tuple(Cell(tuple(cell["values"]), cell["picture"], cell["problem"]) for cell in values["cells"])
        votes = tuple((int(better), int(worse)) for better, worse in values["votes"])
        return Grid(id=id, recipe=dict(values["recipe"]), axes=axes, cells=cells, votes=votes)
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        raise HomeError(words.NO_GRID) from None


def draw_grid(
    home: Home, engine: Engine, id: str, is_wanted: Callable[[], bool] = lambda: True
) -> Iterator[Grid]:
    """Draw the cells that are missing, one after the other; yields the grid after each, and stores it.

    Ends between two steps where ``is_wanted`` says no. A cell that can't be drawn says why, and the others follow.

    Raises:
        HomeError: there is no such grid, or it can't be written.
    """
    grid = read_grid(home, id)
    job, _ = job_from_recipe(home, grid.recipe)

    def on_step(_done: int, _of: int) -> None:
        """End the drawing where nobody waits for it any more."""
        if not is_wanted():
            raise DrawCancelledError

    for number, cell in enumerate(grid.cells):
        if cell.picture or cell.problem:
            continue
        try:
            drawn = replace(cell, picture=_draw_cell(home, engine, job, grid.axes, cell, on_step))
        except DrawCancelledError:
            return
        except ValueError as error:   # Atelier's own errors, written for people
            drawn = replace(cell, problem=str(error))
        with _WRITE_LOCK:
            latest = read_grid(home, id)   # there may have been votes meanwhile
            grid = replace(latest, cells=(*latest.cells[:number], drawn, *latest.cells[number + 1 :]))
            _write(home, grid)
        yield grid


def _draw_cell(
    home: Home, engine: Engine, job: DrawJob, axes: Sequence[Axis], cell: Cell, on_step: Callable[[int, int], None]
) -> str:
    """Draw a cell into the gallery; returns the picture's id."""
    job, files = replace(job, request=replace(job.request, count=1), place=ALONE), dict[str, Path]()
    for axis, value in zip(axes, cell.values, strict=True):
        job = _with_value(home, job, axis, value)
        if axis.kind == "checkpoint":
            files[_target(job, axis)] = _checkpoint(home, value)
    checked = check_job(home, job)
    cards = tuple(replace(card, path=files.get(card.name, card.path)) for card in checked.cards)
    [(picture, recipe)] = draw(engine, replace(checked, cards=cards), DrawCallbacks(on_step))
    settings = {words.KINDS[axis.kind]: value for axis, value in zip(axes, cell.values, strict=True)}
    return save_picture(home, picture, {**recipe, "grid": settings}).stem


def _with_value(home: Home, job: DrawJob, axis: Axis, value: str) -> DrawJob:
    """The drawing with one value of an axis.

    Raises:
        HomeError, SettingError: the value can't be used.
    """
    match axis.kind:
        case "prompt":   # the first value is what is replaced by the others
            if axis.values[0] not in job.request.prompt:
                raise HomeError(words.not_in_prompt(axis.values[0]))
            return replace(job, request=replace(job.request, prompt=job.request.prompt.replace(axis.values[0], value)))
        case "strength":
            target, strength = _target(job, axis), _number(value)
            entries = [replace(entry, strength=strength) if entry.name == target else entry for entry in job.adapters]
            return replace(job, adapters=tuple(entries))
        case "block":
            return _with_block(job, _target(job, axis), value)
        case "adapter":
            first = job.adapters[0] if job.adapters else MixEntry("")
            new = () if value == NO_ADAPTER else (replace(first, name=find_adapter(home, value).name),)
            return replace(job, adapters=(*new, *job.adapters[1:]))
        case "method":
            if value not in METHODS:
                raise HomeError(words.no_method(value, ", ".join(METHODS)))
            return replace(job, method=value)
        case "base":
            return replace(job, base=value)
        case "checkpoint":
            _checkpoint(home, value)
            _target(job, axis)
            return job
        case _:
            return replace(job, request=DrawRequest.from_dict({**job.request.to_dict(), axis.kind: value}))


def _with_block(job: DrawJob, target: str, value: str) -> DrawJob:
    """The drawing with an adapter's update left out of one block, or at another strength there, as in ``mid=0.5``."""
    block, _, strength = value.partition("=")
    if value == NO_BLOCK:
        return job
    changed = {block.strip(): _number(strength or "0")}
    return replace(job, adapters=tuple(
        replace(entry, blocks=tuple(sorted({**dict(entry.blocks), **changed}.items()))) if entry.name == target else
        entry for entry in job.adapters))   # fmt: skip


def _target(job: DrawJob, axis: Axis) -> str:
    """The adapter that an axis is about."""
    names = [entry.name for entry in job.adapters]
    if not names or (axis.adapter and axis.adapter not in names):
        raise HomeError(words.no_adapter(axis.adapter))
    return axis.adapter or names[0]


def _checkpoint(home: Home, value: str) -> Path:
    """The file of ``RUN:STEP``."""
    run, _, step = value.rpartition(":")
    files = find_step_files(home, run)
    if not step.isdecimal() or int(step) not in files:
        raise HomeError(words.no_checkpoint(value, ", ".join(map(str, files))))
    return files[int(step)]


def _number(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise HomeError(words.no_number(value))
    return number


def _path(home: Home, id: str) -> Path:
    if time_of_id(id) is None or not re.fullmatch(r"[\d-]+", id):   # it may come from a browser
        raise HomeError(words.NO_GRID)
    return home.grids / f"{id}.json"


def _write(home: Home, grid: Grid) -> None:
    write_home_file(_path(home, grid.id), json.dumps(asdict(grid), ensure_ascii=False).encode())


def vote(home: Home, id: str, better: int, worse: int) -> Grid:
    """Note that one cell is better than another; returns the grid.

    Raises:
        HomeError: there is no such grid or cell.
    """
    with _WRITE_LOCK:
        grid = read_grid(home, id)
        if better == worse or not all(0 <= number < len(grid.cells) for number in (better, worse)):
            raise HomeError(words.NO_GRID)
        grid = replace(grid, votes=(*grid.votes, (better, worse)))
        _write(home, grid)
    return grid

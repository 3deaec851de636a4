"""What can be done with a run afterwards: draw its steps, keep another one, average several, and measure the result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from atelier.adapters.core.atomic_write import atomic_write
from atelier.adapters.core.parse import parse_json
from atelier.adapters.formats.adapter_info import AdapterInfo
from atelier.app.jobs.jobs import find_run, run_status
from atelier.app.services.engine import Engine
from atelier.app.store.home import Home, HomeError, explain_write_errors, new_name
from atelier.app.store.library import AdapterCard, find_adapter
from atelier.app.store.mixes import MixEntry
from atelier.training.base_models.identify import identify
from atelier.training.config.events import Previewed
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig

if TYPE_CHECKING:   # pages and commands that only read import none of this
    from torch import Tensor

    from atelier.adapters.core.base import AdapterSet
    from atelier.training.base_models.base_model import BaseModel
    from atelier.training.measures.leak import WordLeak
    from atelier.training.measures.rank_truncation import SizePoint

GRID_STRENGTHS = (0.5, 1.0, 1.5)
GRID_SEED = 7    # as the previews
GRID_STEPS = 8   # denoising steps, as the previews
MAX_CELLS = 200
_GRID = "grid.json"


class GridCell(NamedTuple):
    """One picture of a grid."""

    step: int
    strength: float
    path: str   # relative to the run's folder


@dataclass(frozen=True, slots=True)
class StepGrid:
    """Pictures of several steps at several strengths, from one prompt and seed."""

    prompt: str
    steps: tuple[int, ...]
    strengths: tuple[float, ...]
    cells: tuple[GridCell, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every picture has been drawn."""
        return len(self.cells) == len(self.steps) * len(self.strengths)


def find_step_files(home: Home, run_id: str) -> dict[int, Path]:
    """The snapshots of a run by step.

    Raises:
        HomeError: there is no such run.
    """
    from atelier.training.loop.snapshots import find_snapshots

    return find_snapshots(find_run(home, run_id).path)


def draw_step_grid(
    home: Home, engine: Engine, run_id: str, prompt: str = "", strengths: Sequence[float] = GRID_STRENGTHS,
    steps: Sequence[int] = (),
) -> Iterator[StepGrid]:   # fmt: skip
    """Draw snapshots of a run at several strengths; yields the grid after each picture and stores it at the end.

    Args:
        home: with the run.
        engine: what draws.
        run_id: the run.
        prompt: what to draw; empty for the first prompt of its previews.
        strengths: the columns.
        steps: the rows; none means every snapshot.

    Raises:
        HomeError: no such run, no snapshots, a step without one, or too many pictures.
        BaseError, FileError, MountError: as drawing does.
    """
    from atelier.training.sampling.sample import DrawRequest

    files, run = find_step_files(home, run_id), find_run(home, run_id)
    chosen = _chosen_steps(files, steps)
    if (count := len(chosen) * len(strengths)) > MAX_CELLS:
        raise HomeError(f"{len(chosen)} steps at {len(strengths)} strengths are {count} pictures, but at most "
                        f"{MAX_CELLS} can be drawn at once. Choose fewer.")
    config = run.config()
    request = DrawRequest(prompt=prompt.strip() or first_prompt(config), seed=GRID_SEED, steps=GRID_STEPS,
                          clip_skip=config.clip_skip)   # fmt: skip
    (run.path / "grid").mkdir(exist_ok=True)
    grid = StepGrid(request.prompt, tuple(chosen), tuple(strengths), ())
    for step in chosen:
        for strength in strengths:
            [picture] = engine.draw(config.base, [(files[step], MixEntry(files[step].stem, strength))], request)
            path = run.path / "grid" / f"{step:06d}-{strength:g}.png"
            with explain_write_errors(path):
                picture.save(path)
            grid = replace(grid, cells=(*grid.cells, GridCell(step, strength, f"grid/{path.name}")))
            yield grid
    with explain_write_errors(run.path):
        atomic_write(run.path / _GRID, json.dumps(asdict(grid)).encode())


def read_step_grid(home: Home, run_id: str) -> StepGrid | None:
    """The grid that was drawn last; None where there is none.

    Raises:
        HomeError: there is no such run.
    """
    try:
        values = parse_json((find_run(home, run_id).path / _GRID).read_text(encoding="utf-8"))
        cells = tuple(GridCell(*cell) for cell in values["cells"])
        return StepGrid(values["prompt"], tuple(values["steps"]), tuple(values["strengths"]), cells)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def draw_samples(home: Home, engine: Engine, run_id: str, prompt: str, count: int = 1) -> list[Previewed]:
    """Draw pictures with the adapter of a finished run and add them to its previews.

    Raises:
        HomeError: there is no such run, or neither its adapter nor a snapshot exists any more.
        BaseError, FileError, MountError: as drawing does.
    """
    from atelier.training.sampling.sample import DrawRequest

    run, status = find_run(home, run_id), run_status(home, run_id)
    step, file = _result_file(home, run)
    config = run.config()
    request = DrawRequest(prompt=prompt.strip() or first_prompt(config), seed=GRID_SEED, count=count,
                          clip_skip=config.clip_skip)   # fmt: skip
    pictures = engine.draw(config.base, [(file, MixEntry(file.stem, 1.0))], request)
    earlier = len(status.previews)
    events = [Previewed(step, request.prompt, f"previews/{step:06d}-sample{earlier + i}.png", GRID_SEED + i)
              for i in range(count)]   # fmt: skip
    with explain_write_errors(run.path):
        for picture, event in zip(pictures, events, strict=True):
            picture.save(run.path / event.path)
            run.append(event)
    return events


def keep_step(home: Home, run_id: str, step: int, name: str = "") -> AdapterCard:
    """Put a snapshot into the library as an adapter of its own.

    Raises:
        HomeError: no such run or snapshot, or the name can't be used.
        FileError: the snapshot can't be read.
    """
    from atelier.adapters.formats.native import load_adapter

    files, run = find_step_files(home, run_id), find_run(home, run_id)
    [step] = _chosen_steps(files, [step])
    return _add(home, run, load_adapter(files[step]), name or f"{run.config().name}-step-{step}", step)


def keep_average(home: Home, run_id: str, first_step: int, name: str = "") -> AdapterCard:
    """Put the average of all snapshots from a step on into the library.

    Raises:
        HomeError: no such run, fewer than two snapshots, or the name can't be used.
        FileError: a snapshot can't be read.
        SettingError: they can't be averaged.
    """
    from atelier.adapters.formats.native import load_adapter
    from atelier.training.measures.averaging import average_adapters

    run = find_run(home, run_id)
    files = {step: path for step, path in find_step_files(home, run_id).items() if step >= first_step}
    if len(files) < 2:
        raise HomeError(f"From step {first_step} on, the run has {len(files)} saved steps, but an average needs two. "
                        "Start from an earlier step.")
    average = average_adapters([load_adapter(path) for path in files.values()])
    steps = sorted(files)
    return _add(home, run, average, name or f"{run.config().name}-average-{steps[0]}-{steps[-1]}", steps[-1])


def keep_smaller(home: Home, run_id: str, rank: int, name: str = "") -> AdapterCard:
    """Put a copy of a run's adapter with a lower rank into the library.

    Raises:
        HomeError: there is no such run, its adapter has been deleted, or the name can't be used.
        FileError, BaseError: the adapter or its base model can't be read.
    """
    from atelier.adapters.formats.low_rank import LowRankLimits
    from atelier.app.services.import_export import merge_adapters

    run = find_run(home, run_id)
    card = find_adapter(home, Path(run_status(home, run_id).adapter).stem)
    return merge_adapters(home, [(card, 1.0)], name or f"{card.name}-rank-{rank}", LowRankLimits(rank=rank),
                          run.config().base)   # fmt: skip


def measure_sizes(home: Home, engine: Engine, run_id: str) -> list[SizePoint]:
    """How much of a run's adapter a LoRA of each rank holds.

    Raises:
        HomeError: there is no such run, or neither its adapter nor a snapshot exists any more.
        BaseError, FileError: the adapter or its base model can't be read.
    """
    from atelier.adapters.attach.mount import find_module
    from atelier.adapters.core.base import weight_of
    from atelier.training.measures.rank_truncation import size_curve

    run = find_run(home, run_id)
    _, file = _result_file(home, run)

    def work(model: BaseModel, adapters: list[AdapterSet]) -> list[SizePoint]:
        """Measure the first adapter at every rank."""

        def weight(name: str) -> Tensor:
            """The original weight of a module by its dotted name."""
            module = find_module(model.models(), name)
            assert module is not None
            return weight_of(module)

        return size_curve(adapters[0], weight)

    return engine.measure(run.config().base, [file], work)


def measure_word_leaks(home: Home, engine: Engine, run_id: str) -> list[WordLeak]:
    """Which ordinary words draw the subject of a run, the one that draws most of it first.

    Raises:
        HomeError: there is no such run, or neither its adapter nor a snapshot exists any more.
        BaseError, FileError, MountError, PictureError: the adapter, its base or its pictures can't be read.
    """
    from atelier.training.data.prepare import scan_pictures
    from atelier.training.measures.leak import caption_words, measure_leaks

    run = find_run(home, run_id)
    _, file = _result_file(home, run)
    config = run.config()
    captions = [picture.caption for picture in scan_pictures(config).usable]
    words = list(dict.fromkeys([config.subject.lower(), *caption_words(captions, config.trigger_word)]))
    template = identify(config.base).caption.replace("{trigger} {subject}", "{}").replace("{trigger}", "")
    template = template.replace("{subject}", "{}")
    subject = f"{config.trigger_word} {config.subject}"
    return engine.measure(config.base, [file],
                          lambda model, adapters: measure_leaks(model, adapters[0], template, subject, words))


def first_prompt(config: TrainConfig) -> str:
    """The first prompt of a run's previews."""
    from atelier.training.config.caption_template import fill_template

    lines = [line.strip() for line in config.preview_prompts.splitlines() if line.strip()]
    template = (lines or [config.caption or identify(config.base).caption])[0]
    return " ".join(fill_template(template, trigger=config.trigger_word, subject=config.subject).split())


def _chosen_steps(files: dict[int, Path], steps: Sequence[int]) -> list[int]:
    if not files:
        raise HomeError("This run has no saved steps. Train with snapshots above 0 to keep some.")
    if missing := [step for step in steps if step not in files]:
        raise HomeError(f"Step {missing[0]} was not saved. The saved steps are: {', '.join(map(str, files))}.")
    return sorted(steps or files)


def _result_file(home: Home, run: RunFolder) -> tuple[int, Path]:
    """The step and the file of a run's adapter; where it was deleted or never made, of the last snapshot."""
    status = run_status(home, run.id)
    if status.adapter and Path(status.adapter).is_file():
        return status.kept_step, Path(status.adapter)
    files = find_step_files(home, run.id)
    if not files:
        raise HomeError("Neither the adapter of this run nor a saved step of it exists any more.")
    step = max(files)
    return step, files[step]


def _add(home: Home, run: RunFolder, adapters: AdapterSet, name: str, step: int) -> AdapterCard:
    from atelier.adapters.formats.native import save_adapter
    from atelier.training.runs.save_adapter import free_path, thumbnail, with_recipe

    config = run.config()
    wanted = new_name(home, name)
    # Without the run's id: a run that is resumed writes over the file that has it.
    info = replace(with_recipe(AdapterInfo(best_step=step), adapters, config, identify(config.base)), name=wanted)
    nearest = min(run_status(home, run.id).previews, key=lambda preview: abs(preview.step - step), default=None)
    if nearest and (run.path / nearest.path).is_file():
        with Image.open(run.path / nearest.path) as picture:
            info = replace(info, thumbnail=thumbnail(picture))
    with explain_write_errors(home.adapters):
        save_adapter(free_path(home.adapters, wanted), adapters, info.to_metadata())
    return find_adapter(home, wanted)



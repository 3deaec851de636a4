"""The named API: what scripts call through ``gradio_client``, each function a documented endpoint (docs/api.md).

Gradio shows the type hints to callers and checks none of them, so every value is checked here or where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from atelier.adapters.formats.low_rank import EXACT, LowRankLimits
from atelier.app.jobs.grid_folders import grid_of, job_name
from atelier.app.jobs.grid_jobs import cancel_grid, submit_grid
from atelier.app.jobs.jobs import cancel, find_run, list_runs, resume, run_status
from atelier.app.services.draw import ALONE, DrawJob, Progress, draw_to_gallery
from atelier.app.services.draw_again import read_place
from atelier.app.services.engine import Engine
from atelier.app.services.grid import Grid, list_grids, new_grid, parse_axis, read_grid
from atelier.app.services.grid_picture import write_labelled_picture
from atelier.app.services.grid_progress import GridProgress, follow_grid, grid_progress
from atelier.app.services.import_child import import_files
from atelier.app.services.import_export import export_adapters
from atelier.app.services.like_picture import job_like
from atelier.app.services.train import start_training
from atelier.app.store.gallery import find_picture, read_recipe, trash_picture
from atelier.app.store.gallery_index import PictureQuery, search_pictures, update_index
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import AdapterCard, delete_adapter, find_adapter, list_adapters
from atelier.app.store.mixes import MixEntry, RegionEntry, entry_details, read_entry, read_regions
from atelier.app.store.models import resolve_base
from atelier.app.store.search import propose_adapters
from atelier.app.text import api as words
from atelier.app.text import shared
from atelier.app.web.components.page_frame import show_errors
from atelier.app.web.components.uploads import offer, uploaded
from atelier.training.config.run_folder import RunStatus
from atelier.training.config.train_config import EMBEDDED
from atelier.training.data.images import open_picture
from atelier.training.sampling.sample import DrawRequest
from atelier.training.sampling.start_picture import StartPicture

MAX_LISTED = 500   # adapters or pictures in one answer
_AT_ONCE: dict[str, Any] = {"queue": False}
_IN_TURN: dict[str, Any] = {"concurrency_limit": 4}
ENDPOINTS: dict[str, dict[str, Any]] = {
    "draw": _IN_TURN, "grid": _IN_TURN, "settings_of": _IN_TURN, "train": _IN_TURN, "jobs": _AT_ONCE, "job": _AT_ONCE,
    "control_job": _AT_ONCE, "adapters": _AT_ONCE, "find": _IN_TURN, "export": _IN_TURN, "import_adapter": _IN_TURN,
    "delete_adapter": _AT_ONCE, "pictures": _IN_TURN, "picture": _AT_ONCE, "delete_picture": _AT_ONCE,
}   # fmt: skip
"""Every endpoint, and how Gradio runs it. Whatever else a page does is private to it."""
COMMANDS = ("pause", "continue", "stop", "save", "cancel", "resume")


def add_endpoints(home: Home, engine: Engine) -> None:
    """Add every endpoint to the app that is being built."""
    endpoints = Endpoints(home, engine)
    for name, options in ENDPOINTS.items():
        gr.api(getattr(endpoints, name), api_name=name, **options)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The endpoints over one home. Their answers are plain values; a file in one is downloaded by the client."""

    home: Home
    engine: Engine

    def draw(
        self, prompt: str, adapters: dict[str, Any] | None = None, settings: dict[str, Any] | None = None,
        base: str = "", method: str = "", start: dict[str, Any] | None = None,
    ) -> Iterator[dict[str, Any]]:   # fmt: skip
        """Draw pictures and add them to the gallery. Yields progress as {step, of}, at the end {pictures, notices}.

        adapters: strengths by name, or {strength, blocks, curve, region, prompt} of each: blocks are strengths by block
        of the UNet, a curve is factors from the first step to the last, region is where it acts, prompt what is drawn
        there. settings: negative, seed, count, steps, guidance, width, height, sampler, schedule and the other settings
        of a drawing; regions: {prompt, region} of parts of the picture: left, top, right and bottom from 0 to 1, or
        rows of 0 and 1. base: a base model; empty for that of the first adapter. method: of fusion; empty adds them up.
        start: {picture, strength, mask} of a picture to start from.
        """
        with show_errors(as_page=False):
            job, notices = self._job(prompt, adapters, settings, base, method, start), list[str]()
            for event in draw_to_gallery(self.home, self.engine, job):
                match event:
                    case str():
                        notices.append(event)
                    case Progress(step, of):
                        yield {"step": step, "of": of}
                    case list():
                        yield {"pictures": [self.picture(picture.id) for picture in event], "notices": notices}

    def grid(
        self, picture: str, axes: dict[str, str], adapter: str = "", wait: bool = True
    ) -> Iterator[dict[str, Any]]:
        """Draw a picture of the gallery again while settings change; a job that goes on when the script ends.

        Yields its state as /job does whenever that changes, and at the end {job, id, cells, file} with all cells and a
        picture of them with labels. picture: its id. axes: one to three settings with values, such as
        {"strength": "0, 0.5, 1", "seed": "1, 2"}. adapter: whose strength changes; empty for the first one's. wait:
        False returns at once, with the state.
        """
        with show_errors(as_page=False):
            given = _table("axes", axes, "{'strength': '0, 0.5, 1', 'seed': '1, 2'}")
            whose = _text("adapter", adapter)
            chosen = [parse_axis(kind, _text(kind, values), whose) for kind, values in given.items()]
            grid = new_grid(self.home, _text("picture", picture), chosen)
            submit_grid(self.home, grid.id)
            state: dict[str, Any] = {}
            for progress in follow_grid(self.home, grid.id):
                yield (state := _grid_status(grid, progress))
                if wait is not True:
                    return
            if state["state"] == "failed":
                raise HomeError(state["message"])
            grid = read_grid(self.home, grid.id)
            cells = [{"values": list(cell.values), "picture": cell.picture, "problem": cell.problem}
                     for cell in grid.cells]   # fmt: skip
            yield {"job": state["id"], "id": grid.id, "cells": cells,
                   "file": _offered(write_labelled_picture(self.home, grid))}   # fmt: skip

    def settings_of(self, picture: dict[str, Any]) -> dict[str, Any]:
        """How a picture was drawn, by Atelier or another tool, as the arguments of /draw, and notes on what is missing.

        picture: a file; its metadata are read.
        """
        with show_errors(as_page=False):
            job, notes = job_like(self.home, _file("picture", picture))
        settings = {name: value for name, value in job.request.to_dict().items() if name != "prompt"}
        if job.regions:
            settings["regions"] = [asdict(one) for one in job.regions]
        if job.place != ALONE:
            settings["batch"] = list(job.place)
        if job.start:
            notes = [*notes, words.STARTED_FROM]
        adapters = {entry.name: {"strength": entry.strength, **details} if (details := entry_details(entry)) else
                    entry.strength for entry in job.adapters}   # fmt: skip
        return {"prompt": job.request.prompt, "adapters": adapters, "settings": settings, "base": job.base,
                "method": job.method, "notes": notes}   # fmt: skip

    def train(
        self, name: str, pictures: list[dict[str, Any]], subject: str = "", preset: str = "normal",
        settings: dict[str, Any] | None = None, style: bool = False,
    ) -> dict[str, Any]:   # fmt: skip
        """Start a training; returns {job, notes}. It goes on when the script ends.

        pictures: files; text files with the same names are captions. subject: the class word, such as dog. preset:
        quick, normal or thorough. settings: whatever differs from the preset, such as steps, lr or kind. style: whether
        a way of drawing is trained.
        """
        with show_errors(as_page=False):
            if not isinstance(pictures, list):
                raise ValueError(words.not_files("pictures"))
            files = [_file("pictures", each) for each in pictures]
            given = {**_table("settings", settings, "{'steps': 300}"), "subject": _text("subject", subject)}
            run, notes = start_training(self.home, _text("name", name), files, _text("preset", preset),
                                        given, style=style is True)   # fmt: skip
        return {"job": run.id, "notes": notes}

    def jobs(self) -> list[dict[str, Any]]:
        """Every training, compression and grid, newest first, as /job says it."""
        with show_errors(as_page=False):
            grids = [_grid_status(grid, grid_progress(self.home, grid)) for grid in list_grids(self.home)]
            states = [*map(_status, list_runs(self.home)), *(each for each in grids if each["state"] != "none")]
            return sorted(states, key=lambda each: each["id"].removeprefix("grid-"), reverse=True)

    def job(self, id: str) -> dict[str, Any]:
        """How a job is: {id, name, state, message, step, total_steps, seconds_left, loss, adapter, is_over}."""
        with show_errors(as_page=False):
            if grid := grid_of(self.home, _text("id", id)):
                return _grid_status(read_grid(self.home, grid), grid_progress(self.home, read_grid(self.home, grid)))
            return _status(run_status(self.home, id))

    def control_job(self, id: str, command: str) -> dict[str, Any]:
        """Tell a job to pause, continue, stop (and keep what it has), save or cancel; or resume one that is over.

        A grid can be cancelled and resumed; what is drawn stays.
        """
        with show_errors(as_page=False):
            grid = grid_of(self.home, _text("id", id))
            known = ("cancel", "resume") if grid else COMMANDS
            if command not in known:
                raise ValueError(words.no_command(command, ", ".join(known)))
            if grid:
                {"cancel": cancel_grid, "resume": submit_grid}[command](self.home, grid)
            elif command in ("cancel", "resume"):
                {"cancel": cancel, "resume": resume}[command](self.home, _text("id", id))
            else:
                find_run(self.home, _text("id", id)).send_command("resume" if command == "continue" else command)
        return self.job(id)

    def adapters(self, search: str = "") -> list[dict[str, Any]]:
        """The adapters of the library, newest first; search: in names, trigger words, class words and base models."""
        with show_errors(as_page=False):
            wanted = _text("search", search).casefold().strip()
            return [_adapter(card) for card in list_adapters(self.home)
                    if wanted in f"{card.name} {card.trigger} {card.subject} {card.title}".casefold()][:MAX_LISTED]

    def find(self, prompt: str, limit: int = 8) -> list[dict[str, Any]]:
        """The adapters that fit a prompt best, with a score from 0 to 1 and the reason."""
        with show_errors(as_page=False):
            found = propose_adapters(self.home, _text("prompt", prompt), int(_number("limit", limit)))
            return [{"name": one.name, "score": one.score, "reason": one.reason} for one in found]

    def export(
        self, adapter: str, format: str = "kohya", precision: str = "fp16", rank: int = 0, recipe: bool = False
    ) -> dict[str, Any]:
        """Write an adapter for other tools; returns {file, bytes, exact, error, loads}.

        format: kohya, diffusers, lycoris, comfyui, diff or native. precision: fp32, fp16 or bf16. rank: the largest, 0
        for what is needed. recipe: whether the file says how it was trained.
        """
        with show_errors(as_page=False):
            card, form = find_adapter(self.home, _text("adapter", adapter)), _text("format", format)
            limits = LowRankLimits(rank=int(_number("rank", rank))) if rank else EXACT
            # A folder of its own: scripts may ask for one adapter in two forms at once.
            with TemporaryDirectory(dir=self.home.state) as folder:
                path, report = export_adapters([(card, 1.0)], form, Path(folder), _text("precision", precision),
                                               limits=limits, recipe=recipe is True)   # fmt: skip
                file = _offered(path)
            loads = {tool: verdict.answer for tool, verdict in report.loads.items()}
            return {"file": file, "bytes": report.bytes, "exact": report.exact, "error": report.max_error,
                    "loads": loads}   # fmt: skip

    def import_adapter(self, file: dict[str, Any], name: str = "") -> dict[str, Any]:
        """Take an adapter file of any tool into the library; returns {name, notes}. name: empty for the file's own."""
        with show_errors(as_page=False):
            [result] = import_files(self.home, [_file("file", file)], _text("name", name))
            if not result.name:
                raise HomeError(result.reason)
            return {"name": result.name, "notes": list(result.notes)}

    def delete_adapter(self, name: str) -> str:
        """Move an adapter to the trash; returns its name there."""
        with show_errors(as_page=False):
            return delete_adapter(self.home, _text("name", name)).name

    def pictures(
        self, search: str = "", limit: int = 60, before: str = "", starred: bool = False, board: str = ""
    ) -> list[dict[str, Any]]:
        """Pictures of the gallery, newest first: {id, prompt, seed, starred}.

        search: words in prompts and names of adapters. before: only those older than this id, to go on from there.
        """
        with show_errors(as_page=False):
            most = min(MAX_LISTED, max(0, int(_number("limit", limit))))
            query = PictureQuery(text=_text("search", search), starred=starred is True, board=_text("board", board))
            update_index(self.home, seconds=10.0)
            return [{"id": each.id, "prompt": each.prompt, "seed": each.seed, "starred": each.starred}
                    for each in search_pictures(self.home, query, _text("before", before), most)]

    def picture(self, id: str) -> dict[str, Any]:
        """A picture of the gallery: {id, file, recipe}. The file holds the recipe too."""
        with show_errors(as_page=False):
            found = find_picture(self.home, _text("id", id))
            return {"id": found.id, "file": _offered(found.path), "recipe": read_recipe(found.path) or {}}

    def delete_picture(self, id: str) -> str:
        """Move a picture of the gallery to the trash; returns its name there."""
        with show_errors(as_page=False):
            return trash_picture(self.home, _text("id", id)).name

    def _job(
        self, prompt: str, adapters: Any, settings: Any, base: str, method: str, start: Any
    ) -> DrawJob:
        strengths = _table("adapters", adapters, "{'rex': 0.8}")
        entries = tuple(_entry(name, value) for name, value in strengths.items())
        if not _text("prompt", prompt).strip():
            raise ValueError(shared.NO_PROMPT)
        given = {**_table("settings", settings, "{'steps': 20}"), "prompt": prompt}
        regions, place = _regions(given.pop("regions", ())), read_place(given.pop("batch", ALONE))
        cards = [find_adapter(self.home, name) for name in strengths]
        own = next((card.base for card in cards if card.base), EMBEDDED)
        return DrawJob(request=DrawRequest.from_dict(given), base=resolve_base(self.home, _text("base", base)) or own,
                       adapters=entries, method=_text("method", method), start=_start(start),
                       regions=regions, place=place)   # fmt: skip


def _entry(name: str, value: Any) -> MixEntry:
    """An adapter of a drawing: its strength, or a table of that and of blocks, curve, region and its prompt."""
    if not isinstance(value, Mapping):
        return MixEntry(name, _number(name, value))
    known = ("strength", "blocks", "curve", "region", "prompt")
    if unknown := [str(key) for key in value if key not in known]:
        raise ValueError(words.unknown_key(name, unknown[0], ", ".join(known)))
    try:
        return read_entry({"strength": 1.0, **value, "name": name})
    except (ValueError, TypeError) as error:
        raise ValueError(words.wrong_adapter(name, str(error))) from None


def _regions(values: Any) -> tuple[RegionEntry, ...]:
    try:
        return read_regions(values or ())
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(words.wrong_regions(str(error))) from None


def _start(values: Any) -> StartPicture | None:
    table = _table("start", values, "{'picture': handle_file('room.png'), 'strength': 0.6}")
    if not table:
        return None
    known = ("picture", "strength", "mask")
    if unknown := [key for key in table if key not in known]:
        raise ValueError(words.unknown_key("start", unknown[0], ", ".join(known)))
    mask = open_picture(_file("mask", table["mask"])).convert("L") if table.get("mask") else None
    picture = open_picture(_file("picture", table.get("picture")))
    return StartPicture(picture, _number("strength", table.get("strength", 0.6)), mask)


def _status(run: RunStatus) -> dict[str, Any]:
    return {
        "id": run.id, "name": run.name, "state": run.state, "message": run.message, "step": run.step,
        "total_steps": run.total_steps, "seconds_left": run.seconds_left,
        "loss": run.losses[-1][1] if run.losses else None, "adapter": Path(run.adapter).stem, "is_over": run.is_over,
    }   # fmt: skip


def _grid_status(grid: Grid, progress: GridProgress) -> dict[str, Any]:
    """The state of a grid as that of a run: its steps are its pictures."""
    job = progress.job
    return {
        "id": job_name(grid.id), "name": str(grid.recipe.get("prompt", "")), "state": job.state,
        "message": job.message, "step": progress.done, "total_steps": progress.of, "seconds_left": None, "loss": None,
        "adapter": "", "is_over": job.is_over,
    }   # fmt: skip


def _adapter(card: AdapterCard) -> dict[str, Any]:
    return {
        "name": card.name, "kind": card.kind, "trigger": card.trigger, "subject": card.subject, "base": card.base,
        "family": card.family, "bytes": card.bytes, "created": card.created.isoformat(timespec="seconds"),
        "pictures": card.pictures, "notes": list(card.notes),
    }   # fmt: skip


def _offered(path: Path) -> dict[str, Any]:
    return {"path": offer(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}


def _file(name: str, value: Any) -> Path:
    path = value.get("path") if isinstance(value, Mapping) else None
    if not isinstance(path, str):
        raise ValueError(words.not_files(name))
    return uploaded(path)


def _table(name: str, value: Any, example: str) -> dict[str, Any]:
    if value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
        raise ValueError(words.not_a_table(name, example))
    return dict(value or {})


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(words.not_a_text(name))
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(words.not_a_number(name, value))
    return value

"""``atelier jobs``: list runs, control them, and compare, keep and measure their steps."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from atelier.adapters.core.byte_size import format_bytes
from atelier.app.cli.tables import columns, sheet
from atelier.app.jobs.jobs import cancel, find_run, find_run_by_name, list_runs, move, resume
from atelier.app.services import finished_run
from atelier.app.store.home import Home, HomeError
from atelier.app.text.shared import STATES, duration
from atelier.training.config.run_folder import RunStatus
from atelier.training.loop.health import health_lines

Answer = tuple[Any, str]   # values for --json, text for a person
_RUNNING = ("training", "paused")


def run_job_action(home: Home, arguments: Namespace) -> Answer:
    """Do one action of ``atelier jobs``.

    Raises:
        HomeError: there is no such run, or the action does not fit its state.
        BaseError, FileError, MountError: a file can't be used.
    """
    if arguments.action in (None, "list"):
        return _list(home)
    run = find_run_by_name(home, arguments.run)
    return _ACTIONS[arguments.action](home, run, arguments)


def _list(home: Home) -> Answer:
    runs = [{"name": run.name, "state": STATES[run.state], "step": run.step, "of": run.total_steps, "id": run.id}
            for run in list_runs(home)]   # fmt: skip
    rows = [(run["name"], run["state"], f"{run['step']} / {run['of']}", run["id"]) for run in runs]
    return runs, columns(rows) if rows else "There are no runs yet. Start one with: atelier train PICTURES --name NAME"


def _show(home: Home, run: RunStatus, _arguments: Namespace) -> Answer:
    values: dict[str, Any] = {"name": run.name, "id": run.id, "state": STATES[run.state], "message": run.message,
                              "step": run.step, "of": run.total_steps}   # fmt: skip
    if run.seconds_left is not None:
        values["time left"] = duration(run.seconds_left)
    if run.measured:
        last = run.measured[-1]
        values |= {"memorization (AUC)": round(last.memorization, 3), "gain, trained": round(last.member_gain, 3),
                   "gain, others": round(last.held_out_gain, 3), "drift": round(last.drift, 3),
                   "memory": format_bytes(last.memory)}   # fmt: skip
    if run.early_stop:
        values["stopped early"] = run.early_stop.reason
    values["health"] = " ".join(line.text for line in health_lines(run.measured))
    values["saved steps"] = ", ".join(map(str, finished_run.find_step_files(home, run.id)))
    values = {name: value for name, value in values.items() if value != ""}
    return values, sheet(values)


def _log(home: Home, run: RunStatus, _arguments: Namespace) -> Answer:
    path = find_run(home, run.id).path / "log.txt"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return {"id": run.id, "log": text}, text.rstrip("\n") or f"The log of {run.name} is empty."


def _command(name: str, states: tuple[str, ...], answer: str) -> Callable[..., Answer]:
    def send(home: Home, run: RunStatus, arguments: Namespace) -> Answer:
        """Send the command to a run that is in one of the states; HomeError for others."""
        if run.state not in states:
            raise HomeError(f"The run {run.name!r} is {STATES[run.state]}, so this is not possible. It must be "
                            f"{' or '.join(STATES[state] for state in states)}.")
        find_run(home, run.id).send_command(name, getattr(arguments, "prompt", ""))
        return {"id": run.id, "sent": name}, f"{run.name}: {answer}"

    return send


def _resume(home: Home, run: RunStatus, arguments: Namespace) -> Answer:
    if run.state == "paused":
        return _command("resume", ("paused",), "continues.")(home, run, arguments)
    return _retry(home, run, arguments)


def _retry(home: Home, run: RunStatus, _arguments: Namespace) -> Answer:
    if not run.is_over:
        raise HomeError(f"The run {run.name!r} is {STATES[run.state]} already.")
    resume(home, run.id)
    return {"id": run.id, "queued": True}, f"{run.name} is in the queue. A worker or the Studio starts it."


def _cancel(home: Home, run: RunStatus, _arguments: Namespace) -> Answer:
    if run.is_over:
        raise HomeError(f"The run {run.name!r} is {STATES[run.state]} already.")
    cancel(home, run.id)
    return {"id": run.id, "cancelled": True}, f"{run.name} was cancelled."


def _move(places: int) -> Callable[..., Answer]:
    def action(home: Home, run: RunStatus, _arguments: Namespace) -> Answer:
        """Move a waiting run and say where it waits now."""
        move(home, run.id, places)
        waiting = find_run_by_name(home, run.id).message
        return {"id": run.id, "place": waiting}, f"{run.name}: {waiting}"

    return action


def _preview(home: Home, run: RunStatus, arguments: Namespace) -> Answer:
    if run.state in _RUNNING:
        prompt = arguments.prompt or finished_run.first_prompt(find_run(home, run.id).config())
        asked = Namespace(prompt=prompt)
        return _command("preview", _RUNNING, "the preview is drawn at the next step.")(home, run, asked)
    from atelier.app.services.engine import Engine

    drawn = finished_run.draw_samples(home, Engine.of_home(home), run.id, arguments.prompt)
    paths = [str(find_run(home, run.id).path / one.path) for one in drawn]
    return {"pictures": paths}, "\n".join(paths)


def _grid(home: Home, run: RunStatus, arguments: Namespace) -> Answer:
    from atelier.app.services.engine import Engine

    strengths = arguments.strengths or finished_run.GRID_STRENGTHS
    engine = Engine.of_home(home)
    grids = list(finished_run.draw_step_grid(home, engine, run.id, arguments.prompt, strengths, arguments.steps))
    folder = find_run(home, run.id).path
    cells = [{"step": one.step, "strength": one.strength, "path": str(folder / one.path)} for one in grids[-1].cells]
    rows = [(f"step {cell['step']}", f"strength {cell['strength']:g}", cell["path"]) for cell in cells]
    return cells, columns(rows)


def _keep(home: Home, run: RunStatus, arguments: Namespace) -> Answer:
    card = finished_run.keep_step(home, run.id, arguments.step, arguments.name)
    return {"name": card.name, "path": str(card.path)}, f"{card.name} is in the library: {card.path}"


def _average(home: Home, run: RunStatus, arguments: Namespace) -> Answer:
    card = finished_run.keep_average(home, run.id, arguments.first, arguments.name)
    return {"name": card.name, "path": str(card.path)}, f"{card.name} is in the library: {card.path}"


def _sizes(home: Home, run: RunStatus, _arguments: Namespace) -> Answer:
    from atelier.app.services.engine import Engine
    from atelier.training.measures.rank_truncation import knee

    points = finished_run.measure_sizes(home, Engine.of_home(home), run.id)
    best = knee(points)
    values = [{"rank": one.rank, "bytes": one.bytes, "error": round(one.error, 4), "knee": one is best}
              for one in points]   # fmt: skip
    rows = [(f"rank {one.rank}", format_bytes(one.bytes), f"error {one.error:.1%}", "knee" * (one is best))
            for one in points]   # fmt: skip
    return values, columns(rows)


def _leaks(home: Home, run: RunStatus, _arguments: Namespace) -> Answer:
    from atelier.app.services.engine import Engine

    leaks = finished_run.measure_word_leaks(home, Engine.of_home(home), run.id)
    values = [{"word": leak.word, "share": round(leak.share, 3), "in captions": leak.in_captions, "leaks": leak.leaks}
              for leak in leaks]   # fmt: skip
    rows = [(leak.word, f"{leak.share:.0%} of the trigger word's effect", "leaks" * leak.leaks) for leak in leaks]
    return values, columns(rows)


_ACTIONS: dict[str, Callable[..., Answer]] = {
    "show": _show, "log": _log, "resume": _resume, "retry": _retry, "cancel": _cancel, "preview": _preview,
    "grid": _grid, "keep": _keep, "average": _average, "sizes": _sizes, "leaks": _leaks,
    "pause": _command("pause", ("training",), "pauses after this step."),
    "stop": _command("stop", _RUNNING, "ends after this step and saves its adapter."),
    "save": _command("save", _RUNNING, "the weights of the next step are saved."),
    "sooner": _move(-1), "later": _move(1),
}   # fmt: skip

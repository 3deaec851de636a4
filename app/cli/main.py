"""The command ``atelier``: every subcommand, from its arguments to its exit code.

What a subcommand needs is imported inside it, so that ``atelier --help`` and typing errors are answered at once.
"""

from __future__ import annotations

import gc
import json
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atelier.app.cli.arguments import build_parser
from atelier.app.cli.file_commands import FILE_COMMANDS
from atelier.app.store.home import open_home, os_error_text
from atelier.app.text.server import STARTING

if TYPE_CHECKING:   # importing it loads torch
    from atelier.app.store.home import Home
    from atelier.training.config.events import Event
    from atelier.training.config.run_folder import RunFolder

FAILED, INTERRUPTED = 1, 130
_GARBAGE_THRESHOLD = 20_000   # new objects between two collections, in place of Python's 700


def run() -> None:
    """The command ``atelier``: a process of its own for one command.

    Imports make four hundred thousand objects that all stay. Python looks for garbage among them while they are made
    and once more at the end, which took 2 of the 7 CPU seconds of a small drawing.
    """
    gc.set_threshold(_GARBAGE_THRESHOLD, 10, 10)
    code = main()
    gc.freeze()   # the process ends: no object needs to be looked at any more
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns its exit code."""
    if sys.platform == "win32":   # jobs need sessions and signals of POSIX
        return _fail("Atelier runs on Linux and macOS. On Windows, install it inside WSL; the README explains how.")
    arguments = build_parser().parse_args(argv)
    # Messages of libraries to developers, which users can do nothing about.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Set before torch is loaded, and inherited by the worker and its children. Threads of OpenMP spin while they wait.
    # Where a drawing and a training share the processor, each spins while the other could compute: steps of 20 s
    # instead of 0.2 s were measured. A short spin is as fast as a long one (docs/LOG.md); none costs half the speed.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if sys.platform == "linux":   # else memory that is free in pieces can't be used for something large
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    try:
        return _COMMANDS[arguments.command](arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has closed the pipe (`atelier list | head`); nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return _fail(os_error_text(error))
    except ValueError as error:
        # Atelier's own errors are sentences for users. Any other is a bug and needs its traceback.
        if not type(error).__module__.startswith("atelier."):
            raise
        return _fail(str(error))


def _fail(message: str) -> int:
    print(f"atelier: {message}", file=sys.stderr)
    return FAILED


def _print_answer(arguments: Namespace, values: Any, text: str) -> int:
    """Print an answer: its values as JSON with ``--json``, else its text; returns exit code 0."""
    print(json.dumps(values, indent=2, ensure_ascii=False) if arguments.json else text)
    return 0


def _reserve_one_core() -> None:
    """Let torch use all cores but one, in this process and in those that it starts.

    The Studio, a training and the browser share the machine. An operation that is split over all cores waits for the
    part whose core is busy with something else.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) - 1)))


def _explain_unused_card() -> None:
    """Say why a graphics card that is here is not used."""
    from atelier.training.base_models.device import card_problem

    if problem := card_problem():
        print(f"atelier: {problem}", file=sys.stderr)


def _serve(arguments: Namespace) -> int:
    print(STARTING, flush=True)
    _reserve_one_core()
    from atelier.app.web.server import serve

    with suppress(KeyboardInterrupt):
        serve(open_home(arguments.home, _queue(arguments)), arguments.host, arguments.port, browser=arguments.open,
              proxies=arguments.proxy, names=arguments.public_name, root_path=arguments.root_path,
              mcp=arguments.mcp)
    return 0


def _queue(arguments: Namespace) -> str:
    # Out of the environment, because it may hold a password that children have no need of.
    from_environment = os.environ.pop("ATELIER_QUEUE", "")
    return arguments.queue or from_environment


def _key(arguments: Namespace) -> int:
    home = open_home(arguments.home)
    from atelier.app.cli.tables import columns
    from atelier.app.store.api_keys import delete_key, list_keys, make_key

    if arguments.action == "make":
        key = make_key(home, arguments.name)
        hint = "Copy it now: only its hash is stored. Programs send it as 'Authorization: Bearer KEY'."
        return _print_answer(arguments, {"name": arguments.name, "key": key}, f"{key}\n{hint}")
    if arguments.action == "delete":
        delete_key(home, arguments.name)
        return _print_answer(arguments, {"deleted": arguments.name}, f"The key {arguments.name} was deleted.")
    keys = [{"name": key.name, "created": key.created} for key in list_keys(home)]
    text = columns([tuple(key.values()) for key in keys]) if keys else "There are no keys."
    return _print_answer(arguments, keys, text)


def _worker(arguments: Namespace) -> int:
    _reserve_one_core()
    from atelier.app.jobs.worker import run_worker

    home = open_home(arguments.home, _queue(arguments))
    print(f"Running the queued jobs of {home.path}. After Ctrl+C, a running job continues on its own.")
    run_worker(home)
    return 0


def _train(arguments: Namespace) -> int:
    home = open_home(arguments.home)
    from atelier.app.cli.train import find_unfinished, make_run, run_training

    _explain_unused_card()
    run = find_unfinished(home, arguments.name) if arguments.resume else make_run(home, arguments)
    return _report_training(arguments, home, run, run_training(run, home.adapters, resume=arguments.resume))


def _transfer(arguments: Namespace) -> int:
    home = open_home(arguments.home)
    from atelier.app.cli.train import run_training
    from atelier.app.cli.transfer import run_transfer

    _explain_unused_card()
    run = run_transfer(home, arguments)
    return _report_training(arguments, home, run, run_training(run, home.adapters, resume=False))


def _report_training(arguments: Namespace, home: Home, run: RunFolder, last: Event) -> int:
    """Print what became of a training."""
    from atelier.training.config.events import Failed, Finished

    config = run.config()
    where = ["--home", str(home.path)] if arguments.home else []
    again = "Resume it with: " + shlex.join(["atelier", "train", "--name", config.name, "--resume", *where])
    match last:
        case Finished(step, path, seconds):
            prompt = f"{config.trigger_word} {config.subject}"
            name = Path(path).stem   # not that of the configuration if it has been taken since
            values = {"name": name, "path": path, "run": run.id, "step": step, "seconds": round(seconds, 1)}
            return _print_answer(arguments, values, f"{name} is ready after {seconds:.0f} s: {path}\nDraw with it: "
                                 + shlex.join(["atelier", "draw", prompt, "--adapter", name, *where]))
        case Failed(message):
            return _fail(f"{message}\n{again}")
    _fail(f"Stopped. {again}")
    return INTERRUPTED


def _jobs(arguments: Namespace) -> int:
    from atelier.app.cli.jobs import run_job_action

    values, text = run_job_action(open_home(arguments.home), arguments)
    return _print_answer(arguments, values, text)


def _make(arguments: Namespace) -> int:
    home = open_home(arguments.home)
    from atelier.app.cli.combine import run_combine

    card = run_combine(home, arguments)
    values = {"name": card.name, "path": str(card.path), "trigger": card.trigger}
    return _print_answer(arguments, values, f"{card.name} is ready: {card.path}")


def _grid(arguments: Namespace) -> int:
    _explain_unused_card()
    from atelier.app.cli.grid import run_grid

    values = run_grid(open_home(arguments.home), arguments)
    if "error" in values:
        return _fail(f"{values['error']} ({values['grid']})")
    problems = [f"{' · '.join(cell['values'])}: {cell['problem']}" for cell in values["cells"] if cell["problem"]]
    return _print_answer(arguments, values, "\n".join([*problems, values["file"]]))


def _compress(arguments: Namespace) -> int:
    home = open_home(arguments.home)
    from atelier.app.cli.compress import run_compress

    where = ["--home", str(home.path)] if arguments.home else []
    values = run_compress(home, arguments)
    if "error" in values:
        again = shlex.join(["atelier", "compress", "--name", arguments.name, "--resume", *where])
        return _fail(f"{values['error']}\nResume it with: {again}")
    draw = shlex.join(["atelier", "draw", "PROMPT", "--base", arguments.name, *where])
    text = f"{arguments.name} is ready: {values['path']}\n{values['size']}\n{values['time']}\nDraw with it: {draw}"
    return _print_answer(arguments, values, text)


def _draw(arguments: Namespace) -> int:
    home = open_home(arguments.home)
    from atelier.app.cli.draw import run_draw

    _explain_unused_card()
    drawn: list[dict[str, Any]] = []
    for event in run_draw(home, arguments):
        if isinstance(event, str):
            print(f"atelier: {event}", file=sys.stderr)
            continue
        path, seed = event
        drawn.append({"path": str(path), "seed": seed})
        if not arguments.json:
            print(path, flush=True)
    if arguments.json:
        _print_answer(arguments, drawn, "")
    return 0


def _find(arguments: Namespace) -> int:
    home = open_home(arguments.home)
    from atelier.app.cli.reports import proposal_table, proposal_values
    from atelier.app.store.search import propose_adapters

    found = propose_adapters(home, arguments.prompt, arguments.limit)
    return _print_answer(arguments, [proposal_values(proposal) for proposal in found], proposal_table(found))


def _list(arguments: Namespace) -> int:
    home = open_home(arguments.home)
    from atelier.app.cli.reports import adapter_table, adapter_values, inversion_table, inversion_values
    from atelier.app.store.library import list_adapters, list_unreadable
    from atelier.app.store.textual_inversions import list_textual_inversions, list_unreadable_inversions

    for reason in (*(file.reason for file in list_unreadable(home)), *list_unreadable_inversions(home)):
        print(f"atelier: skipped: {reason}", file=sys.stderr)
    cards, words = list_adapters(home), list_textual_inversions(home)
    table = f"{adapter_table(cards)}\n\n{inversion_table(words)}" if words else adapter_table(cards)
    return _print_answer(arguments, [*map(adapter_values, cards), *map(inversion_values, words)], table)


def _show(arguments: Namespace) -> int:
    home = open_home(arguments.home)
    from atelier.app.cli.reports import adapter_details, inversion_values
    from atelier.app.cli.tables import sheet
    from atelier.app.store.home import adapter_names
    from atelier.app.store.library import find_adapter
    from atelier.app.store.textual_inversions import find_textual_inversion

    word = None if arguments.name in adapter_names(home) else find_textual_inversion(home, arguments.name)
    details = inversion_values(word) if word else adapter_details(find_adapter(home, arguments.name))
    if arguments.intruders and not word:
        from atelier.app.services.library.intruders import intruder_values

        details |= intruder_values(find_adapter(home, arguments.name))
    return _print_answer(arguments, details, sheet(details))


def _delete(arguments: Namespace) -> int:
    home = open_home(arguments.home)
    from atelier.app.store.home import adapter_names
    from atelier.app.store.library import delete_adapter
    from atelier.app.store.textual_inversions import delete_textual_inversion, find_textual_inversion

    word = None if arguments.name in adapter_names(home) else find_textual_inversion(home, arguments.name)
    trashed = delete_textual_inversion(home, word) if word else delete_adapter(home, arguments.name)
    return _print_answer(arguments, {"trashed": str(trashed)}, f"Moved to the trash: {trashed}")


def _restore(arguments: Namespace) -> int:
    home = open_home(arguments.home)
    from atelier.app.cli.tables import columns
    from atelier.app.services.trash import list_trash, restore

    if arguments.name:
        path = restore(home, arguments.name)
        return _print_answer(arguments, {"restored": str(path)}, f"Restored: {path}")
    files = list_trash(home)
    rows = [(file.name, file.kind, file.deleted.isoformat(" ", "seconds")) for file in files]
    values = [{"name": name, "kind": kind, "deleted": deleted} for name, kind, deleted in rows]
    return _print_answer(arguments, values, columns(rows) if rows else "The trash is empty.")


def _models(arguments: Namespace) -> int:
    home = open_home(arguments.home)
    from atelier.adapters.core.parse import parse_path
    from atelier.app.cli.download import download_base
    from atelier.app.cli.reports import known_table, known_values, model_table, model_values
    from atelier.app.cli.tables import sheet
    from atelier.app.services.known_models import known_models, memory_needs
    from atelier.app.store.base_settings import base_options
    from atelier.app.store.home import HomeError
    from atelier.app.store.library import list_adapters
    from atelier.app.store.models import ModelEntry, scan_models
    from atelier.training.base_models.hub import is_hub_id
    from atelier.training.base_models.identify import identify

    cards = list_adapters(home)
    if arguments.action == "known":
        known = [(model, memory_needs(model)) for model in known_models()]
        return _print_answer(arguments, known_values(known), known_table(known))
    if not arguments.what:
        raise HomeError(f"`atelier models {arguments.action}` needs a model: add a folder, a file or a hub id.")
    if arguments.action == "scan":
        models = scan_models(parse_path(arguments.what), partial(base_options, home))
        return _print_answer(arguments, [model_values(model, cards) for model in models], model_table(models))
    if arguments.action == "get":
        if not is_hub_id(arguments.what):
            raise HomeError(f"{arguments.what!r} is not the id of a model on the hub. Use one, such as owner/model.")
        download_base(arguments.what)
    values = model_values(ModelEntry(Path(arguments.what), identify(arguments.what,
                                                                    base_options(home, arguments.what))), cards)
    return _print_answer(arguments, values, sheet(values))


def _words(arguments: Namespace) -> int:
    from atelier.training.base_models.base_model import load
    from atelier.training.measures.trigger_word import MAX_EFFECT, word_effects

    found = sorted(zip(word_effects(load(arguments.base), arguments.words), arguments.words, strict=True))
    lines = [f"{effect:5.2f}  {word:12}  {'means nothing: good' if effect < MAX_EFFECT else 'means something'}"
             for effect, word in found]   # fmt: skip
    return _print_answer(arguments, {word: round(effect, 3) for effect, word in found}, "\n".join(lines))


def _file(arguments: Namespace) -> int:
    answer = FILE_COMMANDS[arguments.command](arguments)
    _print_answer(arguments, answer.values, answer.text)
    return answer.code


def _doctor(arguments: Namespace) -> int:
    from atelier.app.cli.doctor import examine
    from atelier.app.cli.tables import sheet

    found = examine(arguments.home, repair=arguments.repair)
    problems = found["problems"]
    text = sheet({name: value for name, value in found.items() if name not in ("problems", "repairs")})
    said = [*(f"! {problem}" for problem in problems), *(f"+ {repair}" for repair in found["repairs"])]
    _print_answer(arguments, found, "\n".join([text, *said]))
    return FAILED if problems else 0


_COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "serve": _serve, "key": _key, "worker": _worker, "train": _train, "jobs": _jobs, "make": _make,
    "transfer": _transfer, "compress": _compress, "draw": _draw, "grid": _grid, "find": _find, "words": _words,
    "list": _list, "show": _show, "delete": _delete, "restore": _restore, "models": _models, "doctor": _doctor,
    **dict.fromkeys(FILE_COMMANDS, _file),
}   # fmt: skip


if __name__ == "__main__":
    run()

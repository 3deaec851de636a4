"""The subcommands on adapter files: import, inspect, export, merge, resize, extract.

Each returns what ``main`` prints: values for programs, a text for people, and the exit code.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from atelier.app.cli.tables import columns, sheet
from atelier.app.store.home import HomeError, open_home


class CommandResult(NamedTuple):
    """What a subcommand prints, and its exit code."""

    values: Any
    text: str
    code: int = 0


def inspect(arguments: Namespace) -> CommandResult:
    """Show what a file contains. No large library is loaded, so it answers at once."""
    from atelier.app.cli.inspect import inspect_file

    found = inspect_file(arguments.file)
    return CommandResult(found, sheet(found))


def import_(arguments: Namespace) -> CommandResult:
    """Import one file, or every adapter file of a folder."""
    from atelier.app.services.import_child import import_files

    home, place = open_home(arguments.home), arguments.file.expanduser()
    paths = sorted(_adapter_files(place)) if place.is_dir() else [place]
    if not paths:
        raise HomeError(f"{place} contains no .safetensors files. Give the folder that your adapters are in.")
    if arguments.name and len(paths) > 1:
        raise HomeError(f"--name names one adapter, but {place} contains {len(paths)} files. Omit --name.")
    rows: list[dict[str, Any]] = []
    for result in import_files(home, paths, arguments.name or ""):
        found = {"family": result.family, "notes": result.notes} if result.name else {"reason": result.reason}
        rows.append({"file": str(result.path), "name": result.name, **found})
    lines = [line for row in rows for line in _import_lines(row)]
    return CommandResult(rows, "\n".join(lines), int(any(not row["name"] for row in rows)))


def _adapter_files(folder: Path) -> Iterator[Path]:
    """The .safetensors files in a folder and those below it, in small or capital letters."""
    return (path for path in folder.rglob("*") if path.suffix.lower() == ".safetensors" and path.is_file())


def _import_lines(row: dict[str, Any]) -> list[str]:
    if not row["name"]:
        return [f"! {row['reason']}"]
    return [f"{row['name']}  ({row['family']}, from {Path(row['file']).name})", *(f"  {note}" for note in row["notes"])]


def export(arguments: Namespace) -> CommandResult:
    """Write adapters for another tool, or a base model with adapters merged into it."""
    from atelier.app.services.import_export import export_adapters, export_base, export_path, export_tiny, unet_error
    from atelier.app.store.library import find_adapter
    from atelier.app.store.sidecars import write_sidecars

    home = open_home(arguments.home)
    parts = [(find_adapter(home, name), strength) for name, strength in arguments.adapters]
    base = arguments.base or ""
    if arguments.form in ("base", "checkpoint"):
        single_file = arguments.form == "checkpoint"
        size = export_base(parts, arguments.out, arguments.precision, single_file=single_file, base=base)
        values = {"path": str(arguments.out), "form": arguments.form, "bytes": size}
        return CommandResult(values, sheet(values))
    if arguments.form == "tiny":
        shrunk = export_tiny(parts, arguments.out, arguments.bits)
        values = {"path": str(export_path(parts[0][0], arguments.out)), "form": "tiny", **asdict(shrunk)}
        return CommandResult(values, sheet(values))
    path, report = export_adapters(parts, arguments.form, arguments.out, arguments.precision,
                                   limits=_limits(arguments), base=base, recipe=arguments.recipe)   # fmt: skip
    values = {"path": str(path), **asdict(report)}
    if arguments.sidecars:
        values["sidecars"] = [str(beside) for beside in write_sidecars(parts, path)]
    if arguments.compare:
        values["unet_error"] = unet_error(parts, path, base)
    facts = {name: value for name, value in values.items() if name != "loads"}
    table = columns([(tool, verdict.answer, verdict.reason) for tool, verdict in report.loads.items()])
    return CommandResult(values, f"{sheet(facts)}\nloads in:\n" + "\n".join(f"  {line}" for line in table.splitlines()))


def merge(arguments: Namespace) -> CommandResult:
    """Merge several adapters into a new LoRA of the library."""
    from atelier.app.services.import_export import merge_adapters
    from atelier.app.store.library import find_adapter

    home = open_home(arguments.home)
    parts = [(find_adapter(home, name), strength) for name, strength in arguments.adapters]
    return _adapter_result(merge_adapters(home, parts, arguments.name, _limits(arguments), arguments.base or ""))


def team(arguments: Namespace) -> CommandResult:
    """Combine the adapters of several people into a new one of the library."""
    from atelier.app.services.library.team import combine_team
    from atelier.app.store.library import find_adapter

    home = open_home(arguments.home)
    members = [(find_adapter(home, name), weight) for name, weight in arguments.members]
    card = combine_team(home, members, arguments.name, arguments.method, rank=arguments.rank, values=arguments.values)
    return _adapter_result(card)


def resize(arguments: Namespace) -> CommandResult:
    """Write one adapter as a LoRA of another rank."""
    if arguments.rank is None and arguments.energy is None:
        raise HomeError("Set how small the copy should be with --rank R, --energy SHARE, or both.")
    return merge(Namespace(**vars(arguments), adapters=[(arguments.adapter, 1.0)]))


def extract(arguments: Namespace) -> CommandResult:
    """Write the difference between two base models as a LoRA."""
    from atelier.app.services.import_export import extract_adapter

    home = open_home(arguments.home)
    card = extract_adapter(home, arguments.tuned, arguments.base, arguments.name, _limits(arguments))
    return _adapter_result(card)


def _limits(arguments: Namespace) -> Any:
    from atelier.adapters.formats.low_rank import LowRankLimits

    return LowRankLimits(arguments.energy, arguments.rank)


def _adapter_result(card: Any) -> CommandResult:
    from atelier.app.cli.reports import adapter_values

    values = adapter_values(card)
    return CommandResult(values, sheet(values))


FILE_COMMANDS: dict[str, Callable[[Namespace], CommandResult]] = {
    "import": import_, "inspect": inspect, "export": export, "merge": merge, "team": team,
    "resize": resize, "extract": extract,
}   # fmt: skip

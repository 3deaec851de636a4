"""The Expert settings of the Create page: what is usual for a preset, and what a person changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from atelier.adapters.core.settings import Settings
from atelier.adapters.kinds.catalog import KINDS
from atelier.app.store.create_draft import Draft
from atelier.app.store.home import absolute_base
from atelier.app.text import create as words
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.identify import identify
from atelier.training.config.train_config import EMBEDDED, TrainConfig, load_preset, preset_names


def _family(base: str) -> str:
    """Family of a base model; one that can't be told apart yet is taken for the embedded one."""
    try:
        return identify(base).family
    except BaseError:
        return EMBEDDED


def default_values(keys: Sequence[str], preset: str | None, base: str) -> list[Any]:
    """The value each control has before anybody touches it: the preset's for the base model, else the default."""
    family, parts = _family(base), [key.rpartition(".") for key in keys]
    basis = {kind: load_preset(preset, family, kind) if preset else {} for kind in {kind for kind, _, _ in parts}}
    return [
        values_or_defaults([name], basis[kind], KINDS[kind].settings if kind else TrainConfig)[0]
        for kind, _, name in parts
    ]   # fmt: skip


def _changes(keys: Sequence[str], values: Sequence[Any], basis: str) -> dict[str, Any]:
    """The settings that differ from what the controls were filled from; an emptied number counts as untouched."""
    given = dict(zip(keys, values, strict=True))
    preset, _, base = basis.partition("\n")
    usual = dict(zip(keys, default_values(keys, preset, base), strict=True))
    mine = [key for key in keys if "." not in key or key.split(".")[0] == given["kind"]]
    return {key: given[key] for key in mine if given[key] is not None and given[key] != usual[key]}


def run_settings(keys: Sequence[str], values: Sequence[Any], basis: str, preset: str) -> dict[str, Any]:
    """The settings of the run: the preset's for its base model and kind, and over them what was changed."""
    changes = {key.rpartition(".")[2]: value for key, value in _changes(keys, values, basis).items()}
    base = absolute_base(changes.get("base", EMBEDDED))
    return {**load_preset(preset, identify(base).family, changes.get("kind", "")), **changes, "base": base}


def draft_preset(draft: Draft) -> str | None:
    """The preset that was chosen, else the usual one."""
    names = preset_names()
    return draft.preset if draft.preset in names else next(iter(names), None)


def form_values(keys: Sequence[str], draft: Draft) -> list[Any]:
    """What the Expert part shows: how far it is from the preset, what it is filled from, a value for each control."""
    preset, base = draft_preset(draft), draft.changes.get("base", EMBEDDED)
    usual = default_values(keys, preset, base)
    values = [draft.changes.get(key, value) for key, value in zip(keys, usual, strict=True)]
    return [words.changed_settings(len(draft.changes)), f"{preset or ''}\n{base}", *values]


def values_or_defaults(controls: Collection[str], values: Mapping[str, Any], settings: type[Settings]) -> list[Any]:
    """Values for the named controls: those given, and the defaults of the others."""
    defaults = {f.name: f.default for f in fields(settings) if f.default is not MISSING}
    return [values.get(name, defaults.get(name)) for name in controls]

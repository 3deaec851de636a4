"""The Expert settings of the Create page: what a preset says, and what a person changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from atelier.adapters.core.settings import SettingError, Settings
from atelier.adapters.kinds.catalog import KINDS
from atelier.app.services.known_models import known_model
from atelier.app.store.drafts.create_draft import Draft
from atelier.app.store.home import absolute_base
from atelier.app.text import create as words
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.hub import needs_download, require_download
from atelier.training.base_models.identify import identify
from atelier.training.config.base_options import AUTO_PREDICTION, PLAIN_BASE, BaseOptions
from atelier.training.config.train_config import EMBEDDED, TrainConfig, load_preset, preset_names

MAX_RECIPE_BYTES = 100_000


def _family(base: str) -> str:
    """Family of a base model; the embedded one where it can't be identified, as while a path is being typed."""
    if needs_download(base):
        known = known_model(base)
        return known.family if known else EMBEDDED
    try:
        return identify(base).family
    except BaseError:
        return EMBEDDED


def default_values(keys: Sequence[str], preset: str | None, base: str) -> list[Any]:
    """The value of each control before a person changes it: the preset's for the base model, else the default."""
    family, parts = _family(base), [key.rpartition(".") for key in keys]
    presets = {kind: load_preset(preset, family, kind) if preset else {} for kind in {kind for kind, _, _ in parts}}
    return [
        values_or_defaults([name], presets[kind], KINDS[kind].settings if kind else TrainConfig)[0]
        for kind, _, name in parts
    ]   # fmt: skip


def _changes(keys: Sequence[str], values: Sequence[Any], basis: str) -> dict[str, Any]:
    """The settings that differ from what the controls were filled with; an empty number counts as unchanged."""
    given = dict(zip(keys, values, strict=True))
    preset, _, base = (basis or f"\n{EMBEDDED}").partition("\n")   # a page that is still loading says nothing
    defaults = dict(zip(keys, default_values(keys, preset, base), strict=True))
    relevant = [key for key in keys if "." not in key or key.split(".")[0] == given["kind"]]
    return {key: given[key] for key in relevant if given[key] is not None and given[key] != defaults[key]}


def run_settings(
    keys: Sequence[str], values: Sequence[Any], basis: str, preset: str,
    stored: Callable[[str], BaseOptions] = lambda _: PLAIN_BASE,
) -> dict[str, Any]:   # fmt: skip
    """The settings of a run: the preset's for its base model and kind, updated by what a person changed.

    Args:
        keys: names of the controls; those of a kind's settings start with the kind and a dot.
        values: their values.
        basis: preset and base model that the controls were filled with, on two lines.
        preset: the chosen preset.
        stored: what was set for a base model, which counts where the controls say nothing.

    Raises:
        BaseError: the base model can't be used.
    """
    changes = {key.rpartition(".")[2]: value for key, value in _changes(keys, values, basis).items()}
    base = absolute_base(changes.get("base", EMBEDDED))
    require_download(base)   # before anything asks the network
    chosen = BaseOptions(changes.get("prediction", AUTO_PREDICTION), absolute_base(changes.get("vae", "").strip()))
    options = chosen.or_else(stored(base))
    family = identify(base, options).family
    return {**load_preset(preset, family, changes.get("kind", "")), **changes, **asdict(options), "base": base}


def read_recipe_file(path: Path) -> str:
    """The text of a settings file.

    Raises:
        SettingError: it is too large, or no text.
    """
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise SettingError(words.RECIPE_TOO_LARGE)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SettingError(words.NO_RECIPE) from None


def recipe_changes(text: str, keys: Sequence[str], draft: Draft, *, leave_out: Collection[str]) -> dict[str, Any]:
    """What a recipe changes compared with the draft's preset, by the names of controls.

    Raises:
        SettingError: it is no recipe, or has a setting that can't be used.
        BaseError: its base model can't be used.
    """
    config = TrainConfig.from_toml(text)
    if not needs_download(config.base):
        identify(config.base, config.base_options)
    values = {**config.to_dict(), **{f"{config.kind}.{name}": value for name, value in config.adapter.items()}}
    usual = dict(zip(keys, default_values(keys, draft_preset(draft), config.base), strict=True))
    return {key: values[key] for key in keys if key in values and key not in leave_out and values[key] != usual[key]}


def draft_preset(draft: Draft) -> str | None:
    """The preset that was chosen, else the first one; None where there are no presets."""
    names = preset_names()
    return draft.preset if draft.preset in names else next(iter(names), None)


def form_values(keys: Sequence[str], draft: Draft) -> list[Any]:
    """What the Expert part shows: which settings are changed, the basis (:func:`run_settings`), and all values."""
    preset, base = draft_preset(draft), draft.changes.get("base", EMBEDDED)
    defaults = default_values(keys, preset, base)
    values = [draft.changes.get(key, value) for key, value in zip(keys, defaults, strict=True)]
    return [words.changed_settings(draft.changes), f"{preset or ''}\n{base}", *values]


def values_or_defaults(controls: Collection[str], values: Mapping[str, Any], settings: type[Settings]) -> list[Any]:
    """Values for the named controls: those given, and the defaults of the others."""
    defaults = {f.name: f.default for f in fields(settings) if f.default is not MISSING}
    return [values.get(name, defaults.get(name)) for name in controls]

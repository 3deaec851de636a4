"""The only list of adapter kinds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .base import Adapter, AdapterSet, Spec
from .lora import Lora
from .settings import SettingError

KINDS: dict[str, type[Adapter]] = {cls.kind: cls for cls in (Lora,)}


def kind_named(name: str) -> type[Adapter]:
    """Look a kind up by its name.

    Raises:
        SettingError: there is no such kind; the message lists those that exist.
    """
    if name not in KINDS:
        raise SettingError(f"There is no adapter kind {name!r}. The kinds are: {', '.join(sorted(KINDS))}.")
    return KINDS[name]


def create(kind: str, settings: Mapping[str, Any], specs: Iterable[Spec]) -> AdapterSet:
    """Make a fresh adapter set: one new adapter of ``kind`` for each target module.

    Raises:
        SettingError: an unknown kind, or settings the kind does not have.
    """
    cls = kind_named(kind)
    checked = cls.settings.from_dict(settings)
    return AdapterSet(cls, checked, [cls(spec, checked) for spec in specs])

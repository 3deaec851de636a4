"""Settings: frozen dataclasses that are checked at birth and know their own names, limits and help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from math import isfinite
from typing import Any, Self, get_origin, get_type_hints

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NOUNS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a table"}


class SettingError(ValueError):
    """A setting that can't be used; the message names it, what was given and what is accepted."""


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """Declare a settings field with the sentence and limits that forms, `--help` and checks share."""
    metadata = {"help": help, "low": low, "high": high, "choices": tuple(choices)}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Base of every settings class: typo-proof, range-checked, plain enough for TOML and JSON."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            _check(f, hints[f.name], getattr(self, f.name))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values; text is converted to the field's type (``"8"`` → ``8``).

        Raises:
            SettingError: an unknown name (the message lists the fields) or a value that does not fit.
        """
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise SettingError(unknown_setting(name, sorted(known)))
        hints = get_type_hints(cls)
        given = {name: convert(name, hints[name], value) for name, value in values.items()}
        missing = [f.name for f in fields(cls) if f.name not in given and f.default is MISSING]
        if missing:
            raise SettingError(f"{cls.__name__} needs a value for {', '.join(missing)}: there is no default")
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, in the order they are declared."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def unknown_setting(name: str, known: Sequence[str]) -> str:
    """Say that a setting does not exist, which one was probably meant, and list those that do."""
    near = get_close_matches(name, known, 1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return f"There is no setting {name!r}.{guess} The settings are: {', '.join(known)}."


def convert(name: str, kind: Any, value: Any) -> Any:
    """Turn text from a command line or a form into the type of a field; other values pass unchanged."""
    if isinstance(value, bool):
        return value
    try:
        if kind is bool and isinstance(value, str):
            return _BOOLEANS[value.lower()]
        if kind in (int, float) and isinstance(value, str | int | float):
            return _number(kind, value)
    except (KeyError, ValueError, OverflowError):
        raise SettingError(f"{name} is {value!r}, but it must be {_NOUNS[kind]}.") from None
    return value


def _number(target: type, value: str | int | float) -> int | float:
    if target is float:
        return float(value)
    if isinstance(value, str):
        with suppress(ValueError):
            return int(value)
    number = value if isinstance(value, int) else float(value)   # "8.0" and 8.0 are whole numbers too
    if number != int(number):
        raise ValueError(value)
    return int(number)


def _check(f: Field[Any], kind: Any, value: Any) -> None:
    plain = get_origin(kind) or kind
    fits = isinstance(value, plain) or (plain is float and isinstance(value, int))
    if not fits or (isinstance(value, bool) and plain is not bool):
        raise SettingError(f"{f.name} is {value!r}, but it must be {_NOUNS[plain]}.")
    low, high, choices = (f.metadata.get(k) for k in ("low", "high", "choices"))
    if choices and value not in choices:
        raise SettingError(f"{f.name} is {value!r}, but it must be one of: {', '.join(choices)}.")
    if isinstance(value, float) and not isfinite(value):
        raise SettingError(f"{f.name} is {value}, but it must be a finite number.")
    if isinstance(value, int | float) and not isinstance(value, bool):
        too_low, too_high = low is not None and value < low, high is not None and value > high
        if too_low or too_high:
            raise SettingError(f"{f.name} is {value}, but it must be {_range(low, high)}.")


def _range(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {high}"
    return f"at least {low}" if high is None else f"between {low} and {high}"

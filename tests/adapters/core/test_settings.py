"""Settings: checked at birth, typo-proof, and the same again after a trip through text."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atelier.adapters.core.settings import SettingError, Settings, setting
from atelier.adapters.kinds.catalog import KINDS, create_adapters, get_kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Oven(Settings):
    """An example with one field of each type."""

    name: str = setting("", "What it is called.")
    heat: float = setting(180.0, "Degrees.", low=0, high=300)
    minutes: int = setting(20, "How long.", low=1)
    depth: int = setting(0, "How far below zero.", high=0)
    mode: str = setting("fan", "How it heats.", choices=("fan", "grill"))
    light: bool = setting(True, "Light on.")
    extras: dict[str, Any] = setting(None, "Anything else.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "extras", dict(self.extras or {}))
        Settings.__post_init__(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Needy(Settings):
    """An example with a field that has no default."""

    name: str


def test_defaults_and_order():
    assert Oven().to_dict() == {
        "name": "", "heat": 180.0, "minutes": 20, "depth": 0, "mode": "fan", "light": True, "extras": {},
    }


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        setattr(Oven(), "heat", 5.0)   # noqa: B010 (written plainly, type checkers refuse it already)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"heat": -0.1}, "heat is -0.1, but it must be between 0 and 300"),
        ({"heat": 300.5}, "heat is 300.5, but it must be between 0 and 300"),
        ({"minutes": 0}, "minutes is 0, but it must be at least 1"),
        ({"depth": 1}, "depth is 1, but it must be at most 0"),
        ({"heat": float("nan")}, "heat is nan, but it must be a finite"),
        ({"heat": float("inf")}, "heat is inf, but it must be a finite"),
        ({"heat": "hot"}, "heat is 'hot', but it must be a number"),
        ({"minutes": 2.5}, "minutes is 2.5, but it must be a whole number"),
        ({"minutes": True}, "minutes is True, but it must be a whole number"),
        ({"heat": True}, "heat is True, but it must be a number"),
        ({"light": 1}, "light is 1, but it must be true or false"),
        ({"name": 7}, "name is 7, but it must be text"),
        ({"mode": "steam"}, "mode is 'steam', but it must be one of: fan, grill"),
    ],
    ids=str,
)
def test_values_that_do_not_fit(values: dict[str, Any], why: str):
    with pytest.raises(SettingError) as error:
        Oven(**values)
    assert why in str(error.value)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("heat", "200", 200.0), ("heat", "2e2", 200.0), ("minutes", "8", 8), ("minutes", "8.0", 8),
        ("light", "no", False), ("light", "TRUE", True), ("light", "0", False), ("name", "7", "7"),
        ("heat", 200, 200.0), ("minutes", 8.0, 8),
        ("minutes", 2**60 + 1, 2**60 + 1), ("minutes", str(2**60 + 1), 2**60 + 1), ("minutes", 10**400, 10**400),
    ],
)
def test_text_is_converted(field: str, text: Any, value: Any):
    found = getattr(Oven.from_dict({field: text}), field)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("field", "text", "noun"),
    [("heat", "warm", "a number"), ("minutes", "8.5", "a whole number"), ("minutes", "", "a whole number"),
     ("minutes", "inf", "a whole number"), ("minutes", "nan", "a whole number"), ("light", "maybe", "true or false")],
)
def test_text_that_is_no_value(field: str, text: str, noun: str):
    with pytest.raises(SettingError, match=f"{field} is '{text}', but it must be {noun}"):
        Oven.from_dict({field: text})


@pytest.mark.parametrize("text", ["inf", "nan", "-inf", "1e999"])
def test_text_cannot_smuggle_in_what_is_no_number(text: str):
    with pytest.raises(SettingError):
        Oven.from_dict({"heat": text})


def test_an_unknown_name_is_answered_with_the_fields():
    with pytest.raises(SettingError) as error:
        Oven.from_dict({"hete": 5})
    assert str(error.value) == (
        "There is no setting 'hete'. Did you mean 'heat'? "
        "The settings are: depth, extras, heat, light, minutes, mode, name."
    )


def test_a_wild_name_gets_no_guess():
    with pytest.raises(SettingError, match=r"There is no setting 'zzz'\. The settings are"):
        Oven.from_dict({"zzz": 5})


def test_a_field_without_default_must_be_given():
    with pytest.raises(SettingError, match="needs a value for name"):
        Needy.from_dict({})


@given(
    heat=st.floats(0, 300), minutes=st.integers(1), mode=st.sampled_from(["fan", "grill"]),
    light=st.booleans(), name=st.text(),
)
def test_a_trip_through_json_or_text_changes_nothing(**values: Any):
    oven = Oven(**values)
    assert Oven.from_dict(json.loads(json.dumps(oven.to_dict()))) == oven
    assert Oven.from_dict({key: str(value) for key, value in values.items()}) == oven


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_declares_itself(kind: str):
    cls = get_kind(kind)
    assert cls.kind == kind
    assert cls.title
    assert cls.settings() == cls.settings.from_dict(cls.settings().to_dict())


def test_an_unknown_kind_is_answered_with_the_kinds():
    with pytest.raises(SettingError, match=r"There is no adapter kind 'loar'\. The kinds are: .*lora"):
        create_adapters("loar", {}, [])

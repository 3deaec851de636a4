"""The recipe of a run: checked at birth, readable as TOML, filled from presets."""

from __future__ import annotations

import json
import tomllib
from dataclasses import fields
from pathlib import Path
from statistics import mean
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atelier.adapters.core.family import FAMILIES
from atelier.adapters.core.settings import SettingError
from atelier.adapters.kinds.catalog import get_kind
from atelier.adapters.kinds.lora import LoraSettings
from atelier.training.config import train_config
from atelier.training.config.train_config import (
    PRESETS,
    TrainConfig,
    load_preset,
    picture_weights,
    preset_evidence,
    preset_names,
    weights_text,
)

ROOT = Path(__file__).resolve().parents[3]
HINTS = get_type_hints(TrainConfig)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)   # surrogates are no text that UTF-8 can hold
ADAPTERS = st.fixed_dictionaries(
    {}, optional={"rank": st.integers(1, 1024), "alpha": st.floats(0, 1e6, allow_nan=False)}
)


def values_of(name: str, metadata: Any) -> st.SearchStrategy[Any]:
    """Whatever a field accepts."""
    if name == "adapter":
        return ADAPTERS
    if metadata["choices"]:
        return st.sampled_from(metadata["choices"])
    low, high = metadata["low"], metadata["high"]
    if name == "lr":   # at 0 nothing would be learned, so it is refused
        return st.floats(low, high, exclude_min=True)
    return {
        bool: st.booleans(),
        str: TEXT,
        int: st.integers(low, high),
        float: st.floats(low, high, allow_nan=False, allow_infinity=False),
    }[HINTS[name]]


def fitting(values: dict[str, Any]) -> dict[str, Any]:
    """Without what TrainConfig refuses: a rate of 0, AdamW's rates with Prodigy, the options of another kind, weights
    in 8 bits where the kind needs gradients of the full ones."""
    if values.get("lr") == 0:
        values = {**values, "lr": 0.001}
    rate = {"lr": 1.0, "up_speed": 1.0} if values.get("optimizer") == "prodigy" else {}
    options = {} if values.get("kind", "lora") == "lora" else {"adapter": {}, "whole_gradient": False}
    halves = {"optimizer": "adamw", "up_speed": 1.0} if values.get("kind") == "split" else {}
    weights = {"weights": "\n".join(f"{i} a=b.png={i + 0.5}" for i in range(len(values.get("weights", ""))))}
    kind = get_kind(values.get("kind", "lora"))
    starts_from_gradients = kind.required_statistics(kind.settings()) in ("gradient", "movement")
    whole = {"base_in_8_bits": False} if starts_from_gradients else {}
    return {**values, **rate, **options, **halves, **weights, **whole}


CONFIGS = st.fixed_dictionaries(
    {}, optional={f.name: values_of(f.name, f.metadata) for f in fields(TrainConfig)}
).map(lambda values: TrainConfig(**fitting(values)))


@settings(deadline=None, max_examples=50)
@given(CONFIGS)
def test_toml_gives_back_what_was_written_to_any_reader(config):
    assert TrainConfig.from_toml(config.to_toml()) == config
    assert tomllib.loads(config.to_toml()) == config.to_dict()


@pytest.mark.parametrize("line", ["rex.png", "=2", "rex.png=", "rex.png=0", "rex.png=nan", "rex.png=-1", "rex=1e9"])
def test_weights_that_are_none_are_refused_with_the_line(line):
    with pytest.raises(SettingError, match=r"weights has the line .*such as rex\.jpg=2"):
        TrainConfig(weights=f"a.png=2\n{line}")


def test_weights_are_read_as_they_are_written():
    weights = {"a.png": 2.0, "b = c.png": 0.25}
    assert picture_weights(weights_text(weights)) == weights
    config = TrainConfig.from_toml(TrainConfig(weights=weights_text(weights)).to_toml())
    assert config.weights == "a.png=2\nb = c.png=0.25"


def test_fields_can_be_left_out_of_the_toml():
    config = TrainConfig(name="rex", pictures="/home/someone/rex", base="embedded")
    written = tomllib.loads(config.to_toml(without=("pictures", "base")))
    assert config.to_dict().keys() - written.keys() == {"pictures", "base"}
    assert written["name"] == "rex"


def test_an_unknown_name_is_refused_with_a_guess_and_the_list():
    with pytest.raises(SettingError) as caught:
        TrainConfig.from_dict({"learning_rte": 1})
    assert "'learning_rte'" in str(caught.value)
    with pytest.raises(SettingError) as caught:
        TrainConfig.from_dict({"step": 1})
    message = str(caught.value)
    assert "Did you mean 'steps'?" in message
    listed = message.split("The settings are: ")[1].rstrip(".").split(", ")
    assert set(listed) == {f.name for f in fields(TrainConfig)} - {"adapter"} | {f.name for f in fields(LoraSettings)}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("steps", 0, ["steps is 0", "between 1 and 1000000"]),
        ("steps", 2.5, ["steps is 2.5", "a whole number"]),
        ("steps", "many", ["steps is 'many'", "a whole number"]),
        ("batch", True, ["batch is True", "a whole number"]),
        ("lr", -1.0, ["lr is -1.0", "between 0 and 10"]),
        ("lr", float("nan"), ["lr is nan", "finite number"]),
        ("clip", -0.1, ["clip is -0.1", "at least 0"]),
        ("keep_best", "perhaps", ["keep_best is 'perhaps'", "true or false"]),
        ("optimizer", "sgd", ["optimizer is 'sgd'", "adamw, prodigy"]),
        ("targets", "everything", ["targets is 'everything'", "transformer"]),
        ("name", 7, ["name is 7", "text"]),
        ("adapter", "rank=8", ["adapter is 'rank=8'", "a table"]),
        ("kind", "lorra", ["'lorra'", "lora"]),
        ("rank", 0, ["rank is 0", "between 1 and 1024"]),
        ("rank", "eight", ["rank is 'eight'", "a whole number"]),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_named_with_what_would(name, value, words):
    with pytest.raises(SettingError) as caught:
        TrainConfig.from_dict({name: value})
    for word in words:
        assert word in str(caught.value)


def test_the_options_of_the_kind_stand_beside_the_fields_or_in_their_table():
    beside = TrainConfig.from_dict({"rank": "16", "steps": "5"})
    inside = TrainConfig.from_dict({"adapter": {"rank": 16}, "steps": 5})
    assert beside == inside
    assert beside.adapter == {"rank": 16}
    assert TrainConfig.from_dict({"adapter": {"rank": 4, "alpha": 2.0}, "rank": 16}).adapter == {"rank": 16, "alpha": 2}
    with pytest.raises(SettingError, match=r"'rnk'.*Did you mean 'rank'"):
        TrainConfig.from_dict({"adapter": {"rnk": 16}})


def test_no_option_of_a_kind_hides_behind_a_field_of_the_recipe():
    from atelier.adapters.kinds.catalog import KINDS

    own = {f.name for f in fields(TrainConfig)}
    for kind in KINDS.values():
        assert not own & {f.name for f in fields(kind.settings)}


def test_the_default_table_of_options_is_not_shared():
    TrainConfig().adapter["rank"] = 3
    assert TrainConfig().adapter == {}


def test_what_is_not_toml_is_no_recipe():
    with pytest.raises(SettingError, match="not a valid recipe"):
        TrainConfig.from_toml("steps = = 3")


def test_the_trigger_is_the_name_until_one_is_given():
    assert TrainConfig(name="rex").trigger_word == "rex"
    assert TrainConfig(name="rex", trigger="zxq").trigger_word == "zxq"


def test_every_field_says_what_it_is_for():
    for f in fields(TrainConfig):
        assert f.metadata["help"].endswith("."), f.name


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("family", FAMILIES)
def test_every_preset_makes_a_recipe_for_every_family(preset, family):
    values = load_preset(preset, family)
    config = TrainConfig.from_dict({**values, "name": "rex"})
    assert {**config.to_dict(), **config.adapter}.items() >= values.items()


def test_a_preset_s_options_are_for_its_own_kind_alone():
    plain, other = load_preset("normal", "sd1"), load_preset("normal", "sd1", "tlora")
    assert load_preset("normal", "sd1", "lora") == plain
    assert plain.items() - other.items() == {("rank", plain["rank"])}
    assert other.items() <= plain.items()


def test_the_family_has_the_last_word_in_a_preset():
    tables = tomllib.loads((PRESETS / "normal.toml").read_text(encoding="utf-8"))
    own, general = tables["embedded"], tables["settings"]
    assert own["lr"] != general["lr"]
    assert load_preset("normal", "embedded") == {**general, **own}
    assert load_preset("normal", "sd1") == general


def test_presets_are_listed_with_the_default_first_and_others_are_refused():
    assert preset_names()[0] == "normal"
    assert set(preset_names()) == {"normal", "quick", "thorough"}
    for name in ("nrmal", "../normal", ""):
        with pytest.raises(SettingError, match="The presets are: normal"):
            load_preset(name, "embedded")


@pytest.mark.parametrize("preset", ["normal", "quick"])
def test_a_preset_says_what_was_measured_with_it_and_runs_never_see_that(preset: str):
    lines = (ROOT / "benchmarks" / "results" / "presets.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["candidate"] == preset]
    said = preset_evidence(preset)
    likeness, style, background = (mean(row[key] for row in rows) for key in ("likeness", "style", "background"))
    assert f"{len(rows)} trainings of {len({row['subject'] for row in rows})} subjects" in said
    assert f"likeness {likeness:.2f}" in said
    assert f"style in {style:.0%}".replace("%", " %") in said
    assert f"{background:.0%} of the drawings".replace("%", " %") in said
    assert "\n" not in said
    assert "evidence" not in load_preset(preset, "embedded")
    assert preset_evidence("nrmal") == preset_evidence(None) == ""


def test_prodigy_is_not_run_at_adamws_rate():
    with pytest.raises(SettingError, match="Set lr=1"):
        TrainConfig.from_dict({"optimizer": "prodigy", "lr": "2e-3"})
    with pytest.raises(SettingError, match="Set up_speed=1"):
        TrainConfig.from_dict({"optimizer": "prodigy", "lr": "1", "up_speed": "16"})
    assert TrainConfig.from_dict({"optimizer": "prodigy", "lr": "1"}).lr == 1


def test_the_whole_gradient_is_followed_by_a_lora_alone():
    assert TrainConfig(whole_gradient=True).whole_gradient
    with pytest.raises(SettingError, match="works only with lora"):
        TrainConfig(kind="lorta", whole_gradient=True)


@pytest.mark.parametrize("other", [{"optimizer": "prodigy", "lr": 1.0}, {"up_speed": 16.0}])
def test_the_halves_of_a_split_adapter_have_rates_of_their_own(other):
    assert TrainConfig(kind="split").kind == "split"
    with pytest.raises(SettingError, match="their own learning rates"):
        TrainConfig(kind="split", **other)


def test_a_presets_rate_is_multiplied_by_the_kinds_pace(monkeypatch, tmp_path):
    (tmp_path / "pace.toml").write_text("lokr = 10\n")
    monkeypatch.setattr(train_config, "PACES", tmp_path / "pace.toml")
    train_config._paces.cache_clear()
    try:
        plain = load_preset("normal", "sd1")["lr"]
        assert load_preset("normal", "sd1", "lokr")["lr"] == 10 * plain
        assert load_preset("normal", "sd1", "loha")["lr"] == plain   # not measured
    finally:
        train_config._paces.cache_clear()


def test_paces_are_those_of_kinds_that_exist():
    from atelier.adapters.kinds.catalog import KINDS

    assert set(train_config._paces()) <= KINDS.keys()
    assert all(0.02 <= train_config.pace(kind) <= 50 for kind in KINDS)
    assert train_config.pace("lora") == 1

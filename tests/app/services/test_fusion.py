"""Fusion: mixes that are kept, what the page makes of presses, and what is drawn, compared and made one file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from atelier.adapters.core.mix import Mix
from atelier.adapters.core.settings import SettingError
from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.native import load_adapter, save_adapter
from atelier.adapters.fusion.gates import GateSet, GateSettings
from atelier.adapters.fusion.interference import Interference, LayerOverlap
from atelier.adapters.fusion.methods import ALL_METHODS
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.services import engine as engine_module
from atelier.app.services import fuse as fusing
from atelier.app.services.engine import Engine
from atelier.app.services.fuse import (
    can_fuse,
    draw_by_each_method,
    draw_mix,
    draw_mix_to_gallery,
    fuse_mix,
    mix_interference,
)
from atelier.app.store.gallery import read_recipe
from atelier.app.store.home import Home, HomeError, open_home
from atelier.app.store.library import find_adapter
from atelier.app.store.mixes import (
    REGION_SIDE,
    MixEntry,
    RegionEntry,
    SavedMix,
    list_mixes,
    mix_from_recipe,
    read_mix,
    rectangle_rows,
    save_mix,
)
from atelier.app.text import mix as mix_words
from atelier.app.web.components.mix_view import (
    gate_maps,
    mix_plan,
    move_point,
    region_masks,
    set_region,
    set_region_prompt,
    strength_curves,
    suggestion_cards,
    worst_meetings,
)
from atelier.app.web.pages import gallery
from atelier.app.web.pages import mix as page
from atelier.app.web.pages.studio_details import edit_regions
from atelier.training.base_models.base_model import load
from atelier.training.sampling.sample import DrawRequest, draw

PROMPT = "an ink emoji of a rex fox"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters as if they had been taught."""
    folder = tmp_path_factory.mktemp("adapters")
    targets = find_targets({"unet": load("embedded", "cpu").unet}, "attention")[:24]
    for seed, name in enumerate(("rex", "ink")):
        torch.manual_seed(seed)
        made = create_adapters("lora", {"rank": 2}, targets)
        for parameter in made.parameters():
            parameter.data.normal_(std=0.2)
        known = {"trigger": name, "subject": "fox", "base": "embedded", "family": "embedded", "title": "it"}
        save_adapter(folder / f"{name}.safetensors", made, {f"atelier.{k}": v for k, v in known.items()})
    return folder


@pytest.fixture
def home(own_home: Path, adapters: Path) -> Home:
    home = open_home(own_home)
    for path in adapters.iterdir():
        (home.adapters / path.name).write_bytes(path.read_bytes())
    return home


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates as the authors start theirs, as if they had come with Atelier."""
    torch.manual_seed(0)
    specs = find_targets({"unet": load("embedded", "cpu").unet}, "attention")
    gates = GateSet(specs, GateSettings(start="faithful"), "embedded").requires_grad_(False)
    monkeypatch.setattr(engine_module, "gates_for", lambda _: gates)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusing, "GALLERY_STEPS", 2)
    monkeypatch.setattr(fusing.draw_mix, "__defaults__", (2, None))


BOTH = SavedMix(entries=(MixEntry("rex", 0.8), MixEntry("ink", 0.5)), prompt=PROMPT, seed=3)
SHAPED = replace(BOTH, entries=(MixEntry("rex", 0.8, (1.0, 0.5, 0.0, 0.0, 0.0)),
                               MixEntry("ink", 0.5, (), ("1" * 8,) * 8)))


def test_a_mix_comes_back_from_its_file_as_it_was(home: Home):
    save_mix(home, "both", SHAPED)
    assert (list_mixes(home), read_mix(home, "both")) == (["both"], SHAPED)
    with pytest.raises(HomeError, match="no mix named 'other'"):
        read_mix(home, "other")
    with pytest.raises(HomeError, match="mix is empty"):
        save_mix(home, "none", SavedMix(entries=()))


def test_a_mix_is_written_as_ever(home: Home):
    """Files of older versions and newer ones are the same."""
    path = save_mix(home, "both", SHAPED)
    rows = ",\n    ".join(['"11111111"'] * 8)
    assert path.read_text(encoding="utf-8") == f"""{{
 "shares": [
  {{
   "name": "rex",
   "strength": 0.8,
   "curve": [
    1.0,
    0.5,
    0.0,
    0.0,
    0.0
   ],
   "region": []
  }},
  {{
   "name": "ink",
   "strength": 0.5,
   "curve": [],
   "region": [
    {rows}
   ]
  }}
 ],
 "method": "sum",
 "prompt": "{PROMPT}",
 "seed": 3,
 "base": "embedded"
}}"""


@pytest.mark.parametrize("change", [
    {"method": "magic"}, {"shares": [{"name": "rex"}]}, {"shares": "rex"}, {"seed": "x"},
    {"shares": [{"name": "rex", "strength": 1e9, "curve": [], "region": []}]},
    {"shares": [{"name": "rex", "strength": 1.0, "curve": [0.5], "region": []}]},
    {"shares": [{"name": "rex", "strength": 1.0, "curve": [], "region": ["12", "01"]}]},
    {"shares": [{"name": "rex", "strength": 1.0, "curve": [], "region": ["1", "01"]}]},
])   # fmt: skip
def test_a_file_that_somebody_changed_is_refused_in_words(home: Home, change: dict[str, Any]):
    path = save_mix(home, "both", BOTH)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(HomeError, match="can't be read"):
        read_mix(home, "both")


def test_presses_move_handles_and_paint_fields_and_nonsense_does_nothing():
    entries = BOTH.entries
    for text in ("", "rex", "rex|9|1.0", "rex|0|0.3", "rex|x|1.0", "gone|0|0.5"):
        assert move_point(entries, text) == entries
    [rex, ink] = move_point(entries, "rex|1|0.25")
    assert (rex.curve, ink) == ((1.0, 0.25, 1.0, 1.0, 1.0), entries[1])
    assert move_point([rex, ink], "rex|1|1.0") == entries, "a curve that is 1 throughout is none"
    marks = "1" + "0" * (REGION_SIDE * REGION_SIDE - 1)
    for text in ("rex|11", "rex|" + "2" * 64, marks):
        assert set_region(entries, text) == entries
    [rex, ink] = set_region(entries, f"rex|{marks}")
    assert rex.region == ("10000000", *["0" * 8] * 7)
    assert set_region([rex, ink], "rex|" + "0" * 64) == entries, "nothing painted is everywhere"


def test_panels_show_what_stands(home: Home):
    [rex, _] = strength_curves(SHAPED.entries)
    pressed = [cell["id"] for column in rex["columns"] for cell in column if cell["pressed"] == "true"]
    assert pressed == ["rex|0|1.0", "rex|1|0.5", "rex|2|0.0", "rex|3|0.0", "rex|4|0.0"]
    assert move_point(SHAPED.entries, pressed[1]) == SHAPED.entries, "a pressed handle means where it is"
    assert rex["line"] == "M0 10L10 10L30 50L50 90L70 90L90 90L100 90"
    fields = region_masks(SHAPED.entries, "x")["rows"]
    assert [sum(spot["pressed"] == "true" for spot in row["cells"]) for row in fields] == [0, 64]
    cards = suggestion_cards(fusing.proposed_adapters(home, "zzz"), {}, ["rex", "gone"])["cards"]
    assert {card["name"]: card["pressed"] for card in cards} == {"rex": "true", "ink": "false", "gone": "true"}


def test_every_method_has_a_name_for_people():
    assert set(mix_words.METHODS) == set(ALL_METHODS)


def test_what_is_drawn_is_what_the_adapters_give(home: Home, engine: Engine):
    model = load("embedded", "cpu")
    mix = Mix(tuple((load_adapter(find_adapter(home, s.name).path), s.strength) for s in BOTH.entries))
    [expected] = draw(model, DrawRequest(prompt=PROMPT, seed=3, steps=2), mix)
    assert draw_mix(home, engine, BOTH).tobytes() == expected.tobytes()
    off = replace(BOTH, entries=tuple(replace(entry, strength=0.0) for entry in BOTH.entries), method="switch")
    [bare] = draw(model, DrawRequest(prompt=PROMPT, seed=3, steps=2))
    assert draw_mix(home, engine, off).tobytes() == bare.tobytes()


def test_all_methods_are_compared_and_those_that_cannot_are_left_out(
    home: Home, engine: Engine, gated: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fusing.draw_mix, "__defaults__", (1, None))
    drawn = dict(draw_by_each_method(home, engine, BOTH))
    assert list(drawn) == [method for method in ALL_METHODS if method != "break-for-make"], "these are LoRAs"
    assert len({picture.tobytes() for picture in drawn.values()}) >= 8
    shaped = dict(draw_by_each_method(home, engine, SHAPED))
    assert {"gated", "sum", "normalised"} <= set(shaped)
    assert not {"ties", "composite"} & set(shaped)


def test_gates_and_meetings_are_shown_layer_by_layer(home: Home, engine: Engine, gated: None):
    mix = replace(BOTH, method="gated")
    _, gates, *_, one, hint = page._draw(home, engine, mix)
    by_layer, by_step = gates
    assert [row["name"] for row in by_layer["rows"]] == ["rex", "ink"]
    assert all(len(row["cells"]) == 24 for row in by_layer["rows"])
    assert sum(group["span"] for group in by_layer["groups"]) == 24
    assert len(by_step["rows"][0]["cells"]) == 2
    shades = [float(cell["share"]) for row in by_layer["rows"] for cell in row["cells"]]
    assert (min(shades), max(shades)) == (0.12, 1.0), "the whole range of shades is used"
    numbers = [float(cell["label"].rpartition(": ")[2]) for row in by_layer["rows"] for cell in row["cells"]]
    assert all(0 < number < 0.512 for number in numbers), "w_o is .512"
    assert [n for _, n in sorted(zip(shades, numbers, strict=True))] == sorted(numbers), "darker is more"
    assert by_layer["hint"].startswith(f"Light is {min(numbers):.2f}, dark is {max(numbers):.2f}")
    plan, [meeting_of] = page._plan(home, engine, mix)
    assert "hardly overlap" in plan["reasons"][0]
    assert len(meeting_of["rows"]) == 1
    assert not one.interactive
    assert "can't be fused" in hint


def test_what_a_mix_does_is_said_from_the_weights_alone(home: Home, engine: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Engine, "_run", lambda *_, **__: pytest.fail("no base model is needed"))
    twice = replace(BOTH, entries=(MixEntry("rex", 1.0), MixEntry("rex", 1.0)))
    found = mix_interference(home, engine, twice)
    assert found is not None
    assert found.lost == pytest.approx(-1, abs=1e-4)
    plan = mix_plan(twice, found)
    assert plan["does"] == "Adds 1 × rex + 1 × rex to the weights of the base model."
    assert "make similar changes" in plan["reasons"][0]
    assert "in none of them do they pull in opposite directions" in plan["reasons"][1]
    assert (plan["method"], plan["use"]) == ("normalised", "Use Normalised")
    opposed = replace(BOTH, entries=(MixEntry("rex", 1.0), MixEntry("rex", -0.9)))
    plan = mix_plan(opposed, mix_interference(home, engine, opposed))
    assert "work against each other" in plan["reasons"][0]
    assert "pull in opposite directions in 24 of them" in plan["reasons"][1]
    assert len(plan["worst"]) == 3
    assert all("100 % in common, in opposite directions" in line for line in plan["worst"])
    assert "use" not in mix_plan(replace(opposed, method="switch"), mix_interference(home, engine, opposed))
    assert mix_interference(home, engine, replace(BOTH, entries=BOTH.entries[:1])) is None


def test_the_layers_named_first_are_those_where_most_is_lost():
    def met(layer: str, cosine: float, weight: float) -> LayerOverlap:
        return LayerOverlap(layer, (0, 1), 0.5, 0.5, 0.1, cosine, weight)

    found = Interference((met("a", 0.9, 9.0), met("b", -0.5, 1.0), met("c", -0.9, 1.0), met("d", 0.9, 1.0)), {}, 0.0)
    assert [meeting.layer for meeting in worst_meetings(found)] == ["c", "b", "a"]


def test_a_mix_that_can_t_be_drawn_says_so_before_it_is_tried(home: Home):
    assert mix_plan(SavedMix(entries=()), None) == {}
    alone = mix_plan(replace(BOTH, entries=BOTH.entries[:1]), None)
    assert alone == {"does": "Only rex acts, at strength 0.8.", "reasons": [mix_words.ADD_TWO]}
    off = replace(BOTH, entries=tuple(replace(entry, strength=0.0) for entry in BOTH.entries))
    assert mix_plan(off, None)["does"] == mix_words.ALL_OFF
    three = replace(BOTH, entries=(*BOTH.entries, MixEntry("oil")), method="np")
    assert mix_plan(three, None)["problem"].startswith("NP-LoRA combines exactly two adapters, and 3 have")
    for method in ALL_METHODS:
        assert "rex" in mix_plan(replace(BOTH, method=method), None)["does"]


def test_a_kept_picture_holds_its_mix_and_the_gallery_leads_back(home: Home, engine: Engine):
    kept = draw_mix_to_gallery(home, engine, SHAPED)
    recipe = read_recipe(kept.path)
    assert recipe is not None
    assert mix_from_recipe(recipe) == SHAPED
    assert gallery._details(kept, starred=False)["reuse"] == f"/mix?picture={kept.id}"
    _, method, prompt, seed, _, entries, *_ = page._on_load(home, {"picture": kept.id})
    assert (method, prompt, seed, entries) == ("sum", PROMPT, 3, SHAPED.entries)
    assert mix_from_recipe({"prompt": "x"}) is None


@pytest.mark.parametrize("method", ["sum", "svd", "ties", "np"])
def test_one_file_does_the_same_and_says_how_exactly(home: Home, engine: Engine, method: str):
    mix = replace(BOTH, method=method)
    assert can_fuse(home, engine, mix)
    card, error = fuse_mix(home, engine, mix, "united")
    assert (card.trigger, card.base) == ("rex ink", "embedded")
    assert error < 1e-4 if method != "svd" else 0.05 < error < 1
    if method == "sum":
        alone = SavedMix(entries=(MixEntry("united"),), prompt=PROMPT, seed=3)
        ours, theirs = (torch.tensor(list(draw_mix(home, engine, each).tobytes())) for each in (alone, mix))
        assert (ours - theirs).abs().max() <= 2, "but for rounding"
    with pytest.raises(HomeError, match="is already used"):
        fuse_mix(home, engine, mix, "united")
    with pytest.raises(SettingError, match="can't be one file"):
        fuse_mix(home, engine, replace(mix, method="composite"), "other")
    assert not can_fuse(home, engine, SHAPED)


def test_a_file_is_read_again_only_when_it_has_changed(home: Home, engine: Engine, monkeypatch: pytest.MonkeyPatch):
    read: list[str] = []

    def load_and_note(path: Path, *rest: Any) -> Any:
        read.append(path.stem)
        return load_adapter(path, *rest)

    monkeypatch.setattr(engine_module, "load_adapter", load_and_note)
    mix_interference(home, engine, BOTH)   # a drawing reads them in the same way
    assert [can_fuse(home, engine, BOTH) for _ in range(3)] == [True] * 3
    assert sorted(read) == ["ink", "rex"]
    (home.adapters / "ink.safetensors").write_bytes((home.adapters / "rex.safetensors").read_bytes())
    assert can_fuse(home, engine, BOTH)
    assert sorted(read) == ["ink", "ink", "rex"]


def test_taking_up_and_putting_back(home: Home):
    prompt, cards, entries, *rows, drawn, _ = page._toggle(home, SavedMix(entries=()), "rex")
    assert prompt == "an emoji of a rex fox"
    assert entries == (MixEntry("rex"),)
    assert (rows[0].label, rows[0].visible, rows[1].visible) == ("rex", True, False)
    assert len(drawn) == 1
    assert [card["name"] for card in cards["cards"] if card["pressed"] == "true"] == ["rex"]
    _, _, entries, *_ = page._toggle(home, BOTH, "rex")
    assert entries == (BOTH.entries[1],)
    full = replace(BOTH, entries=tuple(MixEntry(f"a{i}") for i in range(page.MAX_ADAPTERS)))
    with pytest.raises(HomeError, match="at most"):
        page._toggle(home, full, "rex")


def test_what_was_deleted_is_left_out(home: Home):
    gone = replace(BOTH, entries=(*BOTH.entries, MixEntry("gone")))
    assert page._control_values(home, gone)[4] == BOTH.entries
    _, method, prompt, _, _, entries, *_ = page._on_load(home, {"mix": "never", "prompt": "a fox"})
    assert (method, prompt, entries) == ("sum", "a fox", ())


def test_an_empty_page_says_what_to_do(home: Home, engine: Engine):
    assert page._draw(home, engine, SavedMix(entries=()))[0] == {"label": mix_words.EMPTY}
    assert page._draw(home, engine, replace(BOTH, prompt=" "))[0] == {"label": mix_words.NO_PROMPT}


def test_nothing_gated_nothing_shown():
    assert gate_maps(SimpleNamespace(by_layer=dict, by_timestep=dict), BOTH) == []   # type: ignore[arg-type]


def test_the_command_line_draws_by_every_method(home: Home, tmp_path: Path):
    from atelier.app.cli.main import main

    drawn: dict[str, bytes] = {}
    for method in ("switch", "composite"):
        out = tmp_path / method
        command = ["draw", PROMPT, "--home", str(home.path), "--adapter", "rex=0.8", "--adapter", "ink=0.5",
                   "--steps", "3", "--fuse", method, "--out", str(out)]   # fmt: skip
        assert main(command) == 0
        [path] = out.iterdir()
        drawn[method] = Image.open(path).tobytes()
        recipe = read_recipe(path)
        assert recipe is not None
        found = mix_from_recipe(recipe)
        assert found is not None
        assert (found.method, [s.name for s in found.entries]) == (method, ["rex", "ink"])
    assert len(set(drawn.values())) == 2


def test_a_part_of_the_picture_gets_a_prompt_on_the_page():
    marks = "1" * 8 + "0" * 56
    [rex] = set_region_prompt(set_region([MixEntry("rex")], f"rex|{marks}"), "rex| a fox ")
    assert (rex.prompt, rex.region[0]) == ("a fox", "1" * 8)
    assert set_region([rex], "rex|" + "0" * 64) == (MixEntry("rex"),), "a prompt belongs to its region"
    assert set_region_prompt([MixEntry("rex")], "rex|a fox") == (MixEntry("rex"),)
    regions = edit_regions((), "add-region", "")
    for action, text in (("paint-part", f"0|{marks}"), ("part-prompt", "0|an owl"), ("part-prompt", "1|x"),
                         ("paint-part", "0|broken"), ("paint", f"rex|{marks}")):   # fmt: skip
        regions = edit_regions(regions, action, text)
    assert regions == (RegionEntry("an owl", rex.region),)
    rows = region_masks([rex], "x", regions)
    assert [(row["id"], row["prompt"]) for row in rows["rows"]] == [("rex", "a fox"), ("0", "an owl")]
    assert edit_regions(regions, "remove-part", "0") == () and not region_masks([rex], "x")["can_add"]
    with pytest.raises(ValueError, match="At most 8"):
        edit_regions(regions * 8, "add-region", "")
    large = MixEntry("rex", region=rectangle_rows((0, 0, 0.5, 1)))
    [row] = region_masks([large], "")["rows"]
    assert [cell["pressed"] for cell in row["cells"][:8]] == ["true"] * 4 + ["false"] * 4

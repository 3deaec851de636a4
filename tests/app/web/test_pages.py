"""What the pages stand on: escaped panel values, generated forms, the draft, the chart's geometry, readable colours."""

from __future__ import annotations

import ast
import asyncio
import importlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from atelier.adapters.core.base import Spec
from atelier.adapters.core.family import FAMILIES
from atelier.adapters.core.settings import Settings, setting
from atelier.adapters.formats.adapter_info import AdapterInfo
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.kinds.catalog import KINDS, create_adapters
from atelier.app.services.create import expert_settings as choices
from atelier.app.services.create import memory_hint as room
from atelier.app.services.create.expert_settings import values_or_defaults
from atelier.app.services.create.memory_hint import memory_lines
from atelier.app.services.engine import Engine
from atelier.app.services.model_downloads import ModelDownloads
from atelier.app.store.datasets import import_pictures
from atelier.app.store.drafts.create_draft import (
    add_pictures,
    clear_draft,
    edit_draft,
    load_draft,
    picture_files,
    remove_pictures,
    save_setting,
)
from atelier.app.store.home import open_home
from atelier.app.store.library import find_adapter
from atelier.app.text import create as words
from atelier.app.web.components import page_frame
from atelier.app.web.components.page_frame import inform, warn
from atelier.app.web.components.panel import PANELS, escape_literals, panel, template
from atelier.app.web.components.plots import MAX_POINTS, axis_limits, downsample, loss_chart, moving_average, svg_path
from atelier.app.web.components.settings_form import controls
from atelier.app.web.components.theme import PALETTE, STYLE_SHEETS
from atelier.app.web.pages import create
from atelier.app.web.pages.create_expert import GROUPS, place_expert
from atelier.app.web.pages.create_pictures import show_tiles
from atelier.training.base_models.identify import identify
from atelier.training.config.train_config import TrainConfig, load_preset, preset_names
from atelier.training.data.dataset import scan
from atelier.training.data.images import open_picture
from atelier.training.runs import memory_savings
from atelier.training.runs.memory_estimate import MemoryNeed


def literal(text: str) -> str:
    """What JavaScript makes of text inside a template literal, if nothing in it is a placeholder."""
    assert not re.search(r"(?<!\\)(?:\\\\)*\$\{", text), "a placeholder would run"
    return re.sub(r"\\(.)", r"\1", text, flags=re.S)


@settings(deadline=None)
@given(st.text(alphabet="${}\\`'\"<>ab\n", max_size=30))
def test_inert_text_is_shown_as_it_was_typed(text: str) -> None:
    assert literal(escape_literals(text)) == text


def test_inert_reaches_every_text_of_a_value() -> None:
    value = {"a": ["${1}", {"b": ("${2}", 3, None, True)}]}
    assert escape_literals(value) == {"a": ["\\${1}", {"b": ["\\${2}", 3, None, True]}]}


def test_a_panel_makes_its_value_inert_at_the_start_and_later() -> None:
    placed = panel("heading", {"title": "${1}", "lead": ""})
    assert placed.value["title"] == "\\${1}"
    assert placed.postprocess({"title": "${1}"}) == {"title": "\\${1}"}
    # What Gradio does when an event returns an update of properties: it makes the component anew.
    again = type(placed)(**{**placed.constructor_args, "render": False})
    assert again.postprocess("${1}") == "\\${1}"
    assert not list(Path(panel.__code__.co_filename).parent.glob("*.pyi"))


@pytest.mark.parametrize("file", sorted(PANELS.glob("*.html")), ids=lambda file: file.stem)
def test_a_template_escapes_its_values_and_its_words_exist(file: Path) -> None:
    text = template(file.stem)
    assert not any(raw in text for raw in ("{{{", "{{&", "${", "`", "<script"))
    assert "[[" not in text
    opened, closed = re.findall(r"\{\{#(\w+)", text), re.findall(r"\{\{/(\w+)", text)
    assert sorted(opened) == sorted(closed)
    # Nothing that comes from a value may decide where a link leads to another site, or run as a handler.
    assert not re.search(r"\son\w+=", text) and "javascript:" not in text


TEXTS = sorted((Path(__file__).parents[3] / "app" / "text").glob("*.py"))


def used_in(source: str) -> set[str]:
    """What a Python file takes from ``app/text``, as ``module.NAME``."""
    tree, aliases, used = ast.parse(source), dict[str, str](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "atelier.app.text":
            aliases |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("atelier.app.text."):
            used |= {f"{(node.module or '').rpartition('.')[2]}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used.add(f"{aliases.get(node.value.id, '')}.{node.attr}")
    return used


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.stem)
def test_every_sentence_is_shown_somewhere(file: Path) -> None:
    app = file.parents[1]
    used = set[str]().union(*(used_in(path.read_text(encoding="utf-8")) for path in app.rglob("*.py")))
    used |= {name for path in PANELS.glob("*.html")
             for name in re.findall(r"\[\[(\w+\.\w+)\]\]", path.read_text(encoding="utf-8"))}   # fmt: skip
    names = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)]
    used |= {f"{file.stem}.{node.id}" for node in names if isinstance(node.ctx, ast.Load)}
    module = importlib.import_module(f"atelier.app.text.{file.stem}")
    defined = {f"{file.stem}.{name}" for name, value in vars(module).items()
               if name.isupper() or getattr(value, "__module__", "") == module.__name__}   # fmt: skip
    assert defined and not defined - used


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample(Settings):
    kind: str = setting("b", "Which.", choices=("a", "b"))
    count: int = setting(3, "How many.", low=1, high=9)
    share: float = setting(0.5, "How much.", low=0)
    on: bool = setting(True, "Whether.")
    note: str = setting("", "What.")
    table: dict[str, int] = setting(None, "Not for a form.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", dict(self.table or {}))


def test_a_form_has_the_right_control_for_every_plain_field() -> None:
    form = controls(Sample, skip=("note",))
    assert {name: type(control) for name, control in form.items()} == {
        "kind": gr.Dropdown, "count": gr.Number, "share": gr.Number, "on": gr.Checkbox}   # fmt: skip
    assert [choice for _, choice in form["kind"].choices] == ["a", "b"]
    assert (form["count"].minimum, form["count"].maximum, form["count"].precision) == (1, 9, 0)
    assert [control.value for control in form.values()] == ["b", 3, 0.5, True]
    assert form["share"].info == "How much."


def test_the_expert_form_reaches_every_field_of_the_recipe() -> None:
    form = controls(TrainConfig)
    assert set(form) == {f.name for f in fields(TrainConfig)} - {"adapter"}
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(set(form) - {"name", "pictures", "subject"})   # each in one group


def test_a_form_shows_a_preset_over_the_defaults() -> None:
    assert values_or_defaults(["count", "on", "share"], {"count": 7, "unknown": 1}, Sample) == [7, True, 0.5]


def placed(build: Callable[[gr.Blocks], Any]) -> tuple[gr.Blocks, Any]:
    """A page with what ``build`` puts on it, and what that returns."""

    async def place() -> tuple[gr.Blocks, Any]:   # outside of an event loop Gradio opens one and leaves it open
        with gr.Blocks() as page:
            return page, build(page)

    return asyncio.run(place())


@cache
def expert_keys() -> list[str]:
    """Names of all controls of the Expert part."""
    return list(placed(lambda _: place_expert())[1][1])


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_can_be_chosen_with_every_preset(monkeypatch, own_home: Path, preset: str, family: str) -> None:
    home, keys = open_home(own_home), expert_keys()
    info = replace(identify("embedded"), family=family)
    monkeypatch.setattr(choices, "identify", lambda base, *_: info)
    create._choose_preset(home, keys, preset)
    for kind in KINDS:
        _, basis, *values = create._save_setting(home, keys, "kind", kind)
        shown_values = {**dict(zip(keys, values, strict=True)), "kind": kind}
        assert shown_values["lora.rank"] == load_preset(preset, family)["rank"]
        assert shown_values["lorta.rank"] == KINDS["lorta"].settings().rank
        config = TrainConfig.from_dict(choices.run_settings(keys, list(shown_values.values()), basis, preset))
        assert config.kind == kind
        assert config.steps == load_preset(preset, family)["steps"]
        assert config.adapter == ({"rank": shown_values["lora.rank"]} if kind == "lora" else {})


def test_the_create_page_shows_the_options_of_the_chosen_kind_alone(own_home: Path) -> None:
    page, _ = placed(lambda page: create.build(page, open_home(own_home), Engine(), ModelDownloads()))
    ids = [block.elem_id for block in page.blocks.values() if getattr(block, "elem_id", None)]
    assert len(ids) == len(set(ids))
    assert {"set-steps", "set-lora-rank", "set-lorta-rank"} <= set(ids)
    page, (_, found, _) = placed(lambda _: place_expert())
    (choose,) = [fn for fn in page.fns.values() if (found["kind"]._id, "change") in fn.targets]
    rows = dict(zip(KINDS, choose.outputs, strict=True))
    for key, control in found.items():
        kind = key.rpartition(".")[0]
        assert not kind or row_of(control) is rows[kind]
    assert [name for name, row in rows.items() if row.visible] == ["lora"]
    after = dict(zip(KINDS, choose.fn("lorta"), strict=True))
    assert [name for name, row in after.items() if row.visible] == ["lorta"]


def row_of(control: Any) -> Any:
    """The row that holds a control; Gradio may put a frame between them."""
    return control if isinstance(control, gr.Row) else row_of(control.parent)


def plan(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"batch": 1, "prior_count": 0, "precision": "fp32", **changes})


def test_the_create_page_says_at_once_that_a_small_run_fits_by_far(monkeypatch) -> None:
    monkeypatch.setattr(memory_savings, "available_memory", lambda _: 16_000_000_000)
    monkeypatch.setattr(memory_savings, "estimate_memory", lambda *_, **__: pytest.fail("was counted"))
    (line,) = memory_lines(plan())
    assert re.fullmatch(r"Needs less than \d{3}(\.\d)? MB of memory; 16 GB is free\.", line)


def test_the_create_page_counts_what_might_not_fit(monkeypatch, own_home: Path) -> None:
    home = open_home(own_home)
    sizes = {(False, 2): 9, (True, 2): 6, (True, 1): 3}   # GB, by checkpointing and batch

    def counted(config: TrainConfig, precision: str, *, device: str, processes: int, info: object) -> MemoryNeed:
        assert info
        assert precision == "fp32" and device == "cpu" and processes == 1
        program = sizes[config.gradient_checkpointing, config.batch] * 10**9
        return MemoryNeed(unet=0, text_encoders=0, vae=0, encode=0, train=0, program=program)

    monkeypatch.setattr(memory_savings, "estimate_memory", counted)
    monkeypatch.setattr(memory_savings, "PER_MODEL", 10**9)
    monkeypatch.setattr(room, "_fastest", lambda *_: "fp32")
    sparing = "Needs about 9 GB of memory, but only 4 GB is free. To fit, activations are recomputed"
    for free, said in ((10, "Needs about 9 GB of memory; 10 GB is free."), (4, sparing), (1, "even with every")):
        monkeypatch.setattr(memory_savings, "available_memory", lambda _, free=free: free * 10**9)
        lines = create._memory_hint(home, ["batch", "base", "kind"], "normal", "normal\nembedded", 2, "embedded",
                                    "lora")   # fmt: skip
        assert next(lines) == words.ESTIMATING
        (line,) = lines
        assert said in line


def test_the_create_page_says_why_a_base_model_can_not_be_used(tmp_path: Path, own_home: Path) -> None:
    home = open_home(own_home)
    keys, nowhere = ["base", "kind", "steps"], str(tmp_path / "nowhere")
    (line,) = create._memory_hint(home, keys, "normal", "normal\nembedded", nowhere, "lora", 5)
    assert line.startswith(f"{nowhere} does not exist.")
    (line,) = create._memory_hint(home, keys, "normal", "normal\nembedded", "embedded", "lora", 0)
    assert line.startswith("steps is 0")


def picture(path: Path, colour: str, side: int = 96) -> Path:
    image = Image.new("RGB", (side, side), colour)
    image.paste("black", (10, 10, side // 2, side // 2))
    image.save(path)
    return path


def test_a_draft_keeps_pictures_and_says_why_others_are_refused(own_home: Path, tmp_path: Path) -> None:
    home = open_home(own_home)
    (tmp_path / "notes.png").write_text("only text")
    red = picture(tmp_path / "red.png", "red")
    copy, tiny = picture(tmp_path / "copy.png", "red"), picture(tmp_path / "tiny.png", "blue", 30)
    files = [red, tmp_path / "notes.png", copy, tiny]
    counts = [len(draft.pictures) for draft in add_pictures(home, files)]
    assert counts == [1, 2, 3, 4]
    draft = load_draft(home)
    assert [p.refused for p in draft.pictures] == [False, True, True, False]
    assert "is text" in draft.pictures[1].note and "same picture as red.png" in draft.pictures[2].note
    shown = show_tiles(draft)["pictures"]
    assert [tile["chips"] for tile in shown] == [[], [words.VERDICTS["small"]]]
    red.unlink()   # Gradio's copy goes away; the draft's stays
    assert [open_picture(file).size for file in picture_files(home, draft)] == [(96, 96), (30, 30)]
    left = remove_pictures(home, [draft.pictures[0].id])
    assert [p.name for p in left.pictures] == ["notes.png", "copy.png", "tiny.png"]
    assert len(picture_files(home, left)) == 1
    clear_draft(home)
    assert load_draft(home).pictures == () and not (home.state / "draft").exists()


def test_dropped_text_files_are_the_captions_of_their_pictures(own_home: Path, tmp_path: Path) -> None:
    home = open_home(own_home)
    red, blue = picture(tmp_path / "red.png", "red"), picture(tmp_path / "blue.png", "blue")
    texts = {"red": "a {trigger} in red\n", "green": "nobody's", "blue": "too long " * 2000}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    *_, draft = add_pictures(home, [tmp_path / "red.txt", red, tmp_path / "green.txt", blue, tmp_path / "blue.txt"])
    assert [(p.name, p.caption) for p in draft.usable] == [("red.png", "a {trigger} in red"), ("blue.png", "")]
    lonely, long = (p.note for p in draft.pictures if p.refused)
    assert "green.txt has no picture" in lonely and "blue.txt is not used as a caption: it has 18000 bytes" in long
    folder = import_pictures(home, "set", picture_files(home, draft)).folder
    report = scan(folder, trigger="zq", subject="thing", template="a {subject}", resolution=64, multiple=8)
    assert sorted(p.caption for p in report.usable) == ["a thing", "a zq in red"]
    # Dropped later, and gone with its picture.
    (tmp_path / "blue.txt").write_text("blue")
    *_, draft = add_pictures(home, [tmp_path / "blue.txt"])
    assert [p.caption for p in draft.usable] == ["a {trigger} in red", "blue"]
    remove_pictures(home, [draft.usable[0].id])
    assert [file.with_suffix(".txt").read_text() for file in picture_files(home, load_draft(home))] == ["blue"]


@pytest.mark.parametrize(("what", "caption"), [("animal", ""), ("style", "a {trigger} emoji")])
def test_a_style_is_captioned_as_a_way_of_drawing(monkeypatch, own_home: Path, tmp_path: Path, what, caption) -> None:
    home, keys = open_home(own_home), expert_keys()
    list(add_pictures(home, [picture(tmp_path / "red.png", "red")]))
    taught: list[TrainConfig] = []
    monkeypatch.setattr(create, "submit", lambda _home, config: taught.append(config) or run_named("x"))
    _, basis, *expert = create._choose_preset(home, keys, "quick")
    no_estimate: Any = SimpleNamespace(seconds_per_picture=lambda *_: None)
    create._start_training(home, no_estimate, keys, [what, "ink", "mine", "quick", basis, *expert])
    assert [config.caption for config in taught] == [caption]


def run_named(name: str) -> Any:
    return SimpleNamespace(id=name)


def test_a_draft_remembers_what_was_typed_and_only_real_changes(own_home: Path) -> None:
    home = open_home(own_home)
    edit_draft(home, name="fox ${x}", what="animal")
    save_setting(home, "steps", 50, 200)
    save_setting(home, "lr", 0.002, 0.002)
    save_setting(home, "batch", None, 4)
    draft = load_draft(home)
    assert (draft.name, draft.what, draft.changes) == ("fox ${x}", "animal", {"steps": 50})
    assert save_setting(home, "steps", 200, 200).changes == {}


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"pictures": [], "colour": 1}', '{"pictures": [{"x": 1}]}'])
def test_a_damaged_draft_is_an_empty_one(own_home: Path, damage: str) -> None:
    home = open_home(own_home)
    edit_draft(home, name="fox")
    (home.state / "draft" / "draft.json").write_text(damage)
    assert load_draft(home).name == ""


def test_a_chart_puts_points_where_they_belong() -> None:
    assert svg_path([(0, 1.0), (5, 0.5), (10, 0.0)], 10, 0.0, 1.0) == "M0.0 0.0L300.0 100.0L600.0 200.0"
    assert svg_path([(5, 9.0), (5, -9.0)], 10, 0.0, 1.0) == "M300.0 0.0L300.0 200.0"   # cut at the edges
    assert svg_path([], 10, 0.0, 1.0) == ""


def test_smoothing_follows_the_definition() -> None:
    values = [3.0, 1.0, 2.0, 5.0]
    for count, (step, value) in enumerate(moving_average(list(enumerate(values))), start=1):
        weights = [0.9 ** (count - 1 - i) for i in range(count)]
        expected = sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights)
        assert step == count - 1 and value == pytest.approx(expected)


@settings(deadline=None)
@given(st.integers(0, 2000))
def test_thinning_keeps_order_the_end_and_the_limit(count: int) -> None:
    points = [(i, float(i)) for i in range(count)]
    kept = downsample(points)
    assert len(kept) == min(count, MAX_POINTS) and kept == sorted(set(kept))
    assert kept[-1:] == points[-1:]


def test_one_spike_does_not_flatten_the_chart() -> None:
    low, high = axis_limits([*([0.1, 0.2] * 100), 50.0])
    assert low < 0.1 and 0.2 < high < 0.3
    assert axis_limits([0.1, 0.2], [7.0])[1] > 7
    assert axis_limits([1.0, 1.0]) == (pytest.approx(0.9), pytest.approx(1.1))


def test_a_chart_of_a_run() -> None:
    losses = [(1, 0.5), (2, float("nan")), (3, 0.3)]
    chart = loss_chart(losses, [(2, 0.4), (3, 0.2)], best_step=3, last_step=4)
    assert chart["raw"].count("L") == 1 and "nan" not in json.dumps(chart)
    assert [(dot["step"], dot["best"], dot["x"]) for dot in chart["dots"]] == [(2, False, "50.00"), (3, True, "75.00")]
    assert loss_chart([], [], 0, 4) == {"empty": True}


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours (WCAG 2.2, 1.4.3)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


TEXT_ON = [(text, ground) for text in ("text", "text-muted", "accent") for ground in ("background", "card", "inset")]
TEXT_ON += [("on-accent", "accent"), ("on-accent", "accent-deep"), ("accent", "accent-soft"), ("text", "accent-soft"),
            ("warn", "warn-soft"), ("bad", "bad-soft"), ("bad", "card")]   # fmt: skip


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_text_can_be_read(theme: int) -> None:
    pale = [(text, ground) for text, ground in TEXT_ON
            if contrast(PALETTE[text][theme], PALETTE[ground][theme]) < 4.5]   # fmt: skip
    assert not pale
    # Borders of what can be used (1.4.11).
    assert contrast(PALETTE["control-border"][theme], PALETTE["card"][theme]) >= 3


def test_style_sheets_use_the_palette_and_nothing_from_elsewhere() -> None:
    for sheet in STYLE_SHEETS:
        text = sheet.read_text(encoding="utf-8")
        used = set(re.findall(r"var\(--([\w-]+)", text))
        own = set(re.findall(r"--([\w-]+):", "".join(other.read_text(encoding="utf-8") for other in STYLE_SHEETS)))
        set_elsewhere = {"range_progress", "text-drop", "text-import", "text-open", "strength-share"}
        assert used <= {*PALETTE, *own, *set_elsewhere}, sheet.name
        assert "http" not in text and "@import" not in text


def test_the_page_continues_an_adapter_with_its_settings_and_can_start_anew(own_home: Path) -> None:
    home, keys = open_home(own_home), expert_keys()
    for recipe in ("", TrainConfig(name="rex", steps=7, kind="dora", adapter={"rank": 3}).to_toml()):
        adapters = create_adapters("dora", {"rank": 3}, [Spec("unet.a", (8, 6))])
        info = AdapterInfo(trigger="zrx", subject="dog", base="embedded", family="embedded", recipe=recipe)
        save_adapter(home.adapters / "rex.safetensors", adapters, info.to_metadata())
        create._continue_adapter(home, keys, find_adapter(home, "rex"))
        draft = load_draft(home)
        assert draft.subject == "dog" and draft.changes.get("steps") == (7 if recipe else None)
        assert draft.changes.items() >= {"kind": "dora", "dora.rank": 3, "trigger": "zrx",
                                         "continue_from": "rex"}.items()   # fmt: skip
    create._save_setting(home, keys, "continue_from", "")
    assert "continue_from" not in load_draft(home).changes


def test_a_message_at_the_edge_of_the_page_holds_no_html(monkeypatch: pytest.MonkeyPatch) -> None:
    """It repeats names of files, and what the address of a page says."""
    told: list[str] = []
    for name in ("Info", "Warning"):
        monkeypatch.setattr(gr, name, told.append)
    inform("<img src=x>")
    warn("<img src=x>")
    assert told == ["&lt;img src=x&gt;"] * 2
    sources = Path(page_frame.__file__).resolve().parents[1].rglob("*.py")
    assert [path.name for path in sources if re.search(r"gr\.(Info|Warning)\(", path.read_text(encoding="utf-8"))] == [
        "page_frame.py"], "use inform and warn"   # fmt: skip

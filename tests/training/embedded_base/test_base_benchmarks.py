"""What measures the base and its presets: blind sheets, halves of pairs, places in attention, resumable searches."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from PIL import Image, ImageDraw
from torch.testing import assert_close

from atelier.training.config.train_config import TrainConfig, load_preset
from benchmarks.embedded_base.pairs_gate import THINGS, MapProcessor, Pair, area_under_curve, halves, pairs, span
from benchmarks.embedded_base.preset_search import candidates, evidence, obeys, read, render, runs, summaries
from benchmarks.embedded_base.report import Scores, summary, table
from benchmarks.support.blind_sheet import COLUMNS, SIDE, counted, write_blind_sheet


def test_a_blind_sheet_has_as_many_of_each_and_its_key_is_right(tmp_path: Path):
    groups = {"old": [Image.new("RGB", (64, 64), "red")] * 9, "new": [Image.new("RGB", (64, 64), "blue")] * 9}
    write_blind_sheet(groups, tmp_path / "blind", count=16)
    key = json.loads((tmp_path / "blind.json").read_text())
    sheet = Image.open(tmp_path / "blind.png")
    assert sorted(key.values()) == ["new"] * 8 + ["old"] * 8
    assert list(key.values()) != sorted(key.values())
    for number, name in key.items():
        row, column = divmod(int(number) - 1, COLUMNS)
        middle = (column * (SIDE + 2) + SIDE // 2, row * (sheet.height // 2) + SIDE // 2)
        assert sheet.getpixel(middle) == ((255, 0, 0) if name == "old" else (0, 0, 255))
    with pytest.raises(ValueError, match="needs 32 drawings of each group; too few are of old, new"):
        write_blind_sheet(groups, tmp_path / "blind")


def test_those_one_would_show_are_counted_by_group():
    key = {"1": "old", "2": "new", "3": "new", "4": "old"}
    assert counted(key, [2, 3, 4, 4]) == {"new": (2, 2), "old": (1, 2)}
    with pytest.raises(ValueError, match="4 drawings on this sheet, and no number 5"):
        counted(key, [5])


def test_a_half_is_cut_around_what_stands_in_it():
    picture = Image.new("RGB", (64, 64), (80, 140, 230))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((8, 2, 23, 17), fill="white")   # middle height 9.5: the square begins at the top
    draw.rectangle((40, 30, 55, 45), fill="black")   # middle height 37.5
    left, right = halves(picture)
    assert_close(left[:, 20, 32], torch.ones(3))
    assert_close(left[:, 50, 32], torch.tensor([80, 140, 230]) / 255)
    dark = (right.sum(0) < 0.5).float()
    assert_close((dark.sum(1) * torch.arange(64)).sum() / dark.sum(), torch.tensor(31.5), rtol=0, atol=1.5)


def test_every_thing_stands_at_either_side_once():
    asked = pairs()
    assert len(asked) == 24
    assert sorted(pair.left for pair in asked) == sorted(pair.right for pair in asked) == sorted(THINGS)
    assert all(pair.left != pair.right for pair in asked)
    assert Pair("key", "airplane", "flat").prompt == "a flat emoji of a key and an airplane"


def test_the_area_under_the_curve():
    left = torch.tensor([True, True, False, False])
    assert area_under_curve(torch.tensor([2.0, 3.0, 0.0, 1.0]), left) == 1.0
    assert area_under_curve(torch.tensor([2.0, 0.0, 0.0, 1.0]), left) == pytest.approx(0.625)


def test_the_words_of_a_thing_are_found_in_the_prompt():
    class Tokenizer:
        def __call__(self, text: str) -> argparse.Namespace:
            return argparse.Namespace(input_ids=[0, *(len(word) for word in text.split()), 99])

    assert span(Tokenizer(), "a flat emoji of a birthday cake", "birthday cake") == slice(6, 8)


def test_keeping_a_map_changes_nothing():
    torch.manual_seed(0)
    layer = Attention(query_dim=8, cross_attention_dim=6, heads=2, dim_head=4)
    picture, words = torch.randn(3, 16, 8), torch.randn(3, 5, 6)
    maps: dict[str, torch.Tensor] = {}
    layer.set_processor(AttnProcessor())
    expected = layer(picture, encoder_hidden_states=words)
    layer.set_processor(MapProcessor("here", maps))
    assert_close(layer(picture, encoder_hidden_states=words), expected)
    assert maps["here"].shape == (3, 16, 5)
    assert_close(maps["here"].sum(-1), torch.ones(3, 16))


def row(candidate: str = "normal", subject: str = "fox", seed: int = 0, likeness: float = 0.8) -> dict[str, object]:
    return {
        "candidate": candidate, "subject": subject, "seed": seed, "likeness": likeness, "second likeness": 0.7,
        "style": 0.95, "background": 1.0, "beside": 0.5, "drift": 0.05, "seconds": 50,
    }   # fmt: skip


def test_a_search_goes_on_where_it_stopped(tmp_path: Path):
    out = tmp_path / "rows.jsonl"
    out.write_text(json.dumps(row()) + "\n" + '{"candidate": "normal", "subj', encoding="utf-8")
    options = argparse.Namespace(out=out, only=["normal"], subjects=["fox", "owl"], seeds=[0, 1])
    left = [(subject, seed) for _, _, subject, seed in runs(options)]
    assert left == [("owl", 0), ("fox", 1), ("owl", 1)]
    assert len(read(out)) == 1


def test_every_candidate_is_a_recipe():
    for settings in candidates().values():
        values = {**load_preset("normal", "embedded"), **settings}
        own = {"rank": values.pop("rank")}
        TrainConfig.from_dict({**values, "adapter": own})


def test_the_best_candidate_is_first_by_the_lower_likeness_and_says_its_evidence():
    rows = [row(likeness=0.6), row("strong", likeness=0.9), row("strong", "owl", 1, likeness=0.8)]
    assert list(summaries(rows)) == ["strong", "normal"]
    assert summaries(rows)["strong"]["likeness"] == pytest.approx(0.85)
    assert evidence(rows[1:]) == (
        "Measured on the embedded base model, 2 subjects with 2 trainings each: likeness 0.85 (0.70 by a second "
        "classifier), style obeyed in 95 %, background in 100 % of the drawings; about 50 seconds."
    )
    assert re.search(r"\| strong \| 2 \| 0.850 ", render(rows))


def test_backgrounds_are_obeyed_by_their_colour():
    drawn = [Image.new("RGB", (64, 64), "blue"), Image.new("RGB", (64, 64), "white")]
    assert obeys(None, drawn, "background", "white") == [False, True]   # type: ignore[arg-type]


def test_a_report_has_means_but_the_median_sharpness():
    scores = [Scores(1, 1, 0, 1, 1, 0.5, 0.1, 0.1, sharp) for sharp in (0.2, 0.4, 9.0)]
    scores[0] = Scores(0, 1, 0, 1, 1, 0.8, 0.1, 0.1, 0.2)
    found = summary(scores)
    assert (found.object, found.ssim, found.sharpness) == (pytest.approx(2 / 3), pytest.approx(0.6), 0.4)
    text = table({"old": found, "true pictures": found}, {"old": 0.12345}, 3)
    assert "| old | 0.1235 | 0.667 | 1.000 | 0.000 |" in text and "| true pictures |  | 0.667 |" in text

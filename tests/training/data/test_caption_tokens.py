"""Captions longer than the text encoder: nothing of them is lost in silence, and chunks are read whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.base_models.identify import identify
from atelier.training.base_models.single_file import clip_tokenizer
from atelier.training.base_models.tokenizers import load_tokenizers
from atelier.training.config.train_config import EMBEDDED, TrainConfig
from atelier.training.data.caption_tokens import caption_warnings, measure_caption, with_trigger_first
from atelier.training.data.captions import Captioner
from atelier.training.data.latent_cache import encode_text, tokenize, tokenize_whole
from atelier.training.data.prepare import scan_pictures
from atelier.training.sampling.prompt_encoding import PromptReading, encode_prompt

LONG = "a fox on a red table beside a green cup in front of a blue wall with a small yellow lamp and a white cat, "
CAPTIONER = Captioner(trigger="rex", subject="", template="")


@pytest.fixture(scope="module")
def model() -> BaseModel:
    return load(EMBEDDED, "cpu")


@pytest.fixture(scope="module")
def clip() -> tuple:
    return (clip_tokenizer("<|endoftext|>"),)


def test_a_caption_is_measured_as_it_is_read(clip: tuple) -> None:
    for words in (1, 74, 75, 76, 150, 151):
        caption = " ".join(["fox"] * (words - 1) + ["cup"])
        tokens = measure_caption(clip, caption, CAPTIONER, 1)
        read = clip[0](caption, truncation=True, max_length=77).input_ids
        assert tokens.count == words and tokens.is_cut == (words > 75)
        assert (clip[0].convert_tokens_to_ids("cup</w>") in read) == (not tokens.is_cut)
        assert tokens.chunks == -(-words // 75)


@pytest.mark.parametrize("before", [0, 73, 74, 75, 80, 149, 150])
@pytest.mark.parametrize("chunks", [1, 2])
def test_a_trigger_word_is_read_or_said_not_to_be(clip: tuple, before: int, chunks: int) -> None:
    caption = " ".join([*["fox"] * before, "rex", *["cup"] * 5])
    tokens = measure_caption(clip, caption, CAPTIONER, chunks)
    read = clip[0](caption, add_special_tokens=False, truncation=False).input_ids[: 75 * chunks]
    assert tokens.trigger_is_cut == (clip[0].convert_tokens_to_ids("rex</w>") not in read)
    assert tokens.trigger_is_cut == any("trigger word 'rex' comes after" in warning
                                        for warning in caption_warnings({"a.png": tokens}, "rex"))   # fmt: skip


def test_a_word_of_several_tokens_must_be_read_to_its_end(clip: tuple) -> None:
    captioner = Captioner(trigger="zwqrexfoo", subject="", template="")
    length = len(clip[0]("zwqrexfoo", add_special_tokens=False).input_ids)
    caption = " ".join([*["fox"] * (75 - length + 1), "zwqrexfoo"])
    assert length > 1 and measure_caption(clip, caption, captioner, 1).trigger_is_cut


def test_the_trigger_word_goes_first_where_it_would_not_be_read(clip: tuple) -> None:
    for caption, changed in (("a rex fox", False), ("a fox", True), ("fox " * 80 + "rex", True)):
        tokens = measure_caption(clip, caption, CAPTIONER, 1)
        assert with_trigger_first(caption, CAPTIONER, tokens) == (f"rex, {caption}" if changed else caption)


def test_the_embedded_model_has_a_limit_of_its_own_and_single_files_have_clips() -> None:
    embedded = measure_caption(load_tokenizers(identify(EMBEDDED)), LONG + "rex", CAPTIONER, 1)
    assert embedded.limit == 22 and embedded.trigger_is_cut


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, text in enumerate((LONG + "rex", LONG, "a rex fox")):
        pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{seed}.png")
        (tmp_path / f"{seed}.txt").write_text(text)
    return tmp_path


def told(folder: Path, **settings: Any) -> tuple[list[str], list[str]]:
    report = scan_pictures(TrainConfig(name="rex", pictures=str(folder), **settings))
    return [picture.caption for picture in report.usable], report.warnings


def test_the_run_says_what_is_cut_off_with_every_cure(folder: Path) -> None:
    _, warnings = told(folder)
    unread, cut, missing, *rest = [warning for warning in warnings if "photographs" not in warning]
    assert "'rex' comes after the 22 tokens that are read in the caption of 0.png" in unread
    assert "trigger_first=true" in unread and "caption_chunks=2" in unread and "shorten" in unread
    assert "1.png has up to" in cut and "only the first 22 are read" in cut and "caption_chunks=2" in cut
    assert "missing from the caption of 1.png" in missing and rest == []


def test_each_cure_cures(folder: Path) -> None:
    captions, warnings = told(folder, trigger_first=True)
    assert [caption.startswith("rex, ") for caption in captions] == [True, True, False]
    assert not any("trigger word" in warning for warning in warnings)
    captions, warnings = told(folder, caption_chunks=2)
    assert captions[0] == LONG + "rex" and not any("tokens" in warning for warning in warnings)


def test_chunks_are_read_as_a_long_prompt_is(model: BaseModel) -> None:
    """The prompt encoder of drawing, which cuts prompts into chunks by itself, is the reference."""
    captions = [LONG + "rex", "a rex fox", LONG * 3]
    rows = tokenize_whole(model, captions, 8)
    assert [len(row) // 24 for row in rows] == [2, 1, 5]
    for caption, row in zip(captions, rows, strict=True):
        expected = encode_prompt(model, caption, PromptReading(syntax="weights")).features
        torch.testing.assert_close(encode_text(model, row[None]).features, expected)


def test_one_chunk_is_what_it_always_was(model: BaseModel) -> None:
    captions = ["a rex fox", LONG]
    assert torch.equal(torch.stack(tokenize_whole(model, captions, 1)), tokenize(model, captions))

"""Tokens of a prompt, against the tokenizer itself and the chunks that the text encoder reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from atelier.app.services.prompts.token_count import count_prompt_tokens
from atelier.app.store.home import Home, open_home
from atelier.training.base_models.identify import identify
from atelier.training.base_models.tokenizers import load_tokenizers
from atelier.training.sampling.prompt_encoding import chunks, count_tokens

LONG = "a (red:1.3) fox in the snow beside a frozen lake at night, under a very large moon with stars and clouds above"


@pytest.fixture
def home(own_home: Path) -> Home:
    return open_home(own_home)


@pytest.mark.parametrize("prompt", ["", "a fox", LONG, f"a fox BREAK {LONG}", "a fox <lora:rex:0.8>", "((x) y"])
def test_the_count_is_that_of_what_is_encoded(home: Home, prompt: str) -> None:
    [tokenizer] = load_tokenizers(identify("embedded"))
    text = prompt.replace("<lora:rex:0.8>", "")
    found = count_prompt_tokens(home, "embedded", prompt)
    assert found
    assert (found.tokens, found.chunk_tokens) == (count_tokens(tokenizer, text), tokenizer.model_max_length - 2)
    assert len(found.chunk_ends) + 1 == len(chunks(tokenizer, text))


def test_a_chunk_s_end_is_said_in_the_prompt_s_own_words(home: Home) -> None:
    found = count_prompt_tokens(home, "embedded", LONG)
    assert found and not found.is_cut
    plain = LONG.replace("(red:1.3)", "red")
    before = plain[: plain.index(found.chunk_ends[0]) + len(found.chunk_ends[0])]
    [tokenizer] = load_tokenizers(identify("embedded"))
    assert count_tokens(tokenizer, before) == found.chunk_tokens


def test_a_plain_prompt_is_cut(home: Home) -> None:
    found = count_prompt_tokens(home, "embedded", LONG, "plain")
    assert found and found.is_cut


def test_a_base_model_that_is_not_here_counts_nothing(home: Home) -> None:
    assert count_prompt_tokens(home, "/no/such/model", "a fox") is None

"""Textual inversions of every tool: kept as what they are, with their word, their vectors and their family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from atelier.adapters.formats.safetensors_header import FileError
from atelier.adapters.textual_inversion import read_textual_inversions
from atelier.app.cli.main import main
from atelier.app.services.import_export import import_any
from atelier.app.services.library_list import LibraryFilter
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import list_adapters
from atelier.app.store.textual_inversions import (
    find_textual_inversion,
    list_textual_inversions,
    list_unreadable_inversions,
    load_textual_inversion,
)
from atelier.app.web.pages.library import _show as library_page

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v"


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


# What a tool writes → the words, the family, and the vectors of the first word.
FILES: dict[str, tuple[dict[str, Tensor], str, str, dict[str, tuple[int, int]]]] = {
    "A1111, InvokeAI": ({"emb_params": random(5, 768)}, "zwx", "sd1", {"text_encoder": (5, 768)}),
    "half precision": ({"emb_params": random(5, 768).half()}, "zwx", "sd1", {"text_encoder": (5, 768)}),
    "SD 2": ({"emb_params": random(2, 1024)}, "zwx", "sd2", {"text_encoder": (2, 1024)}),
    "diffusers": ({"<fox>": random(768)}, "<fox>", "sd1", {"text_encoder": (1, 768)}),
    "SDXL": ({"clip_l": random(4, 768), "clip_g": random(4, 1280)}, "zwx", "sdxl",
             {"text_encoder": (4, 768), "text_encoder_2": (4, 1280)}),
    "pivotal": ({"text_encoders_0": random(2, 768), "text_encoders_1": random(2, 1280)}, "zwx", "sdxl",
                {"text_encoder": (2, 768), "text_encoder_2": (2, 1280)}),
    "A1111's own names": ({"string_to_param.*": random(3, 768)}, "zwx", "sd1", {"text_encoder": (3, 768)}),
    "two words": ({"<one>": random(2, 768), "<two>": random(3, 768)}, "<one>, <two>", "sd1",
                  {"text_encoder": (2, 768)}),
}   # fmt: skip


@pytest.mark.parametrize("tool", FILES)
def test_a_textual_inversion_is_kept_as_it_is(home: Home, tmp_path: Path, tool: str, capsys):
    tensors, tokens, family, shapes = FILES[tool]
    save_file(tensors, tmp_path / "zwx.safetensors")
    own = ["--home", str(home.path)]
    assert main(["inspect", str(tmp_path / "zwx.safetensors")]) == 0
    assert "textual inversion" in (said := capsys.readouterr().out) and tokens in said
    if tool == "diffusers":   # a process of its own takes seconds
        assert main(["import", str(tmp_path / "zwx.safetensors"), *own]) == 0
        assert f"textual inversion for the word {tokens}" in capsys.readouterr().out
    else:
        assert f"textual inversion for the word {tokens}" in import_any(home, tmp_path / "zwx.safetensors").notes[0]
    cards = list_textual_inversions(home)
    assert ", ".join(card.token for card in cards) == tokens and {card.family for card in cards} == {family}
    kept = load_textual_inversion(cards[0])
    assert {part: tuple(value.shape) for part, value in kept.vectors.items()} == shapes
    first = next(iter(tensors.values()))
    assert torch.equal(kept.vectors["text_encoder"], first.float().reshape(-1, first.shape[-1]))
    assert not list_adapters(home)
    assert main(["list", *own]) == 0
    assert tokens.split(", ")[0] in capsys.readouterr().out
    assert main(["show", cards[0].name, *own]) == 0
    assert f"{len(kept.vectors['text_encoder'])}" in capsys.readouterr().out
    assert any(cards[0].token in line for line in library_page(home, LibraryFilter(), 0, "")[0]["words"])
    with pytest.raises(HomeError, match="already in your library"):
        import_any(home, tmp_path / "zwx.safetensors")
    assert main(["delete", cards[0].name, *own]) == 0
    assert len(list_textual_inversions(home)) == len(cards) - 1


def test_words_inside_an_adapter_are_kept_beside_it(home: Home, tmp_path: Path):
    tensors = {f"{LAYER}.lora_up.weight": random(12, 4), f"{LAYER}.lora_down.weight": random(4, 768),
               "bundle_emb.zwx.string_to_param.*": random(2, 768)}   # fmt: skip
    save_file(tensors, tmp_path / "fox.safetensors")
    taken = import_any(home, tmp_path / "fox.safetensors")
    assert [card.name for card in list_adapters(home)] == ["fox"]
    word = find_textual_inversion(home, "zwx")
    assert word is not None and torch.equal(load_textual_inversion(word).vectors["text_encoder"],
                                            tensors["bundle_emb.zwx.string_to_param.*"])   # fmt: skip
    assert any("1 text embeddings (textual inversions), which are imported" in note for note in taken.notes)


BAD = {
    "NaN": ({"emb_params": torch.full((2, 768), torch.nan)}, "emb_params contains values that are not finite"),
    "for every layer": ({"emb_params": random(16, 2, 768)}, "XTI"),
    "too many": ({"emb_params": random(80, 768)}, "80 vectors, but a prompt has room for 75"),
    "the second encoder alone": ({"clip_g": random(2, 1280)}, "have the width 1280, which fits"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_fits_no_prompt_is_refused_and_never_listed(home: Home, tmp_path: Path, what: str):
    tensors, said = BAD[what]
    save_file(tensors, tmp_path / "zwx.safetensors")
    with pytest.raises(FileError, match=said):
        read_textual_inversions(tmp_path / "zwx.safetensors")
    save_file(tensors, home.textual_inversions / "by-hand.safetensors")
    assert not list_textual_inversions(home)
    [reason] = list_unreadable_inversions(home)
    assert said in reason


def test_another_word_of_the_same_name_gets_a_number(home: Home, tmp_path: Path):
    for seed in (1, 2):
        save_file({"<fox>": torch.full((1, 768), float(seed))}, tmp_path / "a.safetensors")
        import_any(home, tmp_path / "a.safetensors")
    assert [card.name for card in list_textual_inversions(home)] == ["fox", "fox-2"]

"""Other adapters in previews: what a recipe names is loaded, and what can't be used is told and left out."""

from __future__ import annotations

import pytest
import torch

from atelier.adapters.core.base import Spec
from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.runs.preview_adapters import load_preview_adapters, parse_strengths


def test_strengths_are_read_with_and_without_numbers():
    assert parse_strengths(" oil = 0.8 ,fog,, old oak=-1") == {"oil": 0.8, "fog": 1.0, "old oak": -1.0}
    with pytest.raises(ValueError, match="loud"):
        parse_strengths("oil=loud")


def test_what_fits_is_loaded_and_the_rest_is_told(model, tmp_path):
    fits = create_adapters("lora", {"rank": 2}, find_targets({"unet": model.unet}, "attention"))
    save_adapter(tmp_path / "oil.safetensors", fits, {})
    save_adapter(tmp_path / "far.safetensors", create_adapters("lora", {"rank": 2}, [Spec("unet.no", (3, 4))]), {})
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    parts, problems = load_preview_adapters("oil=0.5, far, bad, ../oil, gone", tmp_path, model)
    [(adapters, strength)] = parts
    assert strength == 0.5
    assert all(torch.equal(adapters.tensors()[key], value) for key, value in fits.tensors().items())
    assert len(problems) == 4
    assert all(f"'{name}'" in problem for name, problem in zip(("far", "bad", "../oil", "gone"), problems, strict=True))


def test_a_text_that_can_not_be_read_is_told(model, tmp_path):
    parts, [problem] = load_preview_adapters("oil=loud", tmp_path, model)
    assert not parts and "'oil=loud'" in problem

"""Caption models of a local folder: those of true shape are read, and nothing else is opened."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tiny_caption_model import WORDS, save_tiny_caption_model

from atelier.training.data.caption_model import CaptionModelError, check_caption_model, load_caption_model

PICTURE = Image.linear_gradient("L").convert("RGB").resize((40, 24))


@pytest.mark.parametrize("kind", ["blip", "vision-encoder-decoder"])
def test_a_caption_is_what_the_model_generates_for_the_picture(tmp_path: Path, kind: str) -> None:
    loaded = load_caption_model(save_tiny_caption_model(tmp_path, kind))
    pixels = loaded.pixels(PICTURE)
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels.amin() == pytest.approx(-2, abs=0.1) and pixels.amax() == pytest.approx(2, abs=0.1)
    assert not loaded.model.training
    tokens = loaded.model.generate(pixel_values=pixels, max_new_tokens=40, do_sample=False)[0].tolist()
    caption = loaded.caption(PICTURE)
    assert caption.split() == [WORDS[i] for i in tokens if i > 2] and caption


def test_folders_that_have_no_caption_model_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CaptionModelError, match=r"no config\.json that can be read"):
        check_caption_model(tmp_path / "nowhere")
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "llama", "auto_map": {"AutoModel": "evil.Evil"}}')
    (tmp_path / "evil.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(CaptionModelError, match="kind “llama”"):
        load_caption_model(tmp_path)
    config.write_text("[]")
    with pytest.raises(CaptionModelError, match="is not a model's"):
        check_caption_model(tmp_path)
    config.write_text('{"model_type": "blip", "auto_map": {"AutoModel": "evil.Evil"}}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(CaptionModelError, match=r"no weights as \.safetensors"):
        load_caption_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(CaptionModelError, match="can't be read"):
        load_caption_model(tmp_path)


def test_weights_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = save_tiny_caption_model(tmp_path, "blip") / "model.safetensors"
    weights = load_file(file)
    save_file({name: weights[name] for name in sorted(weights)[3:]}, file, {"format": "pt"})
    with pytest.raises(CaptionModelError, match="lacks 3 of its weights"):
        load_caption_model(tmp_path)

"""The hashes by which other tools know an adapter: of their file, not of ours."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from atelier.app.services.import_export import export_adapters, import_file
from atelier.app.store.foreign_hashes import INDEX, hash_elsewhere
from atelier.app.store.gallery import encode_picture, make_recipe
from atelier.app.store.home import Home
from atelier.app.store.library import AdapterCard, find_adapter
from atelier.app.store.picture_metadata import NamedAdapter, read_metadata
from atelier.app.store.sidecars import write_sidecars
from atelier.training.sampling.sample import DrawRequest

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v"


def foreign(path: Path, **metadata: str) -> Path:
    save_file({f"{LAYER}.lora_up.weight": torch.ones(12, 4), f"{LAYER}.lora_down.weight": torch.ones(4, 768)}, path,
              metadata)   # fmt: skip
    return path


def behind_the_header(path: Path) -> str:
    blob = path.read_bytes()
    return hashlib.sha256(blob[8 + int.from_bytes(blob[:8], "little"):]).hexdigest()


def in_a1111(card: AdapterCard, folder: Path) -> tuple[NamedAdapter, ...]:
    """What A1111's text in a picture says of the adapter."""
    recipe = make_recipe(DrawRequest(prompt="a fox"), 0, "embedded", "sd1", [(card, 0.5)])
    (folder / "a.png").write_bytes(encode_picture(Image.new("RGB", (8, 8)), recipe))
    with Image.open(folder / "a.png") as image:
        text = image.info["parameters"]
    chunks = PngInfo()
    chunks.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(folder / "b.png", pnginfo=chunks)
    found = read_metadata(folder / "b.png")
    assert found is not None
    return found.adapters


def test_a_picture_names_an_adapter_by_the_file_that_others_have(home: Home, tmp_path: Path):
    source = foreign(tmp_path / "fox.safetensors")
    card = import_file(home, source).card
    assert in_a1111(card, tmp_path) == (NamedAdapter("fox", 0.5, behind_the_header(source)[:12]),)
    out, report = export_adapters([(card, 1.0)], "kohya", tmp_path / "out.safetensors", "fp16")
    assert behind_the_header(out) == report.hash != behind_the_header(source)
    assert in_a1111(card, tmp_path) == (NamedAdapter("fox", 0.5, report.hash[:12]),)


def test_a_hash_in_the_header_counts_as_it_does_in_a1111(home: Home, tmp_path: Path):
    card = import_file(home, foreign(tmp_path / "fox.safetensors", sshs_model_hash="ab" * 32)).card
    assert hash_elsewhere(card) == "ab" * 32


@pytest.mark.parametrize("damage", [b"", b"[]", b"{"])
def test_a_damaged_index_is_no_hindrance(home: Home, tmp_path: Path, damage: bytes):
    card = import_file(home, foreign(tmp_path / "fox.safetensors")).card
    (home.state / INDEX).write_bytes(damage)
    assert hash_elsewhere(card) == ""
    export_adapters([(card, 1.0)], "kohya", tmp_path / "out.safetensors")
    assert hash_elsewhere(card) == behind_the_header(tmp_path / "out.safetensors")


def test_sidecars_hold_the_hashes_of_the_exported_file(home: Home, tmp_path: Path):
    import_file(home, foreign(tmp_path / "fox.safetensors"))
    card = find_adapter(home, "fox")
    out, _ = export_adapters([(card, 1.0)], "kohya", tmp_path / "out.safetensors")
    written = json.loads(write_sidecars([(card, 1.0)], out)[0].read_text(encoding="utf-8"))
    whole = hashlib.sha256(out.read_bytes()).hexdigest().upper()
    assert written["hashes"] == {"SHA256": whole, "AutoV2": whole[:10], "AutoV3": behind_the_header(out)[:12].upper()}

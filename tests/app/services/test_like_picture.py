"""Pictures of every tool give their settings back, and what is missing is said."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from atelier.app.services import like_picture
from atelier.app.services.import_export import import_file
from atelier.app.services.like_picture import job_like
from atelier.app.store import model_hashes
from atelier.app.store.gallery import encode_picture, make_recipe
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import find_adapter
from atelier.app.store.models import ModelEntry
from atelier.training.base_models.identify import identify
from atelier.training.config.train_config import EMBEDDED
from atelier.training.sampling.sample import DrawRequest

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def adapter(path: Path, seed: int = 0) -> str:
    """A LoRA file as kohya writes it; returns the beginning of its hash, as A1111 shows it."""
    random = torch.Generator().manual_seed(seed)
    tensors = {f"{LAYER}.lora_up.weight": torch.randn(64, 4, generator=random),
               f"{LAYER}.lora_down.weight": torch.randn(4, 192, generator=random), f"{LAYER}.alpha": torch.tensor(4.0)}
    save_file(tensors, path, {"format": "pt"})
    content = path.read_bytes()
    return hashlib.sha256(content[8 + int.from_bytes(content[:8], "little"):]).hexdigest()[:12]


def drawn(path: Path, **texts: str) -> Path:
    chunks = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        chunks.add_text(key, value)
    Image.new("RGB", (16, 16)).save(path, pnginfo=chunks)
    return path


def a1111(prompt: str, more: str = "", model: str = "embedded") -> str:
    return (f"{prompt}\nNegative prompt: bad\nSteps: 12, Sampler: DPM++ 2M SDE Karras, CFG scale: 6.5, Seed: 9, "
            f"Size: 64x96, Model: {model}{more}")


def test_a1111_restores_everything(home: Home, tmp_path: Path) -> None:
    hash = adapter(tmp_path / "rex_v2.safetensors")
    import_file(home, tmp_path / "rex_v2.safetensors")
    text = a1111("a (rex:1.2) fox <lora:rex_v2:0.8>", f', Clip skip: 2, Lora hashes: "rex_v2: {hash}"')
    job, notes = job_like(home, drawn(tmp_path / "a.png", parameters=text))
    request = job.request
    assert (request.prompt, request.negative, request.seed) == ("a (rex:1.2) fox", "bad", 9)
    assert (request.steps, request.guidance, request.width, request.height) == (12, 6.5, 64, 96)
    assert (request.sampler, request.schedule, request.clip_skip) == ("dpm++ sde", "karras", 1)
    assert job.base == EMBEDDED and [(e.name, e.strength) for e in job.adapters] == [("rex_v2", 0.8)]
    assert notes == ["Settings from A1111, as far as Atelier has them; it computes noise and prompts differently."]


def test_an_adapter_is_found_by_its_hash_before_its_name(home: Home, tmp_path: Path) -> None:
    hash = adapter(tmp_path / "rex.safetensors", 1)
    adapter(tmp_path / "other.safetensors", 2)
    import_file(home, tmp_path / "rex.safetensors", "renamed")
    import_file(home, tmp_path / "other.safetensors", "rex")
    text = a1111("a <lora:rex:1>", f', Lora hashes: "rex: {hash}"')
    job, _ = job_like(home, drawn(tmp_path / "a.png", parameters=text))
    assert [entry.name for entry in job.adapters] == ["renamed"]
    text = a1111("a <lora:folder/REX:1>", ', Lora hashes: "folder/REX: 00000000aaaa"')
    job, notes = job_like(home, drawn(tmp_path / "b.png", parameters=text))
    assert [entry.name for entry in job.adapters] == ["rex"]
    assert any("rex was found by its name" in note and "00000000aaaa" in note for note in notes)


def test_what_is_missing_is_said(home: Home, tmp_path: Path) -> None:
    text = a1111("a <lora:gone:0.5>", ', Model hash: 6ce0161689, Lora hashes: "gone: 0a1b2c3d4e5f"', "dream-v8")
    job, notes = job_like(home, drawn(tmp_path / "a.png", parameters=text))
    assert job.base == EMBEDDED and job.adapters == () and (job.request.width, job.request.height) == (0, 0)
    assert "Missing adapter: gone (hash 0a1b2c3d4e5f), strength 0.5. Import it to draw with it." in notes
    assert any("Missing base model: dream-v8 (hash 6ce0161689)" in note for note in notes)


def test_a_base_is_found_by_its_hash_or_by_its_name(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    one.write_bytes(b"one" * 400_000)
    two.write_bytes(b"two")
    info = identify(EMBEDDED)
    monkeypatch.setattr(like_picture, "find_models", lambda _: [ModelEntry(one, info), ModelEntry(two, info)])
    monkeypatch.setattr(like_picture, "identify", lambda _: info)
    legacy = hashlib.sha256(one.read_bytes()[1 << 20 : (1 << 20) + (1 << 16)]).hexdigest()[:8]
    for hash in (hashlib.sha256(one.read_bytes()).hexdigest()[:10], legacy):
        text = a1111("a", f", Model hash: {hash}", "two")
        assert job_like(home, drawn(tmp_path / "a.png", parameters=text))[0].base == str(one)
    job, notes = job_like(home, drawn(tmp_path / "a.png", parameters=a1111("a", ", Model hash: 1234567890", "Two")))
    assert job.base == str(two) and any("two.safetensors was found by its name" in note for note in notes)
    read = []
    monkeypatch.setattr(model_hashes.hashlib, "file_digest", lambda *_: read.append(1))
    job_like(home, drawn(tmp_path / "a.png", parameters=a1111("a", ", Model hash: 1234567890", "two")))
    assert not read, "each checkpoint is read once"


SAMPLERS = [
    ("A1111", "Euler a", "", "euler a", "auto"), ("A1111", "DPM++ 2M", "Karras", "dpm++", "karras"),
    ("ComfyUI", "dpmpp_2m_sde_gpu", "exponential", "dpm++ sde", "exponential"), ("ComfyUI", "uni_pc", "simple", "unipc",
    "auto"), ("InvokeAI", "dpmpp_2m_k", "", "dpm++", "karras"), ("NovelAI", "k_euler_ancestral", "native", "euler a",
    "auto"), ("Fooocus", "dpmpp_2m_sde_gpu", "karras", "dpm++ sde", "karras"), ("A1111", "Euler", "SGM Uniform",
    "euler", "trailing"), ("A1111", "Heun", "Automatic", "heun", "auto"), ("A1111", "LCM", "", "lcm", "auto"),
]   # fmt: skip


def test_what_else_went_into_a_picture_is_said(home: Home, tmp_path: Path) -> None:
    more = ', Hires upscale: 2, ControlNet 0: "canny", ADetailer model: face'
    _, notes = job_like(home, drawn(tmp_path / "a.png", parameters=a1111("a fox", more)))
    assert notes[1:] == ["It was also drawn with hires fix, ADetailer and ControlNet, which are not taken over."]


@pytest.mark.parametrize(("tool", "name", "schedule", "sampler", "spacing"), SAMPLERS)
def test_samplers_by_the_names_of_each_tool(tool: str, name: str, schedule: str, sampler: str, spacing: str) -> None:
    notes: list[str] = []
    found = like_picture.PictureMetadata(tool=tool, sampler=name, schedule=schedule)
    assert like_picture._sampler(found, notes) == {"sampler": sampler, "schedule": spacing} and notes == []


@pytest.mark.parametrize(("name", "schedule", "said"), [
    ("DPM++ SDE Karras", "", "DPM++ SDE Karras does not exist here; DPM++ 2M SDE is used"),
    ("Strange", "", "Strange does not exist here; the usual one"), ("Euler a", "Karras", "schedule karras"),
    ("Euler", "Align Your Steps", "schedule align your steps")])
def test_samplers_that_do_not_exist_here_are_said(name: str, schedule: str, said: str) -> None:
    notes: list[str] = []
    like_picture._sampler(like_picture.PictureMetadata(tool="A1111", sampler=name, schedule=schedule), notes)
    assert len(notes) == 1 and said in notes[0]


def test_values_out_of_range_are_brought_in_and_said(home: Home, tmp_path: Path) -> None:
    said = {"prompt": "fox++", "negativeprompt": "", "seed": 2**53, "steps": 5000, "cfgscale": 0.5, "width": 5,
            "height": 9000, "model": "embedded", "sampler": "euler"}   # fmt: skip
    path = drawn(tmp_path / "a.png", parameters=json.dumps({"sui_image_params": said}))
    job, notes = job_like(home, path)
    assert 0 <= job.request.seed < 2**31 and job.request.steps == 1000 and job.request.guidance == 1
    assert job.request.width and not job.request.width % identify(EMBEDDED).size_multiple
    assert job.request.height <= 4096 and len(notes) == 5


def test_our_own_picture_finds_a_renamed_adapter(home: Home, tmp_path: Path) -> None:
    adapter(tmp_path / "rex.safetensors")
    card = import_file(home, tmp_path / "rex.safetensors").card
    recipe = make_recipe(DrawRequest(prompt="a, fox", seed=3, steps=5), 0, EMBEDDED, "embedded", [(card, 0.7)])
    path = tmp_path / "a.png"
    path.write_bytes(encode_picture(Image.new("RGB", (64, 64)), recipe))
    card.path.rename(card.path.with_name("fox.safetensors"))
    job, notes = job_like(home, path)
    assert (job.request.prompt, job.request.seed, job.request.steps) == ("a, fox", 3, 5)
    assert [(entry.name, entry.strength) for entry in job.adapters] == [("fox", 0.7)] and notes == []
    find_adapter(home, "fox").path.unlink()
    assert "No longer in your library: rex" in job_like(home, path)[1][0]


def test_a_picture_that_says_nothing_is_a_sentence(home: Home, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", tmp_path / "gone.png", tmp_path):
        with pytest.raises(HomeError, match="does not say how it was drawn"):
            job_like(home, path)

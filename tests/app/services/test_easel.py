"""The sampler of a drawing: kept in the picture, given back, and decided by adapters that were made for few steps."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from atelier.adapters.formats.foreign_metadata import sampler
from atelier.app.cli.arguments import build_parser
from atelier.app.cli.main import main
from atelier.app.services.draw import DrawJob, draw_to_gallery, job_from_picture, with_sampler
from atelier.app.services.engine import Engine, LatentPreview
from atelier.app.services.import_export import import_file
from atelier.app.store.gallery import GalleryPicture, encode_picture, make_recipe, picture_id, read_recipe
from atelier.app.store.home import Home, open_home
from atelier.app.store.library import find_adapter
from atelier.training.sampling.sample import DrawRequest
from atelier.training.sampling.samplers import AUTO, SAMPLERS

KOHYA = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
# As it lay in the gallery before there was a choice of samplers.
OLD = {"schema": 1, "prompt": "a fox", "negative": "", "seed": 3, "steps": 2, "guidance": 3.0, "base": "embedded",
       "family": "embedded", "adapters": [], "width": 64, "height": 64}   # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return open_home(tmp_path / "home")


def foreign(folder: Path, name: str, **metadata: str) -> Path:
    """A LoRA as other tools write it; it changes nothing."""
    folder.mkdir(exist_ok=True)
    tensors = {f"{KOHYA}.lora_up.weight": torch.zeros(128, 2), f"{KOHYA}.lora_down.weight": torch.ones(2, 192)}
    save_file(tensors, folder / name, {"format": "pt", **metadata})
    return folder / name


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


def painted(home: Home, engine: Engine, wish: DrawJob) -> tuple[list[Any], list[GalleryPicture]]:
    *way, pictures = draw_to_gallery(home, engine, wish)
    assert isinstance(pictures, list)
    return way, pictures


def hang(home: Home, recipe: dict[str, Any]) -> str:
    """Put a picture with this recipe into the gallery, as an older Atelier did."""
    chunks, id = PngImagePlugin.PngInfo(), picture_id()
    chunks.add_itxt("atelier", json.dumps(recipe))
    Image.new("RGB", (64, 64)).save(home.gallery / f"{id}.png", pnginfo=chunks)
    return id


@pytest.mark.parametrize(
    ("folder", "name", "metadata"),
    [
        ("x", "lcm-lora-sdv1-5.safetensors", {}),
        ("x", "LCM_LoRA_Weights_SD15.safetensors", {}),
        ("lcm-lora-sdxl", "pytorch_lora_weights.safetensors", {}),
        ("x", "fast.safetensors", {"modelspec.title": "My LCM LoRA"}),
        ("x", "fast.safetensors", {"ss_output_name": "sd15_lcm"}),
    ],
)
def test_a_file_says_that_it_was_made_for_few_steps(folder, name, metadata, tmp_path):
    assert sampler(tmp_path / folder / name, metadata) == "lcm"


@pytest.mark.parametrize(
    ("name", "metadata"),
    [("fox.safetensors", {}), ("calcmap.safetensors", {}), ("lcms2.safetensors", {"modelspec.title": "Welcome"}),
     ("pytorch_lora_weights.safetensors", {})],
)   # fmt: skip
def test_other_files_do_not(name, metadata, tmp_path):
    assert sampler(tmp_path / name, metadata) == ""


def test_such_an_adapter_decides_and_says_so(home, engine, tmp_path, capsys):
    import_file(home, foreign(tmp_path / "lcm-lora-tiny", "pytorch_lora_weights.safetensors"))
    card = find_adapter(home, "lcm-lora-tiny")
    assert card.sampler == "lcm"
    wish = DrawJob(request=DrawRequest(prompt="a fox"), strengths=(("lcm-lora-tiny", 1.0),))
    (said, *way), [picture] = painted(home, engine, wish)
    assert said.startswith("lcm-lora-tiny was made for few steps: drawn with the LCM sampler, 8 steps, guidance 1.5.")
    assert [news for news in way if isinstance(news, tuple)] == [(i, 8) for i in range(1, 9)]
    recipe = read_recipe(picture.path) or {}
    assert (recipe["sampler"], recipe["steps"], recipe["guidance"]) == ("lcm", 8, 1.5)
    assert main(["draw", "a fox", "--adapter", "lcm-lora-tiny", "--home", str(home.path), "--steps", "4"]) == 0
    assert "lcm-lora-tiny was made for few steps: drawn with the LCM sampler, 4 steps" in capsys.readouterr().err


def test_it_decides_nothing_that_a_person_decided_and_nothing_at_zero(home, tmp_path):
    import_file(home, foreign(tmp_path, "lcm.safetensors"))
    card, plain = find_adapter(home, "lcm"), DrawRequest(prompt="a fox")
    chosen = DrawRequest(prompt="a fox", sampler="ddim")
    assert with_sampler(chosen, [(card, 1.0)]) == (chosen, "")
    assert with_sampler(plain, [(card, 0.0)]) == (plain.settled(), "") == with_sampler(plain, [])
    lcm = DrawRequest(prompt="a fox", sampler="lcm")
    assert with_sampler(lcm, [(card, 1.0)]) == (lcm, "")   # steps and guidance are then the person's as well


def test_a_picture_names_the_sampler_it_was_drawn_with_and_gives_it_back(home, engine):
    for asked, drawn in ((AUTO, DrawRequest().settled().sampler), ("euler", "euler")):
        request = DrawRequest(prompt="a fox", steps=2, seed=5, sampler=asked)
        way, [picture] = painted(home, engine, DrawJob(request=request))
        assert (read_recipe(picture.path) or {})["sampler"] == drawn
        with Image.open(picture.path) as image:
            assert f"Sampler: {'Euler' if drawn == 'euler' else 'DPM++ 2M'}," in image.info["parameters"]
        wish, missing = job_from_picture(home, picture.id)
        assert (wish.request.sampler, missing) == (drawn, [])
        _, [again] = painted(home, engine, wish)
        assert Image.open(again.path).tobytes() == Image.open(picture.path).tobytes()
        assert any(isinstance(news, LatentPreview) for news in way)


def test_an_old_picture_was_drawn_with_ddim(home):
    wish, _ = job_from_picture(home, hang(home, OLD))
    assert wish.request == DrawRequest(prompt="a fox", seed=3, steps=2, sampler="ddim", width=64, height=64)


def test_every_sampler_has_a_name_in_other_tools_and_on_the_command_line():
    commands = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    [option] = [action for action in commands.choices["draw"]._actions if action.dest == "sampler"]
    assert option.choices == (AUTO, *SAMPLERS)
    words = set()
    for name in SAMPLERS:
        recipe = make_recipe(DrawRequest(prompt="a", sampler=name), 0, "embedded", "embedded", [])
        with Image.open(io.BytesIO(encode_picture(Image.new("RGB", (8, 8)), recipe))) as image:
            words.add(image.info["parameters"].partition("Sampler: ")[2].partition(",")[0])
    assert words == {"DDIM", "DPM++ 2M", "UniPC", "Euler", "LCM"}

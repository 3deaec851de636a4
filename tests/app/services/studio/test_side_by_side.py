"""Adapters side by side: fields, prompts and size of the picture, from the command line to the recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atelier.adapters.core.base import Spec
from atelier.adapters.core.settings import SettingError
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.cli.main import main
from atelier.app.services.draw import DrawJob
from atelier.app.services.draw_again import job_from_picture
from atelier.app.services.studio.side_by_side import place_side_by_side
from atelier.app.store.gallery import gallery_page, read_recipe
from atelier.app.store.home import Home, open_home
from atelier.app.store.mixes import MixEntry, read_entry
from atelier.app.web.components.mix_view import act_everywhere, region_masks, set_region
from atelier.app.web.pages.studio_details import side_by_side as side_by_side_in_studio
from atelier.training.sampling.sample import DrawRequest

LAYER = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """With two adapters that change much, each in its own way."""
    home = open_home(tmp_path / "home")
    for seed, (name, trigger, subject) in enumerate([("rex", "rex", "fox"), ("hoot", "vf", "owl")]):
        made = create_adapters("lora", {"rank": 2}, [Spec(LAYER, (128, 192))])
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.copy_(torch.randn_like(parameter))
        about = {"name": name, "family": "embedded", "base": "embedded", "trigger": trigger, "subject": subject}
        path = home.adapters / f"{name}.safetensors"
        save_adapter(path, made, {f"atelier.{key}": said for key, said in about.items()})
    return home


def pixels(path: Path) -> np.ndarray:
    """[height, width, 3], 0 … 255."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def side_by_side(home: Home, prompt: str, **size: int) -> DrawJob:
    job = DrawJob(request=DrawRequest(prompt=prompt, **size), adapters=(MixEntry("rex"), MixEntry("hoot", 0.5)))
    return place_side_by_side(home, job)


def test_each_adapter_has_a_field_a_prompt_and_its_strength(home):
    job = side_by_side(home, "an emoji of a {subject} on a blue background")
    assert job.request.prompt == "an emoji of a rex fox and vf owl on a blue background"
    assert (job.request.width, job.request.height) == (256, 128)
    left, right = job.adapters
    assert left.prompt == "an emoji of a rex fox on a blue background" and left.region[0] == "1" * 16 + "0" * 16
    assert right.prompt == "an emoji of a vf owl on a blue background" and right.region[0] == "0" * 16 + "1" * 16
    assert (left.strength, right.strength, left.own_canvas, right.own_canvas) == (1, 0.5, True, True)
    plain = side_by_side(home, "two friends", width=128, height=256)
    assert [entry.prompt for entry in plain.adapters] == ["an emoji of a rex fox", "an emoji of a vf owl"]
    assert (plain.request.prompt, plain.request.width, plain.request.height) == ("two friends", 128, 256)


def test_it_is_drawn_recorded_and_drawn_again(home, tmp_path, capsys):
    typed = ["draw", "an emoji of a {subject}", "--steps", "2", "--home", str(home.path), "--side-by-side"]
    assert main([*typed, "--adapter", "rex", "--adapter", "hoot"]) == 0
    [picture] = gallery_page(home)
    assert pixels(picture.path).shape == (128, 256, 3)
    job, missing = job_from_picture(home, picture.id)
    assert not missing and [entry.own_canvas for entry in job.adapters] == [True, True]
    recipe = read_recipe(picture.path) or {}
    assert [part["prompt"] for part in recipe["adapters"]] == ["an emoji of a rex fox", "an emoji of a vf owl"]
    assert main([*typed, "--adapter", "rex=0", "--adapter", "hoot", "--out", str(tmp_path / "other")]) == 0
    [other] = (tmp_path / "other").glob("*.png")
    apart = abs(pixels(picture.path) - pixels(other)).max((0, 2))
    assert apart[:112].max() > 40 and apart[144:].max() < 16, "only the decoder's norms reach the other side"
    assert main([*typed, "--adapter", "rex"]) == 1
    assert "1 adapters can't be placed side by side. Choose 2 to 8" in capsys.readouterr().err


def test_a_canvas_needs_a_region():
    with pytest.raises(ValueError, match="needs a region"):
        read_entry({"name": "rex", "strength": 1, "own_canvas": True})
    with pytest.raises(SettingError, match="0 adapters"):
        place_side_by_side(open_home(Path("unused")), DrawJob(request=DrawRequest(prompt="x")))


def test_the_studio_places_them_and_takes_the_fields_away_again(home):
    entries = (MixEntry("rex"), MixEntry("hoot", 0.5))
    placed, regions, prompt, *size = side_by_side_in_studio(home, entries, "", "a {subject}")
    assert ([entry.prompt for entry in placed], regions) == (["a rex fox", "a vf owl"], ())
    assert (prompt, size) == ("a rex fox and vf owl", [256, 128])
    assert region_masks(placed, "", ())["can_place"] and not region_masks(placed, "")["can_place"]
    assert not region_masks(placed[:1], "", ())["can_place"]
    assert act_everywhere(placed, "rex") == (entries[0], placed[1])
    nothing_painted = set_region(placed, "hoot|" + "0" * 64)
    assert nothing_painted == (placed[0], entries[1]), "what has no region has no canvas, or it could not be read again"

"""The judge: right about pictures it never saw, honest numbers, colours by their names, and no part in training."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from torch.testing import assert_close

from atelier.training.embedded_base.example_pictures import SUBJECTS
from atelier.training.embedded_base.judge import WEIGHTS, Judge, Network, background_colour, pixels_of
from atelier.training.embedded_base.pictures import read_prompts
from atelier.training.embedded_base.views import COLOURS

ROOT = Path(__file__).resolve().parents[3]
HELD_OUT = ROOT / "tests" / "data" / "held_out"
EXAMPLES = ROOT / "assets" / "examples"


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


def views_of(folder: Path) -> list[Image.Image]:
    return [Image.open(path) for path in sorted(folder.glob("*.png"))]


def rotated(picture: Image.Image, degrees: float, brightness: float) -> Image.Image:
    """An augmentation the judge was not taught with in this form: the whole picture turned, and lit differently."""
    turned = picture.convert("RGB").rotate(
        degrees, Image.Resampling.BICUBIC, fillcolor=picture.convert("RGB").getpixel((0, 0))
    )
    return turned.point(lambda value: min(255, int(value * brightness)))   # type: ignore[arg-type]


def test_it_recognises_views_it_never_saw(judge):
    asked = [(name, view) for name in SUBJECTS for view in views_of(HELD_OUT / name) + views_of(EXAMPLES / name)]
    asked += [(name, rotated(view, 6, 0.9)) for name, view in asked]
    prediction = judge.classify([view for _, view in asked])
    objects = torch.tensor([judge.object_index(name) for name, _ in asked])
    styles = torch.tensor([judge.style_index(SUBJECTS[name]) for name, _ in asked])
    assert len(asked) == 8 * (4 + 11) * 2
    assert float((prediction.objects.argmax(1) == objects).float().mean()) >= 0.9
    assert float((prediction.styles.argmax(1) == styles).float().mean()) >= 0.8


def test_likeness_is_high_within_a_subject_and_low_between(judge):
    names = list(SUBJECTS)
    held_out = torch.stack([judge.classify(views_of(HELD_OUT / name)).features.mean(0) for name in names])
    examples = torch.stack([judge.classify(views_of(EXAMPLES / name)).features.mean(0) for name in names])
    likeness = torch.nn.functional.cosine_similarity(examples[:, None], held_out[None], dim=2)
    within = likeness.diagonal()
    between = likeness - torch.diag(torch.full((len(names),), 9.0))
    assert float(within.min()) > 0.9
    assert float(between.max()) < 0.6


def test_an_opinion_is_made_of_probabilities_and_unit_features(judge):
    pictures = [*views_of(HELD_OUT / "fox"), Image.new("RGB", (300, 200), "navy")]
    prediction = judge.classify(pictures)
    assert prediction.objects.shape == (5, len(judge.object_names))
    assert prediction.styles.shape == (5, 8)
    assert_close(prediction.objects.sum(1), torch.ones(5))
    assert_close(prediction.styles.sum(1), torch.ones(5))
    assert_close(prediction.features.norm(dim=1), torch.ones(5))


def test_one_picture_is_judged_the_same_alone_and_in_company(judge):
    views = views_of(HELD_OUT / "owl") + views_of(HELD_OUT / "guitar")
    together = judge.classify(views).objects
    alone = torch.cat([judge.classify([view]).objects for view in views])
    assert_close(together, alone, rtol=1e-3, atol=1e-5)


def test_it_knows_every_object_and_style_the_base_is_about(judge):
    words = read_prompts()
    assert set(words["concepts"]) | set(words["weak"]) | set(words["held_out"]) == set(judge.object_names)
    assert set(words["styles"]) | set(words["held_out_styles"]) == set(judge.style_names)
    with pytest.raises(ValueError, match="yeti"):
        judge.object_index("yeti")
    with pytest.raises(ValueError, match=r"cubist.*3d, flat, glossy"):
        judge.style_index("cubist")


def test_weights_survive_the_file_and_are_small(tmp_path):
    torch.manual_seed(0)
    network = Network(objects=7, styles=2)
    network(torch.randn(16, 3, 64, 64))  # gives BatchNorm something to remember
    Judge(network, [f"thing {index}" for index in range(7)], ["a", "b"]).save(tmp_path / "judge.safetensors")
    again = Judge.load(tmp_path / "judge.safetensors")
    pixels = torch.rand(3, 3, 64, 64)
    assert again.object_names == tuple(f"thing {index}" for index in range(7))
    assert_close(again.classify_pixels(pixels).objects, network(pixels * 2 - 1)[1].softmax(1), rtol=0, atol=5e-3)
    assert WEIGHTS.stat().st_size < 4e6
    with pytest.raises(FileNotFoundError, match="train_judge"):
        Judge.load(tmp_path / "nothing.safetensors")


def test_pictures_are_cut_square_and_transparency_is_white():
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))
    assert_close(pixels_of(wide), torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand(3, 64, 64))
    assert_close(pixels_of(Image.new("RGBA", (64, 64))), torch.ones(3, 64, 64))


@pytest.mark.parametrize("name", COLOURS)
def test_each_background_colour_is_called_by_its_name(name):
    picture = Image.new("RGB", (128, 128), COLOURS[name])
    draw = ImageDraw.Draw(picture)
    draw.ellipse((20, 20, 108, 108), fill="brown")
    draw.rectangle((40, 0, 80, 128), fill="navy")  # an object that touches the edge on two sides
    noisy = Image.blend(picture, Image.effect_noise((128, 128), 60).convert("RGB"), 0.06)
    assert background_colour(picture) == name
    assert background_colour(noisy) == name


def test_training_an_adapter_never_asks_the_judge():
    files = [path for room in ("training", "app") for path in (ROOT / room).rglob("*.py")]
    others = [path for path in files if path.parent.name != "embedded_base"]
    assert len(others) > 100
    for path in others:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
        assert not any("judge" in module for module in imported), path

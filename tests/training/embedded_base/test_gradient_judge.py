"""The second judge: its descriptors say what they should, it is right about pictures it never saw, and it is small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from atelier.training.embedded_base.example_pictures import SUBJECTS
from atelier.training.embedded_base.gradient_judge import (
    INPUTS,
    STRENGTHS,
    WEIGHTS,
    GradientNetwork,
    descriptors,
    gradient_judge,
    gradients,
    orientation_histograms,
    strength_histograms,
)
from atelier.training.embedded_base.judge import Judge
from atelier.training.embedded_base.pictures import read_prompts
from atelier.training.embedded_base.synthetic_styles import DRAWING_STYLES

ROOT = Path(__file__).resolve().parents[3]
HELD_OUT = ROOT / "tests" / "data" / "held_out"


@pytest.fixture(scope="module")
def judge() -> Judge:
    return gradient_judge()


def ramp(across: float, down: float) -> torch.Tensor:
    """A picture whose brightness grows by these amounts a pixel, the same in all channels."""
    row, column = torch.arange(64.0)[:, None], torch.arange(64.0)
    return (0.1 + across * column + down * row).expand(1, 3, 64, 64)


def test_gradients_have_the_length_and_angle_of_the_slope():
    length, angle = gradients(ramp(0.003, 0.004))
    assert_close(length[0, 1:-1, 1:-1], torch.full((62, 62), 0.01), rtol=1e-3, atol=1e-5)   # over two pixels
    assert_close(angle[0, 1:-1, 1:-1], torch.full((62, 62), 0.2952), rtol=1e-3, atol=1e-3)   # atan(4 / 3) / π


def test_the_channel_that_changes_most_counts():
    picture = torch.zeros(1, 3, 64, 64)
    picture[:, 0] = 0.001 * torch.arange(64.0)
    picture[:, 2] = 0.01 * torch.arange(64.0)[:, None]
    length, angle = gradients(picture)
    assert_close(length[0, 5, 5], torch.tensor(0.02))
    assert_close(angle[0, 5, 5], torch.tensor(0.5))


def test_a_slope_between_two_orientations_is_shared_by_them():
    length, angle = torch.ones(1, 64, 64), torch.full((1, 64, 64), 3.25 / 9)
    cells = orientation_histograms(length, angle)[0, :, 4, 4] ** 2 * 1.01
    assert_close(cells, torch.tensor([0, 0, 0, 0.75, 0.25, 0, 0, 0, 0]), rtol=1e-3, atol=1e-4)


def test_the_last_orientation_is_beside_the_first():
    cells = orientation_histograms(torch.ones(1, 64, 64), torch.full((1, 64, 64), 8.5 / 9))[0, :, 4, 4] ** 2 * 1.01
    assert_close(cells[[8, 0]], torch.tensor([0.5, 0.5]), rtol=1e-3, atol=1e-4)


def test_strengths_are_shares_of_the_pixels():
    length = torch.zeros(1, 64, 64)
    length[:, :32] = 0.3
    shares = strength_histograms(length)[0]
    assert_close(shares.sum(0), torch.ones(4, 4))
    assert_close(shares[0, 2:], torch.ones(2, 4))
    assert_close(shares[sum(bound < 0.3 for bound in STRENGTHS), :2], torch.ones(2, 4))


def test_descriptors_are_of_one_picture_each():
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    both = descriptors(pixels)
    assert both.shape == (3, INPUTS)
    assert_close(both[1:], descriptors(pixels[1:]))


def test_it_knows_the_objects_of_the_base_and_the_styles_that_are_taught(judge):
    words = read_prompts()
    assert set(words["concepts"]) | set(words["weak"]) | set(words["held_out"]) == set(judge.object_names)
    assert judge.style_names == ("3d", "flat", "glossy", *DRAWING_STYLES)
    assert WEIGHTS.stat().st_size < 2e6


def test_it_recognises_views_it_never_saw(judge):
    asked = [(name, Image.open(path)) for name in SUBJECTS for path in sorted((HELD_OUT / name).glob("*.png"))]
    found = judge.classify([picture for _, picture in asked])
    objects = torch.tensor([judge.object_index(name) for name, _ in asked])
    styles = torch.tensor([judge.style_index(SUBJECTS[name]) for name, _ in asked])
    assert len(asked) == 8 * 4
    assert float((found.objects.argmax(1) == objects).float().mean()) >= 0.9
    assert float((found.styles.argmax(1) == styles).float().mean()) >= 0.8


def test_weights_survive_the_file(tmp_path):
    torch.manual_seed(0)
    network = GradientNetwork(objects=7, styles=2)
    pixels = torch.rand(16, 3, 64, 64)
    network(pixels * 2 - 1)   # gives BatchNorm something to remember
    Judge(network, [f"thing {index}" for index in range(7)], ["a", "b"]).save(tmp_path / "judge.safetensors")
    again = Judge.load(tmp_path / "judge.safetensors", GradientNetwork)
    with torch.no_grad():
        expected = network(pixels * 2 - 1)[1].softmax(1)
    assert_close(again.classify_pixels(pixels).objects, expected, rtol=0, atol=5e-3)

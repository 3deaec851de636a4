"""Each style by arithmetic has the property that names it, and gives premultiplied colours of the same shape."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from atelier.training.embedded_base.synthetic_styles import DRAWING_STYLES

SIDE = 64


def thing() -> torch.Tensor:
    """Two round things with a dark middle, their colours rising from left to right, [2, 4, 64, 64]."""
    row, column = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    alpha = (row.square() + column.square() < 0.7).float()
    dark = (row.square() + column.square() > 0.1).float()
    colours = torch.stack([(column + 1) / 2, torch.full_like(row, 0.3), (row + 1) / 2]) * dark * alpha
    picture = torch.cat([colours, alpha[None]])
    return torch.stack([picture, picture.flip(2)])


def drawn(name: str) -> torch.Tensor:
    return DRAWING_STYLES[name](thing())


@pytest.mark.parametrize("name", DRAWING_STYLES)
def test_every_style_gives_premultiplied_colours_and_keeps_pictures_apart(name: str) -> None:
    pixels = thing()
    both = drawn(name)
    assert both.shape == pixels.shape
    assert (both >= 0).all()
    assert (both <= 1).all()
    assert (both[:, :3] <= both[:, 3:] + 1e-6).all()
    assert (both[:, :3] - pixels[:, :3]).abs().mean() > 0.05
    assert_close(both[1:], DRAWING_STYLES[name](pixels[1:]))


def test_pixel_art_is_squares_of_few_colours() -> None:
    art = drawn("pixel art")
    cells = art.reshape(2, 4, 16, 4, 16, 4)
    assert_close(cells, cells[:, :, :, :1, :, :1].expand_as(cells), rtol=0, atol=0)
    assert_close(art * 3, (art * 3).round())


def test_a_blueprint_is_paper_with_lines_where_the_light_changes() -> None:
    print_ = drawn("blueprint")
    assert (print_[:, 3] == 1).all()
    paper, edge = print_[0, :, 5, 5], print_[0, :, 32, 6:12].amax(1)
    assert_close(paper[:3], torch.tensor([0.09, 0.24, 0.62]))
    assert (edge[:3] > 0.7).all()


def test_neon_is_dark_between_glowing_lines_of_the_things_own_hue() -> None:
    glow = drawn("neon")
    assert_close(glow[0, :3, 2, 2], torch.tensor([0.05, 0.03, 0.12]))
    line = glow[0, :3, 32, 54:62].amax(1)   # the right edge of the first is red
    assert line[0] > 0.9
    assert line[0] > line[1] + 0.3


def test_a_two_colour_print_has_ink_dots_and_paper_only() -> None:
    both = drawn("two-colour print")
    colours = both[0, :3, both[0, 3] > 0].T.unique(dim=0)
    assert_close(colours, torch.tensor([[0.1, 0.2, 0.45], [0.93, 0.25, 0.22], [0.98, 0.93, 0.8]]))


def test_pencil_is_gray_and_darker_where_it_hatches_twice() -> None:
    sketch = drawn("pencil")
    assert_close(sketch[:, 0], sketch[:, 1])
    assert_close(sketch[:, 0], sketch[:, 2])
    assert sketch[0, 0, 30:34, 30:34].mean() < sketch[0, 0, 28:36, 52:56].mean()

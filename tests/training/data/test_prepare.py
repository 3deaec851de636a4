"""From pictures to examples: views show the middle of each picture, in its size and with its caption."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from atelier.training.base_models.base_model import BaseModel
from atelier.training.data.dataset import scan
from atelier.training.data.prepare import VIEW_ZOOM, encode_dataset, encode_views


def test_a_view_is_the_middle_of_its_picture(model: BaseModel, tmp_path: Path):
    edge = Image.new("RGB", (32, 32), "white")
    edge.paste("black", (0, 0, 32, 2))   # outside of the middle
    edge.save(tmp_path / "a.png")
    Image.new("RGB", (32, 32), "white").save(tmp_path / "b.png")
    Image.effect_noise((32, 32), 80).convert("RGB").save(tmp_path / "c.png")
    report = scan(tmp_path, trigger="rex", subject="fox", template="{trigger}", resolution=32, multiple=8)
    whole, views = encode_dataset(model, report), encode_views(model, report)
    assert round(32 * (1 - 1 / VIEW_ZOOM) / 2) == 3
    assert not torch.equal(whole[0].mean, whole[1].mean) and torch.equal(views[0].mean, views[1].mean)
    assert not torch.equal(whole[2].mean, views[2].mean)
    assert [view.mean.shape for view in views] == [one.mean.shape for one in whole]
    assert all(torch.equal(view.tokens, one.tokens) for view, one in zip(views, whole, strict=True))

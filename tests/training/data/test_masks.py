"""Masks: found beside their pictures, cropped as these are, and as fine as the latents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from atelier.app.store.datasets import import_pictures
from atelier.app.store.home import open_home
from atelier.training.base_models.base_model import BaseModel, PromptEmbeddings
from atelier.training.data.dataset import Report, scan
from atelier.training.data.images import PictureError
from atelier.training.data.latent_cache import Example
from atelier.training.data.masks import latent_mask, open_mask
from atelier.training.data.prepare import encode_dataset, encode_views
from atelier.training.loop import batch

WHITE_LEFT = (0, 0, 64, 64)   # of a picture of 128 × 64


def masked_folder(folder: Path) -> Path:
    folder.mkdir()
    Image.effect_noise((128, 64), 80).convert("RGB").save(folder / "rex.jpg")
    Image.effect_noise((64, 64), 80).convert("RGB").save(folder / "plain.png")
    mask = Image.new("L", (128, 64))
    mask.paste(255, WHITE_LEFT)
    mask.resize((256, 128), Image.Resampling.NEAREST).save(folder / "rex-masklabel.png")   # of the same aspect, larger
    return folder


def report(folder: Path) -> Report:
    return scan(folder, trigger="rex", subject="dog", template="a {trigger}", resolution=64, multiple=8)


def test_a_mask_is_no_picture_and_belongs_to_the_one_of_its_name(tmp_path: Path) -> None:
    found = report(masked_folder(tmp_path / "a"))
    assert {picture.path.name: picture.mask and picture.mask.name for picture in found.usable} == {
        "plain.png": None, "rex.jpg": "rex-masklabel.png"}   # fmt: skip
    assert found.refused == []


def test_a_dataset_takes_masks_along_and_says_which_are_unused(own_home: Path, tmp_path: Path) -> None:
    folder = masked_folder(tmp_path / "a")
    Image.new("L", (8, 8), 255).save(folder / "nobody-masklabel.png")
    files = sorted(folder.iterdir())
    imported = import_pictures(open_home(own_home), "set", files)
    with Image.open(imported.folder / "rex-masklabel.png") as mask:
        assert mask.size == (128, 64) and mask.getbbox() == WHITE_LEFT
    assert [warning.split(" ")[0] for warning in imported.warnings] == ["nobody-masklabel.png"]


def test_a_black_mask_is_refused(tmp_path: Path) -> None:
    folder = masked_folder(tmp_path / "a")
    Image.new("L", (128, 64)).save(folder / "rex-masklabel.png")
    with pytest.raises(PictureError, match="black everywhere"):
        open_mask(folder / "rex-masklabel.png", (128, 64))
    assert [name for name, _ in report(folder).refused] == ["rex.jpg"]


def test_latents_count_as_much_as_their_patch_is_white() -> None:
    mask = Image.new("L", (16, 8))
    mask.paste(255, (0, 0, 4, 8))
    assert latent_mask(mask, (1, 2)).tolist() == [[[0.5, 0.0]]]
    assert latent_mask(Image.new("L", (16, 8)), (1, 2)).tolist() == [[[1.0, 1.0]]]   # cropped away: learned whole


def test_masks_reach_the_loss_cropped_as_their_pictures(model: BaseModel, tmp_path: Path) -> None:
    found = report(masked_folder(tmp_path / "a"))
    plain, rex = encode_dataset(model, found)
    assert plain.mask is None and rex.mask is not None and rex.mask.shape == (1, *rex.mean.shape[1:])
    assert rex.mask[..., :2].min() == 1 and rex.mask[..., -2:].max() == 0
    _, zoomed = encode_views(model, found)
    assert zoomed.mask is not None and zoomed.mask[..., :2].min() == 1 and zoomed.mask[..., -2:].max() == 0


def test_what_is_masked_has_no_influence_on_the_loss(monkeypatch: pytest.MonkeyPatch, model: BaseModel) -> None:
    monkeypatch.setattr(batch, "predict", lambda _model, each: torch.zeros_like(each.noisy.latents))
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    row = torch.zeros(77, dtype=torch.int64)
    examples = [Example(torch.zeros(4, 8, 8), torch.zeros(4, 8, 8), row, mask=each) for each in (mask, None)]
    noise = torch.randn(4, 8, 8)
    given = batch.Batch(examples, [example.mean for example in examples], [noise, noise], torch.tensor([10, 10]))

    def text(tokens: list[torch.Tensor]) -> PromptEmbeddings:
        """Embeddings that nobody reads."""
        return PromptEmbeddings(torch.zeros(len(tokens), 1, 1))

    inputs = batch.unet_inputs(model, given, text)   # type: ignore[arg-type]
    target = inputs[0].noisy.target[0]
    losses = batch.example_losses(model, inputs, [0, 1])
    torch.testing.assert_close(losses, torch.stack([target[..., :4].square().mean(), target.square().mean()]))

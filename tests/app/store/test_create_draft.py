"""The draft holds what will be trained on: the pixels of the pictures, and nothing of where they are from."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from telling_picture import SECRETS, telling_picture

from atelier.app.store.create_draft import add_pictures, picture_files
from atelier.app.store.home import open_home
from atelier.training.data import images


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_a_draft_says_nothing_about_where_its_pictures_are_from(own_home: Path, tmp_path: Path, form: str) -> None:
    home, file = open_home(own_home), telling_picture(tmp_path / "a", form)
    *_, draft = add_pictures(home, [file])
    (copy,) = picture_files(home, draft)
    written = b"".join(path.read_bytes() for path in home.path.rglob("*") if path.is_file())
    assert not [secret for secret in SECRETS if secret in written], "anywhere in the home"
    with Image.open(copy) as image:
        assert image.format == images.SAVED_AS[form] and image.size == (40, 60) and not image.getexif(), "upright"


def test_a_picture_that_grows_when_written_again_can_still_be_used(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, file = open_home(own_home), tmp_path / "few.png"
    Image.effect_noise((400, 400), 50).quantize(16).save(file)
    monkeypatch.setattr(images, "MAX_BYTES", file.stat().st_size)
    *_, draft = add_pictures(home, [file])
    (copy,) = picture_files(home, draft)
    assert images.check_picture(copy).width in (200, 100)

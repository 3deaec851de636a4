"""The draft holds what will be trained on: the pixels of the pictures, and nothing of where they are from."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from telling_picture import SECRETS, telling_picture

from atelier.app.store.drafts.create_draft import (
    add_pictures,
    load_draft,
    picture_files,
    read_received,
    receive_files,
    remove_pictures,
    set_caption,
    set_weight,
    undo_change,
    undo_label,
)
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


def pictures(folder: Path, *names: str) -> list[Path]:
    for i, name in enumerate(names):
        Image.effect_noise((64 + i, 64), 80).save(folder / name)
    return [folder / name for name in names]


def test_files_dropped_while_others_are_read_are_added_as_well(own_home: Path, tmp_path: Path) -> None:
    home = open_home(own_home)
    a, b, c = pictures(tmp_path, "a.png", "b.png", "c.png")
    receive_files(home, [a])
    reading = read_received(home)
    next(reading)
    receive_files(home, [b, c])   # while the first is being read
    left = [left for _, left in reading]
    assert [picture.name for picture in load_draft(home).usable] == ["a.png", "b.png", "c.png"] and left == [1, 0]
    receive_files(home, [b])
    assert len([*read_received(home)][-1][0].pictures) == 4 and not [*read_received(home)], "read once"


def test_removing_pictures_can_be_undone_and_loses_none_that_came_since(own_home: Path, tmp_path: Path) -> None:
    home = open_home(own_home)
    a, b, c = pictures(tmp_path, "a.png", "b.png", "c.png")
    *_, draft = add_pictures(home, [a, b])
    set_caption(home, draft.usable[0].id, "one")
    set_weight(home, draft.usable[0].id, 2)
    remove_pictures(home, [picture.id for picture in draft.pictures])
    list(add_pictures(home, [c]))
    assert undo_label(home) == "2 pictures removed."
    draft = undo_change(home)
    assert [(picture.name, picture.caption, picture.weight) for picture in draft.usable] == [
        ("a.png", "one", 2.0), ("b.png", "", 1.0), ("c.png", "", 1.0)]
    assert all(file.is_file() for file in picture_files(home, draft)) and undo_label(home) == ""
    # Files are deleted when nothing can bring them back any more, and no others.
    remove_pictures(home, [draft.usable[0].id])
    draft = remove_pictures(home, [draft.usable[1].id])
    assert {file.name for file in (home.state / "draft").glob("*.png")} == {
        draft.usable[0].file, *(picture.file for picture in undo_change(home).usable)}

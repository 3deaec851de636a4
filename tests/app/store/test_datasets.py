"""Importing pictures into a home: what arrives, under which names, and what happens when it can't."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from telling_picture import SECRETS, telling_picture

from atelier.app.store import datasets
from atelier.app.store.datasets import import_pictures
from atelier.app.store.home import Home, HomeError, open_home
from atelier.training.data.dataset import scan
from atelier.training.data.images import PictureError


@pytest.fixture
def home(own_home: Path) -> Home:
    return open_home(own_home)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def picture(path: Path, seed: int = 0, form: str = "PNG") -> Path:
    path.parent.mkdir(exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(values).save(path, form)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_pictures_arrive_with_their_pixels_and_the_suffix_of_their_content(home, source):
    files = [picture(source / "b.jpg", 0), picture(source / "a", 1, "JPEG"), picture(source / "c.PNG", 2, "WEBP")]
    report = import_pictures(home, "Rex", files)
    assert report.folder == home.datasets / "Rex"
    assert [path.name for path in report.usable] == ["b.png", "a.jpg", "c.webp"]
    errors = [np.abs(pixels(path) - pixels(file)) for path, file in zip(report.usable, files, strict=True)]
    assert [error.max() for error in errors[::2]] == [0, 0], "PNG, and WebP, exactly"
    assert errors[1].mean() < 3, "of 255, and of pure noise, which JPEG keeps worst"
    assert names(report.folder) == ["a.jpg", "b.png", "c.webp"]
    assert names(home.datasets) == ["Rex"]
    assert report.refused == report.warnings == []


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_pictures_arrive_upright_and_say_nothing_about_where_they_are_from(home, source, form):
    file = telling_picture(source / "a", form)
    assert len([secret for secret in SECRETS if secret in file.read_bytes()]) > 3
    (path,) = import_pictures(home, "Rex", [file]).usable
    assert not [secret for secret in SECRETS if secret in path.read_bytes()]
    with Image.open(path) as image:
        assert image.format == form and not image.getexif() and not getattr(image, "text", {})
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density", "loop", "background",
                                   "timestamp", "duration"}   # fmt: skip
    upright = pixels(path)
    assert upright.shape == (60, 40, 3) and upright[:28].min() > 250 and upright[32:].max() < 5, "white is at the top"


def test_captions_come_along_from_beside_the_picture_and_from_the_list(home, tmp_path, source):
    beside, dropped = picture(source / "a.png", 0), picture(tmp_path / "upload1" / "b.png", 1)
    (source / "a.txt").write_text("rex asleep")
    text = tmp_path / "b.txt"
    text.write_text("rex awake")
    report = import_pictures(home, "Rex", [beside, dropped, text])
    assert names(report.folder) == ["a.png", "a.txt", "b.png", "b.txt"]
    seen = scan(report.folder, trigger="rex", subject="dog", template="", resolution=64, multiple=8)
    assert [usable.caption for usable in seen.usable] == ["rex asleep", "rex awake"]


def test_pictures_of_one_stem_keep_their_own_captions(home, tmp_path):
    files = []
    for number, folder in enumerate(("one", "two", "three")):
        files.append(picture(tmp_path / folder / ("IMG.png" if number else "img.jpg"), number))
        files[-1].with_suffix(".txt").write_text(folder)
    report = import_pictures(home, "Rex", files)
    assert [path.name for path in report.usable] == ["img.png", "IMG-2.png", "IMG-3.png"]
    assert [path.with_suffix(".txt").read_text() for path in report.usable] == ["one", "two", "three"]


def test_captions_that_cannot_come_along_are_named(home, source):
    files = [picture(source / "a.png"), source / "lonely.txt"]
    (source / "lonely.txt").write_text("rex")
    (source / "a.txt").write_text("rex " * 5000)
    report = import_pictures(home, "Rex", files)
    assert names(report.folder) == ["a.png"]
    first, second = report.warnings
    assert "a.txt is not used as a caption: it has 20000 bytes" in first
    assert "lonely.txt is not used as a caption" in second


def test_bad_files_and_twins_are_refused_and_the_others_arrive(home, source):
    good, twin = picture(source / "good.png"), picture(source / "twin.webp", form="PNG")
    whole = picture(source / "whole.jpg", 1, "JPEG")
    (source / "cut.jpg").write_bytes(whole.read_bytes()[:1200])
    (source / "diary.png").write_text("Dear diary")
    report = import_pictures(home, "Rex", [good, twin, source / "cut.jpg", source / "diary.png", source / "gone.png"])
    assert names(report.folder) == ["good.png"]
    assert [name for name, _ in report.refused] == ["twin.webp", "cut.jpg", "diary.png", "gone.png"]
    assert "the same picture as good.png" in report.refused[0][1]


def test_nothing_usable_leaves_nothing(home, source):
    (source / "diary.png").write_text("Dear diary")
    with pytest.raises(PictureError, match=r"no pictures to train on\.\ndiary\.png is text"):
        import_pictures(home, "Rex", [source / "diary.png"])
    with pytest.raises(PictureError, match="No pictures were given"):
        import_pictures(home, "Rex", [])
    assert names(home.datasets) == []


def test_a_second_dataset_of_a_name_leaves_the_first_alone(home, source):
    first = import_pictures(home, "Rex", [picture(source / "a.png", 0)])
    second = import_pictures(home, "rex", [picture(source / "b.png", 1)])
    assert (first.folder.name, second.folder.name) == ("Rex", "rex-2")
    assert (names(first.folder), names(second.folder)) == (["a.png"], ["b.png"])


@pytest.mark.parametrize("name", ["", "../evil", "a/b", "nul", ".hidden", "x" * 65])
def test_names_that_would_leave_the_home_are_refused(home, source, name):
    with pytest.raises(HomeError, match="name"):
        import_pictures(home, name, [picture(source / "a.png")])
    assert names(home.datasets) == []


@given(stem=st.text(st.characters(codec="utf-8", exclude_characters="/\0"), max_size=80))
def test_any_file_name_becomes_a_safe_one(stem):
    safe = datasets._safe_stem(stem)
    assert datasets.safe_name(safe) == safe
    assert datasets._safe_stem(safe) == safe


@pytest.mark.parametrize("stem", ["con", "-rf", "my photo (1)", "фото", "…", "a\nb", "x" * 90])
def test_odd_file_names_arrive_under_plain_ones(home, source, stem):
    report = import_pictures(home, "Rex", [picture(source / f"{stem}.png")])
    (path,) = report.usable
    assert path.is_file() and path.parent == report.folder
    assert not set(path.name) & set("/\\:*?\"<>|\n()… ")


def test_two_hundred_pictures_are_enough(home, source, monkeypatch):
    monkeypatch.setattr(datasets, "MAX_PICTURES", 2)
    report = import_pictures(home, "Rex", [picture(source / f"{seed}.png", seed) for seed in range(5)])
    assert names(report.folder) == ["0.png", "1.png"]
    assert report.warnings == ["At most 2 pictures can be used, so the last 3 were left out."]


def test_too_little_room_is_noticed_before_anything_is_written(home, source, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**9, 10**9 - 50_000_999, 50_000_999))
    path = picture(source / "a.png")
    assert path.stat().st_size > 1000
    with pytest.raises(HomeError, match=r"50 MB must stay free, but the disk with .* has only 50 MB left"):
        import_pictures(home, "Rex", [path])
    assert names(home.datasets) == []


def test_a_disk_that_fills_up_on_the_way_leaves_no_half_dataset(home, source, monkeypatch):
    save, calls = datasets.save_pixels, []

    def failing(picture: Image.Image, target: Path, form: str) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save(picture, target, form)

    monkeypatch.setattr(datasets, "save_pixels", failing)
    with pytest.raises(HomeError, match="is full"):
        import_pictures(home, "Rex", [picture(source / f"{seed}.png", seed) for seed in range(3)])
    assert len(calls) == 2
    assert names(home.datasets) == []

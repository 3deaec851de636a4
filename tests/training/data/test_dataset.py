"""Folders of pictures as people have them, and the report that comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from atelier.training.data.captions import Captioner
from atelier.training.data.dataset import Report, scan, trigger_warning
from atelier.training.data.images import PictureError


def picture(seed: int = 0, width: int = 64, height: int = 64) -> Image.Image:
    """Random pixels: sharp, and another picture for every seed."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def look(folder: Path, trigger: str = "rex", template: str = "a {trigger} {subject}", resolution: int = 64) -> Report:
    report = scan(folder, trigger=trigger, subject="dog", template=template, resolution=resolution, multiple=8)
    report.warnings.extend(trigger_warning(report.usable, Captioner(trigger=trigger, subject="", template="")))
    return report


def captions(report: Report) -> list[str]:
    return [usable.caption for usable in report.usable]


def test_a_good_folder_has_nothing_to_complain_about(tmp_path):
    for number, (name, size) in enumerate({"c.png": (64, 64), "a.webp": (90, 120), "b.jpg": (160, 90)}.items()):
        picture(number, *size).save(tmp_path / name, lossless=True)
    report = look(tmp_path)
    assert [(u.path.name, u.width, u.height, u.bucket) for u in report.usable] == [
        ("a.webp", 90, 120, (56, 72)), ("b.jpg", 160, 90, (80, 48)), ("c.png", 64, 64, (64, 64)),
    ]  # fmt: skip
    assert captions(report) == ["a rex dog"] * 3
    assert report.refused == report.warnings == []
    assert report.usable[1].crop == (5, 0, 155, 90)


def test_size_and_bucket_are_those_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0, 120, 80).save(tmp_path / "a.jpg", exif=exif)
    (usable,) = look(tmp_path).usable
    assert (usable.width, usable.height, usable.bucket) == (80, 120, (48, 80))


def test_bad_files_are_named_and_the_others_go_on(tmp_path):
    picture(0).save(tmp_path / "good.png")
    picture(1).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    (tmp_path / "diary.png").write_text("Dear diary")
    (tmp_path / "drawing.SVG").write_text("<svg></svg>")
    Image.new("RGB", (8, 8)).save(tmp_path / "dot.png")
    report = look(tmp_path)
    assert [usable.path.name for usable in report.usable] == ["good.png", "whole.jpg"]
    assert [name for name, _ in report.refused] == ["cut.jpg", "diary.png", "dot.png", "drawing.SVG"]
    assert all(name in reason for name, reason in report.refused)


def test_what_is_no_picture_and_does_not_claim_to_be_is_no_business_of_ours(tmp_path):
    picture().save(tmp_path / "a", format="PNG")
    for name in ("draft.json", "notes.md", ".DS_Store", "Thumbs.db", ".hidden.png", "latents.npz"):
        (tmp_path / name).write_bytes(b"\0\1\2\3")
    (tmp_path / "sub.png").mkdir()
    report = look(tmp_path)
    assert [usable.path.name for usable in report.usable] == ["a"]
    assert report.refused == report.warnings == []


def test_exact_duplicates_are_dropped_and_named(tmp_path):
    picture(0).save(tmp_path / "b.png")
    picture(0).save(tmp_path / "a.webp", lossless=True)
    picture(1).save(tmp_path / "c.png")
    report = look(tmp_path)
    assert [usable.path.name for usable in report.usable] == ["a.webp", "c.png"]
    ((name, reason),) = report.refused
    assert name == "b.png" and "the same picture as a.webp" in reason


def test_a_damaged_twin_does_not_push_out_the_good_one(tmp_path):
    picture(0).save(tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "b.png").read_bytes()[:-3000])
    assert [usable.path.name for usable in look(tmp_path).usable] == ["b.png"]


SIDECARS = {
    "plain": (b"rex on the beach", "rex on the beach"),
    "byte order mark": (b"\xef\xbb\xbfrex on the beach", "rex on the beach"),
    "words to fill": (b"{subject} {trigger} in {winter}", "dog rex in {winter}"),
    "lines": (b"\n rex\r\n  on the\tbeach \n", "rex on the beach"),
    "umlaut": ("rex im Gebüsch".encode(), "rex im Gebüsch"),
    "empty": (b"", "a rex dog"),
    "blank": (b"\xef\xbb\xbf \n", "a rex dog"),
}


@pytest.mark.parametrize("case", SIDECARS)
def test_sidecars(tmp_path, case):
    content, expected = SIDECARS[case]
    picture().save(tmp_path / "my.photo.png")
    (tmp_path / "my.photo.txt").write_bytes(content)
    report = look(tmp_path)
    assert captions(report) == [expected]
    assert report.refused == report.warnings == []


@pytest.mark.parametrize(
    ("content", "cure"), [(b"rex " * 2501, "Shorten it"), ("赤い狐".encode("shift-jis"), "Save it as UTF-8")]
)
def test_a_sidecar_that_cannot_be_used_gives_way_to_the_template(tmp_path, content, cure):
    picture().save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(content)
    report = look(tmp_path)
    assert captions(report) == ["a rex dog"]
    (trigger_word_warning,) = report.warnings
    assert "a.txt is not used as a caption" in trigger_word_warning and cure in trigger_word_warning


def test_captions_that_would_be_ignored_are_named(tmp_path):
    picture().save(tmp_path / "a.png")
    (tmp_path / "a.caption").write_text("rex asleep")
    (tmp_path / "a.txt").write_text("rex awake")
    (tmp_path / "B.TXT").write_text("rex")
    report = look(tmp_path)
    first, second = report.warnings
    assert captions(report) == ["rex awake"]
    assert "B.TXT is not used" in first and "a.caption is not used as a caption: a.txt is that of the same" in second


def test_a_sidecar_belongs_to_its_picture_whatever_the_case_of_its_suffix(tmp_path):
    picture(0).save(tmp_path / "a.png")
    picture(1).save(tmp_path / "b.png")
    (tmp_path / "b.TXT").write_text("rex asleep")
    assert captions(look(tmp_path)) == ["a rex dog", "rex asleep"]


def test_a_picture_called_txt_is_a_picture_and_no_caption(tmp_path):
    picture().save(tmp_path / "a.txt", format="PNG")
    report = look(tmp_path)
    assert captions(report) == ["a rex dog"] and report.warnings == []


@pytest.mark.parametrize("text", ["a dog", "trex", "rexes", "re x"])
def test_a_caption_without_the_trigger_word_is_used_with_a_warning(tmp_path, text):
    picture(0).save(tmp_path / "a.png")
    picture(1).save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text(text)
    report = look(tmp_path)
    assert captions(report) == ["a rex dog", text]
    (trigger_word_warning,) = report.warnings
    assert "'rex' is missing from the caption of b.png" in trigger_word_warning


@pytest.mark.parametrize("text", ["REX", "a dog,rex!", "(rex)"])
def test_the_trigger_word_is_found_in_any_case_and_between_signs(tmp_path, text):
    picture().save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(text)
    assert look(tmp_path).warnings == []


def test_a_template_without_the_trigger_word_is_one_warning_for_all(tmp_path):
    for seed in range(8):
        picture(seed).save(tmp_path / f"{seed}.png")
    (trigger_word_warning,) = look(tmp_path, template="a dog").warnings
    assert "0.png, 1.png, 2.png, 3.png, 4.png and 3 more" in trigger_word_warning


words = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1, max_size=12)


@given(trigger=words, subject=words)
def test_filling_is_one_pass_and_keeps_the_words_as_they_are(trigger, subject):
    captioner = Captioner(trigger=trigger, subject=subject, template="")
    filled = captioner.fill("of {trigger} and {subject}")
    assert filled == " ".join(["of", trigger, "and", subject])
    assert captioner.has_trigger(f"see {trigger} there")


def test_two_hundred_pictures_are_enough(tmp_path):
    for seed in range(203):
        picture(seed, 16, 16).save(tmp_path / f"{seed:03}.png")
    report = look(tmp_path, resolution=16)
    assert len(report.usable) == 200
    assert report.refused == []
    (trigger_word_warning,) = report.warnings
    assert "At most 200" in trigger_word_warning and "200.png, 201.png, 202.png" in trigger_word_warning


def test_small_pictures_are_enlarged_with_a_warning_below_half_the_size(tmp_path):
    picture(0, 127, 127).save(tmp_path / "a.png")
    picture(1, 128, 128).save(tmp_path / "b.png")
    (trigger_word_warning,) = look(tmp_path, resolution=256).warnings
    assert "a.png has only 127 × 127 pixels and is enlarged to 256 × 256" in trigger_word_warning


def test_long_pictures_lose_their_ends_with_a_warning(tmp_path):
    picture(0, 600, 100).save(tmp_path / "a.png")
    picture(1, 200, 100).save(tmp_path / "b.png")
    (trigger_word_warning,) = look(tmp_path).warnings
    assert "a.png has 600 × 100 pixels" in trigger_word_warning and "only its middle" in trigger_word_warning


def test_blurred_pictures_are_named_and_used(tmp_path):
    picture(0, 256, 256).save(tmp_path / "sharp.png")
    picture(1, 256, 256).filter(ImageFilter.GaussianBlur(4)).save(tmp_path / "soft.png")
    report = look(tmp_path, resolution=256)
    assert len(report.usable) == 2
    (trigger_word_warning,) = report.warnings
    assert "soft.png looks blurred" in trigger_word_warning


def test_blur_that_training_does_not_see_is_no_blur(tmp_path):
    """A large picture, soft at full size, is sharp at the size it is trained at."""
    picture(0, 64, 64).resize((1024, 1024), Image.Resampling.BICUBIC).save(tmp_path / "large.png")
    assert look(tmp_path, resolution=64).warnings == []


def test_enlarging_is_no_blur(tmp_path):
    faint = picture(0, 64, 64).point(lambda value: 120 + value // 16)
    faint.save(tmp_path / "faint.png")
    faint.resize((512, 512), Image.Resampling.LANCZOS).save(tmp_path / "large.png")
    enlarged, blurred = look(tmp_path, resolution=512).warnings
    assert "faint.png has only 64 × 64 pixels" in enlarged
    assert "large.png looks blurred" in blurred


def test_no_usable_picture_is_an_error_with_every_reason(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("text")
    with pytest.raises(PictureError) as caught:
        look(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message and "a.png is text" in message and "b.png is text" in message


def test_very_many_reasons_are_cut_short(tmp_path):
    for number in range(12):
        (tmp_path / f"{number:02}.png").write_text("text")
    with pytest.raises(PictureError, match=r"09\.png is text[^\n]*\nand 2 more\.$"):
        look(tmp_path)


def test_folders_that_are_none(tmp_path):
    (tmp_path / "file.png").write_bytes(b"")
    (tmp_path / "empty" / "10_rex").mkdir(parents=True)
    with pytest.raises(PictureError, match=r"contains no pictures.*Subfolders are not searched"):
        look(tmp_path / "empty")
    with pytest.raises(PictureError, match=r"file\.png is a file. Give the folder"):
        look(tmp_path / "file.png")
    with pytest.raises(PictureError, match=r"gone can't be opened.*No such file"):
        look(tmp_path / "gone")

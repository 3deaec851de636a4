"""Picture files of every sort, made here byte by byte or by Pillow, and what becomes of them."""

from __future__ import annotations

import os
import re
import struct
import sys
import warnings
import zlib
from base64 import b64decode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFilter, ImageOps
from PIL.ExifTags import Base

from atelier.training.data.images import (
    MAX_BYTES,
    PictureError,
    check_picture,
    decode_picture,
    looks_like_picture,
    open_picture,
    pixel_hash,
    sharpness,
    to_tensor,
)

RED, GREEN, BLUE, WHITE, BLACK, GREY = (
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128),
)


def corners(side: int = 32) -> Image.Image:
    """Four quarters: red and green above, blue and white below."""
    picture = Image.new("RGB", (side, side + 16))
    halves = (side // 2, (side + 16) // 2)
    for number, colour in enumerate((RED, GREEN, BLUE, WHITE)):
        picture.paste(colour, (number % 2 * halves[0], number // 2 * halves[1], side, side + 16))
    return picture


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG written by hand from the specification; ``rows`` begin with their filter byte."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def grey_rows(values: list[int], side: int = 16) -> bytes:
    """Rows of 16-bit grey: the values over and over."""
    return (b"\0" + struct.pack(f">{len(values)}H", *values) * (side // len(values))) * side


def encoded(picture: Image.Image, form: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize(
    ("form", "name"), [("PNG", "a.jpg"), ("JPEG", "a.webp"), ("WEBP", "a.png"), ("PNG", "a"), ("JPEG", "a.txt")]
)
def test_content_decides_what_a_picture_is(put, form, name):
    path = put(name, encoded(noise(40, 24), form))
    info = check_picture(path)
    assert (info.format, info.width, info.height, info.bytes) == (form, 40, 24, path.stat().st_size)
    assert looks_like_picture(path)
    assert open_picture(path).size == (40, 24)


OTHERS = {
    "text": (b"Dear diary, today I saw a fox. \xe2\x80\x94", "text"),
    "one letter": (b"x", "text"),
    "text cut within a letter": (b"x" * 1023 + "é".encode(), "text"),
    "binary": (bytes(range(256)) * 4, "unknown type"),
    "svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"><circle r="9"/></svg>', "an SVG drawing"),
    "web page": (b"<!DOCTYPE html><html><body>Please log in <svg></svg></body></html>", "a web page"),
    "gif": (encoded(Image.new("P", (32, 32)), "GIF"), "a GIF"),
    "bmp": (encoded(Image.new("RGB", (32, 32)), "BMP"), "a BMP"),
    "tiff": (encoded(Image.new("RGB", (32, 32)), "TIFF"), "a TIFF"),
    "jpeg xl": (b"\xff\x0a" + bytes(64), "a JPEG XL"),
    "jpeg xl in a container": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(64), "a JPEG XL"),
    "jpeg 2000": (encoded(Image.new("RGB", (32, 32)), "JPEG2000"), "a JPEG 2000"),
    "raw": (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(64), "a raw photograph"),
    "icon": (encoded(Image.new("RGB", (32, 32)), "ICO"), "an icon"),
    "mp4": (b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(64), "a video"),
    "pdf": (b"%PDF-1.7\n" + bytes(64), "a PDF"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_files_are_named_with_a_cure(put, case):
    content, kind = OTHERS[case]
    path = put("holiday.png", content)
    assert not looks_like_picture(path)
    for reader in (check_picture, open_picture):
        with pytest.raises(PictureError, match=rf"holiday\.png is .*{kind}.*WebP, AVIF or HEIC is needed.*Save it as"):
            reader(path)


# 64 × 48 pixels, red with a blue left half and a white corner; written by libheif.
HEIC = b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9j"
    "AAAAAERAAAEAAQAAAAABoQABAAAAAAAAAK8AAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/Wlw"
    "cnAAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AA"
    "AAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAA"
    "QAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWB"
    "AgMFhAAAALdtZGF0AAAAqygBrwngFaQtir/uXCNwJ07f/xT+eo9AcfjB/tyfuzaWaV3MOYcZsaQiUw8jSLirMbf/3mB0j8955/Um5wS587rR"
    "PybLf/5UirH+R43DZkXBxIFpneH/utThKKockQ9ljrBLZJQWAqA3kt1oDFyx8GhZlz5c94psjg0n8XKfPcjxe7YCrXlO4rEHL5L7e0LcCzrx"
    "o4dG1yTYdRqg5JmOqvmqnfPjOc5/7EAp8A=="
)


def test_heic_and_avif_of_phones_are_read(put):
    avif = encoded(noise(40, 24), "AVIF", quality=90)
    assert check_picture(put("a.avif", avif)).format == "AVIF" and open_picture(put("a.avif", avif)).size == (40, 24)
    pytest.importorskip("pi_heif")
    path = put("IMG_0001.HEIC", HEIC)
    assert looks_like_picture(path) and check_picture(path).format == "HEIF"
    picture = open_picture(path)
    assert picture.size == (64, 48) and near(picture.getpixel((60, 40)), RED)
    assert near(picture.getpixel((2, 2)), WHITE) and near(picture.getpixel((4, 40)), BLUE)


def test_an_avif_on_its_side_is_turned_once(put):
    picture, exif = corners(), Image.Exif()
    exif[Base.Orientation] = 6
    opened = decode_picture(put("a.avif", encoded(picture, "AVIF", exif=exif, quality=100)))
    assert opened.turned and opened.picture.size == (picture.height, picture.width)
    assert near(opened.picture.getpixel((2, 2)), BLUE, 20) and near(opened.picture.getpixel((45, 2)), RED, 20)


@pytest.mark.parametrize("keep", [30, 200, 400, 560])
def test_a_damaged_heic_is_a_sentence(put, keep):
    pytest.importorskip("pi_heif")
    with pytest.raises(PictureError, match=r"cut\.heic"):
        open_picture(put("cut.heic", HEIC[:keep]))


def test_without_its_library_a_heic_is_refused_with_the_cure(put, monkeypatch):
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(PictureError, match=r"a\.heic is a HEIC picture.*pip install pi-heif.*save the picture as JPEG"):
        check_picture(put("a.heic", HEIC))


def test_animated_avif_is_refused(put):
    frames = [noise(32, 32, seed) for seed in range(3)]
    path = put("wave.avif", encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:], duration=50))
    with pytest.raises(PictureError, match=r"wave\.avif is animated"):
        check_picture(path)


def test_an_empty_file_a_missing_file_and_a_folder(put, tmp_path):
    with pytest.raises(PictureError, match=r"a\.png is empty"):
        check_picture(put("a.png", b""))
    with pytest.raises(PictureError, match=r"gone\.png can't be read: No such file"):
        check_picture(tmp_path / "gone.png")
    with pytest.raises(PictureError, match="can't be read: Is a directory"):
        check_picture(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file(put):
    path = put("a.png", encoded(corners(), "PNG"))
    path.chmod(0)
    with pytest.raises(PictureError, match=r"a\.png can't be read: Permission denied"):
        check_picture(path)


# Pillow itself only warns up to 179 megapixels, and its warning must not be what saves us.
@pytest.mark.parametrize(
    ("width", "height"), [(20_000, 20_000), (13_000, 13_000), (6_400, 6_400), (16_385, 100), (100, 65_000)]
)
@pytest.mark.parametrize("warned", ["error", "ignore"])
def test_a_bomb_is_refused_by_its_header(put, width, height, warned):
    path = put("bomb.png", png(width, height, 8, 2, bytes(50)))
    assert path.stat().st_size < 200
    with warnings.catch_warnings():
        warnings.simplefilter(warned, Image.DecompressionBombWarning)
        with pytest.raises(PictureError, match=r"bomb\.png has .* at most 40 megapixels and 16384 pixels per side"):
            open_picture(path)


def test_forty_megapixels_are_not_too_many(put):
    info = check_picture(put("a.png", png(8_000, 5_000, 8, 2, bytes(50))))
    assert (info.width, info.height) == (8_000, 5_000)


def test_a_webp_and_a_jpeg_that_claim_too_much(put):
    jpeg = bytearray(encoded(corners(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 30_000, 30_000)
    with pytest.raises(PictureError, match="at most 40 megapixels"):
        check_picture(put("a.jpg", bytes(jpeg)))
    webp = bytearray(encoded(corners(), "WEBP", lossless=True))
    webp[21:25] = struct.pack("<I", 16_382 | 16_382 << 14)
    with pytest.raises(PictureError):
        check_picture(put("a.webp", bytes(webp)))


def test_a_file_of_too_many_bytes_is_refused_before_it_is_read(put):
    path = put("heavy.png", encoded(corners(), "PNG"))
    os.truncate(path, MAX_BYTES + 1)
    with pytest.raises(PictureError, match=r"heavy\.png has 25 MB, but at most 25 MB"):
        check_picture(path)
    os.truncate(path, MAX_BYTES)
    assert check_picture(path).bytes == MAX_BYTES


def test_a_tiny_picture_is_refused_and_the_smallest_is_not(put):
    with pytest.raises(PictureError, match=r"dot\.png has 15 × 40 pixels, but each side needs at least 16"):
        check_picture(put("dot.png", encoded(noise(15, 40), "PNG")))
    assert check_picture(put("small.png", encoded(noise(16, 16), "PNG"))).width == 16


@pytest.mark.parametrize("form", ["WEBP", "PNG"])
def test_animations_are_refused(put, form):
    frames = [noise(32, 32, seed) for seed in range(3)]
    path = put("wave.png", encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=50))
    with pytest.raises(PictureError, match=r"wave\.png is animated \(3 frames\), but a still picture is needed"):
        check_picture(path)


def test_a_phone_picture_with_a_second_view_is_no_animation(put):
    path = put("phone.jpg", encoded(corners(), "MPO", save_all=True, append_images=[Image.new("RGB", (32, 48))]))
    assert check_picture(path).format == "JPEG"
    assert near(open_picture(path).getpixel((4, 4)), RED)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_cut_off_picture_is_damaged(put, form, share):
    whole = encoded(noise(64, 64), form)
    with pytest.raises(PictureError, match=r"cut\.jpg .*(is incomplete or damaged|header is damaged).*Copy or"):
        open_picture(put("cut.jpg", whole[: int(len(whole) * share)]))


def test_a_cut_off_jpeg_passes_the_header_check_only(put):
    path = put("cut.jpg", encoded(noise(64, 64), "JPEG")[:2000])
    assert check_picture(path).format == "JPEG"
    with pytest.raises(PictureError, match="incomplete or damaged"):
        open_picture(path)


WHOLE = {form: encoded(noise(24, 20), form) for form in ("PNG", "JPEG", "WEBP")}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(sorted(WHOLE)),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    keep=st.integers(1, 2000),
)
def test_damaged_bytes_give_a_picture_or_a_sentence(tmp_path, form, changes, keep):
    content = bytearray(WHOLE[form])
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path / "damaged.png"
    path.write_bytes(content[:keep])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")     # Pillow remarks on some of it; an application does not stop at that
        try:
            picture = open_picture(path)
        except PictureError as error:
            assert "damaged.png" in str(error)
        else:
            assert picture.mode == "RGB"


def near(pixel: Any, colour: tuple[int, int, int], tolerance: int = 6) -> bool:
    return max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) <= tolerance


# Where the four quarters of `corners` go, left to right and top to bottom, from the EXIF specification.
TURNED = {
    1: (RED, GREEN, BLUE, WHITE),
    2: (GREEN, RED, WHITE, BLUE),
    3: (WHITE, BLUE, GREEN, RED),
    4: (BLUE, WHITE, RED, GREEN),
    5: (RED, BLUE, GREEN, WHITE),
    6: (BLUE, RED, WHITE, GREEN),
    7: (WHITE, GREEN, BLUE, RED),
    8: (GREEN, WHITE, RED, BLUE),
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_applied(put, form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = put("a.jpg", encoded(corners(), form, exif=exif, quality=95))
    picture = open_picture(path)
    width, height = picture.size
    assert (width, height) == ((32, 48) if orientation < 5 else (48, 32))
    seen = [picture.getpixel((x, y)) for y in (5, height - 6) for x in (5, width - 6)]
    assert all(near(pixel, colour) for pixel, colour in zip(seen, TURNED[orientation], strict=True)), seen
    with Image.open(path) as other:
        assert pixel_hash(picture) == pixel_hash(ImageOps.exif_transpose(other).convert("RGB"))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"])
@pytest.mark.filterwarnings("ignore::UserWarning")      # Pillow remarks on the notes
def test_broken_exif_does_not_break_the_picture(put, exif):
    assert open_picture(put("a.jpg", encoded(corners(), "JPEG", exif=exif))).size == (32, 48)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_transparency_becomes_white(put, form):
    picture = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 16, 16))
    picture.paste((0, 0, 0, 127), (16, 16, 32, 32))
    opened = open_picture(put("a.png", encoded(picture, form, lossless=True)))
    assert [opened.getpixel(place) for place in ((4, 4), (20, 4), (20, 20))] == [RED, WHITE, GREY]


def test_palette_and_grey_transparency_become_white(put):
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.paste(1, (16, 0, 32, 32))
    for transparency in (0, b"\0\xff"):
        opened = open_picture(put("a.png", encoded(palette, "PNG", transparency=transparency)))
        assert (opened.getpixel((4, 4)), opened.getpixel((20, 4))) == (WHITE, BLUE)
    grey = Image.new("LA", (32, 32), (0, 127))
    assert open_picture(put("b.png", encoded(grey, "PNG"))).getpixel((0, 0)) == GREY
    named = png(16, 16, 8, 2, (b"\0" + bytes((*RED, *GREEN)) * 8) * 16, chunk(b"tRNS", struct.pack(">HHH", *RED)))
    opened = open_picture(put("c.png", named))
    assert (opened.getpixel((0, 0)), opened.getpixel((1, 0))) == (WHITE, GREEN)


def test_sixteen_bits_are_scaled_not_clipped(put):
    opened = open_picture(put("grey.png", png(16, 16, 16, 0, grey_rows([0, 0x4000, 0x8000, 0xFFFF]))))
    assert [opened.getpixel((x, 0)) for x in range(4)] == [BLACK, (64,) * 3, GREY, WHITE]
    with_key = png(16, 16, 16, 0, grey_rows([0x8000, 0xFFFF]), chunk(b"tRNS", b"\x00\x80"))
    assert open_picture(put("key.png", with_key)).getpixel((0, 0)) == GREY
    row = b"\0" + struct.pack(">3H", 0xFFFF, 0x8000, 0) * 16
    assert open_picture(put("colour.png", png(16, 16, 16, 2, row * 16))).getpixel((3, 3)) == (255, 128, 0)


@pytest.mark.parametrize("mode", ["1", "L", "CMYK"])
def test_other_modes_become_rgb(put, mode):
    picture = Image.new("RGB", (32, 32), RED if mode == "CMYK" else WHITE).convert(mode)
    opened = open_picture(put("a.jpg", encoded(picture, "PNG" if mode == "1" else "JPEG", quality=95)))
    assert opened.mode == "RGB"
    assert near(opened.getpixel((9, 9)), RED if mode == "CMYK" else WHITE)


def profile_with_red_and_green_swapped() -> bytes:
    """sRGB in which the tags of two primaries have changed places: pure red means pure green."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"tmpX").replace(b"gXYZ", b"rXYZ").replace(b"tmpX", b"gXYZ")


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_profiles_are_obeyed(put, mode):
    red = Image.new(mode, (32, 32), "red")
    opened = open_picture(put("a.png", encoded(red, "PNG", icc_profile=profile_with_red_and_green_swapped())))
    assert near(opened.getpixel((9, 9)), GREEN, tolerance=2)


@pytest.mark.parametrize("profile", [b"no profile at all", "LAB"])
def test_a_useless_profile_is_ignored(put, profile):
    if profile == "LAB":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    opened = open_picture(put("a.png", encoded(Image.new("RGB", (32, 32), "red"), "PNG", icc_profile=profile)))
    assert opened.getpixel((9, 9)) == RED


def test_pixel_hash_knows_pixels_and_shape_only(put):
    picture = noise(32, 24)
    same = [open_picture(put(name, encoded(picture, form, **options))) for name, form, options in (
        ("a.png", "PNG", {}), ("b.png", "PNG", {"compress_level": 0}), ("c.webp", "WEBP", {"lossless": True}),
    )]  # fmt: skip
    assert len({pixel_hash(opened) for opened in same}) == 1
    changed = picture.copy()
    changed.paste(RED, (31, 23, 32, 24))
    reshaped = Image.frombytes("RGB", (24, 32), picture.tobytes())
    assert len({pixel_hash(other) for other in (picture, changed, reshaped)}) == 3


def test_sharpness_is_the_variance_of_pillows_laplacian():
    grey = Image.fromarray(np.random.default_rng(0).integers(100, 130, (40, 50), dtype=np.uint8))
    kernel = ImageFilter.Kernel((3, 3), (0, 1, 0, 1, -4, 1, 0, 1, 0), scale=1, offset=128)
    filtered = np.asarray(grey.filter(kernel), dtype=np.float64)[1:-1, 1:-1]
    assert sharpness(grey.convert("RGB")) == pytest.approx(filtered.var(ddof=1), rel=1e-5)
    assert sharpness(Image.new("RGB", (40, 40), "red")) == 0


def test_tensor_keeps_every_pixel_in_its_place():
    picture = noise(20, 30)
    picture.putpixel((0, 0), (0, 255, 51))
    tensor = to_tensor(picture)
    assert (tensor.shape, tensor.dtype) == ((3, 30, 20), torch.float32)
    expected = torch.tensor(np.asarray(picture).transpose(2, 0, 1) / 127.5 - 1, dtype=torch.float32)
    torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)
    assert tensor[:, 0, 0].tolist() == pytest.approx([-1, 1, -0.6])


def test_messages_are_one_line(put):
    with pytest.raises(PictureError) as caught:
        check_picture(put("a.png", b"text"))
    assert re.fullmatch(r"[^\n]+\.", str(caught.value))

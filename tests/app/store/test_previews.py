"""Preview pictures of foreign files: what reaches a page, and what reaches a decoder."""

from __future__ import annotations

import io
import struct
import zlib
from base64 import b64encode

import pytest
from PIL import Image

from atelier.app.store import previews
from atelier.app.store.previews import is_showable, preview_png


def address(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def encoded(form: str, size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "orange").save(buffer, form, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, with one row of it."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("called", ["png", "jpeg", "webp"])
def test_content_decides_whatever_it_is_called(form: str, called: str) -> None:
    with Image.open(io.BytesIO(preview_png(address(encoded(form), called)))) as image:
        assert (image.format, image.size) == ("PNG", (64, 48))
        assert max(abs(a - b) for a, b in zip(image.convert("RGB").getpixel((9, 9)), (255, 165, 0), strict=True)) < 4


@pytest.mark.parametrize("form", ["TIFF", "ICO", "EPS", "GIF", "BMP", "PPM", "PCX", "TGA", "AVIF", "JPEG2000", "DDS"])
def test_other_formats_never_reach_their_parser(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(form)
    plugin = Image.OPEN[form]
    monkeypatch.setitem(Image.OPEN, form, (lambda *_: pytest.fail("was parsed"), plugin[1]))
    for called in ("png", "jpeg", "webp"):
        assert preview_png(address(content, called)) == b""


@pytest.mark.parametrize("size", [(9000, 9000), (4_000_001, 1), (2**31 - 1, 2**31 - 1), (20_000, 20_000)])
def test_a_small_file_of_many_pixels_is_not_decoded(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("was decoded"))
    assert preview_png(address(png_header(*size))) == b"" and not is_showable(address(png_header(*size)))


@pytest.mark.parametrize("content", [b"", b"x", png_header(10, 10), encoded("PNG")[:60], encoded("JPEG")[:300]])
def test_a_damaged_preview_is_none(content: bytes) -> None:
    assert preview_png(address(content)) == b""


@pytest.mark.parametrize("text", ["", "javascript:alert(1)", "https://evil.example/a.png", "data:text/html;base64,AAAA",
                                  "data:image/svg+xml;base64,AAAA", address(b"x") + '" onerror="x',
                                  "data:image/png;base64," + "A" * 400_001])   # fmt: skip
def test_what_is_no_plain_picture_is_not_shown(text: str) -> None:
    assert not is_showable(text) and preview_png(text) == b""


def test_a_preview_of_any_ordinary_size_is_shown() -> None:
    for size in ((256, 256), (2000, 2000)):
        assert is_showable(address(encoded("JPEG", size), "jpeg"))
    assert previews.MAX_PIXELS == 2000 * 2000


def test_a_preview_says_nothing_but_its_pixels() -> None:
    content = encoded("JPEG", comment=b"private", icc_profile=b"profile")
    out = preview_png(address(content, "jpeg"))
    assert out and b"private" not in out and b"iCCP" not in out

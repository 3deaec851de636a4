"""Pictures of too many parts are refused before a decoder walks through them."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from atelier.app.store.picture_metadata import read_metadata
from atelier.training.data.images import PictureError, open_picture
from atelier.training.data.picture_parts import MAX_PARTS, has_too_many_parts


def picture(form: str, **options: object) -> bytes:
    buffer = BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_parts(form: str, part: bytes, count: int) -> bytes:
    """A picture with so many parts behind its first one (PNG) or its start (JPEG)."""
    whole, at = picture(form), 33 if form == "PNG" else 2
    return whole[:at] + part * count + whole[at:]


PARTS = [("PNG", chunk(b"aaAa")), ("PNG", chunk(b"tEXt", b"a\0")), ("PNG", chunk(b"IDAT")), ("JPEG", b"\xff\xfe\0\2"),
         ("JPEG", b"\xff"), ("JPEG", b"\xff\xd0")]   # fmt: skip


@pytest.mark.parametrize(("form", "part"), PARTS)
def test_millions_of_empty_parts_are_not_read(form: str, part: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(with_parts(form, part, MAX_PARTS + 1))
    with pytest.raises(PictureError, match=r"a\.png is made of more than 50,000 parts"):
        open_picture(path)
    assert read_metadata(path) is None


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_picture_has_few_parts_and_stays_at_its_start(form: str) -> None:
    for whole in (picture(form), with_parts("PNG", chunk(b"aaAa"), 1000), b"", b"\xff\xd8", picture(form)[:50]):
        file = BytesIO(whole)
        assert not has_too_many_parts(file) and file.tell() == 0


def test_the_parts_of_a_jpeg_are_counted_up_to_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow writes JFIF, two tables of numbers, the frame and four tables of codes before the scan."""
    for most, expected in ((7, True), (9, False)):
        monkeypatch.setattr("atelier.training.data.picture_parts.MAX_PARTS", most)
        assert has_too_many_parts(BytesIO(picture("JPEG"))) is expected


def test_a_long_way_to_the_next_part_ends_the_file() -> None:
    assert not has_too_many_parts(BytesIO(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**32 - 1) + b"tEXt"))

"""Caption files as people have them: encodings, names, lists."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atelier.training.data.captions import match_captions, read_caption, read_caption_list

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("text", ["a rex dog", "rex im Gebüsch, œuvre", "rex, 狐 and a fox in deep snow"])
def test_unicode_is_read_in_every_form(tmp_path: Path, encoding: str, text: str) -> None:
    assert read_caption(written(tmp_path / "a.txt", text.encode(encoding))) == (text, "")


@pytest.mark.parametrize("text", ["rex, il est né à Orléans", "Müßiggang", "it’s rex – “nice” …", "¿rex?", "créée"])
def test_western_text_of_windows_is_read_and_said(tmp_path: Path, text: str) -> None:
    read, warning = read_caption(written(tmp_path / "a.txt", text.encode("cp1252")))
    assert read == text
    assert "a.txt is not UTF-8, so it is read as Windows-1252 (Latin-1)" in warning and "save it as UTF-8" in warning


@pytest.mark.parametrize(("text", "encoding"), [
    ("赤い狐", "shift-jis"), ("rex 狐の絵", "shift-jis"), ("rex 狐", "gbk"), ("雪地里的狐狸", "gbk"),
    ("rex 雪", "big5"), ("rex 여우", "euc-kr"), ("рыжая лиса", "cp1251"), ("рыжая", "koi8-r"), ("赤い狐", "euc-jp")])
def test_other_encodings_are_never_read_as_letters_they_are_not(tmp_path: Path, text: str, encoding: str) -> None:
    with pytest.raises(ValueError, match=r"a\.txt is not used as a caption: .*Save it as UTF-8"):
        read_caption(written(tmp_path / "a.txt", text.encode(encoding)))


@pytest.mark.parametrize(("content", "text"), [
    (b"\xef\xbb\xbf", ""), (b"", ""), (b"a rex\r\n dog\r\n", "a rex dog"), (b"rex\0", "rex"),
    ("re\u00adx\u200b dog\u00a0here\ufeff".encode(), "rex dog here"), ("cafe\u0301 rex".encode(), "café rex"),
    ("family 👨‍👩‍👧 rex".encode(), "family 👨‍👩‍👧 rex")])
def test_signs_that_nobody_sees_are_left_out(tmp_path: Path, content: bytes, text: str) -> None:
    assert read_caption(written(tmp_path / "a.txt", content)) == (text, "")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_any_bytes_give_one_line_or_a_sentence(tmp_path: Path, content: bytes) -> None:
    try:
        text, _ = read_caption(written(tmp_path / "a.txt", content))
    except ValueError as error:
        assert "a.txt is not used" in str(error)
    else:
        assert text == " ".join(text.split()) and not any(unicodedata.category(c) == "Cc" for c in text)


def matched(folder: Path, pictures: str, files: str) -> dict[str, str]:
    found = match_captions([folder / name for name in pictures.split()], [folder / name for name in files.split()])
    return {picture.name: file.name for picture, file in found.files.items()}


def test_a_caption_is_found_by_name_in_every_spelling(tmp_path: Path) -> None:
    nfd = unicodedata.normalize("NFD", "né.txt")
    assert matched(tmp_path, "né.png b.PNG c.d.png e.png F.png", f"{nfd} b.TXT c.d.caption e.png.txt f.cap") == {
        "né.png": nfd, "b.PNG": "b.TXT", "c.d.png": "c.d.caption", "e.png": "e.png.txt", "F.png": "f.cap"}


def test_a_caption_never_goes_to_another_picture_than_its_own(tmp_path: Path) -> None:
    assert matched(tmp_path, "Case.png case.png", "case.txt") == {"case.png": "case.txt"}
    assert matched(tmp_path, "dot.v1.png dot.png", "dot.txt") == {"dot.png": "dot.txt"}
    assert matched(tmp_path, "a.png a.png.jpg", "a.png.txt") == {"a.png.jpg": "a.png.txt"}
    one, two = tmp_path / "one" / "x.png", tmp_path / "two" / "x.png"
    assert match_captions([one, two], [one.with_suffix(".txt")]).files == {one: one.with_suffix(".txt")}
    loose = tmp_path / "x.txt"   # as a browser uploads it: every file in a folder of its own
    assert match_captions([one], [loose]).files == {one: loose}


def test_what_is_not_used_and_what_is_used_twice_is_said(tmp_path: Path) -> None:
    pictures = [tmp_path / name for name in ("a.png", "b.png", "b.jpg")]
    files = [tmp_path / name for name in ("a.caption", "a.txt", "b.txt", "lonely.cap")]
    first, second, third = match_captions(pictures, files).warnings
    assert "a.caption is not used as a caption: a.txt is that of the same picture" in first
    assert "lonely.cap is not used as a caption: no picture in the folder has the same name" in second
    assert "b.txt is the caption of b.png and of b.jpg" in third


def test_lists_of_hugging_face_and_of_kohya(tmp_path: Path) -> None:
    lines = [{"file_name": "a.png", "text": "rex\u2028asleep"}, {"file_name": "train/b.png", "caption": "rex"},
             {"file_name": "c.png", "label": 3}, {"text": "of nothing"}]
    listed = tmp_path / "metadata.jsonl"
    listed.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n", encoding="utf-8")
    assert read_caption_list(listed) == {"a.png": "rex asleep", "train/b.png": "rex"}
    kohya = tmp_path / "meta_lat.json"
    kohya.write_text(json.dumps({"/data/img/a": {"tags": "rex, grass", "train_resolution": [512, 512]},
                                 "b.png": {"caption": "rex", "tags": "1dog"}, "c": {}}))
    assert read_caption_list(kohya) == {"/data/img/a": "rex, grass", "b.png": "rex"}


def test_a_table_of_hugging_face(tmp_path: Path) -> None:
    table = tmp_path / "metadata.csv"
    table.write_bytes(b'\xef\xbb\xbffile_name,text,label\r\na.png,"rex, asleep",3\r\nimg/b.png,rex\r\n,no picture\r\n')
    assert read_caption_list(table) == {"a.png": "rex, asleep", "img/b.png": "rex"}


@pytest.mark.parametrize("content", [b"{", b"[1]", b'"a"', b"\xff\xfe\x00", b"3", b"[" * 100_000, b'{"a": 1}'])
@pytest.mark.parametrize("name", ["metadata.jsonl", "meta_cap.json", "metadata.csv"])
def test_a_list_that_is_none_is_a_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    try:
        assert read_caption_list(written(tmp_path / name, content)) == {}
    except ValueError as error:
        assert f"{name} is not used" in str(error)

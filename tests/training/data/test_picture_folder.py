"""Folders of other trainers: kohya's, Hugging Face's, and what lies beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from atelier.training.data.dataset import scan
from atelier.training.data.picture_folder import find_files, read_files


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return path


def found(folder: Path, trigger: str = "rex") -> tuple[dict[str, tuple[str, float]], list[str]]:
    files, warnings = find_files(folder)
    read = read_files(files, trigger)
    return {p.path.name: (p.text, p.weight) for p in read.pictures}, [*warnings, *read.warnings]


def test_kohyas_folders_give_weights_and_their_words_are_captions(tmp_path: Path) -> None:
    for seed, name in enumerate(("20_rex dog/a.png", "20_rex dog/b.png", "5_another/c.png", "0_off/d.png")):
        picture(tmp_path / name, seed)
    (tmp_path / "20_rex dog" / "b.caption").write_text("rex asleep")
    pictures, warnings = found(tmp_path)
    assert pictures == {"a.png": ("rex dog", 4), "b.png": ("rex asleep", 4), "c.png": ("", 1)}
    assert warnings == ["0_off has 0 repeats, so its pictures are not used."]


def test_kohyas_root_with_img_and_reg(tmp_path: Path) -> None:
    picture(tmp_path / "img" / "8_rex" / "a.png")
    picture(tmp_path / "reg" / "1_dog" / "r.png", 1)
    (tmp_path / "log").mkdir()
    pictures, warnings = found(tmp_path)
    assert pictures == {"a.png": ("rex", 1)}
    assert warnings == ["The pictures in reg are not used: for prior preservation, the base model draws its own."]
    [usable] = scan(tmp_path, trigger="rex", subject="dog", template="x", resolution=64, multiple=8).usable
    assert usable.caption == "rex"


def test_pictures_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    for seed, folder in enumerate(("2_rex", "1_rex in snow")):
        picture(tmp_path / folder / "1.png", seed)
    report = scan(tmp_path, trigger="rex", subject="dog", template="", resolution=64, multiple=8)
    assert [(usable.caption, usable.weight) for usable in report.usable] == [("rex in snow", 1), ("rex", 2)]
    assert sorted(report.facts) == ["1_rex in snow/1.png", "2_rex/1.png"]


def test_a_list_of_hugging_face_names_files_in_folders(tmp_path: Path) -> None:
    for seed, name in enumerate(("train/a.png", "b.png", "c.png")):
        picture(tmp_path / name, seed)
    picture(tmp_path.parent / "outside.png", 9)
    lines = [("train/a.png", "rex one"), ("b.png", "rex two"), ("../outside.png", "rex"), ("gone.png", "rex")]
    (tmp_path / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in lines))
    (tmp_path / "b.txt").write_text("rex beside")
    pictures, warnings = found(tmp_path)
    assert pictures == {"a.png": ("rex one", 1), "b.png": ("rex beside", 1), "c.png": ("", 1)}
    assert warnings == ["metadata.jsonl has captions of pictures that are not here: ../outside.png, gone.png."]


def test_kohyas_list_names_pictures_by_their_old_path_or_stem(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", 1)
    (tmp_path / "meta_cap.json").write_text(
        json.dumps({"C:\\data\\a.png": {"caption": "rex one"}, "/home/me/b": {"caption": "rex two"}}))
    assert found(tmp_path)[0] == {"a.png": ("rex one", 1), "b.png": ("rex two", 1)}


def test_folders_that_are_not_searched_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "more" / "b.png", 1)
    (tmp_path / "empty").mkdir()
    pictures, [warning] = found(tmp_path)
    assert list(pictures) == ["a.png"] and "The picture in more is not used" in warning and "10_rex" in warning


def test_a_folder_inside_one_of_kohyas_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "3_rex" / "a.png")
    picture(tmp_path / "3_rex" / "4_more" / "b.png", 1)
    pictures, [warning] = found(tmp_path)
    assert list(pictures) == ["a.png"] and "The picture in 4_more is not used" in warning

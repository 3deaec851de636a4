"""The one check of pictures: each kind of verdict, and that a file is decoded once."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from atelier.training.data import images
from atelier.training.data.images import PictureError
from atelier.training.data.picture_check import PictureFacts, examine, near_twin, photograph_warning, verdicts


def scene(seed: int = 0, side: int = 256) -> Image.Image:
    """Shapes on a ground: smooth enough to survive JPEG, and another scene for every seed."""
    random = np.random.default_rng(seed)
    picture = Image.new("RGB", (side, side), tuple(random.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(picture)
    for _ in range(30):
        x, y = random.integers(0, side, 2).tolist()
        size = int(random.integers(side // 16, side // 4))
        draw.ellipse((x, y, x + size, y + size), fill=tuple(random.integers(0, 256, 3).tolist()))
    noise = Image.fromarray(random.integers(0, 64, (side, side, 3), dtype=np.uint8))
    return Image.blend(picture, noise, 0.3)


def checked(path: Path, known: dict[str, PictureFacts] | None = None, resolution: int = 64) -> dict[str, str]:
    known = known or {}
    _, facts = examine(path, known)
    found = verdicts(path.name, facts, near_twin(facts, known), resolution, 8)
    return {verdict.kind: verdict.sentence for verdict in found}


def saved(path: Path, picture: Image.Image, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def test_a_good_picture_has_no_verdict(tmp_path: Path) -> None:
    assert checked(saved(tmp_path / "a.png", scene())) == {}


@pytest.mark.parametrize(("picture", "resolution", "kind"), [
    (scene(side=100), 512, "small"), (scene().crop((0, 0, 256, 40)), 64, "odd aspect"),
    (scene(side=512).filter(ImageFilter.GaussianBlur(8)), 512, "blurred"), (scene().convert("P"), 64, "converted"),
    (scene().convert("CMYK"), 64, "converted"), (scene().convert("L"), 64, "converted")])
def test_each_verdict_is_given_alone(tmp_path: Path, picture: Image.Image, resolution: int, kind: str) -> None:
    path = tmp_path / ("a.jpg" if picture.mode == "CMYK" else "a.png")
    found = checked(saved(path, picture), resolution=resolution)
    assert list(found) == [kind] and path.name in found[kind]


def test_a_picture_on_its_side_and_one_that_is_clear(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    assert "turned upright" in checked(saved(tmp_path / "a.jpg", scene(), exif=exif))["turned"]
    clear = scene().convert("RGBA")
    opaque = checked(saved(tmp_path / "opaque.png", clear))
    clear.putpixel((0, 0), (0, 0, 0, 0))
    assert opaque == {} and "on white" in checked(saved(tmp_path / "clear.png", clear))["converted"]


TWINS = {
    "JPEG": lambda picture: reread(picture, "JPEG", quality=40), "half": lambda picture: picture.resize((128, 128)),
    "contrast": lambda picture: ImageEnhance.Contrast(picture).enhance(0.85),
    "one pixel": lambda picture: changed(picture),
}   # fmt: skip


def reread(picture: Image.Image, form: str, **options: Any) -> Image.Image:
    buffer = BytesIO()
    picture.save(buffer, form, **options)
    return Image.open(buffer).convert("RGB")


def changed(picture: Image.Image) -> Image.Image:
    copy = picture.copy()
    copy.putpixel((5, 5), (1, 2, 3))
    return copy


@pytest.mark.parametrize("kind", TWINS)
def test_near_twins_are_named_and_used(tmp_path: Path, kind: str) -> None:
    for seed in range(5):
        _, facts = examine(saved(tmp_path / "first.png", scene(seed)), {})
        found = checked(saved(tmp_path / "again.png", TWINS[kind](scene(seed))), {"first.png": facts})
        assert "again.png looks nearly the same as first.png" in found["near-twin"]


def test_other_pictures_are_no_twins(tmp_path: Path) -> None:
    known: dict[str, PictureFacts] = {}
    flat = [Image.new("RGB", (64, 64), colour) for colour in ("white", "#fefefe", "red")]
    for number, picture in enumerate([*map(scene, range(12)), *flat, scene().transpose(Image.Transpose.ROTATE_90)]):
        path = saved(tmp_path / f"{number}.png", picture)
        _, facts = examine(path, known)
        assert near_twin(facts, known) == ""
        known[path.name] = facts


def test_the_same_picture_in_another_file_is_refused(tmp_path: Path) -> None:
    _, facts = examine(saved(tmp_path / "a.png", scene()), {})
    with pytest.raises(PictureError, match=r"b\.webp is the same picture as a\.png"):
        examine(saved(tmp_path / "b.webp", scene(), lossless=True), {"a.png": facts})


def test_facts_can_be_kept_as_plain_values(tmp_path: Path) -> None:
    _, facts = examine(saved(tmp_path / "a.png", scene()), {})
    values = asdict(facts)
    assert PictureFacts(**{**values, "sharpness": tuple(values["sharpness"])}) == facts
    assert len(str(values)) < 2000


def test_photographs_are_told_from_drawings(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    noisy = [Image.fromarray(random.integers(0, 256, (80, 80, 3), dtype=np.uint8)) for _ in range(3)]
    flat = [Image.new("RGB", (80, 80), "white") for _ in range(3)]
    for picture, number in zip(flat, range(3), strict=True):
        ImageDraw.Draw(picture).ellipse((20, 20, 60, 40 + number), fill="orange")
    photographs, drawings = ([examine(saved(tmp_path / "a.png", picture), {})[1] for picture in pictures]
                             for pictures in (noisy, flat))
    assert "look like photographs" in photograph_warning([*photographs, drawings[0]], True)
    assert photograph_warning([*drawings, photographs[0]], True) == photograph_warning(photographs, False) == ""
    assert photograph_warning([], True) == ""


PHOTOS, EXAMPLES = (Path(__file__).parents[n] / place for n, place in ((4, "shared/photos"), (3, "assets/examples")))
PHOTOGRAPHED = {"cat", "coffee", "astronaut"}   # of the examples


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photographs are not here")
def test_photographs_and_twins_of_real_sets() -> None:
    wrong, twins, pairs = [], [], 0
    for folder in sorted([*filter(Path.is_dir, PHOTOS.iterdir()), *filter(Path.is_dir, EXAMPLES.iterdir())]):
        known: dict[str, PictureFacts] = {}
        for path in sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png")):
            _, facts = examine(path, known)
            twins += [f"{folder.name}/{path.name}"] if near_twin(facts, known) else []
            pairs += len(known)
            known[path.name] = facts
        real = folder.parent == PHOTOS or folder.name in PHOTOGRAPHED
        if bool(photograph_warning(list(known.values()), True)) != real:
            wrong.append(folder.name)
    print(f"{pairs} pairs, near-twins {twins}; sets taken for the other kind: {wrong}")
    assert wrong == ["red_cartoon", "vase"] and twins == []   # the first is a drawing


def test_a_file_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atelier.training.data.dataset import scan

    decoded: Counter[str] = Counter()
    decode = images._plain_rgb
    monkeypatch.setattr(images, "_plain_rgb", lambda picture: (decoded.update(["once"]), decode(picture))[1])
    for seed in range(4):
        saved(tmp_path / f"{seed}.png", scene(seed))
    report = scan(tmp_path, trigger="", subject="", template="x", resolution=64, multiple=8)
    assert decoded["once"] == 4 and all(usable.cropped for usable in report.usable)

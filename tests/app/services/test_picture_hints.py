"""What the Create page says about pictures and captions, and that a dropped picture is decoded once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from atelier.app.services.create.picture_hints import picture_hints, picture_tiles
from atelier.app.store.datasets import import_pictures
from atelier.app.store.drafts.create_draft import (
    Draft,
    add_pictures,
    checked_files,
    edit_draft,
    load_draft,
    picture_files,
    remove_pictures,
    set_weight,
)
from atelier.app.store.home import Home
from atelier.app.text import create as words
from atelier.training.config.train_config import picture_weights, weights_text
from atelier.training.data import images

LONG = "a fox on a red table beside a green cup in front of a blue wall with a small yellow lamp and a white cat, rex"


def noise(seed: int = 0, side: int = 96) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def dropped(home: Home, folder: Path, **files: Image.Image | str) -> Draft:
    """Drop files, named with two underscores for the dot."""
    paths = []
    for name, content in files.items():
        paths.append(folder / name.replace("__", "."))
        if isinstance(content, str):
            paths[-1].write_text(content)
        else:
            content.save(paths[-1])
    return [*add_pictures(home, paths)][-1]


def test_each_picture_has_its_chips_and_all_have_a_sentence(home: Home, tmp_path: Path) -> None:
    soft = noise(1, 512).filter(ImageFilter.GaussianBlur(20))
    draft = dropped(home, tmp_path, a__png=noise(), b__png=soft, c__png=noise(2, 24), d__png=noise(3).convert("L"))
    draft = edit_draft(home, name="rex")
    hints = picture_hints(draft)
    a, b, c, d = (hints.chips[picture.id] for picture in draft.usable)
    assert (a, b, c, d) == ([], [words.VERDICTS["blurred"]], [words.VERDICTS["small"]], [words.VERDICTS["converted"]])
    assert any("look like photographs" in sentence for sentence in hints.sentences)
    assert set(hints.tokens.values()) == {"5 of 22 tokens"} or all(" of 22 tokens" in t for t in hints.tokens.values())


def test_a_near_twin_is_one_only_while_the_other_is_there(home: Home, tmp_path: Path) -> None:
    nearly = noise()
    nearly.putpixel((0, 0), (1, 1, 1))
    draft = dropped(home, tmp_path, a__png=noise(), b__png=nearly)
    assert picture_hints(draft).chips[draft.usable[1].id] == [words.VERDICTS["near-twin"]]
    draft = remove_pictures(home, [draft.usable[0].id])
    assert picture_hints(draft).chips[draft.usable[0].id] == []


def test_a_trigger_word_that_is_not_read_is_said_with_cures_that_cure(home: Home, tmp_path: Path) -> None:
    dropped(home, tmp_path, a__png=noise(), a__caption=LONG, b__png=noise(1), b__txt="a fox")
    draft = edit_draft(home, name="rex")
    hints = picture_hints(draft)
    assert [hints.chips[picture.id] for picture in draft.usable] == [
        ["Trigger word is cut off"], ["No trigger word in the caption"]]
    assert hints.trigger_first and hints.chunks == 2 and len(hints.sentences) == 4
    cured = picture_hints(edit_draft(home, changes={"trigger_first": True, "caption_chunks": 2}))
    assert not cured.trigger_first and not cured.chunks and len(cured.sentences) == 1   # the photographs
    assert set(cured.captions.values()) == {LONG, "rex, a fox"}
    other = picture_hints(edit_draft(home, changes={"trigger": "fox"}))
    assert not other.trigger_first and any("rest of 1 caption" in sentence for sentence in other.sentences)


def test_captions_of_a_list_come_to_the_pictures_it_names(home: Home, tmp_path: Path) -> None:
    lines = [{"file_name": "img/a.png", "text": "rex one"}, {"file_name": "b.png", "text": "rex two"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    dropped(home, tmp_path, a__png=noise(), b__png=noise(1), b__txt="own")
    draft = [*add_pictures(home, [tmp_path / "metadata.jsonl"])][-1]
    assert [picture.caption for picture in draft.usable] == ["rex one", "own"]


def test_a_dropped_picture_is_decoded_once_until_it_is_trained_on(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: Counter[str] = Counter()
    decode = images._plain_rgb
    monkeypatch.setattr(images, "_plain_rgb", lambda picture: (decoded.update(["once"]), decode(picture))[1])
    draft = dropped(home, tmp_path, a__png=noise(), b__jpg=noise(1), c__webp=noise(2), c__txt="rex")
    picture_tiles(load_draft(home), picture_hints(draft))
    draft = set_weight(home, draft.usable[1].id, 4)
    imported = import_pictures(home, "rex", picture_files(home, draft), checked=checked_files(home, draft),
                               weights={picture.file: picture.weight for picture in draft.usable})   # fmt: skip
    assert decoded["once"] == 3 and len(imported.usable) == 3 and imported.refused == imported.warnings == []
    assert picture_weights(weights_text(imported.weights)) == {imported.usable[1].name: 4}
    assert imported.usable[2].with_suffix(".txt").read_text() == "rex"


def test_two_tabs_lose_nothing(home: Home, tmp_path: Path) -> None:
    one = add_pictures(home, [tmp_path / f"a{i}.png" for i in range(3)])
    two = add_pictures(home, [tmp_path / f"b{i}.png" for i in range(3)])
    for seed in range(6):
        noise(seed).save(tmp_path / f"{'ab'[seed % 2]}{seed // 2}.png")
    for _ in range(3):
        assert next(one) and next(two)
    assert len(load_draft(home).usable) == 6

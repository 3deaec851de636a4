"""What was deleted is listed and comes back where it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from atelier.app.cli.main import main
from atelier.app.services.trash import list_trash, restore
from atelier.app.store.gallery import picture_id, trash_picture
from atelier.app.store.home import HomeError, open_home
from atelier.app.store.trash import move_to_trash


def test_every_kind_of_file_is_listed_and_put_back(own_home: Path) -> None:
    home = open_home(own_home)
    files = [home.adapters / "rex.safetensors", home.mixes / "two.json", home.textual_inversions / "w.safetensors"]
    for file in files:
        file.write_text(file.name)
        move_to_trash(home, file)
    picture = home.gallery / f"{picture_id()}.png"
    Image.new("RGB", (16, 16)).save(picture)
    trash_picture(home, picture.stem)
    found = list_trash(home)
    assert [file.name for file in found] == [picture.stem, "w", "two", "rex"], "deleted last first"
    assert [restore(home, file.id) for file in found] == [picture, *reversed(files)]
    assert all(file.read_text() == file.name for file in files) and not list_trash(home)


def test_what_is_not_there_or_has_a_namesake_is_said(own_home: Path) -> None:
    home = open_home(own_home)
    for kind in (home.adapters / "rex.safetensors", home.mixes / "two.json"):
        for _ in range(2):
            kind.write_text("x")
            move_to_trash(home, kind)
        kind.write_text("new")
        with pytest.raises(HomeError, match=r"two|rex"):
            restore(home, kind.stem)
        assert kind.read_text() == "new"
    for id in ("../../secret", "adapters/../x", "nobody"):
        with pytest.raises(HomeError, match="is not in the trash"):
            restore(home, id)


def test_the_command_lists_and_restores(own_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = open_home(own_home)
    assert main(["restore"]) == 0 and "empty" in capsys.readouterr().out
    (home.adapters / "rex.safetensors").write_text("x")
    move_to_trash(home, home.adapters / "rex.safetensors")
    assert main(["restore"]) == 0 and "rex" in capsys.readouterr().out
    assert main(["restore", "rex"]) == 0 and (home.adapters / "rex.safetensors").is_file()
    assert main(["restore", "rex"]) == 1 and "is not in the trash" in capsys.readouterr().err

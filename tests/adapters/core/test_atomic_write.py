"""Whole files and folders: the old one or the new one, whatever goes wrong in between."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from atelier.adapters.core.atomic_write import atomic_folder, atomic_write


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is flushed and renamed, in order: ``fsync <name>`` and ``rename <to>``."""
    made: list[str] = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: made.append(f"fsync {_name(file)}") or fsync(file))
    monkeypatch.setattr(Path, "rename", lambda path, to: made.append(f"rename {to.name}") or rename(path, to))
    monkeypatch.setattr(Path, "replace", lambda path, to: made.append(f"rename {to.name}") or replace(path, to))
    return made


def _name(file: int) -> str:
    return Path(f"/proc/self/fd/{file}").readlink().name


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, calls: list[str]):
    atomic_write(tmp_path / "a.txt", b"new")
    content, rename, folder = calls
    assert content.startswith("fsync .a.txt.") and (rename, folder) == ("rename a.txt", f"fsync {tmp_path.name}")
    assert (tmp_path / "a.txt").read_bytes() == b"new"


def full_disk(_file: int) -> None:
    raise OSError(errno.ENOSPC, "no space left on device")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.txt").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        atomic_write(tmp_path / "a.txt", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.txt": b"old"}


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path):
    contents = [bytes([number]) * 2_000_000 for number in range(4)]
    threads = [threading.Thread(target=atomic_write, args=(tmp_path / "a", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_bytes() in contents
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path: Path, calls: list[str]):
    with atomic_folder(tmp_path / "base") as folder:
        (folder / "unet").mkdir()
        (folder / "unet" / "weights").write_bytes(b"1")
        assert not (tmp_path / "base").exists()
    assert sorted(calls[:3]) == ["fsync .base.partial", "fsync unet", "fsync weights"]
    assert calls[3:] == ["rename base", f"fsync {tmp_path.name}"]
    assert (tmp_path / "base" / "unet" / "weights").read_bytes() == b"1"


@pytest.mark.parametrize("replace", [False, True])
def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path: Path, replace: bool):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "old").touch()
    with pytest.raises(KeyError), atomic_folder(tmp_path / "base", replace=replace) as folder:
        (folder / "new").touch()
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["base", "old"]


def test_a_folder_is_replaced_only_where_that_is_wanted(tmp_path: Path):
    (tmp_path / "base").mkdir()
    for name, replace in (("a", False), ("b", True)):   # the first finds an empty folder
        with atomic_folder(tmp_path / "base", replace=replace) as folder:
            (folder / name).touch()
        assert [path.name for path in (tmp_path / "base").iterdir()] == [name]
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "base"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["base", "b"]


def test_what_a_killed_process_left_is_no_part_of_a_folder(tmp_path: Path):
    (tmp_path / ".base.partial").mkdir()
    (tmp_path / ".base.partial" / "half").touch()
    with atomic_folder(tmp_path / "base") as folder:
        (folder / "whole").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["base", "whole"]

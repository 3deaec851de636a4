"""What was read from the files of a folder: once each, by every process, and again when a file is another one."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import pytest

from atelier.app.store import folder_index
from atelier.app.store.folder_index import FileReader, FileState, FolderIndex

OLD = 1_700_000_000


class Texts:
    """An index of the texts of files, which counts what it reads."""

    def __init__(self, folder: Path, version: int = 1) -> None:
        self.read: list[str] = []
        self.index = FolderIndex(folder, folder.parent / "texts.sqlite", FileReader(
            version, lambda name: name.endswith(".txt"), self._read, json.dumps,
            lambda file, text: json.loads(text)))   # fmt: skip

    def _read(self, file: FileState) -> str:
        self.read.append(file.path.name)
        return file.path.read_text()

    def values(self) -> list[str]:
        self.index.update()
        return self.index.values()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text(name)
    (folder / "other.md").write_text("not asked for")
    return folder


def settle(folder: Path) -> None:
    """Let the folder look as if nothing was added for long."""
    os.utime(folder, (OLD, OLD))


def test_files_are_read_once_by_all_processes(folder: Path) -> None:
    first = Texts(folder)
    assert first.values() == first.values() == ["a", "b", "c"] and first.read == ["a.txt", "b.txt", "c.txt"]
    assert (Texts(folder).values(), Texts(folder).index.value("b.txt")) == (["a", "b", "c"], "b")
    second = Texts(folder)
    assert second.values() == ["a", "b", "c"] and second.index.value("gone.txt") is None and second.read == []


def test_files_are_read_a_few_at_a_time_where_somebody_waits(folder: Path) -> None:
    texts = Texts(folder)
    assert texts.index.read_some(0) == (0, 3) and texts.read == []
    assert texts.index.read_some(2) == (2, 3) and texts.read == ["a.txt", "b.txt"]
    assert Texts(folder).index.read_some(0) == (2, 3), "they are stored at once"
    assert texts.index.read_some(2) == (3, 3) and texts.values() == ["a", "b", "c"]
    (folder / "b.txt").unlink()
    assert texts.index.read_some(2) == (2, 2) and texts.read == ["a.txt", "b.txt", "c.txt"]


def test_a_file_that_was_added_replaced_or_deleted_is_seen_at_the_next_look(folder: Path) -> None:
    texts = Texts(folder)
    before = texts.index.update()
    assert texts.index.update() == before
    (folder / "d.txt").write_text("d")
    (folder / "new").write_text("B")
    os.replace(folder / "new", folder / "b.txt")
    (folder / "a.txt").unlink()
    assert texts.index.update() != before and texts.values() == ["B", "c", "d"]
    assert Texts(folder).values() == ["B", "c", "d"]


def test_a_file_written_over_in_place_is_seen_when_it_is_asked_for_and_else_in_turn(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_index, "_CHECKED", 1)
    settle(folder)
    texts = Texts(folder)
    texts.values()
    for name in "abc":
        (folder / f"{name}.txt").write_text(f"{name} again")
    assert texts.index.value("c.txt") == "c again"
    seen = [sum("again" in value for value in texts.values()) for _ in range(3)]
    assert seen[0] < 3 and seen[-1] == 3


def test_a_folder_where_nothing_was_added_is_not_listed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = Texts(folder)
    settle(folder)
    texts.values()
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", lambda path: pytest.fail("listed"))
        texts.values()
    (folder / "d.txt").write_text("d")
    assert texts.values() == ["a", "b", "c", "d"]


@pytest.mark.parametrize("damage", [b"no database " * 100, None])
def test_a_damaged_database_or_row_costs_only_another_reading(folder: Path, damage: bytes | None) -> None:
    Texts(folder).values()
    if damage:
        (folder.parent / "texts.sqlite").write_bytes(damage)
    else:
        with sqlite3.connect(folder.parent / "texts.sqlite") as db:
            db.execute("UPDATE files SET content = '{' WHERE name = ?", (b"b.txt",))
        db.close()
    texts = Texts(folder)
    assert texts.values() == ["a", "b", "c"] and texts.read == (["a.txt", "b.txt", "c.txt"] if damage else ["b.txt"])
    assert Texts(folder).values() == ["a", "b", "c"] and Texts(folder).read == []


def test_another_version_reads_all_again(folder: Path) -> None:
    Texts(folder).values()
    texts = Texts(folder, version=2)
    assert texts.values() == ["a", "b", "c"] and len(texts.read) == 3


def test_a_full_disk_keeps_nobody_from_the_values(folder: Path) -> None:
    (folder.parent / "texts.sqlite").mkdir()   # nothing can be written there
    assert Texts(folder).values() == ["a", "b", "c"]

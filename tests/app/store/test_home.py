"""The home: made with care, refused with a cure, and names that stay inside it."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from atelier.app.store import home as homes
from atelier.app.store.home import (
    HomeError,
    explain_write_errors,
    new_name,
    open_home,
    safe_name,
    time_id,
    time_of_id,
    write_home_file,
)

FOLDERS = {"datasets", "runs", "adapters", "bases", "gallery", "mixes", "grids", "textual_inversions", "wildcards",
           "trash", "state"}   # fmt: skip


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_home_is_whole_and_private(tmp_path):
    home = open_home(tmp_path / "deep" / "home")
    assert {path.name for path in home.path.iterdir()} == FOLDERS
    assert {mode(home.path), *map(mode, home.path.iterdir())} == {0o700}


def test_opening_again_changes_nothing(tmp_path):
    home = open_home(tmp_path / "home")
    home.path.chmod(0o750)   # somebody's own decision
    (home.gallery / "a.png").write_bytes(b"x")
    again = open_home(tmp_path / "home")
    assert again == home and mode(home.path) == 0o750 and (home.gallery / "a.png").read_bytes() == b"x"


def test_the_environment_names_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("ATELIER_HOME", str(tmp_path / "elsewhere"))
    assert open_home().path == tmp_path / "elsewhere"


def test_without_any_word_the_home_is_the_persons_data_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("ATELIER_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert open_home().path == tmp_path / "data" / "atelier"


def test_a_relative_home_survives_a_change_of_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_home(Path("here")).path == tmp_path / "here"


@pytest.mark.parametrize("place", ["file", "file/home"])
def test_a_file_in_the_way_is_named_with_the_cure(tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(HomeError, match=r"should be a folder.*--home or ATELIER_HOME"):
        open_home(tmp_path / place)


def test_an_unwritable_home_is_named_with_the_cure(tmp_path):
    tmp_path.chmod(0o500)
    ours = os.geteuid()
    if ours == 0:
        os.seteuid(65534)   # root may write anywhere
    try:
        with pytest.raises(HomeError, match=r"can't be written.*permissions.*--home"):
            open_home(tmp_path / "home")
    finally:
        os.seteuid(ours)
        tmp_path.chmod(0o700)


def test_a_folder_that_became_unwritable_is_named(tmp_path, monkeypatch):
    home = open_home(tmp_path / "home")
    monkeypatch.setattr(os, "access", lambda path, _mode: path != home.gallery)   # root may write anywhere
    with pytest.raises(HomeError, match=f"^{home.gallery} can't be written"):
        open_home(home.path)


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "is full"), (errno.EDQUOT, "is full"), (errno.EACCES, "can't be written"),
     (errno.EROFS, "can't be written"), (errno.EIO, "can't be used: Input/output error")],
)
def test_what_the_system_says_becomes_a_sentence(tmp_path, number, words):
    with pytest.raises(HomeError, match=words), explain_write_errors(tmp_path):
        raise OSError(number, os.strerror(number))


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "kept"
    write_home_file(path, b"old")

    def full(_file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)   # after the content is written
    with pytest.raises(HomeError, match="is full"):
        write_home_file(path, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("kept", b"old")]


def test_a_disk_that_is_really_full_is_named_and_nothing_is_lost(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", disk], capture_output=True).returncode:
        pytest.skip("may not mount a small disk here")
    try:
        home = open_home(disk / "home")
        write_home_file(home.gallery / "first.png", b"1" * 60_000)
        with pytest.raises(HomeError, match="is full"):
            write_home_file(home.gallery / "second.png", b"2" * 200_000)
        assert [path.name for path in home.gallery.iterdir()] == ["first.png"]
        write_home_file(home.gallery / "third.png", b"3" * 20_000)   # the half written one holds no room
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("name", ["fox", "Fox 2", "my-dog_3", "Füchslein", "狐", "हिन्दी", "x" * 64, "CONNIE"])
def test_good_names_pass_unchanged(name):
    assert safe_name(name) == name
    assert safe_name(f"  {name} ") == name


@pytest.mark.parametrize(
    "name",
    ["", "   ", ".", "..", "../fox", "a/b", "a\\b", "/etc/passwd", ".fox", "fox.", "fox.v2", "fox\0", "fox\n", "fox=1",
     "-fox", "_fox", "x" * 65, "𠀀" * 64, "nul", "NUL", "Com1", "a:b", "a*", "fox\u202e", "\u0301a", "\ud800"],
)  # fmt: skip
def test_bad_names_are_refused_with_a_cure(name):
    with pytest.raises(HomeError, match=r"such as|at most 64|letters, digits"):
        safe_name(name)


def test_composed_and_decomposed_spellings_are_one_name():
    assert safe_name("fu\u0308chslein") == safe_name("füchslein") == "füchslein"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.text(max_size=70))
@example("..")
@example("con ")
def test_a_name_that_passes_is_one_plain_file(tmp_path, text):
    try:
        name = safe_name(text)
    except HomeError:
        return
    path = tmp_path / f".{name}.safetensors.partial"   # the longest file name made of it
    path.write_bytes(b"")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    path.unlink()
    assert safe_name(name) == name


def test_a_taken_name_proposes_a_free_one(tmp_path):
    home = open_home(tmp_path / "home")
    assert new_name(home, "fox") == "fox"
    (home.adapters / "fox.safetensors").write_bytes(b"")
    (home.adapters / "Fox-2.safetensors").write_bytes(b"")
    for taken in ("fox", "FOX", "fox-2"):
        with pytest.raises(HomeError, match=r"is already used. Choose another, such as '(fox|FOX)-3'"):
            new_name(home, taken)
    with pytest.raises(HomeError, match="such as 'fox-5'"):
        new_name(home, "fox", frozenset({"fox-3", "fox-4"}))


def test_the_proposal_for_the_longest_name_can_be_used(tmp_path):
    home = open_home(tmp_path / "home")
    (home.adapters / f"{'x' * 64}.safetensors").write_bytes(b"")
    with pytest.raises(HomeError) as refusal:
        new_name(home, "x" * 64)
    proposal = str(refusal.value).split("'")[-2]
    assert new_name(home, proposal) == proposal


def test_ids_sort_by_time_and_tell_it():
    before = datetime.now(UTC)
    ids = [time_id() for _ in range(1000)]
    assert ids == sorted(ids)
    times = [time_of_id(id) for id in ids]
    assert all(before <= moment <= datetime.now(UTC) for moment in times)
    assert time_of_id("20251122-075612-123456-abc") - datetime(2025, 11, 22, 7, 56, 12, tzinfo=UTC) == timedelta(
        microseconds=123456
    )
    assert homes.time_of_id("../../etc/passwd") is None and time_of_id("20259922-075612-123456") is None

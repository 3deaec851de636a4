"""Who uses a device: seen by other homes and other processes, whatever way a process ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from atelier.training.base_models import device_lock
from atelier.training.base_models.device_lock import DeviceLock, Residency, is_occupied, running_job

CPU = torch.device("cpu")
HOLDING = """
import sys, torch
from pathlib import Path
from atelier.training.base_models.device_lock import DeviceLock, Residency
device = torch.device("cpu")
held = DeviceLock(device) if sys.argv[1] == "job" else Residency(device)
if sys.argv[1] == "job":
    assert held.acquire("fox", Path("/another/home/runs/1"))
else:
    held.begin()
print("ready", flush=True)
sys.stdin.read()
"""


def other_process(what: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDING, what], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True)   # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_a_job_of_another_home_is_known_by_name_until_it_is_killed():
    process = other_process("job")
    try:
        assert not DeviceLock(CPU).acquire("rex", Path())
        job = running_job(CPU)
        assert job is not None
        assert (job.name, job.folder, job.process) == ("fox", "/another/home/runs/1", process.pid)
        assert str(job) == f"“fox” (process {process.pid}, /another/home/runs/1)"
    finally:
        process.kill()
        process.communicate()
    assert running_job(CPU) is None
    assert DeviceLock(CPU).acquire("rex", Path())


def test_one_job_at_a_time_and_the_name_goes_with_it():
    one, two = DeviceLock(CPU), DeviceLock(CPU)
    assert one.acquire("rex", Path("runs/1"))
    assert not two.acquire("fox", Path("runs/2"))
    two.release()   # it has nothing to release
    assert (job := running_job(CPU)) is not None and job.name == "rex"
    one.release()
    assert running_job(CPU) is None
    assert two.acquire("fox", Path("runs/2"))
    two.release()


def test_a_damaged_note_names_nobody():
    lock = DeviceLock(CPU)
    assert lock.acquire("rex", Path())
    [note] = Path(tempfile.gettempdir()).rglob("*.json")
    for text in ("", "[1]", json.dumps({"name": "rex"})):
        note.write_text(text)
        assert running_job(CPU) is None
    lock.release()


def test_what_another_process_keeps_in_memory_is_seen_until_it_lets_go():
    assert not is_occupied(CPU)
    own = Residency(CPU)
    own.begin()
    own.begin()
    assert not is_occupied(CPU)   # this process knows of its own
    process = other_process("drawing")
    try:
        assert is_occupied(CPU)
    finally:
        process.kill()
        process.communicate()
    assert not is_occupied(CPU)
    own.end()
    own.end()
    assert not list(Path(tempfile.gettempdir()).rglob("*.drawing"))


def test_two_cards_have_two_locks(monkeypatch: pytest.MonkeyPatch):
    class Card:
        def __init__(self, device: torch.device) -> None:
            self.uuid = f"GPU-{device.index or 0}"

    monkeypatch.setattr(torch.cuda, "get_device_properties", Card)
    first, second = (DeviceLock(torch.device("cuda", index)) for index in (0, 1))
    assert first.acquire("rex", Path()) and second.acquire("fox", Path())
    assert not DeviceLock(torch.device("cuda")).acquire("cat", Path())   # the first one, by another name
    first.release()
    second.release()


def test_a_card_of_another_maker_has_one_lock_by_either_of_its_names():
    one = DeviceLock(torch.device("xpu"))
    assert one.acquire("rex", Path())
    assert not DeviceLock(torch.device("xpu:0")).acquire("cat", Path())
    one.release()


def test_a_number_without_a_name_is_a_person_too(monkeypatch: pytest.MonkeyPatch):
    """As in a container that runs under a number."""
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    monkeypatch.setattr(device_lock, "_make_private", lambda folder: folder.mkdir(exist_ok=True) is None)
    monkeypatch.delenv("USER", raising=False)
    monkeypatch.delenv("LOGNAME", raising=False)
    lock = DeviceLock(CPU)
    assert lock.acquire("rex", Path())
    assert "54321" in str(device_lock._path(CPU, "lock"))
    lock.release()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="Each person of Windows has a temporary folder of her own.")
@pytest.mark.parametrize("taken", ["open to all", "link", "file", "of somebody else"])
def test_locks_are_where_nobody_else_can_write(taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Any user of the machine can make something of the folder's name first."""
    lock = DeviceLock(CPU)
    own = Path(tempfile.gettempdir()) / f"atelier-{os.getuid()}"
    assert Path(lock._path).parent == own and own.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    match taken:
        case "open to all":
            own.chmod(0o777)
        case "link":
            own.rename(tmp_path / "elsewhere")
            own.symlink_to(tmp_path / "elsewhere")
        case "file":
            own.rmdir()
            own.touch()
        case _:
            monkeypatch.setattr(os, "getuid", lambda: 54321)
            own.rename(own.with_name("atelier-54321"))
    lock = DeviceLock(CPU)
    assert Path(lock._path).parent == tmp_path / "me" / ".cache" / "atelier"
    assert lock.acquire("rex", Path())
    assert running_job(CPU) is not None
    lock.release()


def test_another_thread_than_the_one_that_drew_lets_go():
    own = Residency(CPU)
    own.begin()
    with ThreadPoolExecutor(1) as other:
        other.submit(own.end).result()
    assert not list(Path(tempfile.gettempdir()).rglob("*.drawing"))
    with ThreadPoolExecutor(1) as other:
        lock = DeviceLock(CPU)
        assert other.submit(lock.acquire, "rex", Path()).result()
    lock.release()
    assert running_job(CPU) is None

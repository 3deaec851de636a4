"""Foreign files are opened in a child with limits: what it may take, and what is left when it is ended."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from atelier.app.services import import_child
from atelier.app.services.import_child import import_files
from atelier.app.store.home import Home, open_home
from atelier.app.store.library import list_adapters

KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def home(own_home: Path) -> Home:
    return open_home(own_home)


def lora(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    save_file({f"{KEY}.lora_up.weight": torch.randn(32, 4), f"{KEY}.lora_down.weight": torch.randn(4, 192),
               f"{KEY}.alpha": torch.tensor(4.0)}, path, {"format": "pt"})   # fmt: skip
    return path


def test_each_file_says_what_became_of_it(home: Home, tmp_path: Path) -> None:
    page = tmp_path / "page.safetensors"
    page.write_text("<!DOCTYPE html>" + " " * 20)
    files = [lora(tmp_path / "fox.safetensors"), page, lora(tmp_path / "again.safetensors"),
             tmp_path / "no.safetensors", lora(tmp_path / "owl ${x}.safetensors", 1), tmp_path]   # fmt: skip
    results = list(import_files(home, files))
    assert [(result.path, result.name) for result in results] == [
        (files[0], "fox"), (page, ""), (files[2], ""), (files[3], ""), (files[4], "owl -x"), (tmp_path, "")]
    assert ["web page" in results[1].reason, "already in your library as fox" in results[2].reason,
            "does not exist" in results[3].reason] == [True] * 3   # fmt: skip
    assert {card.name for card in list_adapters(home)} == {"fox", "owl -x"}


def test_a_name_can_be_given(home: Home, tmp_path: Path) -> None:
    [result] = import_files(home, [lora(tmp_path / "fox.safetensors")], "vixen")
    assert (result.name, result.reason) == ("vixen", "")


CHILD = """
import os, sys, types
from pathlib import Path
from atelier.app.services import import_child
from atelier.app.store.home import HomeError

if sys.argv[1:] == ["torch"]:
    import torch

def hostile(home, path, name, known):
    match path.stem:
        case "memory":
            bytearray(4_000_000_000)
        case "torch":
            torch.ones(10**9, dtype=torch.float64)
        case "time":
            while True: pass
        case "crash":
            os.abort()
        case "network":
            import socket
            socket.create_connection(("127.0.0.1", int(os.environ["PORT"])), timeout=5)
    raise HomeError(f"{path.stem} went through")

reader = types.SimpleNamespace(import_any=hostile, imported_sources=lambda home: {})
sys.modules["atelier.app.services.import_export"] = reader
import_child.main()
"""


def run_child(home: Home, tmp_path: Path, stem: str, **environment: str) -> tuple[int, str]:
    """The child's own work on a file of this name, with a reader that is up to no good."""
    path = tmp_path / f"{stem}.safetensors"
    path.write_bytes(b"x")
    task = {"home": str(home.path), "name": "", "paths": [str(path)],
            "limits": {"memory": 10**9, "memory_per_byte": 8.0, "seconds": 2.0, "bytes_per_second": 5e6}}   # fmt: skip
    run = subprocess.run([sys.executable, "-c", CHILD, stem], input=json.dumps(task), text=True, timeout=240,
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                         env={**os.environ, **environment})   # fmt: skip
    return run.returncode, json.loads(run.stdout)["reason"] if run.stdout else ""


def test_a_file_that_ends_the_child_does_not_end_the_import(home: Home, tmp_path: Path, monkeypatch) -> None:
    class Popen(subprocess.Popen):   # type: ignore[type-arg]
        def __init__(self, _command: object, **options: object) -> None:
            options |= {"stderr": subprocess.DEVNULL}
            super().__init__([sys.executable, "-c", CHILD], **options)   # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", Popen)
    files = [tmp_path / f"{stem}.safetensors" for stem in ("good", "crash", "fine")]
    reasons = [result.reason for result in import_files(home, files)]
    assert reasons[0] == "good went through" and reasons[2] == "fine went through"
    assert reasons[1].startswith("crash.safetensors was not opened, because the process that read it ended")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
@pytest.mark.parametrize("stem", ["memory", "torch"])
def test_a_reader_that_takes_gigabytes_is_refused_them(home: Home, tmp_path: Path, stem: str) -> None:
    code, reason = run_child(home, tmp_path, stem)
    assert code == 0 and "needs more memory than any adapter of its size" in reason


@pytest.mark.skipif(sys.platform != "linux", reason="signals are told apart on Linux")
@pytest.mark.parametrize(("stem", "said"), [("time", "more processor time"), ("crash", "ended (signal 6)")])
def test_a_reader_that_never_ends_or_crashes_ends_the_child_alone(
    home: Home, tmp_path: Path, stem: str, said: str
) -> None:
    code, reason = run_child(home, tmp_path, stem)
    assert code < 0 and not reason and said in import_child._end(code)


def test_a_reader_has_no_network_where_the_system_can_take_it(home: Home, tmp_path: Path) -> None:
    can = subprocess.run(["unshare", "--user", "--net", "true"], capture_output=True).returncode == 0
    if not can:
        pytest.skip("this system lets no process give up the network")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _, reason = run_child(home, tmp_path, "network", PORT=str(listener.getsockname()[1]))
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert "went through" not in reason


def test_the_child_is_told_no_secrets(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    def no_child(*_: object, env: dict[str, str], **__: object) -> object:
        seen.append(env)
        raise OSError("not started")

    monkeypatch.setattr(subprocess, "Popen", no_child)
    for name in import_child._SECRETS:
        monkeypatch.setenv(name, "secret")
    with pytest.raises(OSError, match="not started"):
        list(import_files(home, [tmp_path / "a.safetensors"]))
    assert "PATH" in seen[0] and "secret" not in seen[0].values()

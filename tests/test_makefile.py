"""Which build of torch `make` installs, with an index on this machine in the place of PyTorch's."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_house import ROOT

VERSION = re.search(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)[1]
STAMP = ".venv/stamps/torch"


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files and leaves the terminal alone."""

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with nothing but what `make` reads."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a package index with one torch without CUDA, which is an empty package."""
    folder = tmp_path_factory.mktemp("index")
    (folder / "torch").mkdir()
    record = f"torch-{VERSION}+cpu.dist-info"
    with zipfile.ZipFile(folder / "torch" / f"torch-{VERSION}+cpu-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{record}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {VERSION}+cpu\n")
        wheel.writestr(f"{record}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{record}/RECORD", "".join(f"{record}/{name},,\n" for name in ("METADATA", "WHEEL", "RECORD")))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def make(folder: Path, *arguments: str, **environment: str) -> str:
    """Run `make` as a person would: without the settings of this machine's pip or of a `make` that runs the tests."""
    foreign = re.compile(r"PIP_|MAKE|TORCH$|.*_proxy$", re.I)
    clean = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    command = ["make", "--no-print-directory", f"PYTHONS={sys.executable}", *arguments]
    return subprocess.run(command, cwd=folder, env={**clean, "PIP_CONFIG_FILE": os.devnull, **environment}, check=True,
                          stdout=subprocess.PIPE, text=True).stdout   # fmt: skip


def installed(folder: Path) -> str:
    """Version of torch in the project's environment, or "" without it."""
    ask = "from importlib.metadata import distributions as d; print(*[x.version for x in d(name='torch')])"
    return subprocess.check_output([folder / ".venv/bin/python", "-c", ask], text=True).strip()


def test_the_cpu_build_comes_from_its_own_index_and_goes_when_the_other_is_asked_for(project: Path, index: str) -> None:
    said = make(project, STAMP, "TORCH=cpu", f"TORCH_INDEX={index}")
    assert installed(project) == f"{VERSION}+cpu"
    assert said.index("Installing torch") < said.index("Successfully installed")
    assert make(project, STAMP, "NVIDIA=/dev/nvidia0") == ""   # what was asked for once is kept
    make(project, STAMP, "TORCH=cuda")
    assert installed(project) == ""


@pytest.mark.slow
def test_an_index_that_cannot_be_reached_leaves_the_ordinary_torch(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:   # takes connections, and never answers
        deaf = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for address in (deaf, "http://127.0.0.1:1", "http://nowhere.invalid"):
            (project / STAMP).unlink(missing_ok=True)
            said = make(project, STAMP, "TORCH=cpu", f"TORCH_INDEX={address}")
            assert address in said and "Installing the ordinary torch instead" in said
            assert (project / STAMP).read_text() == "cuda\n"


@pytest.mark.slow
def test_an_index_without_this_version_leaves_the_ordinary_torch(project: Path, index: str, tmp_path: Path) -> None:
    (project / "constraints.txt").write_text("torch==0.1\n")
    assert "Installing the ordinary torch instead" in make(project, STAMP, "TORCH=cpu", f"TORCH_INDEX={index}")
    assert (project / STAMP).read_text() == "cuda\n"


@pytest.mark.parametrize(("system", "device", "driver", "expected"), [
    ("Linux", "", "", "cpu"),
    ("Linux", "/dev/nvidia0", "", "cuda"),
    ("Linux", "", "GPU 0: NVIDIA H200", "cuda"),   # as in the Linux of Windows, where there is no such device
    ("Darwin", "", "", "cuda"),
])
def test_torch_fits_the_machine(system: str, device: str, driver: str, expected: str, tmp_path: Path) -> None:
    for program, answer in (("uname", system), ("nvidia-smi", driver)):
        (tmp_path / program).write_text(f"#!/bin/sh\necho '{answer}'\n")
        (tmp_path / program).chmod(0o755)
    (tmp_path / "show.mk").write_text("show:\n\t@echo $(TORCH)\n")
    said = make(tmp_path, "-f", f"{ROOT}/Makefile", "-f", "show.mk", "show", f"DEVICES={device}",
                PATH=f"{tmp_path}:{os.environ['PATH']}")   # fmt: skip
    assert said.strip() == expected

"""What every test stands on: no network, no user data, the same numbers in any order."""

from __future__ import annotations

import gc
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Read once, when the libraries are imported, and inherited by the processes that tests start.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    GRADIO_ANALYTICS_ENABLED="False",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",   # sums depend on the number of threads; one gives the same bits on any machine
)

import numpy as np
import pytest
import torch

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, so that nobody's pictures are read, changed or mistaken for a result."""
    home = tmp_path / "home"
    monkeypatch.setenv("ATELIER_HOME", str(home))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user-data"))   # where the default home would be
    return home


@pytest.fixture(autouse=True)
def own_locks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Device locks of the test's own: a training that somebody has under way must not hold the test up."""
    # Short, because paths of sockets may have 107 characters; a process on its way out may still write there.
    with tempfile.TemporaryDirectory(prefix="at-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Every test starts from the same seeds, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def loud_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fill `torch.empty` with NaN, so that reading memory nobody wrote shows; not on a GPU, where it forbids much."""
    loud = request.node.get_closest_marker("gpu") is None
    torch.use_deterministic_algorithms(loud)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser that the end-to-end tests drive; without one they are skipped."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium here: install it, or let `make test` do so where it may")
    return found


def pytest_collection_finish() -> None:
    """What was imported and collected lives to the end: each of the product's own collections would look through it."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")

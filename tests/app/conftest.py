"""What many tests of the app begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from atelier.app.store.home import Home, open_home


@pytest.fixture
def home(own_home: Path) -> Home:
    """An empty home."""
    return open_home(own_home)

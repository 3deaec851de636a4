"""The prompts that were drawn last, in the home of the person who typed them; no script can ask for them."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from pathlib import Path

from atelier.adapters.core.parse import parse_json
from atelier.app.store.home import Home, write_home_file

MAX_PROMPTS = 40
MAX_LENGTH = 5000   # characters of one
_WRITE_LOCK = threading.Lock()


def recent_prompts(home: Home) -> list[str]:
    """The newest first, each once."""
    with suppress(OSError, ValueError):
        found = parse_json(_path(home).read_text(encoding="utf-8"))
        if isinstance(found, list):
            return [text for text in found if isinstance(text, str)][:MAX_PROMPTS]
    return []


def remember_prompt(home: Home, prompt: str) -> None:
    """Put a prompt first.

    Raises:
        HomeError: the home can't be written.
    """
    text = prompt.strip()[:MAX_LENGTH]
    with _WRITE_LOCK:
        others = recent_prompts(home)
        if text and others[:1] != [text]:
            _write(home, [text, *(other for other in others if other != text)][:MAX_PROMPTS])


def forget_prompts(home: Home) -> None:
    """Forget all of them.

    Raises:
        HomeError: the home can't be written.
    """
    with _WRITE_LOCK:
        _write(home, [])


def _path(home: Home) -> Path:
    return home.state / "recent_prompts.json"


def _write(home: Home, prompts: list[str]) -> None:
    write_home_file(_path(home), json.dumps(prompts, ensure_ascii=False).encode())

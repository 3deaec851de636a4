"""Prompts with choices in them: ``{red|blue}``, and ``__colour__`` for a line of ``wildcards/colour.txt`` in the home.

Each picture chooses by its own seed. What was chosen is the picture's prompt; the text with the choices is stored
beside it. ``\\{``, ``\\}``, ``\\|`` and ``\\__`` are plain characters.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

from atelier.app.store.home import Home, HomeError
from atelier.app.text import studio as words
from atelier.training.sampling.prompt_encoding import PLAIN
from atelier.training.sampling.sample import DrawRequest

MAX_DEPTH = 50             # of choices within choices
MAX_TEXT = 20_000          # characters of a prompt after its choices
MAX_FILE_BYTES = 2_000_000
SUFFIX = ".txt"
_INNERMOST = re.compile(r"\{([^{}]*)\}")
_FILE = re.compile(r"(?<!\\)__([^\s_](?:\S*?[^\s_])?)__")
_ESCAPES = {"\\{": "\ue000", "\\}": "\ue001", "\\|": "\ue002", "\\__": "\ue003"}   # of Unicode's private use area
_PLAIN = {"\ue000": "{", "\ue001": "}", "\ue002": "|", "\ue003": "__"}


def has_wildcards(text: str) -> bool:
    """Whether a prompt leaves something to choose.

    >>> has_wildcards("a {red|blue} fox"), has_wildcards("a __colour__ fox"), has_wildcards("a {red} fox")
    (True, True, False)
    """
    hidden = _replaced(text, _ESCAPES)
    return bool(_FILE.search(hidden)) or any("|" in found for found in _INNERMOST.findall(hidden))


def escape_wildcards(text: str) -> str:
    """A prompt that is read as it stands.

    >>> escape_wildcards("a {red|blue} fox"), escape_wildcards("a {red} fox")
    ('a \\\\{red\\\\|blue\\\\} fox', 'a {red} fox')
    """
    plain = {character: mark for mark, character in zip(_ESCAPES, _PLAIN.values(), strict=True)}
    return _replaced(text, plain) if has_wildcards(text) or any(mark in text for mark in _ESCAPES) else text


def resolve_wildcards(home: Home, text: str, seed: int) -> str:
    """Choose by the seed: the same seed and the same files always choose the same.

    Raises:
        HomeError: there is no such file, or it can't be used; files that contain each other; too long a text.
    """
    if not any(mark in text for mark in ("{", "__", "\\")):
        return text
    dice, hidden = random.Random(seed), _replaced(text, _ESCAPES)
    for _ in range(MAX_DEPTH):
        if _INNERMOST.search(hidden):
            hidden = _INNERMOST.sub(lambda found: _alternative(found, dice), hidden)
        elif _FILE.search(hidden):
            hidden = _FILE.sub(lambda found: _line(home, found[1], dice), hidden)
        else:
            return _replaced(hidden, _PLAIN)
        if len(hidden) > MAX_TEXT:
            raise HomeError(words.wildcards_too_long(MAX_TEXT))
    raise HomeError(words.wildcards_too_deep(MAX_DEPTH))


def resolve_request(home: Home, request: DrawRequest) -> DrawRequest:
    """A request for one picture with its prompts chosen by its seed.

    Raises:
        HomeError: see :func:`resolve_wildcards`.
    """
    if request.prompt_syntax == PLAIN:
        return request
    prompt, negative = (resolve_wildcards(home, text, request.seed) for text in (request.prompt, request.negative))
    return replace(request, prompt=prompt, negative=negative)


def list_wildcards(home: Home) -> list[str]:
    """The names of the files, in alphabetical order; those in folders as ``folder/name``."""
    return sorted(path.relative_to(home.wildcards).with_suffix("").as_posix()
                  for path in home.wildcards.rglob(f"*{SUFFIX}") if path.is_file())   # fmt: skip


def _alternative(found: re.Match[str], dice: random.Random) -> str:
    if "|" not in found[1]:
        return f"\ue000{found[1]}\ue001"   # braces around nothing to choose stay
    return _one_of(found[1].split("|"), dice)


def _line(home: Home, name: str, dice: random.Random) -> str:
    lines = [line.strip() for line in _read(home, name).splitlines()]
    usable = [line for line in lines if line and not line.startswith("#")]
    if not usable:
        raise HomeError(words.wildcard_unusable(name, "has no lines"))
    return _replaced(_one_of(usable, dice), _ESCAPES)


def _read(home: Home, name: str) -> str:
    """A file's text. The name comes from a prompt: it stays inside the folder, whatever it says."""
    if not re.fullmatch(r"[^\W_][\w -]*(/[^\W_][\w -]*)*", name):
        raise HomeError(words.wildcard_name(name))
    path = home.wildcards / f"{name}{SUFFIX}"
    try:
        if not _is_inside(path, home.wildcards) or not path.is_file():
            raise HomeError(words.no_wildcard(name, str(home.wildcards), list_wildcards(home)))
        if path.stat().st_size > MAX_FILE_BYTES:
            raise HomeError(words.wildcard_unusable(name, f"has more than {MAX_FILE_BYTES // 1_000_000} MB"))
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise HomeError(words.wildcard_unusable(name, "is not a text in UTF-8")) from None
    except OSError as error:
        raise HomeError(words.wildcard_unusable(name, f"can't be read ({error.strerror})")) from None


def _is_inside(path: Path, folder: Path) -> bool:
    """Links that lead elsewhere are not."""
    return path.resolve().is_relative_to(folder.resolve())


def _one_of(choices: list[str], dice: random.Random) -> str:
    # Python promises that random() gives the same numbers in every version, and of choice() it does not.
    return choices[int(dice.random() * len(choices))]


def _replaced(text: str, table: dict[str, str]) -> str:
    for one, other in table.items():
        text = text.replace(one, other)
    return text

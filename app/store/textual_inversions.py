"""The textual inversions of a home: words with vectors of their own, one file each.

``textual_inversions/<name>.safetensors``, in the form of ``adapters/textual_inversion.py``. The word that
stands in prompts is in the header, for it can hold characters that a file name can't, as in ``<fox>``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from atelier.adapters.formats.native import data_hash
from atelier.adapters.formats.safetensors_header import FileError, HeaderError
from atelier.adapters.textual_inversion import (
    TextualInversion,
    find_words,
    read_textual_inversions,
    save_textual_inversion,
    word_pattern,
)
from atelier.app.store.home import Home, HomeError, explain_write_errors
from atelier.app.store.trash import move_to_trash

SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextualInversionCard:
    """What is shown of a textual inversion."""

    name: str
    token: str     # the word that stands for it in prompts
    family: str    # of the base models that it fits
    vectors: int   # tokens of the prompt that it takes
    bytes: int
    path: Path


def list_textual_inversions(home: Home) -> list[TextualInversionCard]:
    """All that can be read, by name; files that can't be are in :func:`list_unreadable_inversions`."""
    return [card for card in map(_card, _files(home)) if isinstance(card, TextualInversionCard)]


def list_unreadable_inversions(home: Home) -> list[str]:
    """Why files among the textual inversions can't be used, a sentence each."""
    return [card for card in map(_card, _files(home)) if isinstance(card, str)]


def find_textual_inversion(home: Home, name: str) -> TextualInversionCard | None:
    """A textual inversion by its name or by its word; None where there is none."""
    return next((card for card in list_textual_inversions(home) if name in (card.name, card.token)), None)


def inversions_in_prompts(
    home: Home, prompts: Sequence[str], preferred: Sequence[str] = ()
) -> list[TextualInversionCard]:
    """The textual inversions whose words stand in some prompts, of every family.

    Of several with one word, ``preferred`` has the names that come first, then their names decide.
    """
    cards = sorted(list_textual_inversions(home), key=lambda card: card.name not in preferred)
    pattern = word_pattern([card.token for card in cards])
    used = {word.lower() for prompt in prompts for word in pattern.findall(prompt)}
    found: dict[tuple[str, str], TextualInversionCard] = {}
    for card in cards:
        if card.token.lower() in used:
            found.setdefault((card.token.lower(), card.family), card)
    return list(found.values())


def inversion_hash(card: TextualInversionCard) -> str:
    """SHA-256 of its tensors: it stays the same under another name."""
    return data_hash(card.path)


def load_textual_inversion(card: TextualInversionCard) -> TextualInversion:
    """The word with its vectors.

    Raises:
        FileError: its file can't be read.
    """
    return read_textual_inversions(card.path)[0]


def keep_textual_inversion(home: Home, word: TextualInversion, name: str) -> TextualInversionCard:
    """Put a word into the home; a name that is taken gets a number.

    Raises:
        HomeError: the same word with the same vectors is there already, or it can't be written.
    """
    for card in list_textual_inversions(home):
        if card.token == word.token and _is_same(load_textual_inversion(card), word):
            raise HomeError(f"The textual inversion {word.token} is already in your library as {card.name}.")
    taken, free, number = {path.stem for path in _files(home)}, name, 2
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    path = home.textual_inversions / f"{free}{SUFFIX}"
    with explain_write_errors(home.textual_inversions):
        save_textual_inversion(path, word, free, datetime.now(UTC).isoformat(timespec="seconds"))
    kept = _card(path)
    assert isinstance(kept, TextualInversionCard)
    return kept


def delete_textual_inversion(home: Home, card: TextualInversionCard) -> Path:
    """Move a textual inversion to the trash; returns its path there.

    Raises:
        HomeError: it can't be moved.
    """
    return move_to_trash(home, card.path)


def _files(home: Home) -> list[Path]:
    files = (path for path in home.textual_inversions.iterdir() if path.suffix.lower() == SUFFIX)
    return sorted((path for path in files if not path.name.startswith(".")), key=lambda path: path.stem)


def _card(path: Path) -> TextualInversionCard | str:
    """What is shown of a file; a sentence where it can't be used."""
    try:
        read_textual_inversions(path)   # a file that was put there by hand went through no gate
        found = find_words(path)
    except (FileError, HeaderError, OSError) as error:
        return f"{path.name} {error}" if isinstance(error, HeaderError) else str(error)
    if len(found) != 1:
        return f"{path.name} is not one textual inversion. Import it with: atelier import {path.name}"
    [word] = found
    return TextualInversionCard(name=path.stem, token=word.token, family=word.family, vectors=word.count,
                                bytes=path.stat().st_size, path=path)   # fmt: skip


def _is_same(one: TextualInversion, other: TextualInversion) -> bool:
    return one.vectors.keys() == other.vectors.keys() and all(
        value.shape == other.vectors[part].shape and bool((value == other.vectors[part]).all())
        for part, value in one.vectors.items())   # fmt: skip

"""Captions: what each picture is said to show, from a file beside it, from a list of all, or from one template."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from atelier.adapters.core.parse import parse_json
from atelier.training.config.caption_template import fill_template
from atelier.training.data.images import looks_like_picture

SUFFIX = ".txt"
SUFFIXES = (SUFFIX, ".caption", ".cap")   # the first wins where a picture has several
LISTS = ("metadata.jsonl", "metadata.csv", "meta_cap.json", "meta_clean.json", "meta_lat.json")
"""Files with the captions of many pictures: of Hugging Face's imagefolder, and of kohya's scripts."""
MAX_BYTES = 10_000      # text encoders read some 75 words; a longer file is no caption
MAX_LIST_BYTES = 20_000_000
_TEXT_KEYS = ("text", "caption", "prompt", "tags")
_WESTERN = re.compile("[^\\W\\d_]|[‘’“”–—…«»°€£§¿¡\xa0]")   # what a caption in Windows-1252 has beside ASCII


@dataclass(frozen=True, kw_only=True, slots=True)
class Captioner:
    """Finds and fills the captions of one dataset."""

    trigger: str
    subject: str
    template: str

    def caption(self, text: str) -> str:
        """The caption of a picture from the text that came with it, or from the template without one."""
        return self.fill(text or self.template)

    def fill(self, text: str) -> str:
        """Put the words in for ``{trigger}`` and ``{subject}``, with the right article; other braces stay as they are.

        >>> Captioner(trigger="", subject="owl", template="").fill("a {trigger} {subject} on {grass}")
        'an owl on {grass}'
        """
        return " ".join(fill_template(text, trigger=self.trigger, subject=self.subject).split())

    def has_trigger(self, caption: str) -> bool:
        """Whether a caption contains the trigger word as a word of its own; case does not matter."""
        return not self.trigger or self.end_of_trigger(caption) > 0

    def end_of_trigger(self, caption: str) -> int:
        """Where the first trigger word of a caption ends, in characters; 0 where there is none."""
        word = rf"(?<!\w){re.escape(self.trigger)}(?!\w)"
        found = re.search(word, caption, re.IGNORECASE) if self.trigger else None
        return found.end() if found else 0


def is_sidecar(path: Path) -> bool:
    """Whether a file is meant as the caption of one picture: by its name, and no picture by its content."""
    return path.suffix.lower() in SUFFIXES and not looks_like_picture(path)


def is_caption_list(path: Path) -> bool:
    """Whether a file has the captions of many pictures."""
    return path.name.lower() in LISTS


@dataclass(frozen=True, slots=True)
class CaptionMatch:
    """Which caption file belongs to which picture, and what is to be said about the others."""

    files: dict[Path, Path]    # picture → caption file
    warnings: list[str]


def match_captions(pictures: Sequence[Path], files: Iterable[Path]) -> CaptionMatch:
    """Find the caption file of each picture: the one of its name, in any Unicode form and with any suffix of SUFFIXES.

    Without one, a file counts whose name differs in upper and lower case only, or has the picture's suffix as well
    (``a.png.txt``), unless it belongs to another picture. Files of the picture's own folder come first.
    """
    ordered = sorted(files, key=lambda file: (_rank(file), file.name))
    names = {normal_name(picture.stem) for picture in pictures}
    exact: dict[tuple[Path | None, str], list[Path]] = {}
    loose: dict[tuple[Path | None, str], list[Path]] = {}   # by names in small letters
    for file in ordered:
        stem = normal_name(file.stem)
        for folder in (file.parent, None):
            exact.setdefault((folder, stem), []).append(file)
            if stem not in names:
                loose.setdefault((folder, stem.casefold()), []).append(file)

    def candidates(picture: Path, folder: Path | None) -> list[Path]:
        """The files that could be a picture's caption, the best first."""
        stem, whole = normal_name(picture.stem), normal_name(picture.name)
        found = (exact.get((folder, stem)), *(loose.get((folder, name.casefold())) for name in (stem, whole)))
        return next(filter(None, found), [])

    found = {picture: candidates(picture, picture.parent) for picture in pictures}
    taken = {file for each in found.values() for file in each}
    for picture in [picture for picture, each in found.items() if not each]:
        found[picture] = [file for file in candidates(picture, None) if file not in taken]
    best = {picture: each[0] for picture, each in found.items() if each}
    return CaptionMatch(best, [*_unused(ordered, found, best), *_shared(best)])


def _unused(files: Sequence[Path], found: dict[Path, list[Path]], best: dict[Path, Path]) -> list[str]:
    used = set(best.values())
    rivals = {file: best[picture] for picture, each in found.items() for file in each}
    return [
        f"{file.name} is not used as a caption: " + (
            f"{rivals[file].name} is that of the same picture." if file in rivals
            else "no picture in the folder has the same name.")
        for file in sorted(set(files) - used, key=lambda file: file.name)
    ]   # fmt: skip


def _shared(best: dict[Path, Path]) -> list[str]:
    pictures: dict[Path, list[str]] = {}
    for picture, file in best.items():
        pictures.setdefault(file, []).append(picture.name)
    return [f"{file.name} is the caption of {' and of '.join(names)}. Rename one of them if it shows something else."
            for file, names in pictures.items() if len(names) > 1]   # fmt: skip


def _rank(file: Path) -> int:
    return SUFFIXES.index(file.suffix.lower()) if file.suffix.lower() in SUFFIXES else len(SUFFIXES)


def normal_name(name: str) -> str:
    """A name in one Unicode form: macOS writes é as two characters, other systems as one."""
    return unicodedata.normalize("NFC", name)


def read_caption(sidecar: Path) -> tuple[str, str]:
    """What a text file says a picture shows; and a warning, empty if all is well.

    Raises:
        ValueError: it is too long, or in an unknown encoding.
    """
    size = sidecar.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{sidecar.name} is not used as a caption: it has {size} bytes, but at most {MAX_BYTES} "
                         "are allowed. Shorten it.")   # fmt: skip
    raw = sidecar.read_bytes()
    encoding = _encoding(raw)
    if not encoding:
        raise ValueError(f"{sidecar.name} is not used as a caption: it is text in an unknown encoding. Save it as "
                         "UTF-8.")   # fmt: skip
    text = _visible(raw.decode(encoding))
    if encoding != "cp1252":
        return text, ""
    return text, (f"{sidecar.name} is not UTF-8, so it is read as Windows-1252 (Latin-1): {_shortened(text)!r}. If "
                  "that is wrong, save it as UTF-8.")   # fmt: skip


def _encoding(raw: bytes) -> str:
    """The encoding of a text by its byte order mark, its zeros or its letters; empty when none fits."""
    if raw.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        guesses = ["utf-32"]
    elif raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        guesses = ["utf-16"]
    elif raw.count(0) > len(raw) / 4:   # UTF-16 has a zero beside every ASCII letter
        guesses = ["utf-16-le" if raw[1::2].count(0) > raw[::2].count(0) else "utf-16-be"]
    else:
        guesses = ["utf-8-sig", *(["cp1252"] if _looks_western(raw) else [])]
    return next((guess for guess in guesses if _decodes(raw, guess)), "")


def _decodes(raw: bytes, encoding: str) -> bool:
    try:
        raw.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _visible(text: str) -> str:
    """Words in one Unicode form with single spaces, without control characters and signs of no width."""
    plain = unicodedata.normalize("NFC", text)
    return " ".join(re.sub(r"[\u00ad\u200b\u2060\ufeff]|(?!\s)[\x00-\x1f\x7f-\x9f]", "", plain).split())


def _looks_western(raw: bytes) -> bool:
    """Whether bytes above 127 stand where letters with accents do: alone, or two small ones. In Shift-JIS and GBK they
    stand in pairs that give capitals and signs."""
    text = raw.decode("cp1252", "replace")
    for run in re.findall(r"[^\x00-\x7f]+", text):
        if len(run) > 2 or not all(_WESTERN.fullmatch(letter) for letter in run) or any(c in "ªºƒˆ˜" for c in run):
            return False
        if len(run) == 2 and not (run.islower() or not run[0].isalpha() or not run[1].isalpha()):
            return False
    return True


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]} …"


def read_caption_list(file: Path) -> dict[str, str]:
    """The captions of a list, by the picture's path in the list, as it stands there.

    ``metadata.jsonl`` has ``{"file_name": …, "text": …}`` on each line, ``metadata.csv`` columns of these names;
    kohya's files are one object of ``{path: {"caption": …, "tags": …}}``.

    Raises:
        ValueError: it is too long, or can't be read.
    """
    if file.stat().st_size > MAX_LIST_BYTES:
        raise ValueError(f"{file.name} is not used: it has more than {MAX_LIST_BYTES // 1_000_000} MB, too many for a "
                         "list of captions.")   # fmt: skip
    raw = file.read_bytes()
    try:
        text = raw.decode(_encoding(raw) or "utf-8")
        entries = _ENTRIES[file.suffix.lower()](text)
        return {name: caption for name, caption in entries if name and caption}
    except (ValueError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise ValueError(f"{file.name} is not used: it is no list of captions that can be read ({error}). Check it, or "
                         "put a text file beside each picture.") from None   # fmt: skip


def _jsonl_entries(text: str) -> Iterable[tuple[str, str]]:
    for line in filter(str.strip, text.split("\n")):   # a caption may hold other signs that break lines
        entry = parse_json(line)
        yield str(entry["file_name"]) if "file_name" in entry else "", _caption_of(entry)


def _csv_entries(text: str) -> Iterable[tuple[str, str]]:
    for row in csv.DictReader(StringIO(text, newline="")):
        yield row.get("file_name") or "", _caption_of(row)


def _kohya_entries(text: str) -> Iterable[tuple[str, str]]:
    for name, entry in parse_json(text).items():
        yield name, _caption_of(entry)


_ENTRIES = {".json": _kohya_entries, ".jsonl": _jsonl_entries, ".csv": _csv_entries}


def _caption_of(entry: dict[str, Any]) -> str:
    found = next((entry[key] for key in _TEXT_KEYS if isinstance(entry.get(key), str)), "")
    return _visible(found)[:MAX_BYTES]

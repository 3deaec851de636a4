"""Captions: what each picture is said to show, from a text file beside it or from one template for all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atelier.training.data.images import looks_like_picture

SUFFIX = ".txt"
MAX_BYTES = 10_000      # text encoders read some 75 words; a longer file is no caption


@dataclass(frozen=True, kw_only=True, slots=True)
class Captioner:
    """Finds and fills the captions of one dataset."""

    trigger: str
    subject: str
    template: str

    def caption(self, sidecar: Path | None) -> tuple[str, str]:
        """Caption from a sidecar file, or from the template without one; and a warning, empty if all is well."""
        if sidecar is None:
            return self.fill(self.template), ""
        try:
            text = read_caption(sidecar)
        except (OSError, ValueError) as error:
            return self.fill(self.template), str(error)
        return self.fill(text or self.template), ""

    def fill(self, text: str) -> str:
        """Put the words in for ``{trigger}`` and ``{subject}``; other braces stay as they are.

        >>> Captioner(trigger="rex", subject="dog", template="").fill("a {trigger} {subject} on {grass}")
        'a rex dog on {grass}'
        """
        words = {"trigger": self.trigger, "subject": self.subject}
        return " ".join(re.sub(r"\{(trigger|subject)\}", lambda found: words[found[1]], text).split())

    def has_trigger(self, caption: str) -> bool:
        """Whether a caption contains the trigger word as a word of its own; case does not matter."""
        word = rf"(?<!\w){re.escape(self.trigger)}(?!\w)"
        return not self.trigger or re.search(word, caption, re.IGNORECASE) is not None


def is_sidecar(path: Path) -> bool:
    """Whether a file is meant as a caption: a text file by name that is no picture by content."""
    return path.suffix.lower() == SUFFIX and not looks_like_picture(path)


def orphan_warnings(files: Sequence[Path], pictures: Sequence[Path]) -> list[str]:
    """Name the files that look like captions and will not be read."""
    stems = {path.stem for path in pictures}
    warnings = []
    for path in files:
        if is_sidecar(path) and path.stem not in stems:
            warnings.append(f"{path.name} is not used as a caption: no picture in the folder has the same name.")
        if path.suffix.lower() == ".caption":
            warnings.append(f"{path.name} is not used: captions must be text files. Rename it to {path.stem}{SUFFIX}.")
    return warnings


def read_caption(sidecar: Path) -> str:
    """What a text file says a picture shows.

    Raises:
        ValueError: it is too long, or no UTF-8 text.
    """
    size = sidecar.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{sidecar.name} is not used as a caption: it has {size} bytes, but at most {MAX_BYTES} "
                         "are allowed. Shorten it.")   # fmt: skip
    try:
        return sidecar.read_bytes().decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ValueError(
            f"{sidecar.name} is not used as a caption: it is not UTF-8 text. Save it as UTF-8."
        ) from None

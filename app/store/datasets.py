"""Datasets of the home: checked copies of the pictures that a person chose, with their captions."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from atelier.adapters.core.byte_size import format_bytes
from atelier.app.store.home import Home, HomeError, explain_write_errors, safe_name
from atelier.training.data import captions
from atelier.training.data.dataset import MAX_PICTURES
from atelier.training.data.images import PictureError, check_picture, open_picture, pixel_hash, save_pixels

RESERVED_BYTES = 50_000_000    # left free on the disk for what a run writes
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
MAX_STEM = 40                  # characters; at four bytes each well below what file systems allow


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedDataset:
    """A new dataset. Reasons and warnings are complete sentences that name the file."""

    folder: Path
    usable: list[Path]
    refused: list[tuple[str, str]]      # file name, reason
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class _Source:
    path: Path
    format: str                         # of the content: PNG, JPEG, WEBP
    sidecar: Path | None


def import_pictures(home: Home, name: str, files: Iterable[Path]) -> ImportedDataset:
    """Make a dataset of those files that can be used; it appears complete or not at all.

    A caption is a text file with the picture's name, among ``files`` or in the picture's folder. If the home has a
    dataset of this name, the new one gets a number: a run may still need the pictures of the old one.

    Args:
        home: where the dataset goes.
        name: what the person calls it.
        files: pictures, recognised by their content, and captions.

    Raises:
        HomeError: a name that can't be used, too little room on the disk, or no permission.
        PictureError: none of the files can be used; the message gives each reason.
    """
    name = safe_name(name)
    given = list(files)
    texts = {path.stem: path for path in given if captions.is_sidecar(path)}
    sources, refused, warnings = _check_files([path for path in given if not captions.is_sidecar(path)], texts)
    if not sources:
        reasons = "\n".join(reason for _, reason in refused) or "No pictures were given."
        raise PictureError(f"There are no pictures to train on.\n{reasons}")
    # Pictures are encoded again and may come out larger than the program that wrote them made them.
    _check_disk_space(home.datasets, 2 * sum(source.path.stat().st_size for source in sources))
    with explain_write_errors(home.datasets), TemporaryDirectory(dir=home.datasets, prefix=".import-") as partial:
        stage = Path(partial) / "pictures"
        stage.mkdir(mode=0o700)
        names = _copy(sources, stage)
        folder = stage.rename(home.datasets / _free_name(name, [path.name for path in home.datasets.iterdir()]))
    return ImportedDataset(folder=folder, usable=[folder / file for file in names], refused=refused, warnings=warnings)


def _check_files(
    files: Sequence[Path], texts: dict[str, Path]
) -> tuple[list[_Source], list[tuple[str, str]], list[str]]:
    """Decode every file once: those that can be used, (name, reason) of the others, and warnings."""
    sources, refused, warnings = list[_Source](), list[tuple[str, str]](), list[str]()
    seen = dict[str, str]()
    for number, path in enumerate(files):
        if len(sources) == MAX_PICTURES:
            warnings.append(f"At most {MAX_PICTURES} pictures can be used, so the last {len(files) - number} were "
                            "left out.")
            break
        try:
            kind = check_picture(path).format
            pixels = pixel_hash(open_picture(path))
        except PictureError as error:
            refused.append((path.name, str(error)))
            continue
        if pixels in seen:
            refused.append((path.name, f"{path.name} is the same picture as {seen[pixels]}, so it is left out."))
            continue
        seen[pixels] = path.name
        sidecar, warning = _sidecar(path, texts)
        sources.append(_Source(path, kind, sidecar))
        warnings.extend(filter(None, (warning,)))
    warnings.extend(captions.orphan_warnings(list(texts.values()), files))
    return sources, refused, warnings


def _sidecar(picture: Path, texts: dict[str, Path]) -> tuple[Path | None, str]:
    text = texts.get(picture.stem, picture.with_suffix(captions.SUFFIX))
    if not text.is_file():
        return None, ""
    if text.stat().st_size > captions.MAX_BYTES:
        return None, f"{text.name} is too long for a caption, so it was left out. Shorten it to a sentence."
    return text, ""


def _check_disk_space(place: Path, needed: int) -> None:
    free = shutil.disk_usage(place).free
    if needed + RESERVED_BYTES > free:
        raise HomeError(
            f"The pictures need {format_bytes(needed)} and {format_bytes(RESERVED_BYTES)} must stay free, "
            f"but the disk with {place} has only {format_bytes(free)} left. Free some space, or choose a home on "
            "another disk."
        )


def _copy(sources: Sequence[_Source], folder: Path) -> list[str]:
    """Copy captions, and of pictures only the pixels, under safe names; returns the names of the pictures."""
    names, stems = list[str](), list[str]()
    for source in sources:
        # No two pictures may share a stem, because that is what ties a caption to its picture.
        stems.append(_free_name(_safe_stem(source.path.stem), stems))
        names.append(stems[-1] + SUFFIXES[source.format])
        save_pixels(open_picture(source.path), folder / names[-1], source.format)
        if source.sidecar is not None:
            shutil.copyfile(source.sidecar, folder / (stems[-1] + captions.SUFFIX))
    return names


def _safe_stem(stem: str) -> str:
    plain = re.sub(r"[^\w-]+", "-", unicodedata.normalize("NFC", stem)).strip("-_")[:MAX_STEM].rstrip("-_")
    try:
        return safe_name(plain)
    except HomeError:
        return f"picture-{plain}".rstrip("-")


def _free_name(name: str, taken: Iterable[str]) -> str:
    """The name, with a number if it is taken; upper and lower case count as the same, as on some disks."""
    used = {other.casefold() for other in taken}
    names = (name, *(f"{name}-{number}" for number in range(2, len(used) + 2)))
    return next(free for free in names if free.casefold() not in used)

"""Datasets of the home: checked copies of the pictures that a person chose, with their captions."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from atelier.adapters.core.byte_size import format_bytes
from atelier.app.store.home import Home, HomeError, explain_write_errors, safe_name
from atelier.training.data.captions import SUFFIX
from atelier.training.data.dataset import MAX_PICTURES
from atelier.training.data.images import SAVED_AS, SUFFIX_OF, PictureError, save_pixels
from atelier.training.data.masks import mask_name, open_mask
from atelier.training.data.picture_check import PictureFacts, examine
from atelier.training.data.picture_folder import PictureFile, read_files

RESERVED_BYTES = 50_000_000    # left free on the disk for what a run writes
MAX_STEM = 40                  # characters; at four bytes each well below what file systems allow


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedDataset:
    """A new dataset. Reasons and warnings are complete sentences that name the file."""

    folder: Path
    usable: list[Path]
    refused: list[tuple[str, str]]      # file name, reason
    warnings: list[str]
    weights: dict[str, float]           # by the names in the folder, of pictures whose weight is not 1


def import_pictures(
    home: Home, name: str, files: Iterable[Path], *, trigger: str = "",
    weights: Mapping[str, float] = MappingProxyType({}), checked: Mapping[Path, PictureFacts] = MappingProxyType({}),
) -> ImportedDataset:   # fmt: skip
    """Make a dataset of those files that can be used; it appears complete or not at all. Each is decoded once.

    Captions are files with the picture's name, or lists of captions, among ``files`` or in the picture's folder. If
    the home has a dataset of this name, the new one gets a number: a run may still need the pictures of the old one.

    Args:
        home: where the dataset goes.
        name: what the person calls it.
        files: pictures, recognised by their content, and captions.
        trigger: the trigger word, by which the name of a kohya folder is known as a caption.
        weights: of pictures, by the names of the given files; the others have that of their folder, or 1.
        checked: files that were checked before and hold nothing but pixels: they are copied as they are.

    Raises:
        HomeError: a name that can't be used, too little room on the disk, or no permission.
        PictureError: none of the files can be used; the message gives each reason.
    """
    name = safe_name(name)
    found = read_files(files, trigger)
    # Pictures are encoded again and may come out larger than the program that wrote them made them.
    _check_disk_space(home.datasets, sum(_size(file.path) * (1 if file.path in checked else 2)
                                         for file in found.pictures[:MAX_PICTURES]))   # fmt: skip
    with explain_write_errors(home.datasets), TemporaryDirectory(dir=home.datasets, prefix=".import-") as partial:
        stage = Path(partial) / "pictures"
        stage.mkdir(mode=0o700)
        copies, refused, warnings = _copy_all(found.pictures, stage, checked)
        if not copies:
            reasons = "\n".join(reason for _, reason in refused) or "No pictures were given."
            raise PictureError(f"There are no pictures to train on.\n{reasons}")
        folder = stage.rename(home.datasets / _free_name(name, [path.name for path in home.datasets.iterdir()]))
    warnings += [*found.warnings, *_unknown_weights(weights, found.pictures)]
    given = {copy: weights.get(file.path.name, file.weight) for copy, file in copies.items()}
    different = {copy: weight for copy, weight in given.items() if weight != 1}
    return ImportedDataset(folder=folder, usable=[folder / copy for copy in copies], refused=refused,
                           warnings=warnings, weights=different)   # fmt: skip


def _copy_all(
    files: Sequence[PictureFile], folder: Path, checked: Mapping[Path, PictureFacts]
) -> tuple[dict[str, PictureFile], list[tuple[str, str]], list[str]]:
    """Check each file and copy its pixels and caption: those that can be used by the names of the copies, (name,
    reason) of the others, and warnings."""
    copies, refused, warnings = dict[str, PictureFile](), list[tuple[str, str]](), list[str]()
    known = dict[str, PictureFacts]()
    for number, file in enumerate(files):
        if len(copies) == MAX_PICTURES:
            warnings.append(f"At most {MAX_PICTURES} pictures can be used, so the last {len(files) - number} were "
                            "left out.")   # fmt: skip
            break
        # No two pictures may share a stem, because that is what ties a caption to its picture.
        stem = _free_name(_safe_stem(file.path.stem), [Path(copy).stem for copy in copies])
        try:
            facts, copy = _copy(file.path, folder / stem, known, checked.get(file.path))
        except PictureError as error:
            refused.append((file.path.name, str(error)))
            continue
        known[file.path.name if file.path.name not in known else str(file.path)] = facts
        copies[copy.name] = file
        if file.mask:
            _copy_mask(file.mask, copy.with_name(mask_name(copy)), facts, warnings)
        if file.text:
            copy.with_suffix(SUFFIX).write_text(file.text, encoding="utf-8")
    return copies, refused, warnings


def _copy_mask(mask: Path, copy: Path, facts: PictureFacts, warnings: list[str]) -> None:
    try:
        open_mask(mask, facts.size).save(copy)
    except PictureError as error:
        warnings.append(f"{error} The whole picture is learned.")


def _copy(
    path: Path, target: Path, known: Mapping[str, PictureFacts], facts: PictureFacts | None
) -> tuple[PictureFacts, Path]:
    """Write a picture's pixels, and nothing else of it, under ``target`` with the suffix of what it is saved as."""
    if facts is not None:
        copy = target.with_name(target.name + path.suffix)
        shutil.copyfile(path, copy)
        return facts, copy
    picture, facts = examine(path, known)
    form = SAVED_AS[facts.format]
    copy = target.with_name(target.name + SUFFIX_OF[form])
    save_pixels(picture, copy, form)
    return facts, copy


def _unknown_weights(weights: Mapping[str, float], pictures: Sequence[PictureFile]) -> list[str]:
    names = {file.path.name for file in pictures}
    return [f"{name} has a weight, but there is no picture of this name. Check its spelling."
            for name in weights if name not in names]   # fmt: skip


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0   # said when it is opened


def _check_disk_space(place: Path, needed: int) -> None:
    free = shutil.disk_usage(place).free
    if needed + RESERVED_BYTES > free:
        raise HomeError(
            f"The pictures need {format_bytes(needed)} and {format_bytes(RESERVED_BYTES)} must stay free, "
            f"but the disk with {place} has only {format_bytes(free)} left. Free some space, or choose a home on "
            "another disk."
        )


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

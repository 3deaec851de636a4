"""Folders of pictures as people have them: captions in files beside or in lists, and kohya's folders with repeats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from atelier.training.data.captions import (
    SUFFIXES,
    Captioner,
    is_caption_list,
    is_sidecar,
    match_captions,
    normal_name,
    read_caption,
    read_caption_list,
)
from atelier.training.data.images import PictureError, looks_like_picture
from atelier.training.data.masks import ENDING as MASK_ENDING
from atelier.training.data.masks import is_mask, mask_name

# A file with one of these endings was meant as a picture, so it is named when it is none; other files are no business
# of ours. What a file really is, is decided by its content.
PICTURE_SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .webp .gif .bmp .tif .tiff .heic .heif .avif .jxl .svg .psd .jp2 .qoi".split()
)
NAMED = 5                   # pictures named in one message before "and 7 more"
_REPEATS = re.compile(r"(\d{1,6})_(.*)", re.DOTALL)   # kohya's name of a folder: "10_rex dog"


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureFile:
    """A file that is meant as a training picture."""

    path: Path
    text: str = ""         # its caption as it was written; empty where the template is to be used
    weight: float = 1.0    # how often it is trained on, compared with the others
    mask: Path | None = None   # which part of it is learned; None: all


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureFiles:
    """Pictures that were found, unchecked; warnings are sentences that name the file."""

    pictures: list[PictureFile]
    warnings: list[str]


def find_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files of a folder that belong to a dataset, and warnings.

    They are its own, those in sub-folders that are named ``10_name`` as kohya's scripts want them (also one level
    deeper, as in ``img/10_name``), and those that a list of captions names.

    Raises:
        PictureError: it is no folder, or can't be opened.
    """
    own, folders = _contents(folder)
    found, warnings, left_out = [file for file in own if _is_wanted(file)], list[str](), list[Path]()
    for each in folders:
        if each.name.lower().startswith("reg"):
            warnings.append(f"The pictures in {each.name} are not used: for prior preservation, the base model draws "
                            "its own.")   # fmt: skip
        elif repeated := _repeat_folders(each):
            left_out += [inner for one in repeated for inner in _contents(one)[1]]
            found += [file for one in repeated for file in _contents(one)[0] if _is_wanted(file)]
            warnings += [f"{one.name} has 0 repeats, so its pictures are not used." for one in repeated
                         if int(one.name.partition("_")[0]) == 0]   # fmt: skip
        else:
            left_out.append(each)
    found += [file for each in own if is_caption_list(each) for file in _listed_files(each) if file not in found]
    return found, [*warnings, *_unsearched(left_out, found)]


def _unsearched(folders: Sequence[Path], found: Sequence[Path]) -> list[str]:
    warnings = []
    for folder in folders:
        with suppress(PictureError):   # one that may not be read
            unused = [file for file in _contents(folder)[0] if _is_picture(file) and file not in found]
            if unused:
                number = f"{len(unused)} pictures in {folder.name} are" if len(unused) > 1 else (
                    f"picture in {folder.name} is")   # fmt: skip
                warnings.append(f"The {number} not used: sub-folders are searched only if they are named as kohya's, "
                                "such as 10_rex. Move the pictures, or give that folder.")   # fmt: skip
    return warnings


def read_files(files: Iterable[Path], trigger: str = "") -> PictureFiles:
    """Tell pictures, captions and lists of captions apart, and give each picture its caption and weight.

    A caption or a mask that lies beside a picture counts as given. The words in the name of kohya's folders are the
    caption of pictures without one if they hold the trigger word.
    """
    given = list(dict.fromkeys(files))
    pictures = [file for file in given if _is_picture(file) and not is_mask(file)]
    lists = [file for file in given if is_caption_list(file)]
    sidecars = {file for file in given if is_sidecar(file)}
    beside = (picture.with_suffix(suffix) for picture in pictures for suffix in SUFFIXES)
    match = match_captions(pictures, sidecars | {file for file in beside if file.is_file() and is_sidecar(file)})
    warnings = list[str]()
    listed = {file: text for each in lists for file, text in _texts_of(each, pictures, warnings).items()}
    captioner = Captioner(trigger=trigger, subject="", template="")
    found = []
    for path in pictures:
        text = _text_beside(match.files.get(path), warnings) or listed.get(path, "")
        repeats = _REPEATS.fullmatch(path.parent.name)
        words = repeats[2].strip() if repeats else ""
        text = text or (words if trigger and captioner.has_trigger(words) else "")
        found.append(PictureFile(path=path, text=text, weight=float(repeats[1]) if repeats else 1.0,
                                 mask=_mask_of(path, given)))   # fmt: skip
    used = {file.mask.name for file in found if file.mask}
    warnings += [f"{file.name} is not used as a mask: no picture has the name before {MASK_ENDING}." for file in given
                 if is_mask(file) and file.name not in used]   # fmt: skip
    return PictureFiles(pictures=_relative_weights(found), warnings=[*warnings, *match.warnings])


def _mask_of(picture: Path, given: Sequence[Path]) -> Path | None:
    """The mask that was given for a picture, or that lies beside it."""
    beside = picture.with_name(mask_name(picture))
    named = [file for file in given if file.name == beside.name]
    return beside if beside.is_file() else next(iter(named), None)


def listed_names(names: Sequence[str]) -> str:
    """Names for a sentence, the first few of them if there are many."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _contents(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files and folders in a folder, without the hidden ones, by name."""
    try:
        entries = sorted(folder.iterdir(), key=lambda path: path.name)
    except NotADirectoryError:
        raise PictureError(f"{folder} is a file. Give the folder that contains the pictures.") from None
    except OSError as error:
        reason = error.strerror or error
        raise PictureError(f"{folder} can't be opened: {reason}. Check the path.") from None
    shown = [path for path in entries if not path.name.startswith(".")]
    return [path for path in shown if path.is_file()], [path for path in shown if path.is_dir()]


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in PICTURE_SUFFIXES or looks_like_picture(file)


def _is_wanted(file: Path) -> bool:
    return is_sidecar(file) or is_caption_list(file) or _is_picture(file)


def _repeat_folders(folder: Path) -> list[Path]:
    """The folder itself, or those in it, if they are named as kohya's."""
    if _REPEATS.fullmatch(folder.name):
        return [folder]
    with suppress(PictureError):   # a folder that may not be read
        return [each for each in _contents(folder)[1] if _REPEATS.fullmatch(each.name)]
    return []


def _relative_weights(pictures: Sequence[PictureFile]) -> list[PictureFile]:
    """Weights as multiples of the least one; kohya's 0 repeats mean that a picture is not used."""
    used = [picture for picture in pictures if picture.weight]
    least = min((picture.weight for picture in used), default=1.0)
    return [replace(picture, weight=picture.weight / least) for picture in used]


def _text_beside(file: Path | None, warnings: list[str]) -> str:
    if file is None:
        return ""
    try:
        text, warning = read_caption(file)
    except (OSError, ValueError) as error:
        text, warning = "", str(error)
    warnings.extend(filter(None, [warning]))
    return text


def _listed_files(captions: Path) -> list[Path]:
    """The files in sub-folders that a list of captions names."""
    with suppress(OSError, ValueError):
        root = captions.parent.resolve()
        named = (captions.parent / name for name in read_caption_list(captions) if "/" in name)
        return [file for file in named if file.resolve().is_relative_to(root) and file.is_file()]
    return []


def _texts_of(captions: Path, pictures: Sequence[Path], warnings: list[str]) -> dict[Path, str]:
    """The captions of a list, by picture."""
    try:
        entries = read_caption_list(captions)
    except (OSError, ValueError) as error:
        warnings.append(str(error))
        return {}
    keys: dict[str, str] = {}   # spelling → name in the list; a whole path comes before a name, and that before a stem
    paths = {name: normal_name(name.replace("\\", "/")) for name in entries}
    for spelled in (str, lambda path: path.rpartition("/")[2], lambda path: Path(path).stem):
        for name, path in paths.items():
            keys.setdefault(spelled(path), name)
    found: dict[Path, str] = {}
    for picture in pictures:
        inside = picture.relative_to(captions.parent) if picture.is_relative_to(captions.parent) else picture
        spellings = (normal_name(spelling) for spelling in (inside.as_posix(), picture.name, picture.stem))
        if name := next((keys[spelling] for spelling in spellings if spelling in keys), ""):
            found[picture] = name
    if unused := sorted(set(entries) - set(found.values())):
        warnings.append(f"{captions.name} has captions of pictures that are not here: {listed_names(unused)}.")
    return {picture: entries[name] for picture, name in found.items()}

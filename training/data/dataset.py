"""A dataset: the usable pictures of a folder with captions and sizes, and what is to be said about the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from PIL import Image

from atelier.training.data.buckets import Box, Size, bucket_sizes, crop_and_resize, crop_box, nearest_bucket
from atelier.training.data.captions import Captioner
from atelier.training.data.images import READABLE, PictureError
from atelier.training.data.masks import open_mask
from atelier.training.data.picture_check import PictureFacts, examine, near_twin, photograph_warning, verdicts
from atelier.training.data.picture_folder import PictureFile, find_files, listed_names, read_files

MAX_PICTURES = 200
_MAX_CROP_BYTES = 256_000_000   # of crops that are kept for the encoder; more of them are decoded again


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPicture:
    """A picture file with its caption and the bucket, width × height, that it is cropped and resized to."""

    path: Path
    caption: str
    width: int          # pixels of the whole picture, upright
    height: int
    bucket: Size        # width, height it is trained at
    weight: float = 1.0   # how often it is trained on, compared with the others
    mask: Path | None = None   # which part of it is learned: white in this file of the picture's aspect; None: all
    cropped: Image.Image | None = field(default=None, compare=False, repr=False)   # at the bucket's size, for encoding

    @property
    def crop(self) -> Box:
        """The part of the whole picture that the bucket shows."""
        return crop_box((self.width, self.height), self.bucket)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What was found in a folder. Reasons, warnings and notes are whole sentences that name the file."""

    usable: list[TrainingPicture] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)    # file name, reason
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, PictureFacts] = field(default_factory=dict)    # of the usable pictures, by name


def scan(
    folder: Path, *, trigger: str, subject: str, template: str, resolution: int, multiple: int,
    weights: Mapping[str, float] = MappingProxyType({}), draws_emoji: bool = False,
) -> Report:   # fmt: skip
    """Check, measure and caption the pictures of a folder, in the order of their names; each is decoded once.

    Args:
        folder: its own files, and those of sub-folders that are named as kohya's (``10_name``).
        trigger: word that calls the subject; fills ``{trigger}``.
        subject: what it is; fills ``{subject}``.
        template: caption of pictures that have none.
        resolution: side of the square bucket in pixels.
        multiple: every bucket side is a multiple of this.
        weights: of pictures, by file name; the others have that of their folder, or 1.
        draws_emoji: whether the base model draws emoji only, so that photographs are worth a warning.

    Raises:
        PictureError: there is no usable picture; the message gives each reason.
        SettingError: the resolution is below ``multiple``.
    """
    buckets = bucket_sizes(resolution, multiple)
    captioner = Captioner(trigger=trigger, subject=subject, template=template)
    files, messages = find_files(folder)
    found, report, room = read_files(files, trigger), Report(), _MAX_CROP_BYTES
    for number, file in enumerate(found.pictures):
        name = file.path.relative_to(folder).as_posix()
        if len(report.usable) == MAX_PICTURES:
            report.warnings.append(_overflow(found.pictures[number:]))
            break
        try:
            picture, facts = _examine(file, report.facts)
        except PictureError as error:
            report.refused.append((name, str(error)))
            continue
        bucket = nearest_bucket(facts.size, buckets)
        room -= bucket[0] * bucket[1] * 3
        report.usable.append(TrainingPicture(
            path=file.path, caption=captioner.caption(file.text), width=facts.width, height=facts.height,
            bucket=bucket, weight=weights.get(name, file.weight), mask=file.mask,
            cropped=crop_and_resize(picture, bucket) if room >= 0 else None))   # fmt: skip
        twin = near_twin(facts, report.facts)
        report.warnings.extend(verdict.sentence for verdict in verdicts(name, facts, twin, resolution, multiple)
                               if verdict.is_fault)   # fmt: skip
        report.facts[name] = facts
    if not report.usable:
        raise PictureError(_nothing_usable(folder, report.refused))
    photographs = photograph_warning(list(report.facts.values()), draws_emoji)
    report.warnings.extend([*messages, *found.warnings, *filter(None, [photographs])])
    return report


def _examine(file: PictureFile, known: Mapping[str, PictureFacts]) -> tuple[Image.Image, PictureFacts]:
    picture, facts = examine(file.path, known)
    if file.mask:
        open_mask(file.mask, facts.size)   # only to see that it can be used
    return picture, facts


def trigger_warning(usable: Sequence[TrainingPicture], captioner: Captioner) -> list[str]:
    """A sentence that names the pictures whose captions lack the trigger word, if there are any."""
    silent = [picture.path.name for picture in usable if not captioner.has_trigger(picture.caption)]
    if not silent:
        return []
    return [
        f"The trigger word '{captioner.trigger}' is missing from the caption of {listed_names(silent)}, so it will not "
        "be linked to these pictures. Add it to the caption, or write {trigger} there."
    ]


def _overflow(left_out: Sequence[PictureFile]) -> str:
    names = listed_names([file.path.name for file in left_out])
    return (
        f"At most {MAX_PICTURES} pictures can be used, so {names} were left out. "
        "Remove pictures that you don't need from the folder."
    )


def _nothing_usable(folder: Path, refused: Sequence[tuple[str, str]]) -> str:
    if refused:
        reasons = [reason for _, reason in refused]
        more = f"\nand {len(reasons) - 10} more." if len(reasons) > 10 else ""
        return f"None of the pictures in {folder} can be used:\n" + "\n".join(reasons[:10]) + more
    return (
        f"{folder} contains no pictures, but at least one {READABLE} is needed. Subfolders are not searched, unless "
        "they are named as kohya's, such as 10_rex: give the folder that the pictures themselves are in."
    )

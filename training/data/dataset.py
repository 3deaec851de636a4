"""A dataset: the usable pictures of a folder with captions and sizes, and what is to be said about the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from atelier.training.data.buckets import Box, Size, bucket_sizes, crop_and_resize, crop_box, nearest_bucket
from atelier.training.data.captions import Captioner, is_sidecar, orphan_warnings
from atelier.training.data.images import PictureError, looks_like_picture, open_picture, pixel_hash, sharpness

MAX_PICTURES = 200
# A file with one of these endings was meant as a picture, so it is named when it is none; other files are no business
# of ours. What a file really is, is decided by its content.
PICTURE_SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .webp .gif .bmp .tif .tiff .heic .heif .avif .jxl .svg .psd".split()
)
# Variance of the Laplacian at training size. The lowest of 16 sharp photographs (scikit-image's) and 283 drawn emoji at
# 64, 256 and 512 pixels was 47. With a blur of 2 pixels 31 of 32 photographs and 564 of 566 emoji at 256 and 512 pixels
# fell below 25; at 64 pixels, where edges are steep, 205 of 299 did.
LEAST_SHARPNESS = 25.0
SMALLEST_PART = 0.5         # of a picture's area that a crop may keep without a word
NAMED = 5                   # pictures named in one message before "and 7 more"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPicture:
    """A picture file with its caption and the bucket, width × height, that it is cropped and resized to."""

    path: Path
    caption: str
    width: int          # pixels of the whole picture, upright
    height: int
    bucket: Size        # width, height it is trained at

    @property
    def crop(self) -> Box:
        """The part of the whole picture that the bucket shows."""
        return crop_box((self.width, self.height), self.bucket)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What was found in a folder. Reasons and warnings are whole sentences that name the file."""

    usable: list[TrainingPicture] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)    # file name, reason
    warnings: list[str] = field(default_factory=list)


def scan(
    folder: Path, *, trigger: str, subject: str, template: str, resolution: int, multiple: int
) -> Report:
    """Check, measure and caption the pictures of a folder, in the order of their names.

    Args:
        folder: its own files are looked at, not those of sub-folders.
        trigger: word that calls the subject; fills ``{trigger}``.
        subject: what it is; fills ``{subject}``.
        template: caption of pictures without a text file of the same name beside them.
        resolution: side of the square bucket in pixels.
        multiple: every bucket side is a multiple of this.

    Raises:
        PictureError: there is no usable picture; the message gives each reason.
        SettingError: the resolution is below ``multiple``.
    """
    buckets = bucket_sizes(resolution, multiple)
    captioner = Captioner(trigger=trigger, subject=subject, template=template)
    files = _files(folder)
    candidates = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES or looks_like_picture(path)]
    sidecars = {path.stem: path for path in files if is_sidecar(path)}
    report, seen = Report(), dict[str, str]()
    for number, path in enumerate(candidates):
        if len(report.usable) == MAX_PICTURES:
            report.warnings.append(_overflow(candidates[number:]))
            break
        try:
            picture = _open_new(path, seen)
        except PictureError as error:
            report.refused.append((path.name, str(error)))
            continue
        bucket = nearest_bucket(picture.size, buckets)
        caption, warning = captioner.caption(sidecars.get(path.stem))
        report.usable.append(
            TrainingPicture(path=path, caption=caption, width=picture.width, height=picture.height, bucket=bucket)
        )
        report.warnings.extend(filter(None, (warning, *_quality(path.name, picture, bucket))))
    report.warnings.extend(orphan_warnings(files, candidates))
    report.warnings.extend(_trigger_warning(report.usable, captioner))
    if not report.usable:
        raise PictureError(_nothing_usable(folder, report.refused))
    return report


def _files(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir(), key=lambda path: path.name)
    except NotADirectoryError:
        raise PictureError(f"{folder} is a file. Give the folder that contains the pictures.") from None
    except OSError as error:
        reason = error.strerror or error
        raise PictureError(f"{folder} can't be opened: {reason}. Check the path.") from None
    return [path for path in entries if path.is_file() and not path.name.startswith(".")]


def _open_new(path: Path, seen: dict[str, str]) -> Image.Image:
    """Decode a picture, unless it shows the same as one before."""
    picture = open_picture(path)
    twin = seen.setdefault(pixel_hash(picture), path.name)
    if twin != path.name:
        raise PictureError(f"{path.name} is the same picture as {twin}, so it is left out.")
    return picture


def _quality(name: str, picture: Image.Image, bucket: Size) -> list[str]:
    """What may spoil the result, judged on what the model will see; an enlarged picture at its own size."""
    left, top, right, bottom = crop_box(picture.size, bucket)
    width, height = right - left, bottom - top
    warnings = []
    if width < bucket[0] / 2:
        warnings.append(
            f"{name} has only {picture.width} × {picture.height} pixels and is enlarged to {bucket[0]} × {bucket[1]}, "
            "so it will look soft. Use a larger version if you have one."
        )
    if width * height < SMALLEST_PART * picture.width * picture.height:
        warnings.append(
            f"{name} has {picture.width} × {picture.height} pixels, which is too long for any training size, so only "
            "its middle is used. Crop it to the subject."
        )
    size = min(bucket[0], round(width)), min(bucket[1], round(height))
    if sharpness(crop_and_resize(picture, size)) < LEAST_SHARPNESS:
        warnings.append(f"{name} looks blurred, and the model would learn the blur. Use a sharper picture.")
    return warnings


def _trigger_warning(usable: Sequence[TrainingPicture], captioner: Captioner) -> list[str]:
    silent = [picture.path.name for picture in usable if not captioner.has_trigger(picture.caption)]
    if not silent:
        return []
    return [
        f"The trigger word '{captioner.trigger}' is missing from the caption of {_listed(silent)}, so it will not be "
        "linked to these pictures. Add it to the caption, or write {trigger} there."
    ]


def _overflow(left_out: Sequence[Path]) -> str:
    return (
        f"At most {MAX_PICTURES} pictures can be used, so {_listed([path.name for path in left_out])} were left out. "
        "Remove pictures that you don't need from the folder."
    )


def _nothing_usable(folder: Path, refused: Sequence[tuple[str, str]]) -> str:
    if refused:
        reasons = [reason for _, reason in refused]
        more = f"\nand {len(reasons) - 10} more." if len(reasons) > 10 else ""
        return f"None of the pictures in {folder} can be used:\n" + "\n".join(reasons[:10]) + more
    return (
        f"{folder} contains no pictures, but at least one PNG, JPEG or WebP is needed. Subfolders are not searched: "
        "give the folder that the pictures themselves are in."
    )


def _listed(names: Sequence[str]) -> str:
    """Names for a sentence, the first few of them if there are many."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more

"""The draft: what a person has entered on the Create page, saved on disk so that nothing has to be entered twice."""

from __future__ import annotations

import json
import shutil
import threading
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

from PIL import Image

from atelier.adapters.core.atomic_write import atomic_write
from atelier.adapters.core.parse import parse_json
from atelier.app.store.datasets import SUFFIXES
from atelier.app.store.home import Home
from atelier.app.text import create as words
from atelier.training.data.captions import SUFFIX, is_sidecar, read_caption
from atelier.training.data.images import PictureError, check_picture, open_picture, pixel_hash, save_pixels, sharpness

MAX_PICTURES = 200
_THUMBNAIL_SIDE = 176         # pixels: twice what the page shows, for screens of high density
_MIN_SIDE = 64                # pixels; smaller pictures teach hardly anything
_MIN_SHARPNESS = 12.0         # variance of the Laplacian of the thumbnail; sharp pictures have hundreds
_WRITE_LOCK = threading.Lock()   # the page saves its controls while pictures are being added


@dataclass(frozen=True, slots=True)
class DraftPicture:
    """One picture that was added: accepted, with a thumbnail and maybe a warning, or refused, with the reason."""

    id: str
    name: str            # what the file was called
    file: str = ""       # file name in the draft's folder; empty when refused
    hash: str = ""       # of the pixels
    thumb: str = ""      # data URI
    note: str = ""       # warning, or why it was refused
    caption: str = ""    # from a text file of the same name

    @property
    def refused(self) -> bool:
        """Whether the picture can't be used."""
        return not self.file


@dataclass(frozen=True, slots=True)
class Draft:
    """What has been entered on the Create page."""

    pictures: tuple[DraftPicture, ...] = ()
    what: str = "object"                                       # object, animal, person, style
    subject: str = ""
    name: str = ""
    preset: str = ""
    changes: dict[str, Any] = field(default_factory=dict)      # settings that differ from the preset

    @property
    def usable(self) -> list[DraftPicture]:
        """The pictures that can be trained on."""
        return [picture for picture in self.pictures if not picture.refused]


def load_draft(home: Home) -> Draft:
    """Read the draft; an empty one when there is none or it is of another version."""
    try:
        values = parse_json((_folder(home) / "draft.json").read_text(encoding="utf-8"))
        pictures = tuple(DraftPicture(**picture) for picture in values.pop("pictures"))
        draft = Draft(pictures=pictures, **values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Draft()
    return draft if _is_sound(draft) else Draft()


def _is_sound(draft: Draft) -> bool:
    """Whether every field has a value of its type, which the pages count on."""
    texts = [draft.what, draft.subject, draft.name, draft.preset]
    texts += [value for picture in draft.pictures for value in asdict(picture).values()]
    return isinstance(draft.changes, dict) and all(isinstance(text, str) for text in texts)


def edit_draft(home: Home, **values: Any) -> Draft:
    """Change fields of the draft and save it; returns the new draft."""
    with _WRITE_LOCK:
        return _save(home, replace(load_draft(home), **values))


def save_setting(home: Home, name: str, value: Any, default: Any) -> Draft:
    """Save a setting that differs from the preset's ``default``; remove one that does not, or no longer does."""
    with _WRITE_LOCK:
        draft = load_draft(home)
        changes = {key: changed for key, changed in draft.changes.items() if key != name}
        if value is not None and value != default:
            changes[name] = value
        return _save(home, replace(draft, changes=changes))


def _save(home: Home, draft: Draft) -> Draft:
    _folder(home).mkdir(mode=0o700, exist_ok=True)
    atomic_write(_folder(home) / "draft.json", json.dumps(asdict(draft)).encode())
    return draft


def clear_draft(home: Home) -> None:
    """Delete the draft and its pictures."""
    shutil.rmtree(_folder(home), ignore_errors=True)


def add_pictures(home: Home, files: Iterable[Path]) -> Iterator[Draft]:
    """Add files to the draft: copies of those that are pictures, and of the others the name and why they can't be used.

    A text file is the caption of the picture with the same name. Yields the draft after each file, because large
    pictures take a moment.
    """
    _folder(home).mkdir(mode=0o700, exist_ok=True)
    for file in sorted(files, key=is_sidecar):
        if is_sidecar(file):
            yield _add_caption(home, file)
            continue
        usable = load_draft(home).usable
        if len(usable) >= MAX_PICTURES:
            picture = DraftPicture(uuid4().hex, file.name, note=words.too_many_pictures(file.name, MAX_PICTURES))
        else:
            picture = _check_picture(home, file, {known.hash: known.name for known in usable})
        yield edit_draft(home, pictures=(*load_draft(home).pictures, picture))


def remove_picture(home: Home, picture_id: str) -> Draft:
    """Remove a picture and its caption from the draft; returns the new draft."""
    pictures = load_draft(home).pictures
    for picture in pictures:
        if picture.id == picture_id and not picture.refused:
            path = _folder(home) / picture.file
            path.unlink(missing_ok=True)
            path.with_suffix(SUFFIX).unlink(missing_ok=True)
    return edit_draft(home, pictures=tuple(picture for picture in pictures if picture.id != picture_id))


def picture_files(home: Home, draft: Draft) -> list[Path]:
    """Paths of the pictures to train on, in the order in which they were added."""
    return [_folder(home) / picture.file for picture in draft.usable]


def _folder(home: Home) -> Path:
    return home.state / "draft"


def _check_picture(home: Home, file: Path, known: dict[str, str]) -> DraftPicture:
    identity = uuid4().hex
    try:
        format, image = check_picture(file).format, open_picture(file)
    except PictureError as error:
        return DraftPicture(identity, file.name, note=str(error))
    pixels = pixel_hash(image)
    if pixels in known:
        return DraftPicture(identity, file.name, note=words.duplicate(file.name, known[pixels]))
    copy = identity + SUFFIXES[format]
    save_pixels(image, _folder(home) / copy, format)   # the place and camera of the upload stay out of the home
    thumb = image.copy()
    thumb.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    return DraftPicture(identity, file.name, copy, pixels, _data_uri(thumb), _warning(image, thumb))


def _add_caption(home: Home, file: Path) -> Draft:
    """Copy a caption to its picture, where ``import_pictures`` finds it."""
    draft = load_draft(home)
    picture = next((one for one in draft.usable if Path(one.name).stem == file.stem), None)
    try:
        if picture is None:
            raise ValueError(words.no_picture_for(file.name))
        text = read_caption(file)
        shutil.copyfile(file, (_folder(home) / picture.file).with_suffix(SUFFIX))
    except ValueError as error:
        refused = DraftPicture(uuid4().hex, file.name, note=str(error))
        return edit_draft(home, pictures=(*draft.pictures, refused))
    captioned = replace(picture, caption=text)
    return edit_draft(home, pictures=tuple(captioned if one is picture else one for one in draft.pictures))


def _warning(image: Image.Image, thumb: Image.Image) -> str:
    if min(image.size) < _MIN_SIDE:
        return words.SMALL
    return words.BLURRED if sharpness(thumb) < _MIN_SHARPNESS else ""


def _data_uri(thumb: Image.Image) -> str:
    buffer = BytesIO()
    thumb.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + b64encode(buffer.getvalue()).decode()

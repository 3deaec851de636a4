"""The draft: what a person has entered on the Create page, saved on disk so that nothing has to be entered twice.

Files of pictures never change: an edited picture is a new file, and those of the pictures that were there before the
last removal or edit stay until the next, so that it can be undone.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

from PIL import Image

from atelier.adapters.core.atomic_write import atomic_write
from atelier.adapters.core.parse import parse_json
from atelier.app.store.home import Home
from atelier.app.text import create as words
from atelier.training.config.train_config import MAX_WEIGHT, MIN_WEIGHT
from atelier.training.data.captions import (
    SUFFIX,
    is_caption_list,
    is_sidecar,
    match_captions,
    normal_name,
    read_caption,
    read_caption_list,
)
from atelier.training.data.images import SAVED_AS, SUFFIX_OF, PictureError, save_pixels
from atelier.training.data.picture_check import PictureFacts, examine, near_twin

MAX_PICTURES = 200
_THUMBNAIL_SIDE = 176         # pixels: twice what the page shows, for screens of high density
MAX_CAPTION = 2000            # characters; text encoders read some hundreds
_WRITE_LOCK = threading.Lock()   # the page saves its controls while pictures are being added, in several tabs
_READ_LOCK = threading.Lock()    # dropped files are read by one tab at a time


@dataclass(frozen=True, slots=True)
class DraftPicture:
    """One picture that was added: accepted, with a thumbnail and maybe a warning, or refused, with the reason."""

    id: str
    name: str            # what the file was called
    file: str = ""       # file name in the draft's folder, of a copy that holds nothing but pixels; empty when refused
    thumb: str = ""      # data URI
    note: str = ""       # why it was refused, or what is to be said about its caption
    caption: str = ""    # as it was written; empty: the template
    weight: float = 1.0  # how often it is trained on, compared with the others
    mask: str = ""       # likewise, of a mask: what is white is learned
    twin: str = ""       # id of an earlier picture that looks nearly the same
    facts: PictureFacts | None = None   # what was found when it was decoded

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
        pictures = tuple(_picture(picture) for picture in values.pop("pictures"))
        draft = Draft(pictures=pictures, **values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Draft()
    return draft if _is_sound(draft) else Draft()


def _is_sound(draft: Draft) -> bool:
    """Whether every field has a value of its type, which the pages count on."""
    texts = [draft.what, draft.subject, draft.name, draft.preset]
    for picture in draft.pictures:
        texts += [picture.id, picture.name, picture.file, picture.thumb, picture.note, picture.caption, picture.mask,
                  picture.twin]   # fmt: skip
    weights = [picture.weight for picture in draft.pictures]
    return (isinstance(draft.changes, dict) and all(isinstance(text, str) for text in texts)
            and all(isinstance(weight, int | float) for weight in weights))   # fmt: skip


def _picture(values: dict[str, Any]) -> DraftPicture:
    """A picture from its JSON; what an older version wrote beside is passed over."""
    known = {f.name: values[f.name] for f in fields(DraftPicture) if f.name in values}
    return DraftPicture(**{**known, "facts": PictureFacts.from_dict(known["facts"]) if known.get("facts") else None})


def edit_draft(home: Home, **values: Any) -> Draft:
    """Change fields of the draft and save it; returns the new draft."""
    return _change(home, lambda draft: replace(draft, **values))


def _change(home: Home, change: Callable[[Draft], Draft]) -> Draft:
    with _WRITE_LOCK:
        return _save(home, change(load_draft(home)))


def save_setting(home: Home, name: str, value: Any, default: Any) -> Draft:
    """Save a setting that differs from the preset's ``default``; remove one that does not, or no longer does."""
    with _WRITE_LOCK:
        draft = load_draft(home)
        changes = {key: changed for key, changed in draft.changes.items() if key != name}
        if value is not None and value != default:
            changes[name] = value
        return _save(home, replace(draft, changes=changes))


def _save(home: Home, draft: Draft) -> Draft:
    _write_json(home, "draft.json", asdict(draft))
    return draft


def _write_json(home: Home, name: str, values: dict[str, Any]) -> None:
    _folder(home).mkdir(mode=0o700, exist_ok=True)
    atomic_write(_folder(home) / name, json.dumps(values).encode())


def clear_draft(home: Home) -> None:
    """Delete the draft and its pictures."""
    shutil.rmtree(_folder(home), ignore_errors=True)


def add_pictures(home: Home, files: Iterable[Path]) -> Iterator[Draft]:
    """Add files to the draft: the pixels of those that are pictures, and of the others the name and why they can't be
    used. A picture is decoded here and not again before it is trained on.

    A text file is the caption of the picture with the same name. Yields the draft after each file, because large
    pictures take a moment.
    """
    _folder(home).mkdir(mode=0o700, exist_ok=True)
    for file in sorted(files, key=lambda file: is_sidecar(file) or is_caption_list(file)):
        if is_caption_list(file):
            yield _add_captions(home, file)
        elif is_sidecar(file):
            yield _add_caption(home, file)
        else:
            yield _append(home, _new_picture(home, file))


def _append(home: Home, picture: DraftPicture) -> Draft:
    return _change(home, lambda draft: replace(draft, pictures=(*draft.pictures, picture)))


def receive_files(home: Home, files: Iterable[Path]) -> None:
    """Put dropped files where :func:`read_received` finds them, even after a crash; takes no time."""
    for number, file in enumerate(files):
        place = _folder(home) / "received" / f"{time.time_ns():020d}-{number:04d}"
        place.mkdir(mode=0o700, parents=True)
        try:
            os.link(file, place / file.name)
        except OSError:   # another disk, or one without hard links
            shutil.copyfile(file, place / file.name)


def read_received(home: Home) -> Iterator[tuple[Draft, int]]:
    """Add the files that were received to the draft; yields the draft after each, and how many are left.

    Files that come meanwhile, through other tabs too, are read as well. Whoever calls at the same time waits.
    """
    with _READ_LOCK:
        while files := sorted(_folder(home).glob("received/*/*"), key=lambda file: (_is_text(file), file)):
            for draft in add_pictures(home, files[:1]):
                shutil.rmtree(files[0].parent, ignore_errors=True)
                yield draft, len(files) - 1


def _is_text(file: Path) -> bool:
    return is_sidecar(file) or is_caption_list(file)


def remove_pictures(home: Home, ids: Collection[str]) -> Draft:
    """Remove pictures from the draft, which :func:`undo_change` takes back; returns the new draft."""
    return change_pictures(home, words.pictures_removed(len(ids)), lambda pictures: tuple(
        picture for picture in pictures if picture.id not in ids))   # fmt: skip


def change_pictures(
    home: Home, label: str, change: Callable[[tuple[DraftPicture, ...]], tuple[DraftPicture, ...]]
) -> Draft:
    """Change the pictures so that it can be undone; ``label`` says what was done. Returns the new draft."""
    with _WRITE_LOCK:
        draft, (_, outdated) = load_draft(home), _undo_state(home)
        _write_json(home, "undo.json", {"label": label, "pictures": [asdict(picture) for picture in draft.pictures]})
        draft = _save(home, replace(draft, pictures=change(draft.pictures)))
        _delete_files(home, outdated, draft.pictures)
        return draft


def undo_label(home: Home) -> str:
    """What :func:`undo_change` would take back; empty when there is nothing."""
    return _undo_state(home)[0]


def undo_change(home: Home) -> Draft:
    """Bring the pictures back as they were before the last removal or edit; those added since stay as well."""
    with _WRITE_LOCK:
        draft, (label, before) = load_draft(home), _undo_state(home)
        if not label:
            return draft
        ids = {picture.id for picture in before}
        restored = (*before, *(picture for picture in draft.pictures if picture.id not in ids))
        _folder(home).joinpath("undo.json").unlink(missing_ok=True)
        _delete_files(home, draft.pictures, restored)
        return _save(home, replace(draft, pictures=restored))


def _undo_state(home: Home) -> tuple[str, tuple[DraftPicture, ...]]:
    try:
        values = parse_json((_folder(home) / "undo.json").read_text(encoding="utf-8"))
        before = Draft(pictures=tuple(_picture(picture) for picture in values["pictures"]))
        return (str(values["label"]), before.pictures) if _is_sound(before) else ("", ())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return "", ()


def _delete_files(home: Home, outdated: Sequence[DraftPicture], wanted: Sequence[DraftPicture]) -> None:
    """Delete the files of pictures, but those that are wanted or that can be brought back."""
    needed = {picture.file for picture in (*wanted, *_undo_state(home)[1])}
    for picture in outdated:
        if picture.file and picture.file not in needed:
            for path in _files_of(home, picture):
                path.unlink(missing_ok=True)


def _files_of(home: Home, picture: DraftPicture) -> list[Path]:
    path = _folder(home) / picture.file
    return [path, path.with_suffix(SUFFIX), *([path.with_name(picture.mask)] if picture.mask else [])]


def set_weight(home: Home, picture_id: str, weight: float) -> Draft:
    """Set how often a picture is trained on, within the limits; returns the new draft."""
    weight = min(max(weight, MIN_WEIGHT), MAX_WEIGHT)
    return _change_picture(home, picture_id, lambda picture: replace(picture, weight=weight))


def set_caption(home: Home, picture_id: str, text: str, note: str = "") -> Draft:
    """Set a picture's caption; empty for the template. Returns the new draft.

    Raises:
        ValueError: it is too long.
    """
    if len(text) > MAX_CAPTION:
        raise ValueError(words.caption_too_long(len(text), MAX_CAPTION))
    return _change_picture(home, picture_id, lambda picture: replace(picture, caption=text, note=note))


def _change_picture(home: Home, picture_id: str, change: Callable[[DraftPicture], DraftPicture]) -> Draft:
    return _change(home, lambda draft: replace(draft, pictures=tuple(
        change(one) if one.id == picture_id and not one.refused else one for one in draft.pictures)))   # fmt: skip


def picture_files(home: Home, draft: Draft) -> list[Path]:
    """Paths of the pictures to train on, in the order in which they were added, with their captions beside them."""
    for picture in draft.usable:
        caption = (_folder(home) / picture.file).with_suffix(SUFFIX)
        if picture.caption:
            atomic_write(caption, picture.caption.encode())
        else:
            caption.unlink(missing_ok=True)
    return [_folder(home) / picture.file for picture in draft.usable]


def _folder(home: Home) -> Path:
    return home.state / "draft"


def checked_files(home: Home, draft: Draft) -> dict[Path, PictureFacts]:
    """The draft's copies and what is known of them, so that the import need not decode them again."""
    return {_folder(home) / picture.file: picture.facts for picture in draft.usable if picture.facts is not None}


def _new_picture(home: Home, file: Path) -> DraftPicture:
    identity, draft = uuid4().hex, load_draft(home)
    known = {picture.id: picture.facts for picture in draft.usable if picture.facts is not None}
    if len(draft.usable) >= MAX_PICTURES:
        return DraftPicture(identity, file.name, note=words.too_many_pictures(file.name, MAX_PICTURES))
    try:
        image, facts = examine(file, {picture.name: known[picture.id] for picture in draft.usable
                                      if picture.id in known})   # fmt: skip
    except PictureError as error:
        return DraftPicture(identity, file.name, note=str(error))
    form = SAVED_AS[facts.format]
    copy = f"{identity}{SUFFIX_OF[form]}"
    save_pixels(image, _folder(home) / copy, form)
    return DraftPicture(identity, file.name, copy, thumbnail_uri(image), twin=near_twin(facts, known), facts=facts)


def _add_caption(home: Home, file: Path) -> Draft:
    pictures = {Path(picture.name): picture for picture in load_draft(home).usable}
    try:
        matches = match_captions(list(pictures), [Path(file.name)]).files
        if not matches:
            raise ValueError(words.no_picture_for(file.name))
        text, warning = read_caption(file)
    except (OSError, ValueError) as error:
        return _append(home, DraftPicture(uuid4().hex, file.name, note=str(error)))
    return [set_caption(home, pictures[name].id, text, warning) for name in matches][-1]


def _add_captions(home: Home, file: Path) -> Draft:
    """The captions of a list, by the names of the pictures in it."""
    try:
        entries = read_caption_list(file)
    except (OSError, ValueError) as error:
        return _append(home, DraftPicture(uuid4().hex, file.name, note=str(error)))
    stems = {normal_name(Path(name.replace("\\", "/")).stem): text for name, text in entries.items()}
    for picture in load_draft(home).usable:
        if (text := stems.get(normal_name(Path(picture.name).stem))) and not picture.caption:
            set_caption(home, picture.id, text)
    return load_draft(home)


def draft_file(home: Home, name: str) -> Path:
    """Where a picture or a mask of the draft lies, by its file name."""
    return _folder(home) / name


def thumbnail_uri(picture: Image.Image) -> str:
    """A picture as small as the page shows it, as a data URI."""
    thumb, buffer = picture.copy(), BytesIO()
    thumb.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    thumb.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + b64encode(buffer.getvalue()).decode()

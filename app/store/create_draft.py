"""The draft: what a person has entered on the Create page, saved on disk so that nothing has to be entered twice."""

from __future__ import annotations

import json
import shutil
import threading
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
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
_WRITE_LOCK = threading.Lock()   # the page saves its controls while pictures are being added, in several tabs


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
        texts += [picture.id, picture.name, picture.file, picture.thumb, picture.note, picture.caption, picture.twin]
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
    _folder(home).mkdir(mode=0o700, exist_ok=True)
    atomic_write(_folder(home) / "draft.json", json.dumps(asdict(draft)).encode())
    return draft


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


def remove_picture(home: Home, picture_id: str) -> Draft:
    """Remove a picture and its caption from the draft; returns the new draft."""
    for picture in load_draft(home).pictures:
        if picture.id == picture_id and not picture.refused:
            path = _folder(home) / picture.file
            path.unlink(missing_ok=True)
            path.with_suffix(SUFFIX).unlink(missing_ok=True)
    return _change(home, lambda draft: replace(
        draft, pictures=tuple(picture for picture in draft.pictures if picture.id != picture_id)))   # fmt: skip


def set_weight(home: Home, picture_id: str, weight: float) -> Draft:
    """Set how often a picture is trained on, within the limits; returns the new draft."""
    weight = min(max(weight, MIN_WEIGHT), MAX_WEIGHT)
    return _change_picture(home, picture_id, lambda picture: replace(picture, weight=weight))


def set_caption(home: Home, picture_id: str, text: str, note: str = "") -> Draft:
    """Set a picture's caption, where the import finds it; empty for the template. Returns the new draft."""
    def change(picture: DraftPicture) -> DraftPicture:
        """Write the caption beside the picture."""
        file = (_folder(home) / picture.file).with_suffix(SUFFIX)
        if text:
            atomic_write(file, text.encode())
        else:
            file.unlink(missing_ok=True)
        return replace(picture, caption=text, note=note)

    return _change_picture(home, picture_id, change)


def _change_picture(home: Home, picture_id: str, change: Callable[[DraftPicture], DraftPicture]) -> Draft:
    return _change(home, lambda draft: replace(draft, pictures=tuple(
        change(one) if one.id == picture_id and not one.refused else one for one in draft.pictures)))   # fmt: skip


def picture_files(home: Home, draft: Draft) -> list[Path]:
    """Paths of the pictures to train on, in the order in which they were added."""
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
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    return DraftPicture(identity, file.name, copy, _data_uri(image), twin=near_twin(facts, known), facts=facts)


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


def _data_uri(thumb: Image.Image) -> str:
    buffer = BytesIO()
    thumb.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + b64encode(buffer.getvalue()).decode()

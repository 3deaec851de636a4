"""Import adapters into the library, export, merge, resize and extract them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.adapter_info import AdapterInfo, is_adapter
from atelier.adapters.formats.detect import AdapterContents
from atelier.adapters.formats.export import ExportReport, export_mix
from atelier.adapters.formats.foreign_metadata import NO_NAMES, find_sampler
from atelier.adapters.formats.imported_layers import algorithm_names
from atelier.adapters.formats.low_rank import EXACT, LowRankLimits, WeightOf, mix_to_lora
from atelier.adapters.formats.native import (
    content_hash,
    data_hash,
    load_adapter,
    read_metadata,
    read_native_metadata,
    save_adapter,
)
from atelier.adapters.formats.not_adapters import is_learned_word
from atelier.adapters.formats.read_foreign import count_zero_layers, read_foreign
from atelier.adapters.formats.safetensors_header import FileError
from atelier.adapters.formats.tiny import TinyReport, shrink
from atelier.adapters.textual_inversion import is_textual_inversion, read_textual_inversions
from atelier.app.services.draw import suggested_prompt
from atelier.app.store.foreign_hashes import remember_file
from atelier.app.store.home import MAX_NAME, Home, HomeError, explain_write_errors, new_name, safe_name
from atelier.app.store.library import SUFFIX, AdapterCard, find_adapter, list_adapters, read_thumbnail
from atelier.app.store.textual_inversions import TextualInversionCard, keep_textual_inversion
from atelier.training.base_models.base_model import load
from atelier.training.base_models.identify import identify
from atelier.training.base_models.weights import extract_lora, save_merged, weight_lookup
from atelier.training.runs.save_adapter import free_path
from atelier.training.sampling import fidelity

CardStrength = tuple[AdapterCard, float]    # an adapter and its strength
MAX_METADATA_CHARACTERS = 200_000           # of a foreign file's own metadata; beyond that only short entries are kept


@dataclass(frozen=True, slots=True)
class ImportedFile:
    """What became of a file that was imported: an adapter, or a textual inversion."""

    name: str
    family: str
    source: str              # hash of its contents, see ``imported_sources``; empty for a textual inversion
    notes: tuple[str, ...]   # what a person should know, in complete sentences


@dataclass(frozen=True, slots=True)
class ImportedAdapter:
    """An adapter that was imported, and notes on it."""

    card: AdapterCard
    notes: tuple[str, ...]   # what a person should know, in complete sentences


def import_any(home: Home, path: Path, name: str = "", known: Mapping[str, str] | None = None) -> ImportedFile:
    """Import a file of any tool: an adapter (see :func:`import_file`), or a textual inversion.

    Raises:
        FileError, HomeError: as :func:`import_file`.
    """
    if not is_textual_inversion(path):
        taken = import_file(home, path, name, known)
        return ImportedFile(taken.card.name, taken.card.family, taken.card.source, taken.notes)
    cards = _import_words(home, path, name)
    tokens = ", ".join(card.token for card in cards)
    return ImportedFile(cards[0].name, cards[0].family, "", (
        f"It is a textual inversion for the word {tokens}.",))   # fmt: skip


def _import_words(home: Home, path: Path, name: str = "") -> list[TextualInversionCard]:
    """Keep every word of a file."""
    words = read_textual_inversions(path)
    if name and len(words) > 1:
        raise HomeError(f"--name names one word, but {path.name} contains {len(words)}. Omit --name.")
    return [keep_textual_inversion(home, word, safe_name(name or _plain_name(word.token))) for word in words]


def _import_words_beside(home: Home, path: Path) -> list[str]:
    """Keep the words that an adapter's file also contains; returns what could not be kept."""
    try:
        _import_words(home, path)
    except (FileError, HomeError) as error:
        return [f"Its text embeddings were not added: {error}"]
    return []


def import_file(home: Home, path: Path, name: str = "", known: Mapping[str, str] | None = None) -> ImportedAdapter:
    """Copy an adapter of any tool into the library; a name that is taken gets a number.

    Args:
        home: its library gets the adapter.
        path: the file.
        name: the adapter's name; empty for that of the file.
        known: what was imported before (:func:`imported_sources`); given for many files, to read the library only once.

    Raises:
        FileError: it is not an adapter, or one that can't be used.
        HomeError: it was imported before, the name can't be used, or the library can't be written.
    """
    wanted = new_name(home, name) if name else _name_from(path)
    words = False
    if _is_own(path):
        adapters, notes, info = load_adapter(path), (), AdapterInfo.from_metadata(read_native_metadata(path))
    else:
        adapters, contents = read_foreign(path)
        notes, info = _notes(adapters, contents), _info(contents, path)
        words = any(is_learned_word(key, contents.shapes[key]) for key in contents.unknown)
    source = content_hash(adapters)
    if before := (imported_sources(home) if known is None else known).get(source):
        raise HomeError(f"{path.name} is already in your library as {before}.")
    with explain_write_errors(home.adapters):
        target = free_path(home.adapters, wanted)
        info = replace(info, name=target.stem, source=source, file_hash=data_hash(path), notes=notes)
        save_adapter(target, adapters, info.to_metadata())
    notes = (*notes, *(_import_words_beside(home, path) if words else ()))
    card = find_adapter(home, target.stem)
    remember_file(card, path)
    return ImportedAdapter(card, notes)


def imported_sources(home: Home) -> dict[str, str]:
    """What was imported before: the hash of a file's contents → the adapter's name."""
    return {card.source: card.name for card in list_adapters(home) if card.source}


def _is_own(path: Path) -> bool:
    return is_adapter(read_metadata(path))


def _name_from(path: Path) -> str:
    """A valid name made of the file's, or of its folder's where all such files have the same name."""
    return _plain_name(path.absolute().parent.name if path.stem in NO_NAMES else path.stem)


def _plain_name(text: str) -> str:
    """A valid name made of any text."""
    plain = "".join(c if c in " -_" or unicodedata.category(c)[0] in "LMN" else "-" for c in text)
    return re.sub(r"-+", "-", plain).strip(" -_")[:MAX_NAME] or "imported"


def _notes(adapters: AdapterSet, contents: AdapterContents) -> tuple[str, ...]:
    empty = count_zero_layers(adapters)
    note = f"{empty} of its {len(adapters)} layers change nothing: they contain only zeros, as before training."
    return (*contents.notes, *([note] if empty else []))


def _info(contents: AdapterContents, path: Path) -> AdapterInfo:
    theirs = {key: value for key, value in contents.metadata.items() if key.startswith(("ss_", "modelspec."))}
    if sum(map(len, theirs.values())) > MAX_METADATA_CHARACTERS:
        theirs = {key: value for key, value in theirs.items() if len(value) < 1000}
    return replace(
        AdapterInfo.from_metadata(theirs), family=contents.family, trigger=contents.trigger, created=_now(),
        algorithms=tuple(contents.algorithms), sampler=find_sampler(path, contents.metadata),
    )   # fmt: skip


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def export_adapters(
    parts: Sequence[CardStrength], form: str, out: Path, precision: str = "fp32", *, limits: LowRankLimits = EXACT,
    base: str = "", recipe: bool = False,
) -> tuple[Path, ExportReport]:   # fmt: skip
    """Write adapters as one file for another tool.

    Args:
        parts: the adapters and their strengths.
        form: one of ``write_foreign.FORMS``.
        out: the file to write or replace, or a folder, where the file is named after the first adapter.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        limits: how much of each update to keep, and in which rank.
        base: the base model for updates that depend on it; empty for that of the first adapter.
        recipe: whether the file includes how it was trained, which can contain folder names and prompts.

    Returns:
        The file, and a report on it.

    Raises:
        HomeError: ``out`` can't be written, or is one of the adapters.
        ConvertError, FileError, BaseError: an adapter or its base model can't be read, or not written in this form.
    """
    path = export_path(parts[0][0], out)
    if any(path.resolve() == card.path.resolve() for card, _ in parts):
        raise HomeError(f"{path} is the adapter itself. Choose another file for --out.")
    files = [(card.path, strength) for card, strength in parts]
    with explain_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        report = export_mix(
            files, path, form, precision, limits=limits, weight_of=_weights(parts, base), recipe=recipe)
    if len(parts) == 1:
        remember_file(parts[0][0], path)
    return path, report


def unet_error(parts: Sequence[CardStrength], exported: Path, base: str = "") -> float:
    """Relative error of the UNet's output with the exported file instead of the adapters; see ``fidelity.unet_error``.

    Raises:
        HomeError, BaseError, FileError, MountError: the base or the file can't be used.
    """
    model = load(_base(parts, base))
    mix = Mix(tuple((load_adapter(card.path, model.device), strength) for card, strength in parts))
    other = Mix(((read_foreign(exported)[0].to(model.device), 1.0),))
    return fidelity.unet_error(model, mix, other, suggested_prompt(parts[0][0]))


def export_tiny(parts: Sequence[CardStrength], out: Path, bits: int) -> TinyReport:
    """Write one adapter with few bits per value, for Atelier.

    Raises:
        HomeError: there are several adapters or a strength other than 1, or ``out`` can't be written.
        TinyError, FileError: its kind can't be written so, or it can't be read.
    """
    (card, strength), *others = parts
    if others or strength != 1:
        raise HomeError("A tiny file holds one adapter at strength 1. Merge several into a new adapter first.")
    path = export_path(card, out)
    if path.resolve() == card.path.resolve():
        raise HomeError(f"{path} is the adapter itself. Choose another file for --out.")
    with explain_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        return shrink(card.path, path, bits)


def export_path(card: AdapterCard, out: Path) -> Path:
    """The file that an export to ``out`` writes."""
    if out.is_dir():
        return out / f"{card.name}{SUFFIX}"
    return out if out.suffix.lower() == SUFFIX else out.with_name(out.name + SUFFIX)


def export_base(parts: Sequence[CardStrength], out: Path, precision: str, *, single_file: bool, base: str = "") -> int:
    """Write the base model with adapters merged into it; returns its size in bytes.

    Raises:
        HomeError: ``out`` exists already, or can't be written.
        BaseError, MountError, FileError: the base or an adapter can't be used.
    """
    if out.exists() and (single_file or not out.is_dir() or any(out.iterdir())):
        raise HomeError(f"{out} already exists. Choose another place for the merged model.")
    mix = Mix(tuple((load_adapter(card.path), strength) for card, strength in parts))
    with explain_write_errors(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        return save_merged(_base(parts, base), mix, out, single_file=single_file, precision=precision)


def _weights(parts: Sequence[CardStrength], base: str) -> WeightOf | None:
    return weight_lookup(base or parts[0][0].base) if base or parts[0][0].base else None


def _base(parts: Sequence[CardStrength], base: str) -> str:
    if found := base or next((card.base for card, _ in parts if card.base), ""):
        return found
    raise HomeError(f"{parts[0][0].name} does not name its base model. Give one with --base.")


def merge_adapters(
    home: Home, parts: Sequence[CardStrength], name: str, limits: LowRankLimits = EXACT, base: str = ""
) -> AdapterCard:
    """Merge adapters at their strengths into a new LoRA of the library; or write one with another rank.

    Raises:
        HomeError: the name can't be used, the adapters belong to different families, or nothing is left of them.
        FileError, ConvertError, BaseError: an adapter or the base it depends on can't be read.
    """
    wanted = new_name(home, name)
    require_one_family(parts)
    mix = Mix(tuple((load_adapter(card.path), strength) for card, strength in parts if strength))
    weight_of = weights_of(parts, base)
    if not mix.parts:
        raise HomeError("Every strength is 0, so the adapter would change nothing. Change at least one strength.")
    return save_to_library(home, wanted, mix_to_lora(mix, weight_of, limits), merged_info(parts))


def require_one_family(parts: Sequence[CardStrength]) -> None:
    """Raise HomeError where adapters belong to different families of base models."""
    first = parts[0][0]
    if families := {card.family for card, _ in parts} - {first.family}:
        raise HomeError(f"These adapters belong to different families of base models ({first.family}, "
                        f"{', '.join(families)}). Merge adapters of one family.")


def merged_info(parts: Sequence[CardStrength]) -> AdapterInfo:
    """What the file of an adapter that was made of others says of them."""
    first = parts[0][0]
    sources = ", ".join(f"{card.name} ({strength:g})" for card, strength in parts)
    return AdapterInfo(
        family=first.family, base=first.base, title=first.title, merged_from=sources, thumbnail=read_thumbnail(first),
        trigger=", ".join(dict.fromkeys(card.trigger for card, _ in parts if card.trigger)),
        subject=", ".join(dict.fromkeys(card.subject for card, _ in parts if card.subject)))   # fmt: skip


def weights_of(parts: Sequence[CardStrength], base: str = "") -> WeightOf:
    """The weights of the base model given, else of the first adapter's; without one, a look-up raises FileError."""
    return _weights(parts, base) or _base_required(parts[0][0])


def _base_required(card: AdapterCard) -> WeightOf:
    def weight_of(name: str) -> None:
        """Refuse every look-up: FileError names the adapter and the layer."""
        raise FileError(f"The change that {card.name} makes to {name} depends on the base model, but the file does not "
                        "name one. Give it with --base.")

    return weight_of   # type: ignore[return-value]   # it never returns


def extract_adapter(home: Home, tuned: str, base: str, name: str, limits: LowRankLimits = EXACT) -> AdapterCard:
    """Make a LoRA of the library from the difference between two base models.

    Args:
        home: its library gets the adapter.
        tuned: the base model with the change.
        base: the base model without it.
        name: the new adapter's name.
        limits: how much of each update to keep, and in which rank.

    Raises:
        HomeError: the name can't be used.
        BaseError: see ``weights.extract_lora``.
    """
    wanted, info = new_name(home, name), identify(base)
    return save_to_library(home, wanted, extract_lora(tuned, base, limits), AdapterInfo(
        family=info.family, base=base, title=info.title, merged_from=Path(tuned).name))   # fmt: skip


def save_to_library(home: Home, name: str, adapters: AdapterSet, info: AdapterInfo) -> AdapterCard:
    """Write a new adapter into the library under a name that is free; ``info`` is completed.

    Raises:
        HomeError: the home can't be written.
    """
    info = replace(info, name=name, created=_now(), algorithms=algorithm_names(adapters))
    with explain_write_errors(home.adapters):
        save_adapter(home.adapters / f"{name}{SUFFIX}", adapters, info.to_metadata())
    return find_adapter(home, name)

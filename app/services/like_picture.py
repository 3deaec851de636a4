"""Draw as a picture was drawn: what its file says, of Atelier or of another tool, found in the library and the models.

Whatever can't be found or done here is said in a sentence; the rest is taken over.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any

from atelier.app.services.draw import DrawJob
from atelier.app.services.draw_again import job_from_recipe
from atelier.app.services.prompts.wildcards import escape_wildcards
from atelier.app.store.gallery import read_recipe
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import AdapterCard, adapter_hash, find_adapter, list_adapters
from atelier.app.store.mixes import MixEntry
from atelier.app.store.model_hashes import matches_hash
from atelier.app.store.models import find_models
from atelier.app.store.picture_metadata import NamedAdapter, PictureMetadata, read_metadata
from atelier.app.text import like_picture as words
from atelier.app.text.studio import missing as missing_adapters
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.identify import identify
from atelier.training.config.train_config import EMBEDDED
from atelier.training.sampling.sample import DrawRequest
from atelier.training.sampling.samplers import AUTO, NOISE_LEVELS, SAMPLERS

_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".bin", ".gguf")
_SAMPLERS = {   # other tools' names, as _plain writes them → ours
    "ddim": "ddim", "ddim v3": "ddim", "dpm++ 2m": "dpm++", "dpm++ 2m sde": "dpm++ sde", "unipc": "unipc",
    "uni pc": "unipc", "uni pc bh2": "unipc", "euler": "euler", "euler a": "euler a", "heun": "heun", "lcm": "lcm",
}   # fmt: skip
_SIMILAR_SAMPLERS = {
    "dpm++ sde": "dpm++ sde", "dpm++ 3m sde": "dpm++ sde", "dpm++ 2s a": "euler a", "dpm2 a": "euler a", "dpm2": "heun",
    "plms": "ddim", "lms": "euler", "deis": "dpm++", "dpm fast": "dpm++", "dpm adaptive": "dpm++", "restart": "heun",
    "pndm": "ddim",
}   # fmt: skip
_SCHEDULES = {
    "": AUTO, "automatic": AUTO, "normal": AUTO, "simple": AUTO, "uniform": AUTO, "native": AUTO, "karras": "karras",
    "exponential": "exponential", "sgm uniform": "trailing", "ddim uniform": "leading", "ddim": "leading",
}   # fmt: skip
_OTHER_WEIGHTS = {"InvokeAI": r"[\w)][+-]{1,}(?=[\s,.]|$)|\)\d", "NovelAI": r"[{}]|::"}


def job_like(home: Home, path: Path) -> tuple[DrawJob, list[str]]:
    """The job that draws a picture again as far as it can be done here, and sentences on what can't.

    Raises:
        HomeError: the file does not say how it was drawn.
    """
    if recipe := read_recipe(path):
        job, missing = job_from_recipe(home, recipe)
        return job, [missing_adapters(missing)] if missing else []
    found = read_metadata(path)
    if found is None:
        raise HomeError(words.says_nothing(path.name))
    return _job_from_metadata(home, found)


def _job_from_metadata(home: Home, found: PictureMetadata) -> tuple[DrawJob, list[str]]:
    notes = [words.from_tool(found.tool)]
    adapters = _find_adapters(home, found.adapters, notes)
    base, is_found = _find_base(home, found, adapters, notes)
    values: dict[str, Any] = {"prompt": escape_wildcards(found.prompt),
                              "negative": escape_wildcards(found.negative)}
    for name, value in (("seed", found.seed), ("steps", found.steps), ("guidance", found.guidance)):
        if value is not None:
            values[name] = _within(name, value, notes)
    if found.clip_skip is not None and found.clip_skip > 1:
        values["clip_skip"] = _within("clip_skip", found.clip_skip - 1, notes)
    if is_found and found.width and found.height:
        values |= _size(base, found.width, found.height, notes)
    values |= _sampler(found, notes)
    if found.extras:
        notes.append(words.not_taken_over(found.extras))
    if re.search(_OTHER_WEIGHTS.get(found.tool, r"(?!)"), found.prompt):
        notes.append(words.other_weights(found.tool))
    return DrawJob(request=DrawRequest.from_dict(values), base=base, adapters=tuple(adapters)), notes


def _within(name: str, value: float, notes: list[str]) -> float:
    """A value within the limits of its setting."""
    limits = next(f.metadata for f in fields(DrawRequest) if f.name == name)
    if name == "seed" and value > limits["high"]:
        notes.append(words.seed_too_large(int(value)))
        return int(value) % (limits["high"] + 1)
    fitting = min(max(value, limits["low"]), limits["high"])
    if fitting != value:
        notes.append(words.out_of_range(name, value, fitting))
    return fitting


def _size(base: str, width: int, height: int, notes: list[str]) -> dict[str, int]:
    """The size in pixels that the base model can draw."""
    multiple = identify(base).size_multiple
    fitting = [min(max(side // multiple, 1) * multiple, 4096 // multiple * multiple) for side in (width, height)]
    if fitting != [width, height]:
        notes.append(words.other_size(width, height, *fitting))
    return {"width": fitting[0], "height": fitting[1]}


def _sampler(found: PictureMetadata, notes: list[str]) -> dict[str, str]:
    """Our names of a sampler and its schedule, which some tools write as one."""
    name, schedule = _plain(found.sampler), _plain(found.schedule)
    if not name:
        return {}
    name = re.sub(r"^k |^sample | gpu$", "", name)
    for ending in NOISE_LEVELS:
        if name.endswith(f" {ending}"):
            name, schedule = name.removesuffix(f" {ending}"), ending
    if found.tool == "InvokeAI" and name.endswith(" k"):
        name, schedule = name.removesuffix(" k"), "karras"
    sampler = _SAMPLERS.get(name) or _SIMILAR_SAMPLERS.get(name) or AUTO
    if name not in _SAMPLERS:
        notes.append(words.other_sampler(found.sampler, "" if sampler == AUTO else SAMPLERS[sampler].title))
    spacing = _SCHEDULES.get(schedule, AUTO)
    able = sampler == AUTO or SAMPLERS[sampler].respaced
    if schedule not in _SCHEDULES or (spacing in NOISE_LEVELS and not able):
        notes.append(words.other_schedule(schedule))
        spacing = AUTO
    return {"sampler": sampler, "schedule": spacing}


def _plain(name: str) -> str:
    """A name of a sampler or schedule in one spelling.

    >>> _plain("dpmpp_2m_sde"), _plain("DPM++ 2M Karras"), _plain("k_euler_ancestral")
    ('dpm++ 2m sde', 'dpm++ 2m karras', 'k euler a')
    """
    return re.sub(r"[\s_-]+", " ", name.lower().replace("dpmpp", "dpm++")).replace("ancestral", "a").strip()


def _find_adapters(home: Home, named: Sequence[NamedAdapter], notes: list[str]) -> list[MixEntry]:
    """The adapters of the library that a picture names: by hash, else by name."""
    cards = list_adapters(home) if named else []
    entries: dict[str, MixEntry] = {}
    for each in named:
        card = _by_hash(cards, each.hash) or _by_name(cards, each.name)
        if card is None:
            notes.append(words.missing_adapter(each.name, each.hash, each.strength))
            continue
        if each.hash and not _has_hash(card, each.hash):
            notes.append(words.adapter_by_name(card.name, each.hash))
        entries[card.name] = MixEntry(card.name, min(max(each.strength, -100.0), 100.0))
    return list(entries.values())


def _by_hash(cards: Iterable[AdapterCard], hash: str) -> AdapterCard | None:
    return next((card for card in cards if hash and _has_hash(card, hash)), None)


def _has_hash(card: AdapterCard, hash: str) -> bool:
    """Whether an adapter has a hash that begins so: the file it was imported from, or its own."""
    start = hash.lower().rpartition(":")[2].removeprefix("0x")
    if len(start) < 8 or not re.fullmatch("[0-9a-f]+", start):
        return False
    return card.file_hash.startswith(start) or (not card.file_hash and adapter_hash(card).startswith(start))


def _by_name(cards: Iterable[AdapterCard], name: str) -> AdapterCard | None:
    return next((card for card in cards if _letters(card.name) == _letters(name)), None)


def _letters(name: str) -> str:
    """What names of one file have in common: letters and digits, without folder and suffix."""
    last = PurePosixPath(name.replace("\\", "/")).name
    stem = next((last[: -len(suffix)] for suffix in _SUFFIXES if last.lower().endswith(suffix)), last)
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", stem))).casefold()


def _find_base(
    home: Home, found: PictureMetadata, adapters: Sequence[MixEntry], notes: list[str]
) -> tuple[str, bool]:
    """The base model that a picture names, by hash, else by name; else that of its first adapter, or the embedded one.

    Returns:
        The base model, and whether it is the picture's.
    """
    models = [model.path for model in find_models(home) if model.info]
    named = [path for path in models if found.base and _letters(path.name) == _letters(found.base)]
    hashed = next((path for path in [*named, *models] if found.base_hash and matches_hash(home, path, found.base_hash)),
                  None)   # fmt: skip
    if hashed or named:
        if found.base_hash and not hashed and named[0].is_file():
            notes.append(words.base_by_name(named[0].name, found.base_hash))
        return str(hashed or named[0]), True
    if _letters(found.base) == EMBEDDED:
        return EMBEDDED, True
    base = next((base for entry in adapters if (base := _usable(find_adapter(home, entry.name).base))), EMBEDDED)
    if found.base or found.base_hash:
        notes.append(words.missing_base(found.base, found.base_hash, identify(base).title))
    else:
        notes.append(words.unknown_base(identify(base).title))
    return base, False


def _usable(base: str) -> str:
    """A base model if it is here."""
    try:
        return identify(base).source if base else ""
    except BaseError:
        return ""

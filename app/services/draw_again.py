"""Draw again: the job that a recipe describes, with what is still here of what it was drawn with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from atelier.adapters.core.parse import parse_path
from atelier.adapters.core.settings import SettingError
from atelier.adapters.fusion.methods import ALL_METHODS
from atelier.app.services.draw import ALONE, BatchPlace, DrawJob
from atelier.app.services.prompts.wildcards import escape_wildcards
from atelier.app.store.gallery import LATER_SETTINGS, find_picture, read_recipe
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import adapter_hash, find_adapter, list_adapters
from atelier.app.store.mixes import MixEntry, read_entry, read_regions
from atelier.app.store.models import find_models
from atelier.app.store.start_pictures import find_start_picture, start_recipe
from atelier.app.store.textual_inversions import inversion_hash, list_textual_inversions
from atelier.app.text.studio import START_PICTURE, base_model
from atelier.training.base_models.hub import is_hub_id
from atelier.training.config.base_options import AUTO_PREDICTION, BaseOptions
from atelier.training.config.train_config import EMBEDDED
from atelier.training.sampling.prompt_encoding import PLAIN
from atelier.training.sampling.sample import DrawRequest


def job_from_picture(home: Home, picture_id: str) -> tuple[DrawJob, list[str]]:
    """The job that drew a picture of the gallery, and what it was drawn with that no longer exists.

    Raises:
        HomeError: there is no such picture, or it holds no recipe that can be read.
    """
    return job_from_recipe(home, read_recipe(find_picture(home, picture_id).path) or {})


def job_from_recipe(home: Home, recipe: Mapping[str, Any]) -> tuple[DrawJob, list[str]]:
    """The job that a recipe describes, and what it was drawn with that no longer exists: names of adapters, words of
    textual inversions, the picture that it started from.

    Raises:
        HomeError: the recipe is incomplete or damaged.
    """
    try:
        return _job_from_recipe(home, recipe)
    except (KeyError, TypeError, ValueError) as error:
        raise HomeError(f"The settings of this picture can't be read from its file ({error}).") from None


def _job_from_recipe(home: Home, recipe: Mapping[str, Any]) -> tuple[DrawJob, list[str]]:
    names = ("prompt", "negative", "seed", "steps", "guidance", "width", "height")
    optional = [name for name in ("unwanted", "unwanted_strength", "sampler", *LATER_SETTINGS) if name in recipe]
    entries = [_entry(home, part) for part in recipe["adapters"]]
    existing = tuple(entry for entry in entries if _exists(home, entry.name))
    # Recipes of versions with only one sampler and one syntax don't name them.
    given = {"sampler": "ddim", "prompt_syntax": PLAIN, **{name: recipe[name] for name in (*names, *optional)}}
    if "upscale" in recipe:   # its size is that of the second pass
        given |= {"width": recipe["first_width"], "height": recipe["first_height"]}
    if given["prompt_syntax"] != PLAIN:   # the choices of a prompt have been made
        given |= {name: escape_wildcards(str(given[name])) for name in ("prompt", "negative")}
    request = DrawRequest.from_dict(given)
    options = BaseOptions(str(recipe.get("prediction", AUTO_PREDICTION)), str(recipe.get("vae", "")))
    inversions, words = _inversions_of(home, recipe)
    start = find_start_picture(home, recipe["start"]) if "start" in recipe else None
    base, is_here = _base_now(home, str(recipe["base"]))
    job = DrawJob(request=request, base=base, adapters=existing, options=options, start=start, inversions=inversions,
                  regions=read_regions(recipe.get("regions", ())), place=read_place(recipe.get("batch", ALONE)),
                  method=_method(recipe) if existing == tuple(entries) else "")   # fmt: skip
    missing = [entry.name for entry in entries if entry not in existing]
    return job, [*missing, *words, *([START_PICTURE] if "start" in recipe and start is None else []),
                 *([] if is_here else [base_model(base)])]   # fmt: skip


def _base_now(home: Home, base: str) -> tuple[str, bool]:
    """A recipe's base model, or the one of its name in another folder, and whether there is one.

    One that is gone stays in the job, so that nothing is drawn with another in silence.
    """
    if base == EMBEDDED or is_hub_id(base) or parse_path(base).exists():
        return base, True
    name = PurePath(base).name
    found = next((str(model.path) for model in find_models(home) if model.info and model.path.name == name), None)
    return found or base, found is not None


def with_hidden_settings(job: DrawJob, like: DrawJob | None) -> DrawJob:
    """A job as controls describe it, with what they don't show of the one that they were filled from.

    Where nothing was changed, it is drawn again as it was, byte for byte.
    """
    if like is None:
        return job
    names = [[entry.name for entry in each.adapters] for each in (job, like)]
    whole = replace(job, inversions=like.inversions, method=like.method if names[0] == names[1] else "",
                    options=like.options if job.base == like.base else job.options)   # fmt: skip
    starts = [start_recipe(each.start) if each.start else None for each in (whole, like)]
    same = starts[0] == starts[1] and replace(whole, start=None) == replace(like, start=None, place=ALONE)
    return replace(whole, place=like.place) if same else whole


def read_place(value: Any) -> BatchPlace:
    """The place of a picture in its batch, as a recipe has it: ``[index, count]``.

    Raises:
        SettingError: it is no place.
    """
    match value:
        case (int(index), int(count)) if 0 <= index < count:
            DrawRequest.from_dict({"count": count})   # not more than can be drawn
            return BatchPlace(index, count)
    raise SettingError(f"A place in a batch is a number and a count, such as [0, 4], not {value!r}.")


def _method(recipe: Mapping[str, Any]) -> str:
    """The method of fusion; empty for the plain sum, and for one that no longer exists."""
    method = str(recipe.get("fuse", ""))
    return method if method in ALL_METHODS else ""


def _entry(home: Home, part: Mapping[str, Any]) -> MixEntry:
    details = {key: part[key] for key in ("curve", "region", "blocks", "prompt", "own_canvas") if key in part}
    return read_entry({"name": _name_now(home, part), "strength": part["strength"], **details})


def _inversions_of(home: Home, recipe: Mapping[str, Any]) -> tuple[tuple[str, ...], list[str]]:
    """The names now of a recipe's textual inversions, and the words of those that are gone."""
    parts = recipe.get("textual_inversions", [])
    names = {inversion_hash(card): card.name for card in list_textual_inversions(home)} if parts else {}
    return (tuple(names[part["sha256"]] for part in parts if part["sha256"] in names),
            [str(part["token"]) for part in parts if part["sha256"] not in names])   # fmt: skip


def _name_now(home: Home, part: Mapping[str, Any]) -> str:
    """The name of a recipe's adapter, which may have been renamed since: then its hash finds it."""
    name, hash = str(part["name"]), str(part.get("sha256", ""))
    if _exists(home, name) or not hash:
        return name
    return next((card.name for card in list_adapters(home) if adapter_hash(card) == hash), name)


def _exists(home: Home, name: str) -> bool:
    try:
        find_adapter(home, name)
    except HomeError:
        return False
    return True

"""The easel: what the Studio page asks for, drawn and hung in the gallery with its recipe."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atelier.adapters.formats.native import read_header
from atelier.app.services.engine import Engine, LatentPreview
from atelier.app.store.gallery import GalleryPicture, find_picture, make_recipe, read_recipe, save_picture
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import AdapterCard, find_adapter
from atelier.app.store.models import check_family
from atelier.app.text.drawing import made_for_few_steps
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.identify import identify
from atelier.training.config.train_config import EMBEDDED
from atelier.training.recipes.dreambooth import fill_template
from atelier.training.sampling.sample import DrawRequest
from atelier.training.sampling.samplers import AUTO


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawJob:
    """All that decides the pictures."""

    request: DrawRequest
    base: str = EMBEDDED
    strengths: tuple[tuple[str, float], ...] = ()   # adapter name, strength


def draw_to_gallery(
    home: Home, engine: Engine, wish: DrawJob
) -> Iterator[str | tuple[int, int] | LatentPreview | list[GalleryPicture]]:
    """Draw a wish: yields at the end the pictures, kept in the gallery.

    Before: a sentence, if there is something to know about the way it is drawn; (step, of) and what emerges.

    Raises:
        HomeError, BaseError, FileError, MountError, SettingError: each with a message for a person.
    """
    info = identify(wish.base)
    parts = [(find_adapter(home, name), strength) for name, strength in wish.strengths]
    check_family(info, [card for card, _ in parts])
    files = [(card.path, strength) for card, strength in parts]
    request, said = with_sampler(wish.request, parts)
    if said:
        yield said
    for news in engine.drawing(wish.base, files, request):
        if not isinstance(news, list):
            yield news
            continue
        recipes = [make_recipe(request, i, wish.base, info.family, parts) for i in range(len(news))]
        paths = [save_picture(home, image, recipe) for image, recipe in zip(news, recipes, strict=True)]
        yield [find_picture(home, path.stem) for path in paths]


def with_sampler(request: DrawRequest, parts: Sequence[tuple[AdapterCard, float]]) -> tuple[DrawRequest, str]:
    """The request with its sampler decided, and a sentence where an adapter has decided it."""
    fast = next((card for card, strength in parts if strength and card.sampler), None)
    decided = request.settled(fast.sampler if fast else "")
    taken = fast and request.sampler == AUTO
    return decided, made_for_few_steps(fast.name, decided.steps, decided.guidance) if fast and taken else ""


def job_from_picture(home: Home, picture_id: str) -> tuple[DrawJob, list[str]]:
    """The wish a picture of the gallery was drawn from, and the names of adapters that are not here any more.

    Raises:
        HomeError: there is no such picture, or it holds no recipe that can be read.
    """
    recipe = read_recipe(find_picture(home, picture_id).path)
    try:
        return _job_from_recipe(home, recipe or {})
    except (KeyError, TypeError, ValueError) as error:
        raise HomeError(f"This picture holds no recipe that can be read ({error}).") from None


def _job_from_recipe(home: Home, recipe: Mapping[str, Any]) -> tuple[DrawJob, list[str]]:
    names = ("prompt", "negative", "seed", "steps", "guidance", "width", "height")
    later = [name for name in ("unwanted", "unwanted_strength", "sampler") if name in recipe]   # only where they count
    parts = [(str(part["name"]), float(part["strength"])) for part in recipe["adapters"]]
    here = [part for part in parts if _card(home, part[0])]
    # Before recipes named a sampler there was one.
    request = DrawRequest.from_dict({"sampler": "ddim", **{name: recipe[name] for name in (*names, *later)}})
    wish = DrawJob(request=request, base=str(recipe["base"]), strengths=tuple(here))
    return wish, [name for name, _ in parts if (name, _) not in here]


def _card(home: Home, name: str) -> AdapterCard | None:
    try:
        return find_adapter(home, name)
    except HomeError:
        return None


def suggested_prompt(card: AdapterCard) -> str:
    """A prompt that calls an adapter: the caption it was taught with."""
    try:
        recipe = tomllib.loads(read_header(card.path).metadata.get("atelier.recipe", ""))
        template = recipe.get("caption") or identify(card.base).caption
    except (BaseError, tomllib.TOMLDecodeError):
        template = "{trigger} {subject}"
    return " ".join(fill_template(template, card.trigger, card.subject).split())


def picture_recipe(picture: GalleryPicture) -> dict[str, Any]:
    """A picture's recipe; empty when it holds none."""
    return read_recipe(picture.path) or {}


def recipe_json(recipe: Mapping[str, Any]) -> str:
    """A recipe as JSON, for copying."""
    return json.dumps(recipe, indent=2, ensure_ascii=False)

"""``atelier draw``: pictures from a prompt and adapters, into the gallery or a folder."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.native import load_adapter
from atelier.adapters.fusion.live import Fusion, Part
from atelier.adapters.fusion.methods import DEFAULT, combined
from atelier.app.services.draw import with_sampler
from atelier.app.store.gallery import encode_picture, make_recipe, picture_id, save_picture
from atelier.app.store.home import Home, explain_write_errors, write_whole
from atelier.app.store.library import find_adapter
from atelier.app.store.mixes import MixEntry, fusion_recipe
from atelier.app.store.models import check_family, resolve_base
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.config.train_config import EMBEDDED
from atelier.training.embedded_base.train_gates import gates_for
from atelier.training.sampling.draw_cache import DrawCache
from atelier.training.sampling.sample import DrawRequest, draw

BATCH = 4   # pictures drawn at once: more at a time needs more memory and is hardly faster


def draw_here(home: Home, arguments: Namespace) -> Iterator[tuple[Path, int] | str]:
    """Draw what was asked for; yields each picture's file and seed as soon as it is written.

    Before: a sentence, if there is something to know about the way it is drawn.

    Raises:
        HomeError, SettingError, BaseError, FileError, MountError: what was typed can't be used.
    """
    parts = [(find_adapter(home, name), strength) for name, strength in arguments.adapters]
    request, said = with_sampler(_draw_request(arguments), parts)
    if said:
        yield said
    base = resolve_base(home, arguments.base or "") or next((card.base for card, _ in parts if card.base), EMBEDDED)
    if arguments.out:
        with explain_write_errors(arguments.out):
            arguments.out.mkdir(parents=True, exist_ok=True)
    shares = [Part(load_adapter(card.path), strength) for card, strength in parts]
    model = load(base)
    check_family(model.info, [card for card, _ in parts])
    mix = combined(model.models(), shares, arguments.fuse or DEFAULT, steps=request.steps, gates=gates_for(model))
    for i, image in enumerate(_images(model, request, mix)):
        recipe = make_recipe(request, i, base, model.info.family, parts)
        if arguments.fuse:
            recipe |= fusion_recipe(arguments.fuse, tuple(MixEntry(card.name, strength) for card, strength in parts))
        yield _save(home, arguments.out, image, recipe), request.seed + i


def _draw_request(arguments: Namespace) -> DrawRequest:
    names = ("prompt", "negative", "unwanted", "unwanted_strength", "seed", "count", "steps", "guidance",
             "sampler")   # fmt: skip
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    width, height = arguments.size or (0, 0)
    return DrawRequest.from_dict({**given, "width": width, "height": height})


def _images(model: BaseModel, request: DrawRequest, mix: Mix | Fusion) -> Iterator[Image.Image]:
    batches = [
        replace(request, seed=request.seed + first, count=min(BATCH, request.count - first))
        for first in range(0, request.count, BATCH)
    ]
    cache = DrawCache()
    with tqdm(total=len(batches) * request.steps, unit="step", leave=False, disable=None) as bar:

        def on_step(_done: int, _of: int) -> None:
            bar.update()

        for batch in batches:
            yield from draw(model, batch, mix, on_step, cache=cache)


def _save(home: Home, out: Path | None, image: Image.Image, recipe: dict[str, object]) -> Path:
    if out is None:
        return save_picture(home, image, recipe)
    path = out / f"{picture_id()}.png"
    write_whole(path, encode_picture(image, recipe))
    return path

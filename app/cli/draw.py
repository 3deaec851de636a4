"""``atelier draw``: pictures from a prompt and adapters, into the gallery or a folder."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image
from tqdm import tqdm

from atelier.adapters.core.settings import SettingError
from atelier.app.cli.download import download_base
from atelier.app.services.draw import CheckedJob, DrawJob, check_job, draw
from atelier.app.services.engine import DrawCallbacks, Engine
from atelier.app.services.like_picture import job_like
from atelier.app.services.studio.side_by_side import place_side_by_side
from atelier.app.store.gallery import encode_picture, picture_id, save_picture
from atelier.app.store.home import Home, explain_write_errors, write_home_file
from atelier.app.store.library import find_adapter
from atelier.app.store.mixes import MixEntry, RegionEntry, read_entry, read_regions
from atelier.app.store.models import resolve_base
from atelier.app.store.preferences import check_device
from atelier.app.store.start_pictures import save_start_picture
from atelier.training.config.base_options import AUTO_PREDICTION, BaseOptions
from atelier.training.config.train_config import EMBEDDED
from atelier.training.data.images import open_picture
from atelier.training.sampling.sample import DrawRequest
from atelier.training.sampling.start_picture import StartPicture

BATCH_SIZE = 4   # more pictures at once need more memory and are hardly drawn faster


def run_draw(home: Home, arguments: Namespace) -> Iterator[tuple[Path, int] | str]:
    """Draw with a progress bar; yields each picture's file and seed as soon as it is written.

    Before: a notice, if there is something to know about the way it is drawn.

    Raises:
        HomeError, SettingError, BaseError, FileError, MountError: what was typed can't be used.
    """
    job, notes = _job(home, arguments)
    job = place_side_by_side(home, job) if arguments.side_by_side else job
    yield from notes
    download_base(job.base)
    checked = check_job(home, job)
    if checked.notice:
        yield checked.notice
    if job.start is not None:
        save_start_picture(home, job.start)
    if arguments.out:
        with explain_write_errors(arguments.out):
            arguments.out.mkdir(parents=True, exist_ok=True)
    device = check_device(arguments.device) if arguments.device else ""
    engine = Engine.of_home(home, precision=arguments.precision or "", device=device)
    for picture, recipe in _with_progress(checked, engine):
        yield _save(home, arguments.out, picture, recipe), recipe["seed"]


def _job(home: Home, arguments: Namespace) -> tuple[DrawJob, list[str]]:
    """The job that was typed, and sentences on what of a picture's settings can't be taken over."""
    cards = [find_adapter(home, name) for name, _ in arguments.adapters]
    own_base = next((card.base for card in cards if card.base), EMBEDDED)
    options = BaseOptions(arguments.prediction or AUTO_PREDICTION, arguments.vae or "")
    typed = _adapters(arguments)
    base = resolve_base(home, arguments.base or "")
    if arguments.like is None:
        if arguments.prompt is None:
            raise SettingError("There is no prompt. Type what to draw, or use a picture's settings: --like FILE.")
        return DrawJob(request=_request(arguments), base=base or own_base, adapters=typed, method=arguments.fuse or "",
                       start=_start(arguments), options=options, regions=_regions(arguments)), []   # fmt: skip
    like, notes = job_like(home, arguments.like)
    job = replace(like, request=_request(arguments, like.request.to_dict()), base=base or like.base,
                  adapters=typed or like.adapters, method=arguments.fuse or "",
                  regions=_regions(arguments) or like.regions,
                  start=like.start if arguments.image is None else _start(arguments))   # fmt: skip
    return replace(job, options=options) if arguments.prediction or arguments.vae else job, notes


def _adapters(arguments: Namespace) -> tuple[MixEntry, ...]:
    """The adapters that were typed, with strengths by block and curves."""
    values: dict[str, dict[str, Any]] = {name: {"name": name, "strength": strength}
                                         for name, strength in arguments.adapters}   # fmt: skip
    for option, key, typed in (("--blocks", "blocks", arguments.blocks), ("--curve", "curve", arguments.curves)):
        for name, *given in typed:
            if name not in values or not given:
                raise SettingError(f"{option} needs the name of an adapter and its values. Name the adapter by "
                                   f"--adapter {name} too.")
            values[name][key] = dict(each.split("=", 1) for each in given) if key == "blocks" else given
    for name, *given in arguments.adapter_regions:
        if name not in values or len(given) not in (4, 5):
            raise SettingError("--adapter-region needs the name of an adapter, four sides from 0 to 1, and perhaps a "
                               f"prompt. Name the adapter by --adapter {name} too.")
        values[name] |= {"region": _numbers(given[:4]), "prompt": " ".join(given[4:])}
    try:
        return tuple(read_entry(each) for each in values.values())
    except (ValueError, TypeError) as error:
        raise SettingError(f"The strengths can't be used: {error}. Use --blocks NAME mid=0 up.1.0=0.5 and --curve NAME "
                           "0 1 0.5, with factors from 0 to 1 in curves.") from None


def _regions(arguments: Namespace) -> tuple[RegionEntry, ...]:
    try:
        return read_regions([{"prompt": prompt, "region": _numbers(sides)} for prompt, *sides in arguments.regions])
    except ValueError as error:
        raise SettingError(f"The region can't be used: {error}.") from None


def _numbers(sides: Sequence[str]) -> list[float]:
    try:
        return [float(side) for side in sides]
    except ValueError:
        raise SettingError(f"{' '.join(sides)} is no rectangle. Type left, top, right and bottom as shares of the "
                           "picture, such as 0 0 0.5 1 for its left half.") from None


def _start(arguments: Namespace) -> StartPicture | None:
    if arguments.image is None:
        if arguments.mask is not None:
            raise SettingError("--mask needs a picture: add --image.")
        return None
    mask = None if arguments.mask is None else open_picture(arguments.mask).convert("L")
    return StartPicture(open_picture(arguments.image), arguments.image_strength, mask)


def _request(arguments: Namespace, usual: Mapping[str, Any] = MappingProxyType({})) -> DrawRequest:
    """What was typed; ``usual`` stands for what was not."""
    names = ("prompt", "negative", "unwanted", "unwanted_strength", "seed", "count", "steps", "guidance",
             "sampler", "schedule", "prompt_syntax", "clip_skip", "guidance_rescale", "upscale", "upscaler",
             "upscale_steps", "upscale_strength")   # fmt: skip
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    size = dict(zip(("width", "height"), arguments.size, strict=True)) if arguments.size else {}
    return DrawRequest.from_dict({**usual, **given, **size})


def _with_progress(checked: CheckedJob, engine: Engine) -> Iterator[tuple[Image.Image, dict[str, Any]]]:
    request = checked.job.request
    batches = -(-request.count // BATCH_SIZE)
    with tqdm(unit="step", leave=False, disable=None) as bar:

        def on_step(_done: int, of: int) -> None:
            """Advance the bar, whose length is known from the first step on."""
            bar.total = batches * of
            bar.update()

        callbacks = DrawCallbacks(on_step, on_notice=_tell)
        yield from draw(engine, checked, callbacks, batch_size=BATCH_SIZE)


def _tell(notice: str) -> None:
    tqdm.write(f"atelier: {notice}", file=sys.stderr)


def _save(home: Home, out: Path | None, picture: Image.Image, recipe: dict[str, Any]) -> Path:
    if out is None:
        return save_picture(home, picture, recipe)
    path = out / f"{picture_id()}.png"
    write_home_file(path, encode_picture(picture, recipe))
    return path

"""What the Studio's controls are filled from, its address or a picture, and the drawing that they describe."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from atelier.app.services.draw import DrawJob, suggested_prompt
from atelier.app.services.draw_again import job_from_picture, with_hidden_settings
from atelier.app.services.like_picture import job_like
from atelier.app.store.gallery import find_picture
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import find_adapter
from atelier.app.store.models import base_choices
from atelier.app.text import shared
from atelier.app.text import studio as words
from atelier.app.web.components.page_frame import show_errors
from atelier.app.web.pages.studio_adapters import (
    MAX_ADAPTERS,
    adapter_names,
    join_names,
    strength_sliders,
    trigger_words_of,
)
from atelier.app.web.pages.studio_details import Regions, details_of
from atelier.app.web.pages.studio_picker import adapter_picker
from atelier.app.web.pages.studio_pictures import notice_panel, result_grid
from atelier.app.web.pages.studio_start import start_values
from atelier.training.config.train_config import EMBEDDED
from atelier.training.sampling.sample import DrawRequest
from atelier.training.sampling.start_picture import StartPicture


class Drawn(NamedTuple):
    """What is on the page: ids of the finished pictures, and whether a moving slider drew them."""

    ids: tuple[str, ...] = ()
    live: bool = False   # then the next ones take their place


def draw_job(settings: dict[str, Any], start: StartPicture | None = None) -> DrawJob:
    """What the controls say; exactly the drawing that they were filled from, where nothing was changed.

    Raises:
        ValueError, SettingError: there is no prompt, or a value is wrong.
    """
    names = adapter_names(settings["names"])
    entries = [replace(entry, strength=float(settings[f"strength{i}"]))
               for i, entry in enumerate(details_of(names, settings["details"]))]   # fmt: skip
    known = {f.name: settings[f.name] for f in fields(DrawRequest)}
    if not known["prompt"].strip():
        raise ValueError(shared.NO_PROMPT)
    given = {key: value for key, value in known.items() if value is not None}
    job = DrawJob(request=DrawRequest.from_dict(given), base=settings["base"] or EMBEDDED, adapters=tuple(entries),
                  start=start, regions=_complete(settings["regions"]))   # fmt: skip
    return with_hidden_settings(job, settings["restored"])


def _complete(regions: Regions) -> Regions:
    """Those that were painted and written in."""
    return tuple(one for one in regions if one.prompt.strip() and one.region)


def random_seed() -> int:
    """Any number that the field for the seed takes."""
    return secrets.randbelow(2**31 - 1)


def fill_from_address(home: Home, keys: Sequence[str], query: dict[str, str]) -> list[Any]:
    """Fill the page from its address: ``?adapter=NAME``, or ``?picture=ID`` with ``&only=prompt`` or ``&only=seed``."""
    values: dict[str, Any] = {**dict.fromkeys(keys, gr.skip()), "seed": random_seed()}
    names: list[str] = []
    strengths: dict[str, float] = {}
    results, drawn, draw, progress, base = gr.skip(), Drawn(), "", gr.skip(), EMBEDDED
    values |= {"details": (), "regions": (), "restored": None}
    start: StartPicture | None = None
    try:
        if query.get("adapter"):
            card = find_adapter(home, query["adapter"])
            names, draw, base = [card.name], "yes" if (card.base or EMBEDDED) == EMBEDDED else "", card.base
            values |= {"prompt": suggested_prompt(card)}
        elif query.get("picture") and query.get("only") in ("prompt", "seed"):
            job, _ = job_from_picture(home, query["picture"])
            values |= {query["only"]: getattr(job.request, query["only"]), "keep_seed": query["only"] == "seed"}
        elif query.get("picture"):
            job, missing = job_from_picture(home, query["picture"])
            strengths = {entry.name: entry.strength for entry in job.adapters}
            names, start = list(strengths), job.start
            values |= {"details": job.adapters, "regions": job.regions, "restored": job}
            values, base = {**values, **job.request.to_dict(), "keep_seed": True}, job.base
            results, drawn = result_grid([find_picture(home, query["picture"])]), Drawn((query["picture"],))
            progress = notice_panel(words.missing(missing)) if missing else progress
    except HomeError as error:
        progress = notice_panel(str(error))
    # Models may have come since the page was made.
    values["base"] = gr.update(choices=base_choices(home), value=base or EMBEDDED)
    sliders = {f"strength{i}": slider for i, slider in enumerate(strength_sliders(home, names, strengths))}
    values |= {"names": join_names(names), **sliders}
    return [*values.values(), adapter_picker(home, names), trigger_words_of(home, names), results, progress, drawn,
            draw, *start_values(start)]   # fmt: skip


def fill_from_picture(home: Home, keys: Sequence[str], path: str | None) -> list[Any]:
    """Fill the page from a picture's file, of Atelier or another tool, and say what is missing."""
    with show_errors():
        job, notes = job_like(home, Path(path or ""))
    given, strengths = job.request.to_dict(), {entry.name: entry.strength for entry in job.adapters[:MAX_ADAPTERS]}
    left_out = [words.too_many(entry.name) for entry in job.adapters[MAX_ADAPTERS:]]
    names = list(strengths)
    values: dict[str, Any] = {**dict.fromkeys(keys, gr.skip()), **given, "keep_seed": True}
    values["base"] = gr.update(choices=base_choices(home), value=job.base)
    sliders = {f"strength{i}": slider for i, slider in enumerate(strength_sliders(home, names, strengths))}
    values |= {"names": join_names(names), "details": job.adapters[:MAX_ADAPTERS], "regions": job.regions,
               "restored": job, **sliders}   # fmt: skip
    progress = notice_panel(" ".join([*notes, *left_out]) or words.OPENED)
    return [*(values[key] for key in keys), adapter_picker(home, names), trigger_words_of(home, names), progress, None,
            *start_values(job.start)]   # fmt: skip

"""``atelier make``: combine a content and a style of the library with a progress bar."""

from __future__ import annotations

import sys
from argparse import Namespace

from tqdm import tqdm

from atelier.app.services.combine_two import BEST_METHOD, STYLE_STRENGTHS, CombineJob, combine
from atelier.app.store.home import Home, new_name
from atelier.app.store.library import AdapterCard, find_adapter
from atelier.training.recipes.combine_two import METHOD_STEPS


def run_combine(home: Home, arguments: Namespace) -> AdapterCard:
    """Combine what the command line names; returns the new adapter's card.

    Raises:
        HomeError, BaseError, BasisError, MountError, SettingError: what was typed can't be used.
    """
    job = _job(home, arguments)
    with tqdm(total=job.steps, unit="step", leave=False, disable=None, file=sys.stderr) as bar:
        for event in combine(home, job):
            if isinstance(event, AdapterCard):
                return event
            bar.update()
    raise AssertionError("combining ends with a card")


def _job(home: Home, arguments: Namespace) -> CombineJob:
    content, style = (find_adapter(home, name) for name in (arguments.content, arguments.style))
    method = arguments.method or BEST_METHOD
    default = METHOD_STEPS[method]   # 0: the method does not train, whatever is asked for
    style_strength = arguments.style_strength
    return CombineJob(
        name=new_name(home, arguments.name), content=content, style=style, method=method,
        steps=(default if arguments.steps is None else arguments.steps) if default else 0,
        strengths=(arguments.content_strength,
                   STYLE_STRENGTHS.get(method, 1.0) if style_strength is None else style_strength),
    )   # fmt: skip

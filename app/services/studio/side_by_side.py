"""Several subjects in one picture, each drawn by its own adapter in a field of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from atelier.adapters.core.settings import SettingError
from atelier.app.services.draw import DrawJob, suggested_prompt
from atelier.app.store.home import Home
from atelier.app.store.library import AdapterCard, find_adapter
from atelier.app.store.mixes import MAX_REGIONS, MixEntry, rectangle_rows
from atelier.training.base_models.identify import identify
from atelier.training.config.base_options import PLAIN_BASE, BaseOptions

SUBJECT = "{subject}"
"""In a prompt: each adapter's own subject."""


def place_side_by_side(home: Home, job: DrawJob) -> DrawJob:
    """The job with its adapters from left to right, each on a canvas of its own.

    A picture without a size of its own becomes as wide as its fields together.

    Raises:
        HomeError: an adapter does not exist.
        SettingError: there are fewer than two adapters, or too many.
        BaseError: the base model can't be used.
    """
    entries, prompt = fields_of(home, job.adapters, job.request.prompt)
    request = replace(job.request, prompt=prompt)
    if not request.width and not request.height:
        width, height = size_of_fields(len(entries), job.base, job.options)
        request = replace(request, width=width, height=height)
    return replace(job, adapters=entries, request=request)


def fields_of(home: Home, entries: Sequence[MixEntry], prompt: str) -> tuple[tuple[MixEntry, ...], str]:
    """Adapters in equal fields from left to right, and the prompt of what is between and behind them.

    The prompt is each field's, with its own subject in the place of ``{subject}``; without that, each adapter's
    suggested prompt is.

    Raises:
        HomeError: an adapter does not exist.
        SettingError: there are fewer than two adapters, or too many.
    """
    count = len(entries)
    if not 2 <= count <= MAX_REGIONS:
        raise SettingError(f"{count} adapters can't be placed side by side. Choose 2 to {MAX_REGIONS} of them.")
    cards = [find_adapter(home, entry.name) for entry in entries]
    placed = tuple(_field(entry, card, prompt, (i / count, (i + 1) / count))
                   for i, (entry, card) in enumerate(zip(entries, cards, strict=True)))   # fmt: skip
    return placed, prompt.replace(SUBJECT, " and ".join(map(called, cards)))


def size_of_fields(count: int, base: str, options: BaseOptions = PLAIN_BASE) -> tuple[int, int]:
    """Width and height of so many of a base model's own pictures beside each other.

    Raises:
        BaseError: the base model can't be used.
    """
    side = identify(base, options).resolution
    return count * side, side


def called(card: AdapterCard) -> str:
    """What an adapter's subject is called in prompts."""
    return " ".join(word for word in (card.trigger, card.subject) if word)


def _field(entry: MixEntry, card: AdapterCard, prompt: str, sides: tuple[float, float]) -> MixEntry:
    own = prompt.replace(SUBJECT, called(card)) if SUBJECT in prompt else suggested_prompt(card)
    return replace(entry, region=rectangle_rows((sides[0], 0, sides[1], 1)), prompt=own, own_canvas=True)

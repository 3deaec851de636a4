"""Several subjects in one picture, each drawn by its own adapter in a field of its own."""

from __future__ import annotations

from dataclasses import replace

from atelier.adapters.core.settings import SettingError
from atelier.app.services.draw import DrawJob, suggested_prompt
from atelier.app.store.home import Home
from atelier.app.store.library import AdapterCard, find_adapter
from atelier.app.store.mixes import MAX_REGIONS, MixEntry, rectangle_rows
from atelier.training.base_models.identify import identify

SUBJECT = "{subject}"
"""In a prompt: each adapter's own subject."""


def place_side_by_side(home: Home, job: DrawJob) -> DrawJob:
    """The job with its adapters from left to right, each on a canvas of its own.

    The prompt is each field's with its subject in the place of ``{subject}``; without that, each adapter's suggested
    prompt is. A picture without a size of its own becomes as wide as its fields together.

    Raises:
        HomeError: an adapter does not exist.
        SettingError: there are fewer than two adapters, or too many.
        BaseError: the base model can't be used.
    """
    count = len(job.adapters)
    if not 2 <= count <= MAX_REGIONS:
        raise SettingError(f"{count} adapters can't be placed side by side. Choose 2 to {MAX_REGIONS} of them.")
    cards = [find_adapter(home, entry.name) for entry in job.adapters]
    entries = tuple(_field(entry, card, job.request.prompt, (i / count, (i + 1) / count))
                    for i, (entry, card) in enumerate(zip(job.adapters, cards, strict=True)))   # fmt: skip
    request = replace(job.request, prompt=job.request.prompt.replace(SUBJECT, " and ".join(map(called, cards))))
    if not request.width and not request.height:
        side = identify(job.base, job.options).resolution
        request = replace(request, width=count * side, height=side)
    return replace(job, adapters=entries, request=request)


def called(card: AdapterCard) -> str:
    """What an adapter's subject is called in prompts."""
    return " ".join(word for word in (card.trigger, card.subject) if word)


def _field(entry: MixEntry, card: AdapterCard, prompt: str, sides: tuple[float, float]) -> MixEntry:
    own = prompt.replace(SUBJECT, called(card)) if SUBJECT in prompt else suggested_prompt(card)
    return replace(entry, region=rectangle_rows((sides[0], 0, sides[1], 1)), prompt=own, own_canvas=True)

"""The drawing service of pages, command line and fusion: check a job, draw it, save the pictures with their recipes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from atelier.adapters.core.family import family_title
from atelier.adapters.fusion.methods import DEFAULT_METHOD
from atelier.app.services.engine import DrawCallbacks, Engine, FileEntry, PromptParts
from atelier.app.services.prompts.wildcards import escape_wildcards, has_wildcards, resolve_request
from atelier.app.store.base_settings import base_options
from atelier.app.store.gallery import (
    GalleryPicture,
    find_picture,
    make_recipe,
    read_recipe,
    save_picture,
)
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import AdapterCard, adapter_blocks, find_adapter
from atelier.app.store.mixes import MixEntry, RegionEntry, entry_details, fusion_recipe
from atelier.app.store.models import check_family
from atelier.app.store.start_pictures import save_start_picture, start_recipe
from atelier.app.store.textual_inversions import (
    TextualInversionCard,
    inversion_hash,
    inversions_in_prompts,
)
from atelier.app.text import studio as words
from atelier.training.base_models.hub import require_download
from atelier.training.base_models.identify import identify
from atelier.training.config.base_options import AUTO_PREDICTION, PLAIN_BASE, PREDICTIONS, BaseOptions
from atelier.training.config.train_config import EMBEDDED
from atelier.training.sampling.prompt_encoding import PLAIN
from atelier.training.sampling.prompt_syntax import split_adapters
from atelier.training.sampling.sample import DrawRequest
from atelier.training.sampling.samplers import AUTO, SAMPLERS

if TYPE_CHECKING:
    from atelier.training.base_models.base_info import BaseInfo
    from atelier.training.sampling.start_picture import StartPicture

PREVIEW_STEPS = 6   # of a picture that is shown while a slider moves
RecipePicture = tuple[Image.Image, dict[str, Any]]   # a picture, and how it was drawn


class BatchPlace(NamedTuple):
    """Where a picture is among those that are drawn at once; sums of a batch of another size round differently."""

    at: int = 0
    of: int = 1


ALONE = BatchPlace()


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawJob:
    """Everything that decides the pictures."""

    request: DrawRequest
    base: str = EMBEDDED
    adapters: tuple[MixEntry, ...] = ()
    method: str = ""   # of fusion; empty: the plain sum, which a recipe does not mention
    options: BaseOptions = PLAIN_BASE   # how the base model is loaded; what is not set is taken from elsewhere
    start: StartPicture | None = None   # a picture to start from; a recipe has its hash and how much could change
    inversions: tuple[str, ...] = ()   # names of textual inversions that are taken where several have one word
    regions: tuple[RegionEntry, ...] = ()   # parts of the picture with prompts of their own
    place: BatchPlace = ALONE   # of one picture that is to be drawn again as it was, byte for byte


@dataclass(frozen=True, slots=True)
class CheckedJob:
    """A job whose adapters exist and fit the base model, whose sampler is decided, and whose prompts are read."""

    job: DrawJob
    family: str                       # of the base model
    cards: tuple[AdapterCard, ...]    # of the adapters, in their order
    notice: str = ""                  # what a person should know about how it is drawn, in a sentence
    inversions: tuple[TextualInversionCard, ...] = ()   # whose words stand in the prompts
    choices: tuple[CheckedJob, ...] = ()   # one for each picture, where the prompts leave something to choose
    templates: tuple[str, str] = ("", "")  # the prompts before their choices, where there were any

    def files(self) -> list[FileEntry]:
        """The adapters as the engine takes them."""
        return [(card.path, entry) for card, entry in zip(self.cards, self.job.adapters, strict=True)]

    def recipe(self, index: int) -> dict[str, Any]:
        """The recipe of picture ``index`` of the job, counted from 0."""
        job = self.job
        strengths = [(card, entry.strength) for card, entry in zip(self.cards, job.adapters, strict=True)]
        recipe = make_recipe(job.request, index, job.base, self.family, strengths)
        for part, entry in zip(recipe["adapters"], job.adapters, strict=True):
            part |= entry_details(entry)
        if job.regions:
            recipe["regions"] = [{"prompt": one.prompt, "region": list(one.region)} for one in job.regions]
        if job.start is not None:
            recipe["start"] = start_recipe(job.start)
        if any(self.templates):
            recipe["prompt_template"], recipe["negative_template"] = self.templates
        if self.inversions:
            recipe["textual_inversions"] = [
                {"name": card.name, "token": card.token, "sha256": inversion_hash(card)} for card in self.inversions]
        recipe |= {name: value for name, value in asdict(job.options).items() if value != getattr(PLAIN_BASE, name)}
        return recipe | fusion_recipe(job.method, job.adapters) if job.method else recipe


class Progress(NamedTuple):
    """How many denoising steps are done."""

    step: int
    of: int


@dataclass(frozen=True, slots=True)
class DrawPreview:
    """Small previews of the pictures that are being drawn."""

    pictures: list[Image.Image]


DrawEvent = str | Progress | DrawPreview | list[GalleryPicture]
"""A notice, if there is one; then progress and previews; at the end the pictures."""
_Drawn = str | Progress | DrawPreview | list[RecipePicture]


class DrawCancelledError(Exception):
    """The drawing was cancelled, because nobody waits for it any more."""


def check_job(home: Home, job: DrawJob) -> CheckedJob:
    """Find the adapters of a job and decide its sampler; no weights are read.

    Raises:
        HomeError, BaseError: an adapter or the base model can't be used, or they belong to different families.
    """
    if job.request.prompt_syntax != PLAIN and any(map(has_wildcards, (job.request.prompt, job.request.negative))):
        return _check_choices(home, job)
    _check_region_prompts(job)
    job = _with_named_adapters(replace(job, request=resolve_request(home, job.request)))
    cards = tuple(find_adapter(home, entry.name) for entry in job.adapters)
    for card, entry in zip(cards, job.adapters, strict=True):
        _check_blocks(card, entry)
    require_download(job.base)
    options = _options(home, job, cards)
    info = identify(job.base, options)
    check_family(info, cards)
    parts = [(card, entry.strength) for card, entry in zip(cards, job.adapters, strict=True)]
    request, notice = with_sampler(job.request, parts, info)
    inversions, others = _inversions(home, job, info.family)
    notices = " ".join(filter(None, [notice, info.assumed, *others]))
    return CheckedJob(replace(job, request=request, options=options), info.family, cards, notices, inversions)


def _check_blocks(card: AdapterCard, entry: MixEntry) -> None:
    if entry.blocks and (unknown := [block for block, _ in entry.blocks if block not in adapter_blocks(card)]):
        raise HomeError(words.no_block(card.name, unknown[0], adapter_blocks(card)))


def _check_region_prompts(job: DrawJob) -> None:
    for prompt in _region_prompts(job) if job.request.prompt_syntax != PLAIN else ():
        if has_wildcards(prompt) or split_adapters(prompt)[1]:
            raise HomeError(words.plain_region_prompt(prompt))


def _region_prompts(job: DrawJob) -> list[str]:
    return [one.prompt for one in (*job.regions, *job.adapters) if one.prompt]


def _check_choices(home: Home, job: DrawJob) -> CheckedJob:
    """A job whose pictures have prompts of their own: each chosen by its seed."""
    request, checked = job.request, list[CheckedJob]()
    for index in range(request.count):
        chosen = resolve_request(home, replace(request, seed=request.seed + index, count=1))
        plain = replace(chosen, prompt=escape_wildcards(chosen.prompt), negative=escape_wildcards(chosen.negative))
        one = check_job(home, replace(job, request=plain))
        checked.append(replace(one, templates=(request.prompt, request.negative)))
    notice = " ".join(dict.fromkeys(one.notice for one in checked if one.notice))
    return replace(checked[0], job=replace(checked[0].job, request=request), notice=notice, choices=tuple(checked))


def _inversions(home: Home, job: DrawJob, family: str) -> tuple[tuple[TextualInversionCard, ...], list[str]]:
    """Those whose words stand in the prompts, and a sentence for each word of another family's alone."""
    request = job.request
    if request.prompt_syntax == PLAIN:
        return (), []
    prompts = (request.prompt, request.negative, request.unwanted, *_region_prompts(job))
    cards = inversions_in_prompts(home, prompts, job.inversions)
    fitting = tuple(card for card in cards if card.family == family)
    tokens = {card.token.lower() for card in fitting}
    return fitting, [words.other_family_word(card.token, family_title(card.family)) for card in cards
                     if card.token.lower() not in tokens]   # fmt: skip


def _options(home: Home, job: DrawJob, cards: Sequence[AdapterCard]) -> BaseOptions:
    """How the base model is loaded: as the job says, else as its adapters were trained, else as it was set."""
    options = job.options
    for card in cards:
        if card.base == job.base:
            options = options.or_else(trained_options(card))
    return options.or_else(base_options(home, job.base))


def trained_options(card: AdapterCard) -> BaseOptions:
    """How the base model was loaded that an adapter was trained on, as its recipe says."""
    from atelier.adapters.core.parse import parse_path, parse_toml
    from atelier.adapters.formats.native import read_header

    try:
        recipe = parse_toml(read_header(card.path).info.recipe)
    except ValueError:
        return PLAIN_BASE
    prediction, vae = recipe.get("prediction"), recipe.get("vae")
    # A VAE that has gone since is no reason not to draw: the base model has its own.
    known = isinstance(vae, str) and bool(vae) and parse_path(vae).exists()
    return BaseOptions(prediction if prediction in PREDICTIONS else AUTO_PREDICTION, str(vae) if known else "")


def _with_named_adapters(job: DrawJob) -> DrawJob:
    """The job with ``<lora:name:strength>`` of its prompt as adapters; a name given both ways counts as typed last."""
    if job.request.prompt_syntax == PLAIN:
        return job
    prompt, named = split_adapters(job.request.prompt)
    if not named:
        return job
    entries = {entry.name: entry for entry in job.adapters} | {name: MixEntry(name, value) for name, value in named}
    return replace(job, request=replace(job.request, prompt=prompt), adapters=tuple(entries.values()))


def with_sampler(
    request: DrawRequest, parts: Sequence[tuple[AdapterCard, float]], info: BaseInfo | None = None
) -> tuple[DrawRequest, str]:
    """The request with its sampler decided, and a notice where an adapter or the base model has decided it."""
    fast = next((card for card, strength in parts if strength and card.sampler), None)
    few = info.few_steps if info else None
    decided = request.with_sampler(fast.sampler if fast else "", few)
    if request.sampler != AUTO or not (fast or few):
        return decided, ""
    if not fast:   # steps and guidance that differ from the usual ones were chosen, and stay
        usual = DrawRequest()
        chosen = {name: value for name in ("steps", "guidance") if (value := getattr(request, name)) !=
                  getattr(usual, name)}   # fmt: skip
        decided = replace(decided, **chosen)
    name = fast.name if fast else info.title if info else ""
    return decided, words.few_steps(name, SAMPLERS[decided.sampler].title, decided.steps, decided.guidance)


def draw(
    engine: Engine, checked: CheckedJob, callbacks: DrawCallbacks = DrawCallbacks(), *, batch_size: int = 0
) -> Iterator[RecipePicture]:
    """Draw a job; yields each picture with its recipe as soon as its batch is done.

    Args:
        engine: what draws.
        checked: the job.
        callbacks: who is told on the way; steps are those of a batch.
        batch_size: pictures drawn at once, 0 for all: more need more memory.

    Raises:
        BaseError, FileError, MountError, SettingError: as loading, mixing and drawing do.
    """
    job, request = checked.job, checked.job.request
    if checked.choices:
        for index, one in enumerate(checked.choices):
            yield from draw(engine, one, _part_of(callbacks, index, len(checked.choices)))
        return
    prompts = PromptParts([card.path for card in checked.inversions], [one.prompt_region() for one in job.regions])
    for first, count, wanted in _batches(job, batch_size):
        batch = replace(request, seed=request.seed + first, count=count)
        pictures = engine.draw(job.base, checked.files(), batch, job.method or DEFAULT_METHOD, callbacks=callbacks,
                               start=job.start, options=job.options, prompts=prompts)   # fmt: skip
        for i in wanted:
            place = {"batch": [i, count]} if count > 1 else {}
            yield pictures[i], checked.recipe(first + i) | place


def _batches(job: DrawJob, size: int) -> Iterator[tuple[int, int, Sequence[int]]]:
    """Pictures drawn at once: where they begin, how many they are, and which of them are wanted."""
    index, count = job.place
    if job.request.count == 1 and count > 1 and job.request.seed >= index:
        yield -index, count, [index]
        return
    for first in range(0, job.request.count, size or job.request.count):
        count = min(size or job.request.count, job.request.count - first)
        yield first, count, range(count)


def _part_of(callbacks: DrawCallbacks, index: int, count: int) -> DrawCallbacks:
    """Callbacks for one of several drawings, which together have their steps."""
    on_step = callbacks.on_step
    return callbacks._replace(on_step=on_step and (lambda done, of: on_step(index * of + done, count * of)))


def draw_preview(
    home: Home, engine: Engine, job: DrawJob, is_wanted: Callable[[], bool] = lambda: True
) -> Image.Image:
    """Draw the first picture of a job in few steps, as it is shown while a slider moves; it is not kept.

    Raises:
        DrawCancelledError: ``is_wanted`` said no between two steps.
        HomeError, BaseError, FileError, MountError, SettingError: each with a message for a person.
    """
    def on_step(_done: int, _of: int) -> None:
        """End the drawing where nobody waits for it any more."""
        if not is_wanted():
            raise DrawCancelledError

    request = replace(job.request, count=1, steps=min(PREVIEW_STEPS, job.request.steps), upscale=1.0)
    small = replace(job, request=request, place=ALONE)
    [(picture, _)] = draw(engine, check_job(home, small), DrawCallbacks(on_step, is_preview=True))
    return picture


def draw_to_gallery(
    home: Home, engine: Engine, job: DrawJob, is_wanted: Callable[[], bool] = lambda: True
) -> Iterator[DrawEvent]:
    """Draw a job in another thread, so that progress can be shown, and add the pictures to the gallery.

    Closing the iterator cancels the drawing at its next step, and so does ``is_wanted`` when it says no.

    Raises:
        DrawCancelledError: it was cancelled by ``is_wanted``; the gallery is unchanged.
        HomeError, BaseError, FileError, MountError, SettingError: each with a message for a person.
    """
    checked = check_job(home, job)
    if checked.notice:
        yield checked.notice
    if job.start is not None:
        save_start_picture(home, job.start)
    for event in _drawn_in_thread(engine, checked, is_wanted):
        if isinstance(event, list):
            paths = [save_picture(home, picture, recipe) for picture, recipe in event]
            yield [find_picture(home, path.stem) for path in paths]
        else:
            yield event


def _drawn_in_thread(engine: Engine, checked: CheckedJob, is_wanted: Callable[[], bool]) -> Iterator[_Drawn]:
    events: SimpleQueue[_Drawn | BaseException] = SimpleQueue()
    cancelled = threading.Event()

    def on_step(done: int, of: int) -> None:
        """Pass progress on; end the drawing where it was cancelled."""
        if cancelled.is_set() or not is_wanted():
            raise DrawCancelledError
        events.put(Progress(done, of))

    def work() -> None:
        """Draw, and put the pictures or the error on the queue."""
        try:
            callbacks = DrawCallbacks(on_step, lambda small: events.put(DrawPreview(small)), events.put)
            events.put(list(draw(engine, checked, callbacks)))
        except BaseException as error:
            events.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            yield event
            if isinstance(event, list):
                return
    finally:
        cancelled.set()


def suggested_prompt(card: AdapterCard) -> str:
    """A prompt that uses an adapter: the caption it was trained with."""
    from atelier.adapters.core.parse import parse_toml
    from atelier.adapters.formats.native import read_header
    from atelier.training.base_models.base_info import BaseError
    from atelier.training.config.caption_template import fill_template

    try:
        recipe = parse_toml(read_header(card.path).info.recipe)
        template = recipe.get("caption") or identify(card.base).caption
    except (BaseError, ValueError):
        template = "{trigger} {subject}"
    return " ".join(fill_template(template, trigger=card.trigger, subject=card.subject).split())


def picture_recipe(picture: GalleryPicture) -> dict[str, Any]:
    """A picture's recipe; empty when it holds none."""
    return read_recipe(picture.path) or {}


def recipe_json(recipe: Mapping[str, Any]) -> str:
    """A recipe as indented JSON, for copying."""
    return json.dumps(recipe, indent=2, ensure_ascii=False)

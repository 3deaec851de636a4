"""Fusion: propose adapters for a prompt, draw a Mix by any method, and fuse it into one adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from PIL import Image

from atelier.adapters.core.settings import SettingError
from atelier.adapters.formats.adapter_info import AdapterInfo
from atelier.adapters.formats.imported_layers import algorithm_names
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.fusion.batched_strengths import UNTRAINED_METHODS
from atelier.adapters.fusion.break_for_make_halves import BasisError
from atelier.adapters.fusion.gates import GateRecord
from atelier.adapters.fusion.interference import Interference
from atelier.adapters.fusion.methods import ALL_METHODS
from atelier.app.services.draw import CheckedJob, DrawJob, check_job, draw
from atelier.app.services.engine import DrawCallbacks, Engine, FileEntry
from atelier.app.services.library_list import LibraryFilter, filter_adapters
from atelier.app.store.gallery import GalleryPicture, find_picture, save_picture
from atelier.app.store.home import Home, explain_write_errors, new_name
from atelier.app.store.library import AdapterCard, find_adapter, list_adapters
from atelier.app.store.mixes import SavedMix
from atelier.app.store.search import Proposal, propose_adapters
from atelier.app.text import mix as words
from atelier.training.sampling.sample import DrawRequest

LIVE_STEPS, GALLERY_STEPS = 8, 20   # denoising steps while a person tries things out, and for the gallery
MAX_PROPOSALS = 8


def proposed_adapters(home: Home, prompt: str, search: str = "") -> list[Proposal]:
    """The adapters that fit a prompt, best first, the newest ones where none fits; with a search, those it finds."""
    if search.strip():
        found = filter_adapters(list_adapters(home), {}, LibraryFilter(query=search))
        return [Proposal(card.name, 0.0, card.trigger, ()) for card in found[:MAX_PROPOSALS]]
    found = propose_adapters(home, prompt, MAX_PROPOSALS) if prompt.strip() else []
    return found or [Proposal(card.name, 0.0, "", ()) for card in list_adapters(home)[:MAX_PROPOSALS]]


def draw_mix(
    home: Home, engine: Engine, mix: SavedMix, steps: int = LIVE_STEPS, record: GateRecord | None = None
) -> Image.Image:
    """Draw one picture of a Mix; ``record`` receives what gates do.

    Raises:
        HomeError, BaseError, FileError, MountError, SettingError: each with a message for a person.
    """
    [(picture, _)] = draw(engine, _checked(home, mix, steps), DrawCallbacks(record=record))
    return picture


def _checked(home: Home, mix: SavedMix, steps: int) -> CheckedJob:
    request = DrawRequest(prompt=mix.prompt, seed=mix.seed, steps=steps)
    return check_job(home, DrawJob(request=request, base=mix.base, adapters=mix.entries, method=mix.method))


def draw_mix_to_gallery(home: Home, engine: Engine, mix: SavedMix) -> GalleryPicture:
    """Draw a Mix in full quality and add the picture to the gallery, with the Mix in its recipe.

    Raises:
        HomeError, BaseError, FileError, MountError, SettingError: each with a message for a person.
    """
    [(picture, recipe)] = draw(engine, _checked(home, mix, GALLERY_STEPS))
    return find_picture(home, save_picture(home, picture, recipe).stem)


def draw_by_each_method(home: Home, engine: Engine, mix: SavedMix) -> Iterator[tuple[str, Image.Image]]:
    """Draw the same picture by every method that can draw this Mix; yields (method, picture)."""
    for method in ALL_METHODS:
        try:
            yield method, draw_mix(home, engine, replace(mix, method=method))
        except (SettingError, BasisError):   # it takes no curves or regions, needs two adapters, or there are no gates
            continue


def draw_pad(
    home: Home, engine: Engine, mix: SavedMix, strengths: Sequence[tuple[float, float]]
) -> list[Image.Image]:
    """Draw a Mix of two adapters at several pairs of strengths, from one seed.

    Raises:
        HomeError, BaseError, BasisError, FileError, MountError, SettingError: each with a message for a person.
    """
    if len(mix.entries) != 2:
        raise SettingError(words.TWO_FOR_PAD)
    if mix.method not in UNTRAINED_METHODS:
        raise SettingError(words.NOT_LIVE)
    checked = _checked(home, mix, LIVE_STEPS)
    one, two = (path for path, _ in checked.files())
    return engine.draw_grid(mix.base, (one, two), mix.method, strengths,
                            replace(checked.job.request, count=len(strengths)), options=checked.job.options,
                            inversions=[card.path for card in checked.inversions])   # fmt: skip


def mix_interference(home: Home, engine: Engine, mix: SavedMix) -> Interference | None:
    """How much the adapters of a Mix interfere with each other; None for fewer than two."""
    return engine.interference(mix.base, _files(home, mix)) if len(mix.entries) > 1 else None


def can_fuse(home: Home, engine: Engine, mix: SavedMix) -> bool:
    """Whether a Mix can be fused into one adapter."""
    return bool(mix.entries) and engine.can_fuse(_files(home, mix), mix.method)


def fuse_mix(home: Home, engine: Engine, mix: SavedMix, name: str) -> tuple[AdapterCard, float]:
    """Fuse a Mix into a new adapter of the library.

    Returns:
        The adapter's card, and the relative error of the UNet's output with it instead of the Mix.

    Raises:
        HomeError, SettingError: the name is taken, or no single adapter can do what the Mix does.
    """
    free = new_name(home, name)
    cards = [find_adapter(home, entry.name) for entry in mix.entries]
    adapters, error = engine.fuse(mix.base, _files(home, mix), mix.method, mix.prompt)
    first = cards[0]
    info = AdapterInfo(
        name=free, trigger=" ".join(dict.fromkeys(card.trigger for card in cards if card.trigger)),
        subject=first.subject, base=first.base, family=first.family, title=first.title, method=mix.method,
        created=datetime.now(UTC).isoformat(timespec="seconds"), pictures=sum(card.pictures for card in cards),
        parts=tuple(card.name for card in cards), algorithms=algorithm_names(adapters),
    )   # fmt: skip
    with explain_write_errors(home.adapters):
        save_adapter(home.adapters / f"{free}.safetensors", adapters, info.to_metadata())
    return find_adapter(home, free), error


def _files(home: Home, mix: SavedMix) -> list[FileEntry]:
    return [(find_adapter(home, entry.name).path, entry) for entry in mix.entries]

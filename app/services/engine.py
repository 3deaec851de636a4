"""The engine: keeps one base model and the adapters used last in memory, and draws one request after the other."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from PIL import Image

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.native import load_adapter
from atelier.adapters.fusion.live import PromptRegion, with_prompt_regions
from atelier.adapters.fusion.methods import DEFAULT_METHOD, can_fuse, combine, fuse_adapters
from atelier.adapters.textual_inversion import TextualInversion, read_textual_inversions
from atelier.app.services.resident_base import ResidentBase, Work
from atelier.app.store.base_settings import base_options
from atelier.app.store.home import Home
from atelier.app.store.mixes import MixEntry
from atelier.app.store.preferences import drawing_device, drawing_precision
from atelier.training.base_models.base_model import BaseModel
from atelier.training.base_models.bundled import gates_for
from atelier.training.base_models.device import AUTO_DEVICE, has_own_memory
from atelier.training.base_models.identify import identify
from atelier.training.base_models.malloc_tuning import keep_freed_memory
from atelier.training.base_models.precision import AUTO
from atelier.training.config.base_options import PLAIN_BASE, BaseOptions
from atelier.training.sampling.draw_cache import DrawCache
from atelier.training.sampling.preview_savings import in_less_time
from atelier.training.sampling.sample import DrawRequest, draw

if TYPE_CHECKING:   # what only one method needs is imported there: `atelier draw` waits for every import
    from atelier.adapters.fusion.gates import GateRecord
    from atelier.adapters.fusion.interference import Interference
    from atelier.training.sampling.draw_memory import DrawPlan
    from atelier.training.sampling.fidelity import Fidelity
    from atelier.training.sampling.start_picture import StartPicture

T = TypeVar("T")
MAX_ADAPTERS, MAX_INVERSIONS = 8, 64
MAX_GRID_PICTURES = 81   # of the Mix Lab's pad: nine grids
FileEntry = tuple[Path, MixEntry]   # an adapter's file, and its entry in a Mix
FileKey = tuple[Path, int, int]     # identifies a version of a file: path, modification time in ns, bytes


class DrawCallbacks(NamedTuple):
    """Who is told of a drawing on the way, and whether it is drawn for a moment only."""

    on_step: Callable[[int, int], None] | None = None   # (done, of) after every denoising step
    on_latent_preview: Callable[[list[Image.Image]], None] | None = None   # small pictures, a few times a second
    on_notice: Callable[[str], None] | None = None   # a sentence on what it does to need less memory
    record: GateRecord | None = None                 # takes down what gates do
    is_preview: bool = False                         # nobody keeps the pictures, so they may be drawn in less time


SILENT = DrawCallbacks()


class PromptParts(NamedTuple):
    """What belongs to the prompts of a drawing besides their text."""

    inversions: Sequence[Path] = ()        # files of textual inversions whose words they may have
    regions: Sequence[PromptRegion] = ()   # parts of the picture with prompts of their own


ONLY_TEXT = PromptParts()


class Engine:
    """Draws. Safe to call from several threads: they take turns.

    The base model stays in memory for the next drawing until it is needed for something else (``resident_base.py``).
    """

    def __init__(
        self, precision: Callable[[], str] = lambda: AUTO, options: Callable[[str], BaseOptions] = lambda _: PLAIN_BASE,
        device: Callable[[], str] = lambda: AUTO_DEVICE,
    ) -> None:   # fmt: skip
        """Whenever it draws, ``precision`` and ``device`` are asked for, and ``options`` for those of a base model."""
        keep_freed_memory()   # now, before there are threads that draw
        self._lock = threading.Lock()
        self._resident, self._options = ResidentBase(self._lock, precision, device), options
        self._adapters: OrderedDict[FileKey, AdapterSet] = OrderedDict()
        self._adapters_on: torch.device | None = None
        self._inversions: OrderedDict[FileKey, TextualInversion] = OrderedDict()
        self._grid_pictures: OrderedDict[Hashable, Image.Image] = OrderedDict()
        self._step_seconds: dict[tuple[str, int], float] = {}   # of base model and batch
        self._word_effects: dict[tuple[str, str], float] = {}   # of base model and word

    @classmethod
    def of_home(cls, home: Home, *, precision: str = "", device: str = "") -> Engine:
        """One that draws as the home's Settings say, except in a precision or on a device that is given."""
        return cls(lambda: precision or drawing_precision(home), partial(base_options, home),
                   lambda: device or drawing_device(home))   # fmt: skip

    @property
    def loaded(self) -> BaseModel | None:
        """The base model in memory, if any."""
        return self._resident.loaded.model if self._resident.loaded else None

    def is_loaded(self, base: str) -> bool:
        """Whether this base model is in memory, so that a drawing with it begins at once."""
        return self._resident.loaded is not None and self._resident.loaded.base == base

    def release(self) -> None:
        """Let go of the base model, so that its memory is free for something else."""
        with self._lock:
            self._resident.release()

    def draw(
        self, base: str, adapters: Sequence[FileEntry], request: DrawRequest, method: str = DEFAULT_METHOD, *,
        callbacks: DrawCallbacks = SILENT, start: StartPicture | None = None, options: BaseOptions | None = None,
        prompts: PromptParts = ONLY_TEXT,
    ) -> list[Image.Image]:   # fmt: skip
        """Draw ``request.count`` pictures in one batch.

        Args:
            base: the base model.
            adapters: files of adapters, with strengths, curves and regions; those of strength 0 are not read.
            request: what to draw.
            method: of fusion, one of ``adapters/fusion/methods.py``.
            callbacks: who is told while it draws.
            start: a picture to start from.
            options: how the base model is loaded; None: as it was set for it.
            prompts: what belongs to the prompts besides their text.

        Raises:
            BaseError, FileError, MountError, SettingError: as loading, mixing and drawing do.
        """
        def work(model: BaseModel, cache: DrawCache) -> list[Image.Image]:
            """Combine the adapters by the method and draw."""
            parts = [entry.weighted_adapter(self._adapter(path)) for path, entry in adapters if entry.strength]
            gates = gates_for(model) if method == "gated" else None
            mix = combine(model.models(), parts, method, steps=request.steps, gates=gates, record=callbacks.record)
            mix = with_prompt_regions(mix, prompts.regions)
            cache.inversions = tuple(map(self._inversion, prompts.inversions))
            for_a_moment = callbacks.is_preview and isinstance(mix, Mix) and not mix.live()
            with in_less_time(model.unet, request, start) if for_a_moment else nullcontext():
                return draw(model, request, mix, callbacks.on_step, on_latent_preview=callbacks.on_latent_preview,
                            cache=cache, start=start)   # fmt: skip

        with self._lock:
            active = [path for path, entry in adapters if entry.strength]
            return self._run(base, request, active, work, callbacks.on_notice, from_picture=start is not None,
                             options=options)   # fmt: skip

    def draw_grid(
        self, base: str, adapters: tuple[Path, Path], method: str, strengths: Sequence[tuple[float, float]],
        request: DrawRequest, *, options: BaseOptions | None = None, inversions: Sequence[Path] = (),
    ) -> list[Image.Image]:   # fmt: skip
        """Draw a content and a style at several pairs of strengths, all at once and from one seed.

        The pictures drawn last are cached: along one axis of the pad a third of the grid stays as it is.

        Args:
            base: the base model.
            adapters: files of the content and of the style.
            method: one of ``adapters/fusion/batched_strengths.py``.
            strengths: of content and style, one pair a picture.
            request: what to draw; its count is that of the pairs.
            options: as for :meth:`draw`.
            inversions: files of textual inversions whose words the prompts may have.

        Raises:
            BaseError, BasisError, FileError, MountError, SettingError: as loading, mixing and drawing do.
        """
        from atelier.adapters.fusion.batched_strengths import combine_batched

        def work(model: BaseModel, cache: DrawCache) -> list[Image.Image]:
            """Draw those pairs of strengths that are not cached."""
            content, style = (self._adapter(path) for path in adapters)
            mixed = combine_batched(model.models(), content, style, method, list(new.values())).to(model.device)
            one_each = replace(request, count=len(new))
            cache.inversions = tuple(map(self._inversion, inversions))
            return draw(model, one_each, Mix(((mixed, 1.0),)), same_seed=True, cache=cache)

        one, options = replace(request, count=1), self._options(base) if options is None else options
        files = tuple(map(_file_key, (*adapters, *inversions)))
        keys = [(base, options, files, method, one, pair) for pair in strengths]
        with self._lock:
            new = {key: pair for key, pair in zip(keys, strengths, strict=True) if key not in self._grid_pictures}
            if new:
                drawn = self._run(base, replace(request, count=len(new)), adapters, work, options=options)
                self._grid_pictures.update(zip(new, drawn, strict=True))
            for key in keys:
                self._grid_pictures.move_to_end(key)
            pictures = [self._grid_pictures[key] for key in keys]
            while len(self._grid_pictures) > max(MAX_GRID_PICTURES, len(keys)):
                self._grid_pictures.popitem(last=False)
            return pictures

    def plan_drawing(self, base: str, request: DrawRequest) -> DrawPlan | None:
        """What a drawing would need of the memory and what would be saved; None while something else is drawn.

        Raises:
            BaseError: the base can't be used, or there is too little memory even with every saving.
        """
        if not self._lock.acquire(blocking=False):
            return None
        try:
            return self._resident.plan(base, request, self._options(base))
        finally:
            self._lock.release()

    def interference(self, base: str, adapters: Sequence[FileEntry]) -> Interference:
        """How much the adapters change what the others do; see ``adapters/fusion/interference.py``.

        The base model is loaded only for adapters that have no factors of their own.

        Raises:
            BaseError, FileError, MountError: as loading and mounting do.
        """
        from atelier.adapters.fusion.interference import interference_of_factors, measure_interference

        def work(model: BaseModel, *_: object) -> Interference:
            """Measure with the adapters at their strengths."""
            return measure_interference(model.models(), mix)

        with self._lock:
            mix = Mix(tuple((self._adapter(path), entry.strength) for path, entry in adapters))
            if (found := interference_of_factors(mix)) is not None:
                return found
            return self._run(base, DrawRequest(), [path for path, _ in adapters], work)

    def can_fuse(self, adapters: Sequence[FileEntry], method: str) -> bool:
        """Whether one adapter can replace several fused by this method.

        Raises:
            FileError: a file can't be read.
        """
        with self._lock:
            return can_fuse([entry.weighted_adapter(self._adapter(path)) for path, entry in adapters], method)

    def fuse(
        self, base: str, adapters: Sequence[FileEntry], method: str, prompt: str
    ) -> tuple[AdapterSet, float]:
        """Make one adapter of several by a method of fusion.

        Returns:
            The adapter, and the relative error of the UNet's output with it instead of them.

        Raises:
            BaseError, FileError, MountError: as loading and mounting do.
            SettingError: the method can't be one adapter.
        """
        from atelier.training.sampling.fidelity import unet_error

        def work(model: BaseModel, *_: object) -> tuple[AdapterSet, float]:
            """Fuse, and compare with the adapters themselves."""
            parts = [entry.weighted_adapter(self._adapter(path)) for path, entry in adapters]
            one = fuse_adapters(model.models(), parts, method)
            # DARE and TIES leave out values on purpose; a reduced rank is an error to measure.
            whole = combine(model.models(), parts, "sum" if method in ("svd", "concat") else method)
            assert isinstance(whole, Mix)
            return one, unet_error(model, whole, Mix(((one, 1.0),)), prompt)

        with self._lock:
            return self._run(base, DrawRequest(), [path for path, _ in adapters], work)

    def compare_export(self, base: str, adapter: Path, exported: Path, prompt: str) -> Fidelity:
        """Measure on the base model how an exported file differs from its adapter.

        Raises:
            BaseError, FileError, MountError: as loading and mounting do.
        """
        from atelier.training.sampling.fidelity import compare

        def work(model: BaseModel, cache: DrawCache) -> Fidelity:
            """Draw and predict with either, and compare."""
            return compare(model, Mix(((self._adapter(adapter), 1.0),)), exported, prompt, cache)

        with self._lock:
            return self._run(base, DrawRequest(), [adapter], work)

    def measure(self, base: str, adapters: Sequence[Path], work: Callable[[BaseModel, list[AdapterSet]], T]) -> T:
        """Measure something on a base model with adapters, which ``work`` mounts where it needs them.

        Raises:
            BaseError, FileError, MountError: as loading and mounting do.
        """
        with self._lock:
            return self._run(base, DrawRequest(), adapters,
                             lambda model, _: work(model, [self._adapter(path) for path in adapters]))   # fmt: skip

    def word_effect(self, base: str, word: str) -> float | None:
        """How much a word means to a base model already; see ``trigger_words.word_effects``.

        None where another base model is in memory, which would have to be freed, or where no neutral word is known.

        Raises:
            BaseError: as loading does.
        """
        from atelier.training.measures.trigger_word import word_effects

        with self._lock:
            if (self.loaded and not self.is_loaded(base)) or not identify(base).neutral_words:
                return None
            if (base, word) not in self._word_effects:
                [effect] = self._run(base, DrawRequest(), [], lambda model, *_: word_effects(model, [word]))
                self._word_effects[base, word] = effect
            return self._word_effects[base, word]

    def seconds_per_picture(self, base: str, pictures: int) -> float | None:
        """Seconds that a training step takes for each of so many pictures, without all that is around it.

        None where another base model is in memory, which would have to be freed.

        Raises:
            BaseError: as loading does.
        """
        from atelier.training.measures.step_time import seconds_per_picture

        with self._lock:
            if self.loaded and not self.is_loaded(base):
                return None
            if (base, pictures) not in self._step_seconds:
                self._step_seconds[base, pictures] = self._run(
                    base, DrawRequest(), [], lambda model, *_: seconds_per_picture(model, pictures))
            return self._step_seconds[base, pictures]

    def _run(
        self, base: str, request: DrawRequest, files: Sequence[Path], work: Work[T],
        on_notice: Callable[[str], None] | None = None, *, from_picture: bool = False,
        options: BaseOptions | None = None,
    ) -> T:   # fmt: skip
        """Do some work with a base model and adapters; only these take the memory of a card."""
        options = self._options(base) if options is None else options
        device = self._resident.device
        if device != self._adapters_on:   # another one was chosen
            self._adapters.clear()
            self._adapters_on = device
        adapters = [self._adapter(path) for path in files]
        if has_own_memory(device):
            active = {id(each) for each in adapters}
            for each in self._adapters.values():
                each.to(device if id(each) in active else "cpu")
        return self._resident.run(base, request, adapters, work, on_notice, from_picture=from_picture,
                                  options=options)   # fmt: skip

    def _inversion(self, path: Path) -> TextualInversion:
        """The one object of a file, by which the prompts are remembered that were read with it."""
        key = _file_key(path)
        if key not in self._inversions:
            [self._inversions[key]] = read_textual_inversions(path)
        self._inversions.move_to_end(key)
        while len(self._inversions) > MAX_INVERSIONS:
            self._inversions.popitem(last=False)
        return self._inversions[key]

    def _adapter(self, path: Path) -> AdapterSet:
        key = _file_key(path)
        if key not in self._adapters:
            self._adapters[key] = load_adapter(path, self._resident.device)
        self._adapters.move_to_end(key)
        while len(self._adapters) > MAX_ADAPTERS:
            self._adapters.popitem(last=False)
        return self._adapters[key]


def _file_key(path: Path) -> FileKey:
    facts = path.stat()
    return path, facts.st_mtime_ns, facts.st_size

"""The engine: one loaded base model and the adapters used lately, drawing for all pages one at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

from PIL import Image

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.formats.native import load_adapter
from atelier.adapters.fusion.batched_strengths import blended
from atelier.adapters.fusion.gates import Record
from atelier.adapters.fusion.interference import Interference, interference
from atelier.adapters.fusion.methods import as_one, combined, is_one_file
from atelier.app.store.mixes import MixEntry
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.base_models.identify import identify
from atelier.training.base_models.malloc_tuning import keep_freed_memory
from atelier.training.embedded_base.train_gates import gates_for
from atelier.training.sampling.draw_cache import DrawCache
from atelier.training.sampling.fidelity import Fidelity, compare, unet_error
from atelier.training.sampling.sample import DrawRequest, draw
from atelier.training.sampling.trigger_words import word_effects

CACHED_ADAPTERS = 8
CACHED_GRID_PICTURES = 81   # pictures of the Mix Lab's pad: nine grids
AdapterFile = tuple[Path, float]   # adapter file, strength
United = tuple[AdapterSet, float]
FileKey = tuple[Path, int, int]   # a file as it is now: path, time of change in ns, bytes


class DrawCancelledError(Exception):
    """Nobody waits for this drawing any more."""


@dataclass(frozen=True, slots=True)
class LatentPreview:
    """Small pictures of what is being drawn, as far as it has come."""

    pictures: list[Image.Image]


DrawEvent = tuple[int, int] | LatentPreview | list[Image.Image]   # (step, of), a look, the pictures


class Engine:
    """Draws. Safe to call from several threads: they take turns."""

    def __init__(self) -> None:
        keep_freed_memory()   # now, before there are threads that draw
        self._turn = threading.Lock()
        self._base: tuple[str, BaseModel] | None = None
        self._cache = DrawCache()   # of the loaded base: a slider that moves does not merge the others again
        self._adapters: OrderedDict[FileKey, AdapterSet] = OrderedDict()
        self._cells: OrderedDict[Hashable, Image.Image] = OrderedDict()
        self._word_effects: dict[str, float] = {}   # words, to the loaded base

    @property
    def loaded(self) -> BaseModel | None:
        """The base model in memory, if any."""
        return self._base[1] if self._base else None

    def holds(self, base: str) -> bool:
        """Whether this base model is in memory, so that a drawing with it begins at once."""
        return self._base is not None and self._base[0] == base

    def draw(
        self,
        base: str,
        parts: Sequence[AdapterFile],
        request: DrawRequest,
        on_step: Callable[[int, int], None] | None = None,
        on_latent_preview: Callable[[list[Image.Image]], None] | None = None,
    ) -> list[Image.Image]:
        """Draw with adapters at their strengths; ``on_step(done, of)`` and ``on_latent_preview(pictures)`` on the way.

        Raises:
            BaseError, FileError, MountError, SettingError: as loading, mounting and drawing do.
        """
        with self._turn:
            model = self._model(base)
            mix = Mix(tuple((self._adapter(path), strength) for path, strength in parts if strength))
            return draw(model, request, mix, on_step, on_latent_preview=on_latent_preview, cache=self._cache)

    def fuse(
        self, base: str, shares: Sequence[tuple[Path, MixEntry]], method: str, request: DrawRequest,
        record: Record | None = None,
    ) -> list[Image.Image]:   # fmt: skip
        """Draw with several adapters by a method of ``methods.py``; ``record`` takes down what gates do.

        Raises:
            BaseError, FileError, MountError, SettingError: as loading, mixing and drawing do.
        """
        with self._turn:
            model = self._model(base)
            parts = [share.part(self._adapter(path)) for path, share in shares]
            gates = gates_for(model) if method == "gated" else None
            how = combined(model.models(), parts, method, steps=request.steps, gates=gates, record=record)
            return draw(model, request, how, cache=self._cache)

    def meeting(self, base: str, shares: Sequence[tuple[Path, MixEntry]]) -> Interference:
        """How the adapters get in one another's way.

        Raises:
            BaseError, FileError, MountError: as loading and mounting do.
        """
        with self._turn:
            model = self._model(base)
            return interference(model.models(), Mix(tuple((self._adapter(path), s.strength) for path, s in shares)))

    def can_unite(self, shares: Sequence[tuple[Path, MixEntry]], method: str) -> bool:
        """Whether one adapter file can do what the method does.

        Raises:
            FileError: a file can't be read.
        """
        with self._turn:
            return is_one_file([share.part(self._adapter(path)) for path, share in shares], method)

    def unite(self, base: str, shares: Sequence[tuple[Path, MixEntry]], method: str, prompt: str) -> United:
        """One adapter that does what the method does, and how far it is from the sum that it stands for.

        Raises:
            BaseError, FileError, MountError: as loading and mounting do.
            SettingError: the method can't be one file.
        """
        with self._turn:
            model = self._model(base)
            parts = [share.part(self._adapter(path)) for path, share in shares]
            one = as_one(model.models(), parts, method)
            # What DARE and TIES leave out is what they are for; a cut rank is a loss.
            whole = combined(model.models(), parts, "sum" if method in ("svd", "concat") else method)
            assert isinstance(whole, Mix)
            return one, unet_error(model, whole, Mix(((one, 1.0),)), prompt)

    def word_effects(self, base: str, word: str) -> float | None:
        """How much a word means to a base model already.

        None where another one is in memory, because it would have to go, or where no neutral word is known.

        Raises:
            BaseError: as loading does.
        """
        with self._turn:
            if (self.loaded and not self.holds(base)) or not identify(base).neutral_words:
                return None
            if word not in self._word_effects:
                [self._word_effects[word]] = word_effects(self._model(base), [word])
            return self._word_effects[word]

    def compare(self, base: str, parts: Sequence[AdapterFile], exported: Path, prompt: str) -> Fidelity:
        """How a file made of adapters at their strengths differs from them on the base model.

        Raises:
            BaseError, FileError, MountError: as loading and mounting do.
        """
        with self._turn:
            model = self._model(base)
            mix = Mix(tuple((self._adapter(path), strength) for path, strength in parts))
            return compare(model, mix, exported, prompt)

    def blend(
        self, base: str, parts: tuple[Path, Path], method: str, strengths: Sequence[tuple[float, float]],
        request: DrawRequest,
    ) -> list[Image.Image]:   # fmt: skip
        """Draw a content and a style at several pairs of strengths, all at once and from one seed.

        Pictures drawn lately are remembered: along one axis of the pad a third of the grid stays as it is.

        Raises:
            BaseError, BasisError, FileError, MountError, SettingError: as loading, mixing and drawing do.
        """
        one = replace(request, count=1)
        keys = [(base, *map(_file_key, parts), method, one, cell) for cell in strengths]
        with self._turn:
            new = {key: cell for key, cell in zip(keys, strengths, strict=True) if key not in self._cells}
            if new:
                model = self._model(base)
                content, style = (self._adapter(path) for path in parts)
                mixed = blended(model.models(), content, style, method, list(new.values())).to(model.device)
                one_each = replace(request, count=len(new))
                drawn = draw(model, one_each, Mix(((mixed, 1.0),)), alike=True, cache=self._cache)
                self._cells.update(zip(new, drawn, strict=True))
            for key in keys:
                self._cells.move_to_end(key)
            pictures = [self._cells[key] for key in keys]
            while len(self._cells) > max(CACHED_GRID_PICTURES, len(keys)):
                self._cells.popitem(last=False)
            return pictures

    def drawing(
        self, base: str, parts: Sequence[AdapterFile], request: DrawRequest
    ) -> Iterator[DrawEvent]:
        """Draw in another thread: yields (step, of) and what emerges on the way, and the pictures at the end.

        Closing the iterator abandons the drawing at its next step.
        """
        told: SimpleQueue[DrawEvent | BaseException] = SimpleQueue()
        abandoned = threading.Event()

        def on_step(done: int, of: int) -> None:
            if abandoned.is_set():
                raise DrawCancelledError
            told.put((done, of))

        def work() -> None:
            try:
                told.put(self.draw(base, parts, request, on_step, lambda small: told.put(LatentPreview(small))))
            except BaseException as error:
                told.put(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            while True:
                news = told.get()
                if isinstance(news, BaseException):
                    raise news
                yield news
                if isinstance(news, list):
                    return
        finally:
            abandoned.set()

    def _model(self, base: str) -> BaseModel:
        if self._base is None or self._base[0] != base:
            # Let go of the old one first: two may not fit into memory.
            self._base, self._cache, self._word_effects = None, DrawCache(), {}
            self._base = (base, load(base))
        return self._base[1]

    def _adapter(self, path: Path) -> AdapterSet:
        key = _file_key(path)
        if key not in self._adapters:
            self._adapters[key] = load_adapter(path)
        self._adapters.move_to_end(key)
        while len(self._adapters) > CACHED_ADAPTERS:
            self._adapters.popitem(last=False)
        return self._adapters[key]


def _file_key(path: Path) -> FileKey:
    facts = path.stat()
    return path, facts.st_mtime_ns, facts.st_size

"""One base model that stays in the device's memory from a drawing to the next, and goes when that is needed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from atelier.adapters.core.base import AdapterSet
from atelier.training.base_models.base_info import BaseError, BaseInfo
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.base_models.device import (
    AUTO_DEVICE,
    allocated_memory,
    device_named,
    has_own_memory,
    is_out_of_memory,
    release_cached,
)
from atelier.training.base_models.device_lock import Job, Residency, running_job
from atelier.training.base_models.identify import identify
from atelier.training.base_models.memory_count import module_bytes
from atelier.training.base_models.precision import AUTO, drawing_dtype
from atelier.training.config.base_options import PLAIN_BASE, BaseOptions
from atelier.training.sampling.draw_cache import DrawCache
from atelier.training.sampling.draw_memory import DrawPlan, plan_drawing
from atelier.training.sampling.draw_savings import DrawSavings, describe_draw_savings, next_draw_saving
from atelier.training.sampling.sample import DrawRequest

IDLE_SECONDS = 600.0       # without a drawing, after which the memory is released
BESIDE_JOB_SECONDS = 60.0  # the same while a job uses the device
WATCH_SECONDS = 0.5
T = TypeVar("T")
Work = Callable[[BaseModel, DrawCache], T]
Notify = Callable[[str], None]


@dataclass(slots=True)
class LoadedBase:
    """A base model in memory, and how it was loaded."""

    base: str
    options: BaseOptions
    precision: str
    device: torch.device
    in_8_bits: bool
    model: BaseModel
    beside: Job | None   # the job that used the device already
    number: int          # of this loading: whoever watches it must not keep it alive
    bytes: int           # of its weights
    cache: DrawCache = field(default_factory=DrawCache)
    used: float = field(default_factory=time.monotonic)   # when it was needed last


class ResidentBase:
    """Loads the base model that is asked for and lets work be done with it, in the memory that there is."""

    def __init__(
        self, lock: threading.Lock, precision: Callable[[], str] = lambda: AUTO,
        device: Callable[[], str] = lambda: AUTO_DEVICE,
    ) -> None:   # fmt: skip
        """The lock is held by whoever calls :meth:`run` or :meth:`release`; precision and device are asked for anew."""
        self._lock, self._precision, self._device_name = lock, precision, device
        self._loaded: LoadedBase | None = None
        self._loadings = 0
        self._devices: dict[str, torch.device] = {}   # found so far, by what was asked for
        self._residency: Residency | None = None

    @property
    def loaded(self) -> LoadedBase | None:
        """What is in memory, if anything."""
        return self._loaded

    @property
    def device(self) -> torch.device:
        """Where it works; found when it is first asked for, because that takes a little of a card's memory."""
        name = self._device_name()
        if name not in self._devices:
            self._devices[name] = device_named(name)
        return self._devices[name]

    def run(
        self, base: str, request: DrawRequest, adapters: Sequence[AdapterSet], work: Work[T],
        on_notice: Notify | None = None, *, from_picture: bool = False, options: BaseOptions = PLAIN_BASE,
    ) -> T:   # fmt: skip
        """Do some work with a base model; where memory runs out, do it again with the next saving.

        Args:
            base: the base model.
            request: the drawing that the savings are chosen for.
            adapters: those that act in it.
            work: is given the model, and what was computed with it before with the savings in it.
            on_notice: called with a sentence where there are savings.
            from_picture: whether the drawing starts from a picture.
            options: how the base model is loaded.

        Raises:
            BaseError: the base can't be loaded, or there is too little memory even with every saving.
        """
        plan = self._plan(identify(base, options), request, adapters, from_picture)
        notify = on_notice or (lambda _: None)
        if plan.notice:
            notify(plan.notice)
        savings: DrawSavings | None = plan.savings
        while savings is not None:
            try:
                return self._attempt((base, options), adapters, work, savings)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            finally:
                if self._loaded is not None:
                    self._loaded.used = time.monotonic()
            # Not before the error is gone: it holds everything that was in memory.
            savings = self._after_shortage(savings, notify)
        self.release()
        raise BaseError(f"There is not enough memory for this, even with every memory saving. {self._cure()}")

    def _attempt(
        self, base: tuple[str, BaseOptions], adapters: Sequence[AdapterSet], work: Work[T], savings: DrawSavings
    ) -> T:
        # A frame of its own: an error would keep alive what is named where it is caught.
        loaded = self._load(*base, savings)
        loaded.cache.savings = savings
        if has_own_memory(self.device):
            loaded.cache.retain(adapters)
        return work(loaded.model, loaded.cache)

    def plan(self, base: str, request: DrawRequest, options: BaseOptions = PLAIN_BASE) -> DrawPlan:
        """What a drawing without adapters would need here, and what would be saved to fit.

        Raises:
            BaseError: the base can't be used, or there is too little memory even with every saving.
        """
        return self._plan(identify(base, options), request, (), from_picture=False)

    def release(self) -> None:
        """Let go of the base model and of all that was computed with it."""
        was_on = self._loaded.device if self._loaded is not None else self.device
        self._loaded = None
        release_cached(was_on)
        if self._residency is not None:
            self._residency.end()
            self._residency = None

    def _plan(
        self, info: BaseInfo, request: DrawRequest, adapters: Sequence[AdapterSet], from_picture: bool
    ) -> DrawPlan:
        # What this process holds now can go.
        held = allocated_memory(self.device)
        if self._loaded is not None and not has_own_memory(self.device):
            held = self._loaded.bytes
        dtype = drawing_dtype(self._precision(), self.device)
        try:
            return plan_drawing(info, request, adapters, dtype, self.device, held, from_picture=from_picture)
        except BaseError as error:
            if job := running_job(self.device):
                raise BaseError(f"{error} {job} uses the device as well: wait until it is done.") from None
            raise

    def _load(self, base: str, options: BaseOptions, savings: DrawSavings) -> LoadedBase:
        """The base model as the savings say: loaded, and its parts where they belong."""
        loaded, wanted = self._loaded, (base, options, self._precision(), self.device, savings.in_8_bits)
        if loaded is None or (loaded.base, loaded.options, loaded.precision, loaded.device, loaded.in_8_bits) != wanted:
            self.release()   # first: two may not fit into memory
            model = load(base, self.device, drawing_dtype(wanted[2], self.device), in_8_bits=savings.in_8_bits,
                         resident=("unet",) if savings.offload else None, options=options)   # fmt: skip
            self._residency = Residency(self.device)
            self._residency.begin()
            self._loadings += 1
            bytes = sum(module_bytes(part) for part in (*model.models().values(), model.vae))
            loaded = self._loaded = LoadedBase(*wanted, model, running_job(self.device), self._loadings, bytes)
            threading.Thread(target=self._watch, args=(self._loadings,), daemon=True).start()
        model = loaded.model
        (model.offload if savings.offload else model.onload)(*model.text_encoders)
        (model.offload if savings.offload or savings.half_vae else model.onload)(model.vae)
        return loaded

    def _after_shortage(self, savings: DrawSavings, notify: Notify) -> DrawSavings | None:
        """Free what can be computed again, and choose the next saving."""
        if self._loaded is not None:
            self._loaded.cache = DrawCache()
        release_cached(self.device)
        more = next_draw_saving(savings, self.device)
        if more:
            notify(f"The memory ran out, so the drawing starts again with less: {describe_draw_savings(more)}.")
        return more

    def _cure(self) -> str:
        job = running_job(self.device)
        return f"Wait until {job} is done." if job else "Close other programs, or draw smaller or fewer pictures."

    def _watch(self, number: int) -> None:
        """Release a base model after a while without work, and at once when a job begins."""
        while self._is_idle(number) is not None:
            time.sleep(WATCH_SECONDS)
            if self._is_idle(number):
                with self._lock:   # a drawing may have been at work
                    if self._is_idle(number):
                        self.release()

    def _is_idle(self, number: int) -> bool | None:
        """Whether nobody has needed a base model for long enough; None where it is not loaded any more."""
        loaded = self._loaded
        if loaded is None or loaded.number != number:
            return None
        job = running_job(self.device)
        patience = IDLE_SECONDS if job is None else BESIDE_JOB_SECONDS if job == loaded.beside else 0.0
        return time.monotonic() - loaded.used >= patience

"""Base models that are downloaded in the background of the Studio, and how far they are."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from atelier.app.services.known_models import KnownModel, MemoryNeeds, memory_needs
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.hub import download_model, is_hub_id, needs_download
from atelier.training.base_models.identify import identify

MAX_WAITING, MAX_LISTED = 8, 30   # downloads under way, and those that the page still shows


@dataclass(frozen=True, slots=True)
class Download:
    """How far the download of a model is."""

    id: str
    done: int = 0        # bytes that are here
    of: int = 0          # bytes in all; 0 until the hub has said it
    error: str = ""      # why it ended without the model
    running: bool = True

    @property
    def percent(self) -> int:
        """The share that is here."""
        return 100 * self.done // self.of if self.of else 0


class ModelDownloads:
    """Downloads models, one after the other. Safe to call from several threads."""

    def __init__(self) -> None:
        self._turn, self._lock = threading.Lock(), threading.Lock()
        self._downloads: dict[str, Download] = {}
        self._needs: dict[str, MemoryNeeds] = {}

    def start(self, id: str) -> None:
        """Download a model in the background; one that is under way or here already is left alone.

        Raises:
            BaseError: this is no model's id.
        """
        id = id.strip()
        if not is_hub_id(id):
            raise BaseError(f"{id[:100]!r} is not the id of a model on the hub. Enter one, such as owner/model.")
        with self._lock:
            known = self._downloads.get(id)
            if (known is not None and known.running) or not needs_download(id):
                return
            if sum(download.running for download in self._downloads.values()) >= MAX_WAITING:
                raise BaseError(f"{MAX_WAITING} downloads are waiting, which is the limit. Wait until one is done.")
            while len(self._downloads) >= MAX_LISTED:
                del self._downloads[next(id for id, download in self._downloads.items() if not download.running)]
            self._downloads[id] = Download(id)
        threading.Thread(target=self._download, args=(id,), daemon=True).start()

    def all(self) -> list[Download]:
        """Every download since the Studio started."""
        with self._lock:
            return list(self._downloads.values())

    def needs(self, known: KnownModel) -> MemoryNeeds:
        """What a known model needs of the memory here."""
        if known.family not in self._needs:
            self._needs[known.family] = memory_needs(known)
        return self._needs[known.family]

    def _download(self, id: str) -> None:
        def show(done: int, of: int) -> None:
            """Note how many bytes are here."""
            self._update(id, done=done, of=of)

        with self._turn:
            try:
                identify(id)   # its configurations, before its weights are fetched
                download_model(id, show)
                identify(id)
                self._update(id, running=False)
            except BaseError as error:
                self._update(id, error=str(error), running=False)
            except BaseException:
                self._update(id, error=f"{id} could not be downloaded. See the log of the Studio.", running=False)
                raise

    def _update(self, id: str, **changes: object) -> None:
        with self._lock:
            self._downloads[id] = replace(self._downloads[id], **changes)   # type: ignore[arg-type]

"""The queue in Redis, where several machines share a home: leases say which worker has which run.

A worker takes a lease on a run before it reads the run's state, and renews it while the run's process lives. When a
machine is lost, its leases end, and another worker goes on with its runs. Times are those of Redis, because the clocks
of machines differ.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from huey import Huey
from huey.storage import RedisStorage
from redis import ConnectionPool, Redis
from redis.exceptions import RedisError

from atelier.adapters.core.parse import parse_json
from atelier.adapters.core.repeat import repeated
from atelier.app.jobs.base_queue import Action, Handler, Queue
from atelier.app.jobs.grid_folders import grid_file, is_grid
from atelier.app.jobs.huey_internals import JsonSerializer
from atelier.app.store.home import Home, HomeError, explain_write_errors
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.identify import identify
from atelier.training.config.run_folder import RunFolder

LEASE_SECONDS = 30.0
RENEW_SECONDS = 5.0
_SOON, _CARD = 1, 2          # bits of a message's priority
_CARD_CHANNELS = 320         # of a UNet's first block: from Stable Diffusion 1 on, a processor takes minutes for a step
# Ours: longer. Nobody's, because Redis was started anew: ours again. Somebody else's: lost.
_RENEW = """
local owner = redis.call("get", KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call("set", KEYS[1], ARGV[1], "px", ARGV[2])
return 1
"""
_RELEASE = 'if redis.call("get", KEYS[1]) == ARGV[1] then redis.call("del", KEYS[1]) end'


class CardStorage(RedisStorage):
    """Two lists: messages about runs that need a graphics card, and the others.

    A worker with a card takes from the first list first. One without takes from it only while no worker with a card
    lives, because slowly is better than never.
    """

    priority = True
    has_card = False   # of the worker that takes from it

    def enqueue(self, data: bytes, priority: int | None = None) -> None:
        """Add a message; the bits of ``priority`` say in which list and at which end."""
        key = self._card_key if (priority or 0) & _CARD else self.queue_key
        (self.conn.rpush if (priority or 0) & _SOON else self.conn.lpush)(key, data)

    def dequeue(self) -> bytes | None:
        """Take the next message; waits for one a second at most."""
        found: Any = self.conn.brpop(self._lists(), timeout=self.read_timeout)
        return found[1] if found else None

    def enqueued_items(self, limit: int | None = None) -> list[bytes | str]:
        """All messages, the next one first."""
        found: list[Any] = [self.conn.lrange(key, 0, -1) for key in (self._card_key, self.queue_key)]
        return [data for messages in found for data in reversed(messages)][:limit]

    @property
    def _card_key(self) -> str:
        return f"{self.queue_key}.card"

    def _lists(self) -> list[str]:
        if self.has_card:
            return [self._card_key, self.queue_key]
        return [self.queue_key] if self.conn.exists(f"{self.name}.card-worker") else [self.queue_key, self._card_key]


class RedisQueue(Queue):
    """The queue of a home in Redis, and the leases on its runs."""

    def __init__(self, pool: ConnectionPool, name: str, handle: Handler) -> None:
        self.connection, self._name = Redis(connection_pool=pool), name
        huey = Huey(name, storage_class=CardStorage, connection_pool=pool, serializer=JsonSerializer(), results=False)
        super().__init__(huey, handle)
        assert isinstance(huey.storage, CardStorage)
        self._storage = huey.storage
        self._renew, self._release = map(self.connection.register_script, (_RENEW, _RELEASE))

    def add(self, run: RunFolder, action: Action, *, soon: bool = False) -> None:
        """Add a message at the end of the list for its run, or with ``soon`` before all others of it."""
        self._enqueue(run.id, action, _SOON * soon + _CARD * needs_card(run))

    def _at_the_end(self, priority: int) -> int:
        return priority & _CARD

    @contextmanager
    def lease(self, run: RunFolder) -> Iterator[threading.Event | None]:
        """Take the lease on a run while the context is open: an event that says it was lost; None: another has it."""
        key, owner = self._lease_key(run.id), secrets.token_hex(8)
        if not self.connection.set(key, owner, nx=True, px=round(LEASE_SECONDS * 1000)):
            yield None
            return
        lost = threading.Event()

        def renew() -> None:
            """Extend the lease; where it has gone to another worker, say that it was lost."""
            if not self._renew(keys=[key], args=[owner, round(LEASE_SECONDS * 1000)]):
                lost.set()

        try:
            with _renewed(renew):
                yield lost
        finally:
            with suppress(RedisError):   # it ends by itself
                self._release(keys=[key], args=[owner])

    def is_leased(self, run: RunFolder) -> bool:
        """Whether a worker has a run."""
        return bool(self.connection.exists(self._lease_key(run.id)))

    @contextmanager
    def worker(self, has_card: bool) -> Iterator[None]:
        """Say that a worker lives, and whether it has a graphics card, while the context is open."""
        self._storage.has_card = has_card

        def say() -> None:
            """Renew the marks that other machines see."""
            for kind in ("worker", *(["card-worker"] if has_card else [])):
                self.connection.set(f"{self._name}.{kind}", 1, px=round(LEASE_SECONDS * 1000))

        say()
        with _renewed(say):
            yield

    def has_worker(self) -> bool:
        """Whether any worker lives."""
        return bool(self.connection.exists(f"{self._name}.worker"))

    def _lease_key(self, id: str) -> str:
        return f"{self._name}.lease.{id}"


def _renewed(action: Callable[[], None]) -> AbstractContextManager[None]:
    """Do something every few seconds while the context is open; while Redis can't be reached, it is tried again."""
    def attempt() -> None:
        """Do it, or leave it to the next time."""
        try:
            action()
        except RedisError as error:
            logging.getLogger(__name__).warning("Redis can't be reached, trying again: %s", error)

    return repeated(attempt, RENEW_SECONDS)


@contextmanager
def redis_queue(home: Home, handle: Handler = lambda _id, _action: None) -> Iterator[RedisQueue]:
    """Open the queue of a home in Redis.

    Raises:
        HomeError: the address is none of Redis, or nothing answers there.
    """
    try:
        # Shorter than a lease, so that a worker learns in time that it can't renew one.
        pool = ConnectionPool.from_url(home.queue, socket_connect_timeout=5, socket_timeout=10)
    except ValueError:
        raise HomeError(f"{_without_password(home.queue)} is not the address of a Redis server. Give one such as "
                        "redis://HOST:6379.") from None
    try:
        yield RedisQueue(pool, _queue_name(home), handle)
    except RedisError as error:
        raise HomeError(f"The queue at {_without_password(home.queue)} can't be used: {error}. Start Redis there, or "
                        "correct --queue. Runs that wait are found again.") from error
    finally:
        pool.disconnect()


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return scheme + separator + rest.rpartition("@")[2]


def _queue_name(home: Home) -> str:
    """The same on every machine, wherever its folder stands there; made with the first use."""
    path = home.state / "shared-queue"
    with explain_write_errors(home.state):
        with suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(f"atelier{secrets.token_hex(8)}"))
        try:
            return parse_json(path.read_text(encoding="utf-8"))
        except ValueError:
            raise HomeError(f"{path} is damaged. Delete it, and start the server and all workers again.") from None


def needs_card(run: RunFolder) -> bool:
    """Whether a run's base model is so large that a processor would take days; False if that can't be told here."""
    try:
        return identify(_base_of(run)).channels >= _CARD_CHANNELS
    except (ValueError, TypeError, KeyError, OSError, BaseError):
        return False


def _base_of(run: RunFolder) -> str:
    if is_grid(run):
        return str(parse_json(grid_file(run).read_text(encoding="utf-8"))["recipe"]["base"])
    return (run.compression() or run.config()).base

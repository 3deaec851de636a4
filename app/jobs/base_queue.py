"""What a queue holds, wherever it is kept: messages that say what to do with which run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

from huey import Huey

from atelier.training.config.run_folder import RunFolder


class Action(StrEnum):
    """What to do with a run. A run that has a process already is only watched, whatever the message says."""

    START = "start"
    RESUME = "resume"
    RECOVER = "recover"   # resume one that its machine has lost; several machines only
    WATCH = "watch"


Handler = Callable[[str, Action], None]   # run id, what to do


class Queue:
    """The open queue of a home."""

    def __init__(self, huey: Huey, handle: Handler) -> None:
        self.huey = huey

        def train(run_id: str, action: str) -> None:
            """The queue's one task, by whose name huey finds it again in a stored message."""
            handle(run_id, Action(action))

        self._train: Any = self.huey.task()(train)

    def add(self, run: RunFolder, action: Action, *, soon: bool = False) -> None:
        """Add a message at the end, or with ``soon`` before those that were added at the end."""
        self._enqueue(run.id, action, int(soon))

    def _enqueue(self, id: str, action: Action, priority: int) -> None:
        self.huey.enqueue(self._train.s(id, action, priority=priority))

    def waiting(self) -> dict[str, Action]:
        """The waiting runs by id, the next one first, and what to do with each; messages of no sense are left out."""
        return {task.args[0]: Action(task.args[1]) for task in self.huey.pending()
                if _makes_sense(task) and not self.huey.is_revoked(task)}   # fmt: skip

    def reorder(self, run_ids: Sequence[str]) -> None:
        """Put the waiting runs into this order; a run that the worker takes meanwhile is not started twice."""
        messages = {task.args[0]: task for task in self.huey.pending()
                    if _makes_sense(task) and not self.huey.is_revoked(task)}   # fmt: skip
        for task in messages.values():
            self.huey.revoke(task, revoke_once=True)
        for id in run_ids:
            if id in messages:
                self._enqueue(id, Action(messages[id].args[1]), self._at_the_end(messages[id].priority or 0))

    def _at_the_end(self, _priority: int) -> int:
        """The priority of a message that was added soon, when it is added at the end."""
        return 0

    def remove(self, run: RunFolder) -> None:
        """Remove every message about a run."""
        for task in self.huey.pending():
            if _makes_sense(task) and task.args[0] == run.id:
                self.huey.revoke(task, revoke_once=True)


def _makes_sense(task: Any) -> bool:
    """Whether a message names a run and an action: anybody who can write to Redis can leave another."""
    match task.args:
        case [str(), str(action)]:
            # Halves of characters can't be written to a database.
            return action in list(Action) and isinstance(task.id, str) and task.id.isprintable()
    return False

"""What Atelier uses of huey beyond its documentation is still there, and does the same."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path

import huey
import pytest
from huey import SqliteHuey
from huey.registry import Message

from atelier.app.jobs.huey_internals import JsonSerializer, close_database

USED = (
    "huey.registry.Message._fields", "huey.serializer.Serializer.serialize", "huey.serializer.Serializer.deserialize",
    "huey.storage.SqliteStorage.close", "huey.consumer.Consumer.start", "huey.consumer.Consumer.stop",
)   # fmt: skip


@pytest.mark.parametrize("name", USED)
def test_nothing_has_moved(name: str):
    owner, *rest = name.split(".", 2)
    found = importlib.import_module(f"{owner}.{rest[0]}")
    for part in rest[1].split("."):
        assert hasattr(found, part), f"huey {huey.__version__} has no {name}: see app/jobs/huey_internals.py"
        found = getattr(found, part)


def test_a_message_comes_back_as_it_was_and_nothing_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("huey pickles past the serializer: see app/jobs/huey_internals.py")

    for name in ("dumps", "loads"):
        monkeypatch.setattr(pickle, name, refuse)
    queue = SqliteHuey("test", filename=str(tmp_path / "queue.sqlite"), serializer=JsonSerializer(), results=False)
    task = queue.task(name="train")(lambda run, action: None)
    for run in ("one", "two"):
        queue.enqueue(task.s(run, "start", priority=1))
    [one, two] = queue.pending()
    assert isinstance(queue.serializer.deserialize(queue.storage.enqueued_items()[0]), Message)
    assert (one.args, one.priority, two.args) == (["one", "start"], 1, ["two", "start"])
    queue.revoke(one, revoke_once=True)
    assert (queue.is_revoked(one), queue.is_revoked(two)) == (True, False)
    taken = queue.dequeue()
    assert taken is not None and taken.args == ["one", "start"]
    close_database(queue)
    assert queue.storage.close() is False, "the connection was closed"


def test_data_that_is_no_message_stays_what_it_is_and_no_pickle_is_read():
    serializer = JsonSerializer()
    for data in (None, True, [1, 2], {"a": 1}, "x" * len(Message._fields)):
        assert serializer.deserialize(serializer.serialize(data)) == data
    with pytest.raises(ValueError):
        serializer.deserialize(pickle.dumps(print))

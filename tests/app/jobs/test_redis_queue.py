"""The queue in Redis: an order that all machines see, and leases that one of them has. A real Redis answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import until

from atelier.app.jobs import redis_queue as redis_queues
from atelier.app.jobs.base_queue import Action
from atelier.app.jobs.jobs import cancel, list_runs, move, resume, run_status, submit, worker_alive
from atelier.app.jobs.queue import open_queue
from atelier.app.jobs.redis_queue import RedisQueue, needs_card, redis_queue
from atelier.app.store.home import Home, HomeError, open_home
from atelier.training.config.events import Failed
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig


def run_of(home: Home, name: str) -> RunFolder:
    return submit(home, TrainConfig(name=name, steps=9))


def test_what_is_submitted_waits_in_order_and_what_is_cancelled_does_not(home: Home) -> None:
    runs = [run_of(home, name) for name in ("a", "b", "c")]
    assert [run.message for run in reversed(list_runs(home))] == [f"Number {n} in the queue." for n in (1, 2, 3)]
    cancel(home, runs[0].id)
    assert run_status(home, runs[0].id).state == "stopped"
    assert run_status(home, runs[1].id).message == "Number 1 in the queue."
    runs[2].append(Failed("no"))
    assert not (home.state / "queue.sqlite").exists()


def test_a_resumed_run_waits(home: Home) -> None:
    run = run_of(home, "a")
    with open_queue(home) as queue:
        queue.remove(run)
    run.append(Failed("no"))
    assert run_status(home, run.id).state == "failed"
    resume(home, run.id)
    assert run_status(home, run.id).message == "Number 1 in the queue."


def test_messages_come_in_order_once_each_and_are_json(home: Home, queue: RedisQueue) -> None:
    first, second, soon = (RunFolder(home.runs / name) for name in ("first", "second", "soon"))
    for run in (first, second):
        queue.add(run, Action.START)
    queue.add(soon, Action.RECOVER, soon=True)
    assert json.loads(queue.huey.storage.enqueued_items()[0])[6] == ["soon", "recover"]
    assert list(queue.waiting().items()) == [("soon", "recover"), ("first", "start"), ("second", "start")]
    taken = [queue.huey.dequeue() for _ in range(4)]
    assert [task.args[0] for task in taken if task] == ["soon", "first", "second"] and taken[3] is None


def test_waiting_runs_are_reordered(home: Home) -> None:
    runs = [run_of(home, name) for name in ("a", "b", "c")]
    move(home, runs[2].id, -1)
    with open_queue(home) as queue:
        assert list(queue.waiting()) == [runs[0].id, runs[2].id, runs[1].id]


def test_two_homes_on_one_server_see_nothing_of_each_other(home: Home, tmp_path: Path) -> None:
    run_of(home, "a")
    other = open_home(tmp_path / "other", home.queue)
    with redis_queue(other) as queue:
        assert queue.waiting() == {}


# --- leases

def test_one_worker_has_a_run_until_it_gives_it_back(home: Home, queue: RedisQueue) -> None:
    run = run_of(home, "a")
    with redis_queue(home) as other:
        with queue.lease(run) as ours:
            assert ours and not ours.is_set() and other.is_leased(run)
            with other.lease(run) as theirs:
                assert theirs is None
            assert other.is_leased(run), "who did not get it does not end it"
        assert not other.is_leased(run)
        with other.lease(run) as theirs:
            assert theirs


def test_a_lease_is_renewed_and_ends_with_its_worker(
    home: Home, queue: RedisQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_queues, "RENEW_SECONDS", 0.05)
    run = run_of(home, "a")
    key = queue._lease_key(run.id)
    with queue.lease(run) as lost:
        assert 0 < queue.connection.pttl(key) <= redis_queues.LEASE_SECONDS * 1000, "it ends by itself"
        queue.connection.pexpire(key, 10_000)
        until(lambda: queue.connection.pttl(key) > 20_000)
        queue.connection.delete(key)   # as after a new start of Redis
        until(lambda: queue.is_leased(run))
        assert lost and not lost.is_set()
        queue.connection.set(key, "somebody else")
        assert lost.wait(60), "a worker that was away too long learns it"
    assert queue.connection.get(key) == b"somebody else", "and leaves the lease of the other alone"


# --- graphics cards

def test_a_worker_with_a_card_takes_what_needs_one(
    home: Home, queue: RedisQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_queues, "needs_card", lambda run: run.id.startswith("large"))
    for name in ("small-1", "large-1", "large-2", "small-2"):
        queue.add(RunFolder(home.runs / name), Action.START)
    assert list(queue.waiting()) == ["large-1", "large-2", "small-1", "small-2"]
    with redis_queue(home) as plain, plain.worker(has_card=False):
        with redis_queue(home) as card, card.worker(has_card=True):
            assert taken(card) == "large-1"
            assert [taken(plain) for _ in range(3)] == ["small-1", "small-2", ""], "the large one is left to the card"
        queue.connection.delete(f"{queue._name}.card-worker")   # as when its machine is lost
        assert taken(plain) == "large-2", "slowly is better than never"


def taken(queue: RedisQueue) -> str:
    task = queue.huey.dequeue()
    return task.args[0] if task else ""


def test_a_card_is_needed_from_stable_diffusion_1_on(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(home, "a")
    assert not needs_card(run), "the embedded base"
    monkeypatch.setattr(redis_queues, "_CARD_CHANNELS", 8)
    assert needs_card(run)
    (run.path / "recipe.toml").write_text("steps = 'many'")
    assert not needs_card(run), "what can't be read is refused elsewhere"


# --- where something is missing

def test_the_page_knows_whether_any_worker_lives(home: Home, queue: RedisQueue) -> None:
    assert not worker_alive(home)
    with queue.worker(has_card=False):
        assert worker_alive(home)


def test_a_server_that_does_not_answer_is_named_without_its_password(own_home: Path) -> None:
    home = open_home(own_home, "redis://me:secret@127.0.0.1:1/0")
    with pytest.raises(HomeError, match=r"The queue at redis://127\.0\.0\.1:1/0 can't be used") as caught:
        run_of(home, "a")
    assert "secret" not in str(caught.value) and list(home.runs.iterdir()) == []
    assert list_runs(home) == [] and not worker_alive(home), "pages go on"


@pytest.mark.parametrize("address", ["localhost:6379", "http://localhost", "redis://localhost:many"])
def test_what_is_no_address_is_refused(own_home: Path, address: str) -> None:
    with pytest.raises(HomeError, match="not the address of a Redis server"), redis_queue(open_home(own_home, address)):
        pass


def test_a_home_whose_jobs_wait_in_redis_is_not_taken_for_one_of_this_machine(home: Home, queue: RedisQueue) -> None:
    alone = Home(home.path)
    with pytest.raises(HomeError, match=r"wait in Redis, for several machines.*--queue"):
        run_of(alone, "a")
    assert list_runs(alone) == []

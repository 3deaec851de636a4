"""What is repeated beside a block is called meanwhile, and never after it."""

from __future__ import annotations

import threading

import pytest

from atelier.adapters.core.repeat import repeated


def test_an_action_is_repeated_until_the_block_ends() -> None:
    third, calls = threading.Event(), []

    def action() -> None:
        calls.append(threading.get_ident())
        if len(calls) == 3:
            third.set()

    with pytest.raises(ValueError, match="of the block"), repeated(action, 0.001):
        assert third.wait(60)
        raise ValueError("of the block")
    count = len(calls)
    assert set(calls) != {threading.get_ident()}
    threading.Event().wait(0.02)
    assert len(calls) == count


def test_a_long_wait_ends_with_the_block() -> None:
    with repeated(lambda: pytest.fail("called"), 3600):
        pass

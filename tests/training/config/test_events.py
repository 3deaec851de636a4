"""One event, one line: what was said is what is read, and nothing that is read breaks the reader."""

# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import dataclasses
import json
import time
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atelier.training.config import events
from atelier.training.config.events import Event, Failed, Finished, Preparing, from_line, to_line

VALUES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(0, 2**40),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    list[float]: st.lists(st.floats(allow_nan=False), max_size=4),
    str: st.text(st.characters(exclude_categories=["Cs"])),
}


def any_event(kind: type[Any]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    return st.builds(kind, **{f.name: VALUES[hints[f.name]] for f in dataclasses.fields(kind)})


def test_every_event_class_of_the_module_is_an_event():
    classes = {value for value in vars(events).values() if dataclasses.is_dataclass(value)}
    assert set(get_args(Event)) == classes
    assert len({kind.__name__.lower() for kind in classes}) == len(classes)


@pytest.mark.parametrize("kind", get_args(Event))
def test_a_line_gives_the_event_back(kind):
    @settings(deadline=None, max_examples=30)
    @given(any_event(kind))
    def holds(event):
        line = to_line(event)
        assert line.splitlines() == [line.removesuffix("\n")]   # whatever the text: one line
        read = from_line(line)
        assert read is not None
        assert read[1] == event
        assert type(read[1]) is kind

    holds()


def test_a_line_is_json_with_name_and_time():
    before = time.time()
    values = json.loads(to_line(Finished(7, "a.safetensors", 2.5)))
    assert before <= values.pop("time") <= time.time()
    assert values == {"event": "finished", "step": 7, "path": "a.safetensors", "seconds": 2.5}


def test_the_first_part_of_a_line_is_no_event_yet():
    line = to_line(Failed("The disk is full – “really”.")).rstrip("\n")
    for end in range(len(line)):
        assert from_line(line[:end]) is None
    assert from_line(line) is not None


@pytest.mark.parametrize(
    "line",
    ["", "\n", "null", "7", "[]", '"preparing"', "{}", '{"event": "preparing", "what": "no time"}',
     '{"time": 1.0, "what": "no name"}', '{"event": "preparing", "time": 1.0}', '{"event": ["x"], "time": 1.0}',
     '{"event": "dreamed", "time": 1.0, "of": "sheep"}', '{"event": "preparing", "time": 1.0, "what": "a", "new": 2}'],
)  # fmt: skip
def test_what_is_no_event_of_this_version_is_none(line):
    assert from_line(line) is None


def test_a_good_line_after_that_is_read():
    assert from_line('{"event": "preparing", "time": 1.5, "what": "x"}') == (1.5, Preparing("x"))

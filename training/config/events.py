"""What a run tells the world: small typed events, one JSON object a line in ``events.jsonl``."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import Any, get_args

from atelier.adapters.core.parse import parse_json


@dataclass(frozen=True, slots=True)
class Preparing:
    """The run is doing something before its first step."""

    what: str   # e.g. "Loading the base model"


@dataclass(frozen=True, slots=True)
class Warned:
    """Something is not as it should be, and the run goes on."""

    message: str


@dataclass(frozen=True, slots=True)
class Stepped:
    """One optimizer update is done."""

    step: int            # 1-based
    of: int
    loss: float          # mean over the batch
    prior_loss: float    # 0 without prior preservation
    lr: float
    seconds: float       # wall time of this step


@dataclass(frozen=True, slots=True)
class Validated:
    """The validation loss was measured: same pictures, noise and timesteps every time."""

    step: int
    loss: float
    best: bool           # the lowest so far


@dataclass(frozen=True, slots=True)
class Measured:
    """Beside a validation: what the adapter has learned by heart, and what else it changes.

    Gains are shares of the base model's loss that are gone, on the same pictures, noise and timesteps every time.
    """

    step: int
    member_gain: float     # on pictures that are trained on
    held_out_gain: float   # on pictures that are not
    memorization: float    # AUC: how often a trained picture gains more than one that is not; 0.5 is chance
    drift: float           # change of the predictions for other prompts; 1 is as much as a prompt itself does
    by_timestep: list[float]   # gain on pictures that are not trained on, from the least noise to the most
    memory: int            # most bytes in use so far


@dataclass(frozen=True, slots=True)
class StoppedEarly:
    """The training ends before its last step, because a measure says that more would do harm."""

    step: int
    best_step: int       # the step whose weights are saved
    reason: str          # for a person


@dataclass(frozen=True, slots=True)
class Previewed:
    """A preview was drawn with a fixed seed."""

    step: int
    prompt: str
    path: str            # relative to the run folder
    seed: int = 0        # of its noise


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that the run can resume from is complete on disk."""

    step: int
    path: str            # relative to the run folder


@dataclass(frozen=True, slots=True)
class Paused:
    """The run waits at a step boundary."""

    step: int
    reason: str = ""     # for a person, where nobody asked for it: the run continues by itself when it is gone


@dataclass(frozen=True, slots=True)
class Resumed:
    """The run goes on, after a pause or from a checkpoint."""

    step: int            # the last step that is done


@dataclass(frozen=True, slots=True)
class Stopped:
    """The run ended early because somebody asked, without an adapter."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The process ended without a word of its own; whoever watched it says why. The run can be resumed."""

    message: str         # what happened and how to go on, for a person


@dataclass(frozen=True, slots=True)
class Failed:
    """The run ended with an error."""

    message: str         # what happened and the likely cure, for a person


@dataclass(frozen=True, slots=True)
class Finished:
    """The adapter file is complete on disk."""

    step: int            # the step whose weights were kept
    path: str            # the adapter file
    seconds: float       # wall time of the whole run


Event = (
    Preparing | Warned | Stepped | Validated | Measured | Previewed | Saved | Paused | Resumed | Stopped
    | StoppedEarly | Interrupted | Failed | Finished
)
_MAX_TIME = 253_402_300_800   # the year 10,000
_MAX_INTEGER = 2**53
_TYPES: dict[str, type[Any]] = {cls.__name__.lower(): cls for cls in get_args(Event)}


def to_line(event: Event) -> str:
    """Write an event as one line of JSON, with its name and the time (seconds since 1970)."""
    return json.dumps({"event": type(event).__name__.lower(), "time": time.time(), **asdict(event)}) + "\n"


def from_line(line: str) -> tuple[float, Event] | None:
    """Read a line back as (time, event); None for a damaged or half-written line or an event of a newer version."""
    try:
        values = parse_json(line)
        moment, event = values.pop("time"), _TYPES[values.pop("event")](**values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    fitting = all(_fits(value, event.__annotations__[name]) for name, value in values.items())
    return (moment, event) if fitting and _fits(moment, "float") and 0 <= moment < _MAX_TIME else None


def _fits(value: Any, kind: str) -> bool:
    """Whether a value of a line is one that its field can have."""
    match value:
        case bool() | str():
            return kind == type(value).__name__
        case int():
            return kind in ("int", "float") and abs(value) <= _MAX_INTEGER
        case float():
            return kind == "float"
        case list():
            return kind == "list[float]" and all(_fits(each, "float") for each in value)
    return False

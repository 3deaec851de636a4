"""What Atelier uses of huey beyond its documentation, in one place.

tests/app/jobs/test_huey_internals.py watches it, and says what has moved when another version is installed.
"""

from __future__ import annotations

import json
from typing import Any

from huey import Huey
from huey.registry import Message
from huey.serializer import Serializer

from atelier.adapters.core.parse import parse_json


class JsonSerializer(Serializer):
    """Messages as JSON: huey's own pickles would let whoever can write the queue run code in the worker."""

    def serialize(self, data: Any) -> bytes:
        """Write a message, which is a tuple of plain values, or other plain data."""
        return json.dumps(data).encode()

    def deserialize(self, data: bytes) -> Any:
        """Read it back; what has as many values as a message is one."""
        values = parse_json(data)
        is_message = isinstance(values, list) and len(values) == len(Message._fields)
        return Message(*values) if is_message else values


def close_database(huey: Huey) -> None:
    """Close the connection to the database, which huey would leave open."""
    huey.storage.close()

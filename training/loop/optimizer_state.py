"""The state of any optimizer on disk: its tensors in safetensors, the rest in JSON. No pickle, which can run code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from atelier.adapters.core.parse import parse_json

_TENSORS, _REST, _PICKLED = "optimizer.safetensors", "optimizer.json", "optimizer.pt"


def write_optimizer(folder: Path, state: dict[str, Any]) -> None:
    """Write what ``optimizer.state_dict()`` gave into a folder, from the CPU.

    Raises:
        TypeError: it holds something that is no tensor, number, text, list or table.
    """
    tensors: dict[str, Tensor] = {}
    rest = json.dumps(_describe(state, tensors))
    save_file(tensors, folder / _TENSORS)
    (folder / _REST).write_text(rest, encoding="utf-8")


def read_optimizer(folder: Path) -> dict[str, Any]:
    """Read back what :func:`write_optimizer` wrote: equal in every bit, type and key.

    Raises:
        OSError, ValueError, SafetensorError: a file is missing or damaged.
    """
    if (folder / _PICKLED).exists():   # written by version 0.1; to be dropped with the next one
        return torch.load(folder / _PICKLED, weights_only=True)
    tensors = load_file(folder / _TENSORS)
    return _rebuild(parse_json((folder / _REST).read_text(encoding="utf-8")), tensors)


def _describe(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; its tensors go to ``tensors`` under the numbers that stand in their places."""
    match value:
        case Tensor():
            name = str(len(tensors))
            tensors[name] = value.detach().to("cpu", copy=True).contiguous()   # two names may share their memory
            return {"tensor": name}
        case dict():   # as pairs: JSON knows no numbers as keys, and the parameters are numbered
            return {"table": [[key, _describe(item, tensors)] for key, item in value.items()]}
        case list():
            return {"list": [_describe(item, tensors) for item in value]}
        case tuple():
            return {"tuple": [_describe(item, tensors) for item in value]}
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"The optimizer's state contains a {type(value).__name__}, which can't be saved.")


def _rebuild(value: Any, tensors: dict[str, Tensor]) -> Any:
    match value:
        case {"tensor": str(name)}:
            return tensors[name]
        case {"table": list(pairs)}:
            return {key: _rebuild(item, tensors) for key, item in pairs}
        case {"list": list(items)}:
            return [_rebuild(item, tensors) for item in items]
        case {"tuple": list(items)}:
            return tuple(_rebuild(item, tensors) for item in items)
        case dict() | list():
            raise ValueError("The optimizer's state is damaged.")
    return value

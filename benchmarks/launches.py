"""Kernels that a training step launches on a GPU, counted without one; ours beside PEFT's.

    python -m benchmarks.launches              benchmarks/results/launches.json and docs/launches.md
    python -m benchmarks.launches --render     the document alone, from the last figures

Stable Diffusion 1.5's layers with few channels, on the simulated device of the tests: every operation that is not a
view or an allocation counts as one launch. A library may use several kernels for one, and the same for both contenders.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.support.interleaved import ROOT
from benchmarks.support.machine import describe_machine, in_words

sys.path.insert(0, str(ROOT / "tests"))
from pretend_device import pretend_device

from atelier.training.base_models import less_activation_memory
from benchmarks.support.contenders import CONTENDERS

RESULTS, DOCUMENT = ROOT / "benchmarks" / "results" / "launches.json", ROOT / "docs" / "launches.md"
NAMES, DTYPES = ("atelier", "peft"), ("bfloat16", "float32")
BEFORE = "2,216"
# The first that fits; operations as torch's dispatcher calls them.
WORK = {
    "convolutions": ("convolution",),
    "attention": ("scaled_dot_product", "attention"),
    "normalizations": ("group_norm", "layer_norm"),
    "optimizer and clipping": ("_foreach", "_fused_adam", "linalg_vector_norm", "_amp"),
    "matrix products": ("mm", "bmm", "addmm", "baddbmm", "matmul", "linear"),
    "activations": ("silu", "gelu", "softmax"),
    "casts and copies": ("_to_copy", "copy_", "clone", "cat", "stack", "contiguous", "fill_", "zero", "full", "ones"),
}
TEXT = """# Kernel launches of a training step

Written by `python -m benchmarks.launches` ({machine}). Stable Diffusion 1.5's layers, a LoRA of rank 16 on its
attention layers, one picture; forward and backward pass, clipping and AdamW, latents and text cached. Counted on the
simulated device of the tests (`tests/pretend_device.py`): every operation on it that is not a view or an allocation is
one launch. Without recording: as a CUDA graph, the forward and backward pass of ours are a single one.

Counted in the same way, a step of ours in bfloat16 had {before} launches before divisions by 1, copies of gradients and
the joining of factors were left out (commit 42e2ada). Earlier counts, of about 3,040, took a device on which clipping
handles every tensor by itself and SiLU's gradient is six operations; a card does each by one.

{tables}
"""


def main() -> None:
    """Count all and keep it, unless the last figures will do; write the document."""
    if "--render" not in sys.argv:
        count_all()
    result = json.loads(RESULTS.read_text(encoding="utf-8"))
    tables = "\n\n".join(f"## In {dtype}\n\n" + "\n".join(table(found)) for dtype, found in result["launches"].items())
    text = TEXT.format(machine=in_words(result["machine"]), tables=tables, before=BEFORE)
    DOCUMENT.write_text(text, encoding="utf-8")
    print(tables)


def count_all() -> None:
    """Both contenders in each precision."""
    less_activation_memory.MIN_PARAMETERS = 0   # as for the model of true size
    result: dict[str, Any] = {"machine": describe_machine(), "launches": {}}
    for dtype in DTYPES:
        result["launches"][dtype] = {name: counted(name, dtype) for name in NAMES}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def counted(name: str, dtype: str) -> dict[str, int]:
    """Launches of one step by operation, and how often the step waits for the device."""
    torch.set_num_threads(1)
    with pretend_device() as device:
        options = {"quick": True, "side": 64, "rank": 16, "device": "npu", "dtype": dtype}
        contender = CONTENDERS[name](options)
        device.forget()
        contender.repeat()
        return {**dict(device.launches.most_common()), "waits": sum(device.waits.values())}


def table(found: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Markdown: a row for each kind of work."""
    kinds = {name: by_kind(launches) for name, launches in found.items()}
    rows = [f"| | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    for kind in [*WORK, "sums, products and the rest"]:
        rows.append(f"| {kind} | {' | '.join(str(one[kind]) for one in kinds.values())} |")
    rows.append(f"| **all** | {' | '.join(f'**{sum(one.values())}**' for one in kinds.values())} |")
    rows.append(f"| times that a step waits | {' | '.join(str(one['waits']) for one in found.values())} |")
    return rows


def by_kind(launches: Mapping[str, int]) -> Counter[str]:
    """Launches of each kind of work."""
    found: Counter[str] = Counter()
    for operation, count in launches.items():
        kind = next((kind for kind, parts in WORK.items() if any(part in operation for part in parts)), None)
        if operation != "waits":
            found[kind or "sums, products and the rest"] += count
    return found


if __name__ == "__main__":
    main()

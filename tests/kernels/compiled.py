"""Compile every twin for GPUs that are not there, and print what the binaries hold, one line of JSON for each.

    python tests/kernels/compiled.py [CARD …]      (80, 89 or 90: Ampere, Ada, Hopper; all where none is named)

A process of its own: kernels that were made for Triton's interpreter can't be compiled. No driver is needed, the
assembler and the disassembler come with Triton.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)

import plain_checkout  # noqa: F401 (makes `atelier` importable)
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from atelier.kernels import (
    fake_quant_triton,
    gated_sum_triton,
    int8_linear_triton,
    low_rank_triton,
    merge_low_rank_triton,
)

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
OPCODES = ("HGMMA", "IGMMA", "HMMA", "IMMA", "LDGSTS", "STL", "LDL")   # the last two: what did not fit into registers
CARDS = (80, 89, 90)


class Build(NamedTuple):
    """One way a kernel is launched: argument types, what is known when it is compiled, and options."""

    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, int]


def build(kernel: Any, types: str, how: dict[str, Any], **constants: Any) -> Build:
    """``types`` in the order of the arguments that are no constants; tile sizes and options both come from ``how``."""
    options = {name: value for name, value in how.items() if name.startswith("num_")}
    constants |= {name: value for name, value in how.items() if name not in options}
    free = [name for name in kernel.arg_names if name not in constants]
    return Build(kernel, dict(zip(free, types.split(), strict=True)), constants, options)


def linear(how: dict[str, int], *, forward: bool, rank: int = 16, dtype: str = "bf16") -> Build:
    """Strides of 1 are constants, as the launcher makes them; the way back has all matrices turned."""
    ones = ("sxk", "swk", "sdk", "sur") if forward else ("sxk", "swn", "sdr", "sun")
    pointers = " ".join([f"*{dtype}"] * 7)
    return build(low_rank_triton.linear_kernel, f"{pointers} i32 i32 i32 i32 {'i32 ' * 5}", how, R=rank, BIASED=forward,
                 KEEPS=not forward, PRECISION="ieee" if dtype == "fp32" else "tf32", **dict.fromkeys(ones, 1))


def merge(up: Any, down: Any, dtype: str) -> Build:
    return build(merge_low_rank_triton.merge_kernel, f"*i64 *fp32 *{dtype}", merge_low_rank_triton.TILE,
                 UP=up.value, DOWN=down.value, ALIGNED=True, PRECISION="ieee" if dtype == "fp32" else "tf32")


BUILDS = {
    "low_rank": linear(low_rank_triton.WIDE, forward=True),
    "low_rank, rank 64": linear(low_rank_triton.SMALL, forward=True, rank=64),
    "low_rank, gradient": linear(low_rank_triton.WIDE, forward=False),
    "low_rank, float32": linear(low_rank_triton.EXACT, forward=True, dtype="fp32"),
    "merge_low_rank, plain": merge(merge_low_rank_triton.PLAIN, merge_low_rank_triton.PLAIN, "fp16"),
    "merge_low_rank, products and Haar": merge(merge_low_rank_triton.PRODUCTS, merge_low_rank_triton.HAAR, "fp16"),
    "merge_low_rank, trains, float32": merge(merge_low_rank_triton.TRAIN, merge_low_rank_triton.TRAIN, "fp32"),
    "fake_quant, gradient": build(
        fake_quant_triton.backward_kernel, "*fp16 *fp32 *fp32 *fp16 *fp16 *fp32 *fp32 i32 fp32",
        {"BLOCK": fake_quant_triton.BLOCK, "num_warps": fake_quant_triton.WARPS}),
    "int8_linear": build(
        int8_linear_triton.matrix_kernel, "*i8 *u8 *fp32 *u8 *fp32 *fp32 *fp32 *fp16 *fp16 *fp16 i32 i32 i32 i32",
        int8_linear_triton.TILE, BITS=4, BIASED=True, R=16),
    "gated_sum": build(gated_sum_triton.gated_sum_kernel, "*fp16 *fp16 *fp32 *fp16 *fp16 i32 i32 i32",
                       {"BLOCK": 2048, "num_warps": 4}, OFFSET=True),
}   # fmt: skip


def inspect(one: Build, card: int) -> dict[str, int]:
    """Registers, shared memory and instructions of the binary for one compute capability."""
    names = one.kernel.arg_names
    source = ASTSource(
        fn=one.kernel,
        signature={name: "constexpr" if name in one.constants else one.types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in one.constants.items()},
        # What a launch with aligned tensors and sizes divisible by 16 is specialised on.
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names)
               if name not in one.constants and one.types[name] != "fp32"},
    )   # fmt: skip
    built: Any = triton.compile(source, target=GPUTarget("cuda", card, 32), options=dict(one.options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        text = subprocess.run([CUOBJDUMP, "-res-usage", "-sass", file.name], capture_output=True, text=True,
                              check=True).stdout   # fmt: skip
    registers = re.search(r"REG:(\d+)", text)
    assert registers, text
    counts = {opcode: len(re.findall(rf"\b{opcode}\b", text)) for opcode in OPCODES}
    return {"registers": int(registers[1]), "shared": built.metadata.shared, **counts}


def main() -> None:
    for card in [int(card) for card in sys.argv[1:]] or CARDS:
        for name in BUILDS:
            print(json.dumps({"name": name, "card": card, **inspect(BUILDS[name], card)}), flush=True)


if __name__ == "__main__":
    main()

"""Every operation in both forms at ragged sizes: how far its Triton twin is from the definition, as lines of JSON.

    python tests/kernels/twins.py --device cuda                    on a GPU; needs torch and triton alone
    TRITON_INTERPRET=1 python tests/kernels/twins.py               in Triton's interpreter, where bfloat16 is wrong

On a GPU the twins that pass run from then on. Ends with 1 when something is farther than LIMITS. Errors are relative,
‖twin − definition‖ / ‖definition‖.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator

import plain_checkout  # noqa: F401 (makes `atelier` importable)
import torch
from torch import Tensor

from atelier.kernels.dispatch import CHOICE, record_verified
from atelier.kernels.factor_forms import DenseFactor
from atelier.kernels.fake_quant import fake_quant
from atelier.kernels.gated_sum import GateVectors, gated_sum
from atelier.kernels.int8_linear import PackedWeight, int8_linear, pack
from atelier.kernels.low_rank import low_rank_linear
from atelier.kernels.merge_low_rank import LowRankUpdate, merge_low_rank
from atelier.kernels.tensor_networks import KhatriRaoFactor, TensorTrainFactor
from atelier.kernels.wavelet import HaarFactor

LIMITS = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}   # a few units in the last place of each
EXACT = ("value rounded", "of values", "whole numbers")   # where both forms round at the same places
Results = dict[str, Tensor]


class Random:
    """Numbers that are the same for both forms, on a device and in a dtype."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._dice = torch.Generator().manual_seed(5)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, generator=self._dice).to(self.device, dtype or self.dtype)

    def full(self, *shape: int) -> Tensor:
        """float32, whatever the others are."""
        return self.normal(*shape, dtype=torch.float32)

    def whole(self, top: int, *shape: int) -> Tensor:
        return torch.randint(0, top, shape, generator=self._dice).to(self.device)


def low_rank(random: Random, count: int, width: int, features: int, rank: int) -> Results:
    turned = random.normal(width, count).T   # not contiguous
    weight, bias = random.normal(features, width) * width**-0.5, random.normal(features)
    up, down = random.normal(features, rank), random.normal(rank, width) * width**-0.5
    leaves = {"x": turned, "up": up, "down": down}
    for leaf in leaves.values():
        leaf.requires_grad_()
    y = low_rank_linear(turned, weight, bias, up, down)
    weights = random.normal(features, count).T
    gradients = torch.autograd.grad(y, list(leaves.values()), weights)
    return {"value": y, **{f"of {name}": g for name, g in zip(leaves, gradients, strict=True)}}


def quantized(random: Random, shape: tuple[int, ...], steps: tuple[int, ...]) -> Results:
    """About a third of the values lie beyond the levels on either side; the first lies on a tie."""
    values, step = random.normal(*shape), random.full(*steps).abs() * 0.2 + 0.1
    zero = (random.whole(3, *steps) + 2).float()
    values.view(-1)[0] = (step.view(-1)[0] * 1.5).to(values.dtype)
    leaves = {"values": values, "step": step, "zero": zero}
    for leaf in leaves.values():
        leaf.requires_grad_()
    y = fake_quant(values, step, zero, 3)
    gradients = torch.autograd.grad(y, list(leaves.values()), random.normal(*shape))
    return {"value rounded": y, **{f"of {name}": g for name, g in zip(leaves, gradients, strict=True)}}


def whole_numbers(random: Random, bits: int, count: int, width: int, features: int) -> Results:
    codes = random.whole(2**bits, features, width).to(torch.uint8)
    zeros = torch.full((features,), 128.0) if bits == 8 else torch.arange(features) % 2**bits + 0.0
    weight = PackedWeight(pack(codes, bits), random.full(features).abs() + 0.1, zeros.to(random.device), bits)
    step, zero = (torch.tensor(v, device=random.device) for v in (0.02, 117.0))
    x, pair = random.normal(2, count, width), (random.normal(features, 5), random.normal(5, width))
    bare = int8_linear(x, step, zero, weight)
    return {"whole numbers": bare, "with a pair": int8_linear(x, step, zero, weight, random.full(features), pair)}


def gated(random: Random, count: int, width: int) -> Results:
    base, parts = random.normal(2, 3, width), random.normal(count, 2, 3, width)
    vectors = GateVectors(*random.full(9, width))
    shifted = gated_sum(base, parts, vectors, random.full(2, 1, 1))
    return {"value": gated_sum(base, parts, vectors), "with offset": shifted}


def merged(random: Random) -> Results:
    """One launch for several layers of every pair of forms: sizes that don't fill a tile, kernels with taps."""
    full = random.full
    layers = {
        "plain": (DenseFactor(full(65, 5)), DenseFactor(full(5, 64).T)),
        "plain, larger rank": (DenseFactor(full(63, 20)), DenseFactor(full(20, 80).T)),
        "plain, one": (DenseFactor(full(1, 1)), DenseFactor(full(1, 1))),
        "products": (KhatriRaoFactor(full(5, 7), full(13, 7)), KhatriRaoFactor(full(7, 9).T, full(9, 7))),
        "products, model plain": (DenseFactor(full(7, 63).T), KhatriRaoFactor(full(8, 7), full(8, 7))),
        "trains": (TensorTrainFactor(full(3, 4), full(5, 4, 4), full(4, 4, 6), turned=True),
                   TensorTrainFactor(full(2, 3), full(3, 3, 3), full(11, 3, 6))),
        "haar": (HaarFactor((full(33, 3), full(3, 33, 2)), (False, False, True, True), 65),
                 HaarFactor((full(9 * 9, 3), full(3, 9 * 9, 2)), (False, True, False, True), 17 * 9, 9)),
    }   # fmt: skip
    updates = [LowRankUpdate(up, down, 0.5 - i) for i, (up, down) in enumerate(layers.values())]
    weights = [random.normal(len(up.matrix()), len(down.matrix())) for up, down in layers.values()]
    before = [weight.clone() for weight in weights]
    found = dict(zip(layers, merge_low_rank(weights, updates), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True)), "given weights must stay"
    return found


CASES: dict[str, Callable[[Random], Results]] = {
    "low_rank 65×63→130": lambda random: low_rank(random, 65, 63, 130, 5),
    "low_rank 1×1→1": lambda random: low_rank(random, 1, 1, 1, 1),
    "low_rank 64×64→65": lambda random: low_rank(random, 64, 64, 65, 17),
    "fake_quant channels": lambda random: quantized(random, (5, 65), (5, 1)),
    "fake_quant timesteps": lambda random: quantized(random, (2, 63, 64), (2, 1, 1)),
    "fake_quant single": lambda random: quantized(random, (3, 1000), ()),
    "int8_linear 8": lambda random: whole_numbers(random, 8, 33, 65, 130),
    "int8_linear 4": lambda random: whole_numbers(random, 4, 32, 64, 129),
    "int8_linear 2": lambda random: whole_numbers(random, 2, 1, 63, 66),
    "gated_sum 3 of 65": lambda random: gated(random, 3, 65),
    "gated_sum 1 of 1": lambda random: gated(random, 1, 2),
    "merge_low_rank": merged,
}


def compared(device: str, dtype: str, start: str = "") -> Iterator[tuple[str, str, float]]:
    """Case, result, error; of the cases whose names start so."""
    for case, run in ((case, run) for case, run in CASES.items() if case.startswith(start)):
        forms = []
        for form in ("triton", "torch"):
            os.environ[CHOICE] = form
            forms.append(run(Random(device, getattr(torch, dtype))))
            module = f"atelier.kernels.{case.split()[0]}_triton"
            assert module in sys.modules, f"{module} was never asked for"
        for name, reference in forms[1].items():
            apart, size = ((forms[0][name] - reference).double().norm(), reference.double().norm())
            yield case, name, (apart / size).item() if size else apart.item()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16"])
    parser.add_argument("--cases", default="", help="how their names start")
    options = parser.parse_args()
    failures: set[str] = set()
    for dtype in options.dtypes:
        for case, name, error in compared(options.device, dtype, options.cases):
            limit = 0.0 if name in EXACT else LIMITS[dtype]
            if not error <= limit:   # not a number fails
                failures.add(case.split()[0])
            print(json.dumps({"case": case, "dtype": dtype, "name": name, "error": error, "limit": limit}), flush=True)
    if torch.device(options.device).type == "cuda":
        names = {case.split()[0] for case in CASES if case.startswith(options.cases)}
        record_verified(torch.device(options.device), names - failures)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())

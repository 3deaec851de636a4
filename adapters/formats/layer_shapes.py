"""Whether the tensors of one layer fit each other, and the shape of the weight that they change. Pure numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import isqrt, prod

from atelier.adapters.core.family import FAMILIES

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]   # part of a layer → the shape of its tensor

# Layers whose weight is a 3×3 or a 1×1 convolution; all others are linear, but for normalizations.
_WIDE = re.compile(r"(conv_in|conv_out|\.conv1|\.conv2|samplers\.\d\.conv)$")
_NARROW = re.compile(r"\.conv_shortcut$")
_PROJECTION = re.compile(r"attentions\.\d+\.proj_(in|out)$")   # a 1×1 convolution in Stable Diffusion 1, else linear
_KERNEL = (3, 3)
# Parts that are one number.
_NUMBERS = ("alpha", "scale", "scalar", "on_input", "scaled_oft", "terms", "largest_turn", "transposed", "seed",
            "wavelet", "direct", "gram_schmidt", "base_lengths")   # fmt: skip


class ShapeError(ValueError):
    """A tensor that does not fit the others of its layer."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(reason)
        self.part = part


def weight_shape(name: str, algorithm: str, shapes: Shapes, family: str = "") -> Shape:
    """The shape of the weight that a layer changes; 0 for a side that its tensors don't tell.

    Args:
        name: of the module, ours.
        algorithm: what the layer is, see ``layer_parts.ALGORITHMS``.
        shapes: of its tensors.
        family: of the base model; empty means that projections are taken for linear.

    Raises:
        ShapeError: a tensor does not fit the others, or the kind of module.
    """
    kernel = _KERNEL if _WIDE.search(name) else (1, 1)
    for part, shape in shapes.items():
        if part in _NUMBERS and prod(shape) != 1:
            raise ShapeError(part, "must be a single number")
    if is_norm(name):
        return _vector(shapes)
    rows, columns = _SIDES[algorithm](shapes, kernel)
    _check_lengths(shapes, rows, columns // prod(kernel))
    for part in ("diff_b", "b_norm", "up_bias", "set_bias"):
        if part in shapes and rows and prod(shapes[part]) != rows:
            raise ShapeError(part, f"must have {rows} values, one per output")
    conv_projections = family in FAMILIES and FAMILIES[family].conv_projections
    convolution = kernel == _KERNEL or _NARROW.search(name) or (conv_projections and _PROJECTION.search(name))
    return (rows, columns // prod(kernel), *(kernel if convolution else ()))


def is_norm(name: str) -> bool:
    """Whether a module is a normalization."""
    return "norm" in name.rpartition(".")[2]


def _vector(shapes: Shapes) -> Shape:
    """A normalization's weight: all its tensors have the same length."""
    first, *others = shapes.items()
    for part, shape in others:
        if shape != first[1] and part not in _NUMBERS:
            raise ShapeError(part, f"must have the shape {list(first[1])}, like {first[0]}")
    if len(first[1]) != 1:
        raise ShapeError(first[0], "must be one-dimensional, because it changes a normalization layer")
    return first[1]


def _check_lengths(shapes: Shapes, rows: int, features: int) -> None:
    """DoRA has one length for each output, or in LyCORIS's older files for each input."""
    if "magnitude" in shapes and prod(shapes["magnitude"]) != rows:
        raise ShapeError("magnitude", f"must have {rows} values, one per output")
    scale = shapes.get("dora_scale")
    if scale is None:
        return
    by_row = scale[:1] == (rows,) and prod(scale) == rows
    by_column = scale[:2] == (1, features) and prod(scale) == features
    if not by_row and not by_column:
        raise ShapeError("dora_scale", f"must have the shape [{rows}, 1] or [1, {features}]")


def _matrix(shapes: Shapes, part: str, rows: int | None = None, columns: int | None = None) -> tuple[int, int]:
    """A tensor as ``[rows, columns]``, where a kernel counts among the columns; both can be demanded."""
    shape = shapes[part]
    if len(shape) not in (2, 4) or not all(shape):
        raise ShapeError(part, "must be a matrix")
    found = shape[0], prod(shape[1:])
    for wanted, there, side in ((rows, found[0], "rows"), (columns, found[1], "columns")):
        if wanted is not None and wanted != there:
            raise ShapeError(part, f"must have {wanted} {side}")
    return found


def _kernel_side(shapes: Shapes, part: str, kernel: Shape, rows: int | None = None) -> tuple[int, int]:
    """The factor that reads the inputs: ``[r, in]``, ``[r, in, k, k]`` or ``[r, in·k·k]`` → r, in·k·k."""
    found = _matrix(shapes, part, rows)
    if len(shapes[part]) == 4 and shapes[part][2:] != kernel:
        raise ShapeError(part, f"must have a kernel of {kernel[0]}×{kernel[1]}")
    if found[1] % prod(kernel):
        raise ShapeError(part, f"must have a multiple of {prod(kernel)} columns, because it changes a convolution")
    return found


def _core(shapes: Shapes, part: str, rank: int, kernel: Shape) -> None:
    if shapes[part] != (rank, rank, *kernel):
        raise ShapeError(part, f"must have the shape {[rank, rank, *kernel]}")


def _lora(shapes: Shapes, kernel: Shape) -> tuple[int, int]:
    if "mid" in shapes:
        rank, features = _matrix(shapes, "down")
        _core(shapes, "mid", rank, kernel)
        return _matrix(shapes, "up", columns=rank)[0], features * prod(kernel)
    if set(shapes["up"][2:]) - {1}:
        raise ShapeError("up", "must not have a kernel: in a LoRA the other factor has it")
    if shapes.get("singular") == (0, 1) and shapes["up"][1:] == (0,) == shapes["down"][:1]:
        return shapes["up"][0], prod(shapes["down"][1:])   # AdaLoRA took all its ranks away
    rank, columns = _kernel_side(shapes, "down", kernel)
    if "singular" in shapes and shapes["singular"] != (rank, 1):
        raise ShapeError("singular", f"must have the shape [{rank}, 1]")
    return _matrix(shapes, "up", columns=rank)[0], columns


def _loha(shapes: Shapes, kernel: Shape) -> tuple[int, int]:
    tucker = {"hada_t1", "hada_t2"} & shapes.keys()
    if len(tucker) == 1:
        raise ShapeError(tucker.pop(), "needs both hada_t1 and hada_t2")
    if tucker:
        rank, rows = _matrix(shapes, "hada_w1_a")
        _matrix(shapes, "hada_w2_a", rank, rows)
        features = _matrix(shapes, "hada_w1_b", rank)[1]
        _matrix(shapes, "hada_w2_b", rank, features)
        for part in ("hada_t1", "hada_t2"):
            _core(shapes, part, rank, kernel)
        return rows, features * prod(kernel)
    rows, rank = _matrix(shapes, "hada_w1_a")
    _matrix(shapes, "hada_w2_a", rows, rank)
    columns = _kernel_side(shapes, "hada_w1_b", kernel, rank)[1]
    _matrix(shapes, "hada_w2_b", rank, columns)
    return rows, columns


def _lokr(shapes: Shapes, kernel: Shape) -> tuple[int, int]:
    for number in (1, 2):
        products = {f"lokr_w{number}_a", f"lokr_w{number}_b"} & shapes.keys()
        if f"lokr_w{number}" in shapes and products:
            raise ShapeError(products.pop(), f"can't be combined with lokr_w{number}")
        if len(products) == 1:
            raise ShapeError(products.pop(), f"needs both lokr_w{number}_a and lokr_w{number}_b")
    small, large = _lokr_small(shapes), _lokr_large(shapes, kernel)
    return small[0] * large[0], small[1] * large[1]


def _lokr_small(shapes: Shapes) -> tuple[int, int]:
    if "lokr_w1" in shapes:
        return _matrix(shapes, "lokr_w1")
    rows, rank = _matrix(shapes, "lokr_w1_a")
    return rows, _matrix(shapes, "lokr_w1_b", rank)[1]


def _lokr_large(shapes: Shapes, kernel: Shape) -> tuple[int, int]:
    if "lokr_t2" in shapes:
        if "lokr_w2" in shapes:
            raise ShapeError("lokr_t2", "can't be combined with lokr_w2")
        rank, rows = _matrix(shapes, "lokr_w2_a")
        _core(shapes, "lokr_t2", rank, kernel)
        return rows, _matrix(shapes, "lokr_w2_b", rank)[1] * prod(kernel)
    if "lokr_w2" in shapes:
        return _kernel_side(shapes, "lokr_w2", kernel)
    rows, rank = _matrix(shapes, "lokr_w2_a")
    return rows, _kernel_side(shapes, "lokr_w2_b", kernel, rank)[1]


def _glora(shapes: Shapes, kernel: Shape) -> tuple[int, int]:
    a1, a2, b1, b2 = (_matrix(shapes, part) for part in ("a1", "a2", "b1", "b2"))
    swapped = not glora_is_new(shapes)
    if swapped:   # LyCORIS's first files call the two of each pair the other way round
        a1, a2, b1, b2 = a2, a1, b2, b1
    if not a1[1] == a2[0] == b1[1] == b2[0]:
        raise ShapeError("a2", "must have the rank of the other three")
    if a1[0] != a2[1] or b2[1] != a1[0] * prod(kernel):
        raise ShapeError("a1", "must have as many inputs as the other three")
    _kernel_side(shapes, "b1" if swapped else "b2", kernel)
    return b1[0], b2[1]


def glora_is_new(shapes: Shapes) -> bool:
    """Whether a GLoRA layer names its parts as LyCORIS does today."""
    return shapes["a1"][1] == shapes["a2"][0] == shapes["b1"][1] == shapes["b2"][0]


def _full(shapes: Shapes, kernel: Shape) -> tuple[int, int]:
    return _kernel_side(shapes, "diff", kernel)


def _ia3(shapes: Shapes, _kernel: Shape) -> tuple[int, int]:
    size = shapes["weight"]
    if not prod(size) or sum(side > 1 for side in size) > 1:
        raise ShapeError("weight", "must be a single row or column")
    return 0, 0   # of rows or of columns: its values decide


def _bias(shapes: Shapes, _kernel: Shape) -> tuple[int, int]:
    part, shape = next(iter(shapes.items()))
    if len(shape) != 1 or not shape[0]:
        raise ShapeError(part, "must be one-dimensional")
    return shape[0], 0


def _oft(shapes: Shapes, _kernel: Shape) -> tuple[int, int]:
    [part] = {"oft_blocks", "boft_blocks"} & shapes.keys()
    size = shapes[part]
    if len(size) != (3 if part == "oft_blocks" else 4) or not all(size) or size[-1] != size[-2]:
        raise ShapeError(part, "must consist of square blocks")
    rows = size[-3] * size[-1]
    # Factor i of BOFT pairs runs of 2ⁱ · b/2 outputs, so there must be a whole number of pairs.
    if part == "boft_blocks" and (size[-1] % 2 or rows % (2 ** (size[0] - 1) * size[-1])):
        raise ShapeError(part, "must divide into pairs of blocks")
    if "rescale" in shapes and prod(shapes["rescale"]) != rows:
        raise ShapeError("rescale", f"must have {rows} values, one per output")
    return rows, 0


def _input_oft(shapes: Shapes, _kernel: Shape) -> tuple[int, int]:
    size = shapes["oft_R"]
    block = triangle_side(size[1]) if len(size) == 2 else 0
    if not block or not size[0]:
        raise ShapeError("oft_R", "must contain one triangle of a square block per row")
    return 0, 0 if size[0] == 1 else size[0] * block   # one block may be for all inputs


def triangle_side(values: int) -> int:
    """Side of the square matrix whose strict upper triangle has so many values; 0 where there is none.

    >>> triangle_side(6), triangle_side(7)
    (4, 0)
    """
    side = (1 + isqrt(1 + 8 * values)) // 2
    return side if values > 0 and side * (side - 1) // 2 == values else 0


def _input_boft(shapes: Shapes, _kernel: Shape) -> tuple[int, int]:
    size = shapes["boft_R"]
    if len(size) != 4 or not all(size) or size[2] != size[3]:
        raise ShapeError("boft_R", "must consist of square blocks")
    if size[0] > 1 and (size[3] % 2 or size[1] % 2 ** (size[0] - 1)):
        raise ShapeError("boft_R", "must divide into pairs of blocks")
    return prod(shapes["boft_s"]), size[1] * size[3]


def _scaling(shapes: Shapes, _kernel: Shape) -> tuple[int, int]:
    size = shapes["ia3_l"]
    if not prod(size) or sum(side > 1 for side in size) > 1:
        raise ShapeError("ia3_l", "must be a single row or column")
    return 0, 0


def _shira(shapes: Shapes, _kernel: Shape) -> tuple[int, int]:
    size = shapes["shira_weight"]
    if len(size) != 1:
        raise ShapeError("shira_weight", "must be one-dimensional")
    if shapes["shira_indices"] != (2, *size):
        raise ShapeError("shira_indices", f"must have the shape {[2, *size]}")
    return 0, 0


def _spectrum(shapes: Shapes, _kernel: Shape) -> tuple[int, int]:
    [part] = {"waveft_spectrum", "fourierft_spectrum"} & shapes.keys()
    if len(shapes[part]) != 1:
        raise ShapeError(part, "must be one-dimensional")
    return 0, 0


def _miss(shapes: Shapes, _kernel: Shape) -> tuple[int, int]:
    size = shapes["miss_block"]
    if len(size) not in (2, 3) or not all(size) or (len(size) == 3 and size[1] != size[2]):
        raise ShapeError("miss_block", "must be a matrix or consist of square blocks")
    return (size[0] * size[1], 0) if len(size) == 3 else (0, 0)


def _randlora(shapes: Shapes, _kernel: Shape) -> tuple[int, int]:
    rank, count = _matrix(shapes, "randlora_lambda")
    short = _matrix(shapes, "randlora_gamma", count)[1]
    narrow, wide = shapes["randlora_A"], shapes["randlora_B"]
    if len(narrow) != 3 or narrow[:2] != (rank, 1) or narrow[2] < short:
        raise ShapeError("randlora_A", f"must have the shape [{rank}, 1, {short} or more]")
    if len(wide) != 3 or wide[1] < count or wide[2] != rank:
        raise ShapeError("randlora_B", f"must have the shape [rows, {count} or more, {rank}]")
    return 0, 0


def _vera(shapes: Shapes, _kernel: Shape) -> tuple[int, int]:
    rows, rank = prod(shapes["vera_lambda_b"]), prod(shapes["vera_lambda_d"])
    if not {"vera_A", "vera_B"} <= shapes.keys():
        raise ShapeError("vera_lambda_b", "needs vera_A and vera_B, the random matrices")
    _matrix(shapes, "vera_A", rank)
    if _matrix(shapes, "vera_B", columns=rank)[0] < rows:
        raise ShapeError("vera_B", f"must have at least {rows} rows")
    return rows, 0


def _hra(shapes: Shapes, _kernel: Shape) -> tuple[int, int]:
    return 0, _matrix(shapes, "hra_u")[0]


def _hira(shapes: Shapes, kernel: Shape) -> tuple[int, int]:
    rank, columns = _kernel_side(shapes, "hira_A", kernel)
    return _matrix(shapes, "hira_B", columns=rank)[0], columns


def _c3a(shapes: Shapes, _kernel: Shape) -> tuple[int, int]:
    size = shapes["c3a_kernel"]
    if len(size) != 3 or not all(size):
        raise ShapeError("c3a_kernel", "must have three dimensions")
    return size[0] * size[2], size[1] * size[2]


def _gralora(shapes: Shapes, _kernel: Shape) -> tuple[int, int]:
    reads, writes = shapes["gralora_A"], shapes["gralora_B"]
    if len(reads) != 3 or not all(reads) or reads[2] % reads[0]:
        raise ShapeError("gralora_A", "must have three dimensions, the last a multiple of the first")
    if len(writes) != 3 or writes[:2] != (reads[0], reads[2]) or not writes[2]:
        raise ShapeError("gralora_B", f"must have the shape [{reads[0]}, {reads[2]}, rows]")
    rows, columns = writes[0] * writes[2], reads[0] * reads[1]
    halves = [part for part in ("gralora_A_general", "gralora_B_general") if part in shapes]
    if len(halves) == 1:
        raise ShapeError(halves[0], "needs the other of its two factors")
    if halves:
        rank = _matrix(shapes, "gralora_A_general", columns=columns)[0]
        _matrix(shapes, "gralora_B_general", rows, rank)
    return rows, columns


def _whole(shapes: Shapes, kernel: Shape) -> tuple[int, int]:
    return _kernel_side(shapes, "set_weight", kernel) if "set_weight" in shapes else (prod(shapes["set_bias"]), 0)


_SIDES: dict[str, Callable[[Shapes, Shape], tuple[int, int]]] = {
    "LoRA": _lora, "AdaLoRA": _lora, "LoHa": _loha, "LoKr": _lokr, "GLoRA": _glora, "full": _full, "IA3": _ia3,
    "bias": _bias, "OFT": _oft, "BOFT": _oft, "OFT of inputs": _input_oft, "BOFT of inputs": _input_boft,
    "IA3 of PEFT": _scaling, "SHiRA": _shira, "WaveFT": _spectrum, "FourierFT": _spectrum, "MiSS": _miss,
    "RandLoRA": _randlora, "VeRA": _vera, "HRA": _hra, "HiRA": _hira, "C3A": _c3a, "GraLoRA": _gralora,
    "whole layers": _whole,
}   # fmt: skip

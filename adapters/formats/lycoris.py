"""Adapters that other tools made: what each of their algorithms adds to a weight. Not trained here, only used.

Tensors keep the names and precision of their file (LyCORIS's words for the parts), so nothing is lost on the way in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from atelier.adapters.core.base import Adapter, Spec
from atelier.adapters.core.settings import Settings
from atelier.adapters.formats.layer_shapes import glora_is_new
from atelier.kernels.torch_internals import buffers_of

_CHANGES_OF_BIAS = frozenset({"diff_b", "b_norm", "set_bias"})


class Imported(Adapter):
    """One layer of a foreign file. ΔW is what the algorithm adds at strength 1; sources are at the subclasses.

    With ``dora_scale`` (or PEFT's ``magnitude``) the result is DoRA (Liu et al. 2024, arXiv 2402.09353): every row, or
    in LyCORIS's older files every column, of W + ΔW is brought to the length that is stored.
    """

    kind = "imported"
    title = "Imported"
    settings = Settings

    def __init__(self, spec: Spec, parts: Mapping[str, Tensor], shared: nn.Module | None = None) -> None:
        super().__init__(spec, None)
        self._shared = (shared,)   # a tuple: torch must count its tensors once, with the set
        for name, value in parts.items():
            self.register_buffer(name, value)

    def part(self, name: str) -> Tensor | None:
        """One tensor in float32 or better; None where neither the layer nor what it shares has it."""
        value = buffers_of(self).get(name)
        if value is None and self._shared[0] is not None:
            value = buffers_of(self._shared[0]).get(name)
        return value if value is None or value.dtype == torch.float64 else value.float()

    def need(self, name: str) -> Tensor:
        """One tensor that the algorithm can't do without."""
        value = self.part(name)
        assert value is not None, f"{self.spec.name} has no {name}"
        return value

    def scaling(self, rank: int) -> float:
        """alpha / rank; 1 where the file says no alpha, or 0, which LyCORIS writes for 'the rank'.

        A ``scale`` takes its place (A1111, and what a configuration beside the file says); ``scalar`` is LyCORIS's
        learned factor.
        """
        alpha = self.number("alpha")
        own = self.number("scale", alpha / rank if alpha else 1.0)
        return own * self.number("scalar", 1.0)

    def number(self, name: str, default: float = 0.0) -> float:
        """A part that is one number; the default where the layer has none."""
        value = buffers_of(self).get(name)
        return default if value is None else value.double().item()

    @property
    def lengths_given(self) -> bool:
        """Whether this is DoRA."""
        return "dora_scale" in buffers_of(self) or "magnitude" in buffers_of(self)

    def row_lengths(self, weight: Tensor) -> Tensor | None:
        """DoRA's lengths ``[rows]``; None where there are none, or they are those of columns.

        PEFT knows rows only, and shapes its lengths ``[1, rows, 1, 1]`` on a convolution.
        """
        lengths = self.part("magnitude")
        if lengths is None:
            lengths = self.part("dora_scale")
            if lengths is None or lengths.shape[0] != weight.shape[0] or prod(lengths.shape[1:]) != 1:
                return None
        return lengths.flatten()

    def own_update(self, weight: Tensor) -> Tensor:
        """The algorithm's own update, before lengths are set, in the shape of ``weight``."""
        return self._update(weight)

    def _pair(self) -> tuple[Tensor, Tensor] | None:
        """``up [rows, r]`` and ``down [r, columns]`` whose product is the algorithm's own update; or None."""
        return None

    def _update(self, weight: Tensor) -> Tensor:
        """The algorithm's own update, before lengths are set, in the shape of ``weight``."""
        pair = self._pair()
        assert pair is not None
        return (pair[0] @ pair[1]).reshape(weight.shape)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """``up [rows, r]``, ``down [r, columns]`` in float32; None for DoRA and for algorithms of full rank."""
        return None if self.lengths_given else self._pair()

    def delta(self, weight: Tensor) -> Tensor:
        """ΔW of the algorithm; for DoRA with the stored lengths, which depend on ``weight``."""
        update = self._update(weight)
        return _lengthened(weight.to(update.dtype), update, self) if self.lengths_given else update

    @property
    def adds_bias(self) -> bool:
        """Whether the file changes the bias, or PEFT's ``up_bias`` adds to the outputs."""
        return self.needs_bias or "up_bias" in buffers_of(self)

    @property
    def needs_bias(self) -> bool:
        """True where the file changes the bias; PEFT's ``up_bias`` is added to the outputs and needs none."""
        return not _CHANGES_OF_BIAS.isdisjoint(buffers_of(self))

    def bias_delta(self, bias: Tensor | None = None) -> Tensor | None:
        """``diff_b`` or ``b_norm [rows]``; with ``set_bias`` what is missing to it. None without such a tensor."""
        change = self.part("diff_b")
        change = self.part("b_norm") if change is None else change
        whole = self.part("set_bias")
        return change if whole is None or bias is None else whole - bias.to(whole)

    @property
    def reads_bias(self) -> bool:
        """True with ``set_bias``, which replaces the bias, so that the change depends on it."""
        return "set_bias" in buffers_of(self)


class ImportedLora(Imported):
    """ΔW = alpha/rank · up @ down; LoCon's Tucker form has ``mid [r, r, k, k]`` between them (LyCORIS, locon).

    PEFT's ``lora_bias`` adds ``up_bias [rows]`` to the outputs, at the same scale.
    """

    def _pair(self) -> tuple[Tensor, Tensor]:
        up, down, mid = self.need("up").flatten(1), self.need("down"), self.part("mid")
        inner = down.flatten(1) if mid is None else torch.einsum("rskl,si->rikl", mid, down.flatten(1)).flatten(1)
        return up * self.scaling(down.shape[0]), inner

    def own_factors(self) -> tuple[Tensor, Tensor]:
        """``up [rows, r]`` and ``down [r, columns]`` before lengths are set."""
        return self._pair()

    def bias_delta(self, bias: Tensor | None = None) -> Tensor | None:
        """The change of the bias, plus ``up_bias`` times alpha/rank; None where the file has neither."""
        own, change = self.part("up_bias"), super().bias_delta(bias)
        if own is None:
            return change
        own = own * self.scaling(self.need("down").shape[0])
        return own if change is None else own + change


class ImportedAdalora(Imported):
    """ΔW = scale · up @ diag(singular) @ down, scale = alpha / (rank + 1e-5)   (Zhang et al. 2023, arXiv 2303.10512).

    PEFT divides by the rank training began with, whatever is left of it.
    """

    def _pair(self) -> tuple[Tensor, Tensor]:
        up, down = self.need("up").flatten(1), self.need("down").flatten(1)
        return up * self.need("singular").T * self.scaling(down.shape[0]), down


class ImportedLoha(Imported):
    """ΔW = alpha/rank · (a₁ @ b₁) ∘ (a₂ @ b₂); the Tucker form has a core ``t [r, r, k, k]`` for each (LyCORIS)."""

    def _pair(self) -> tuple[Tensor, Tensor]:
        (up_1, down_1), (up_2, down_2) = self._half(1), self._half(2)
        up = (up_1[:, :, None] * up_2[:, None]).flatten(1)
        down = (down_1[:, None] * down_2[None]).flatten(0, 1)
        return up * self.scaling(self.need("hada_w1_b").shape[0]), down

    def _half(self, number: int) -> tuple[Tensor, Tensor]:
        left, right = self.need(f"hada_w{number}_a"), self.need(f"hada_w{number}_b")
        core = self.part(f"hada_t{number}")
        if core is None:
            return left, right.flatten(1)
        return left.T, torch.einsum("rskl,si->rikl", core, right.flatten(1)).flatten(1)


class ImportedLokr(Imported):
    """ΔW = scale · w₁ ⊗ w₂, each whole or a product; scale is alpha/rank if either is a product, else 1 (LyCORIS)."""

    def _pair(self) -> tuple[Tensor, Tensor] | None:
        if "lokr_w2" in buffers_of(self):
            return None   # its second factor is whole: no low rank
        small, (left, right) = self._small(), self._large()
        one = torch.eye(small.shape[1], dtype=small.dtype, device=small.device)
        # A kernel's taps belong to the larger factor: columns are (small in, large in, taps).
        return torch.kron(small, left.contiguous()) * self.factor(), torch.kron(one, right.contiguous())

    def _update(self, weight: Tensor) -> Tensor:
        if self._pair() is not None:
            return super()._update(weight)
        large = self.need("lokr_w2").flatten(1)
        return (torch.kron(self._small(), large) * self.factor()).reshape(weight.shape)

    def _small(self) -> Tensor:
        whole = self.part("lokr_w1")
        return self.need("lokr_w1_a") @ self.need("lokr_w1_b") if whole is None else whole

    def _large(self) -> tuple[Tensor, Tensor]:
        left, right, core = self.need("lokr_w2_a"), self.need("lokr_w2_b"), self.part("lokr_t2")
        if core is None:
            return left, right.flatten(1)
        return left.T, torch.einsum("rskl,si->rikl", core, right.flatten(1)).flatten(1)

    def factor(self) -> float:
        """What multiplies the product of both."""
        inner = self.part("lokr_w2_b")
        inner = self.part("lokr_w1_b") if inner is None else inner
        if inner is None:   # alpha is not for whole factors; PEFT's scale is
            return self.number("scale", 1.0) * self.number("scalar", 1.0)
        return self.scaling(inner.shape[0])


class ImportedGlora(Imported):
    """ΔW = alpha/rank · (W @ a₁ @ a₂ + b₁ @ b₂)   (GLoRA: Chavan et al. 2023, arXiv 2306.07967; LyCORIS, glora).

    LyCORIS's first files call the two of each pair the other way round; the shapes tell.
    """

    def _update(self, weight: Tensor) -> Tensor:
        a1, a2, b1, b2 = (self.need(name).flatten(1) for name in ("a1", "a2", "b1", "b2"))
        if not glora_is_new({"a1": a1.shape, "a2": a2.shape, "b1": b1.shape, "b2": b2.shape}):
            a1, a2, b1, b2 = a2, a1, b2, b1
        turned = torch.einsum("oi...,ij->oj...", weight.to(a1.dtype), a1 @ a2)
        return (turned + (b1 @ b2).reshape(weight.shape)) * self.scaling(a2.shape[0])


class ImportedFull(Imported):
    """ΔW as it is (LyCORIS, full)."""

    @property
    def reads_weight(self) -> bool:
        """True for DoRA alone: without lengths, ΔW is stored as it is."""
        return self.lengths_given

    def _update(self, weight: Tensor) -> Tensor:
        return self.need("diff").reshape(weight.shape) * self.number("scale", 1.0)


class ImportedNorm(Imported):
    """Change to the weight of a normalization layer (LyCORIS, norms)."""

    @property
    def reads_weight(self) -> bool:
        """False: the change is stored as it is."""
        return False

    def _update(self, weight: Tensor) -> Tensor:
        return self.need("w_norm").reshape(weight.shape)


class ImportedIa3(Imported):
    """ΔW = W scaled, row by row or (``on_input``) column by column   ((IA)³: Liu et al. 2022, arXiv 2205.05638)."""

    def _update(self, weight: Tensor) -> Tensor:
        side = 1 if self.need("on_input").item() else 0
        shape = [-1 if place == side else 1 for place in range(weight.dim())]
        values = self.need("weight")
        return weight.to(values.dtype) * values.reshape(shape) * self.number("scale", 1.0)

    def matches_shape(self, shape: Sequence[int]) -> bool:
        """Whether the scaled side of ``shape`` has as many features as the file has factors."""
        return len(shape) > 1 and shape[1 if self.need("on_input").item() else 0] == self.need("weight").numel()


class ImportedBias(Imported):
    """Changes a bias alone."""

    def _update(self, weight: Tensor) -> Tensor:
        return torch.zeros_like(weight)


def as_matrix(weight: Tensor, like: Tensor) -> Tensor:
    """A weight as ``[rows, columns]`` in the precision of ``like``."""
    return weight.flatten(1).to(like)


def _lengthened(weight: Tensor, update: Tensor, layer: Imported) -> Tensor:
    """ΔW of DoRA: W + ``update`` with the stored lengths, less W."""
    after = weight + update
    by_row = layer.row_lengths(weight)
    lengths = layer.need("dora_scale") if by_row is None else by_row
    others = [place for place in range(weight.dim()) if place != (1 if by_row is None else 0)]
    measured = weight if by_row is not None and layer.number("base_lengths") else after
    norms = torch.linalg.vector_norm(measured, dim=others, keepdim=True).clamp_min(torch.finfo(after.dtype).tiny)
    return after * (lengths.reshape(norms.shape) / norms) - weight

"""Two adapters of any kind into one without training: their sum, NP-LoRA's projection, K-LoRA's choice of layers.

What comes out is a plain LoRA, or for K-LoRA's choice, which depends on the timestep, a set that a Mix can mount.
ZipLoRA's mixers, which are learned, are in ``ziplora.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atelier.adapters.attach.mount import find_target_modules
from atelier.adapters.core.base import Adapter, AdapterSet, Spec, bias_of, weight_of
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.settings import SettingError
from atelier.adapters.core.timestep import TimestepTracker
from atelier.adapters.formats.low_rank import (
    Pair,
    Vectors,
    WeightChange,
    change_vectors,
    changes_matrix,
    lora_from_factors,
    lora_with_vectors,
    weight_changes,
)
from atelier.adapters.kinds.lora import RankSettings

Models = Mapping[str, nn.Module]   # component name → model, as everywhere
NP_LORA_MU = 0.5                   # NP-LoRA's μ
K_LORA_ALPHA, K_LORA_BETA = 1.5, 0.5           # K-LoRA's α and β
_NEGLIGIBLE = 1e-7                 # of the largest singular value: rounding


@dataclass(frozen=True, slots=True)
class LayerPair:
    """What two adapters do to one module; where one of them does nothing, its pair has rank 0."""

    spec: Spec
    content: Pair
    style: Pair


def sum_adapters(models: Models, content: AdapterSet, style: AdapterSet) -> AdapterSet:
    """A LoRA whose ΔW is the sum of both, exactly: the factors side by side; biases and normalizations add up too."""
    return lora_with_vectors(*exact_changes(models, Mix(((content, 1.0), (style, 1.0)))))


def np_lora(models: Models, content: AdapterSet, style: AdapterSet, amount: float = NP_LORA_MU) -> AdapterSet:
    """NP-LoRA's soft projection: ΔW = ΔW_style + ΔW_content (I − μ/(1+μ) QQᵀ).

    The columns of Q are an orthonormal basis of the style's row space, so content gives way where style looks.

    Args:
        models: the base model.
        content: adapter of any kind.
        style: adapter of any kind.
        amount: μ; 0 is the plain sum, ∞ takes the style's row space out of the content whole.
    """
    found = pair_layers(models, content, style)
    return lora_from_factors({
        layer.spec: add_factors(project_out_style(layer, amount), layer.style) for layer in found
    })   # fmt: skip


@torch.no_grad()
def project_out_style(layer: LayerPair, amount: float = NP_LORA_MU) -> Pair:
    """The content's factors, softly projected out of the style's row space."""
    up, down = layer.content
    rows = row_space(layer.style)
    return up, down - amount / (1 + amount) * (down @ rows) @ rows.T


def k_lora(models: Models, content: AdapterSet, style: AdapterSet) -> AdapterSet:
    """K-LoRA (Ouyang et al. 2025, arXiv 2502.18461): each layer has the content early on and the style later.

    When a layer changes over depends on how large the K largest values of both updates are, K = product of the ranks:
    content while ΣtopK|ΔW_content| ≥ γ (α·progress + β) ΣtopK|ΔW_style|, where γ balances all of both. The set has a
    clock, so it is mounted, never merged; :func:`k_lora_mean` is the nearest plain LoRA.
    """
    found = pair_layers(models, content, style)
    clock = TimestepTracker()
    shares = switch_points(found)
    adapters = [KLora(layer, share, clock) for layer, share in zip(found, shares, strict=True)]
    return AdapterSet(KLora, RankSettings(), adapters, shared={"clock": clock})


def k_lora_mean(models: Models, content: AdapterSet, style: AdapterSet) -> AdapterSet:
    """A LoRA that is the mean of K-LoRA's choice over the whole of denoising: both, each by its share of the time."""
    found = pair_layers(models, content, style)
    return lora_from_factors({
        layer.spec: add_factors(_scale(layer.content, share), _scale(layer.style, 1 - share))
        for layer, share in zip(found, switch_points(found), strict=True)
    })   # fmt: skip


@torch.no_grad()
def switch_points(found: list[LayerPair]) -> list[float]:
    """For each layer the progress at which K-LoRA changes over from content to style, 0 … 1."""
    sizes = [(_delta(layer.content).abs(), _delta(layer.style).abs()) for layer in found]
    whole = [sum(size[side].sum().item() for size in sizes) for side in (0, 1)]
    balance = whole[0] / whole[1] if whole[1] else 0.0
    shares: list[float] = []
    for layer, (of_content, of_style) in zip(found, sizes, strict=True):
        most = max(1, rank_of(layer.content)) * max(1, rank_of(layer.style))
        mine, theirs = (size.flatten().topk(min(most, size.numel())).values.sum().item()
                        for size in (of_content, of_style))
        shares.append(_switch_point(mine, balance * theirs))
    return shares


def _switch_point(content: float, style: float) -> float:
    """The progress p at which ``content = (α·p + β)·style``, within 0 … 1; where only one does anything, it has all."""
    if not style:
        return 1.0
    return min(1.0, max(0.0, (content / style - K_LORA_BETA) / K_LORA_ALPHA))


class KLora(Adapter):
    """K-LoRA's layer: ΔW is the content's until the clock says it is time, then the style's. Nothing to train."""

    kind = "switched"
    title = "K-LoRA"
    settings = RankSettings
    live = True

    def __init__(self, layer: LayerPair, share: float, clock: TimestepTracker) -> None:
        super().__init__(layer.spec, RankSettings())
        self.share, self._clock = share, (clock,)   # in a tuple, for the set holds it once for all
        for name, (up, down) in (("content", layer.content), ("style", layer.style)):
            self.register_buffer(f"{name}_up", up)
            self.register_buffer(f"{name}_down", down)

    def factors(self) -> Pair:
        """The content's pair before the switch, the style's after it: ``up [rows, r]``, ``down [r, columns]``."""
        name = "content" if self._clock[0].progress < self.share else "style"
        return self.get_buffer(f"{name}_up"), self.get_buffer(f"{name}_down")


def pair_layers(models: Models, content: AdapterSet, style: AdapterSet) -> list[LayerPair]:
    """The layers that either adapter changes.

    Raises:
        MountError: one of them does not fit the base model.
        SettingError: one changes biases or normalizations, which have no rows to project and no layer to choose.
    """
    found = [exact_changes(models, Mix(((part, 1.0),))) for part in (content, style)]
    if vectors := next((vectors for _, vectors in found if vectors), None):
        name = next(iter(vectors)).name
        raise SettingError(f"One of these adapters also changes biases or normalization layers ({name}), which this "
                           "method can't combine. Merge both instead: atelier merge keeps those changes.")
    one, two = (pairs for pairs, _ in found)
    if not one and not two:
        raise SettingError("Neither of these adapters changes a layer, so there is nothing to combine.")
    dtype = next(up.dtype for up, _ in (*one.values(), *two.values()))
    specs = list(dict.fromkeys((*one, *two)))
    return [LayerPair(spec, *(part.get(spec, _empty_pair(spec, dtype)) for part in (one, two))) for spec in specs]


@torch.no_grad()
def exact_changes(models: Models, mix: Mix) -> tuple[dict[Spec, Pair], dict[Spec, Vectors]]:
    """All that a Mix adds: factors of every matrix, and the changes of biases and normalizations.

    Factors are the kinds' own, else the SVD down to rounding, whatever rank that takes.
    """
    modules = {name: module for part, _ in mix.parts for name, module in find_target_modules(models, part).items()}
    pairs: dict[Spec, Pair] = {}
    vectors: dict[Spec, Vectors] = {}
    for change in weight_changes(mix, lambda name: base_value(modules, name)):
        spec = _complete_spec(change.spec, modules)
        if own := change_vectors(change):
            vectors[spec] = own
        if changes_matrix(change):
            pairs[spec] = factorize(change)
    return pairs, vectors


def base_value(modules: Mapping[str, nn.Module], name: str) -> Tensor:
    """A module's weight by its name, or its bias by the name with ``.bias``; zeros where it has no bias."""
    if name in modules:
        return weight_of(modules[name])
    module = modules[name.removesuffix(".bias")]
    bias = bias_of(module)
    return weight_of(module).new_zeros(len(weight_of(module))) if bias is None else bias


def factorize(change: WeightChange) -> Pair:
    """Factors of one change."""
    if change.pair is not None:
        return change.pair
    matrix = change.matrix()
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    rank = int((s > _NEGLIGIBLE * s[0]).sum())
    return (u[:, :rank] * s[:rank]).to(matrix.dtype), v[:rank].to(matrix.dtype)


def to_lora(models: Models, adapters: AdapterSet, strength: float = 1.0) -> AdapterSet:
    """``strength``·ΔW as a LoRA, with its changes of biases and normalizations.

    Raises:
        MountError: the adapter does not fit the base model.
    """
    return lora_with_vectors(*exact_changes(models, Mix(((adapters, strength),))))


@torch.no_grad()
def row_space(pair: Pair) -> Tensor:
    """Orthonormal basis of the rows of ``up @ down``, ``[columns, k]``."""
    up, down = pair
    if not rank_of(pair):
        return down.new_zeros(down.shape[1], 0)
    q, r = torch.linalg.qr(down.T)
    _, s, v = torch.linalg.svd(up @ r.T, full_matrices=False)
    return q @ v[s > _NEGLIGIBLE * s[0].clamp_min(torch.finfo(s.dtype).tiny)].T


def add_factors(one: Pair, two: Pair) -> Pair:
    """Exact factors of the sum of two low-rank updates: ups side by side, downs stacked."""
    return torch.cat([one[0], two[0]], 1), torch.cat([one[1], two[1]])


def rank_of(pair: Pair) -> int:
    """Columns of ``up``."""
    return len(pair[1])


def _scale(pair: Pair, number: float) -> Pair:
    return pair[0] * number, pair[1]


def _delta(pair: Pair) -> Tensor:
    return pair[0] @ pair[1]


def _complete_spec(spec: Spec, modules: Mapping[str, nn.Module]) -> Spec:
    """The spec with the shape that the module has: imported files may leave a side open."""
    return Spec(spec.name, tuple(weight_of(modules[spec.name]).shape))


def _empty_pair(spec: Spec, dtype: torch.dtype) -> Pair:
    return torch.zeros(spec.rows, 0, dtype=dtype), torch.zeros(0, spec.columns, dtype=dtype)

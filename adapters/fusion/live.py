"""Adapters that act together in a way that no single file can hold: gates, turns, averages, curves and regions.

Constant strengths need none of this: they are a Mix, and merge. Here every layer keeps each adapter's output apart,
until a gate (``gate.py``) or a sum puts them together; where adapters act in passes of their own, the UNet runs once
for each and its answers are averaged, which averages guidance as well, since that is linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atelier.adapters.attach.mount import find_target_modules, is_channels_first, replace_forward
from atelier.adapters.core.base import Adapter, AdapterSet, bias_of
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.settings import SettingError
from atelier.adapters.core.timestep import TimestepTracker
from atelier.adapters.fusion.gates import Gate, GateRecord, GateSet
from atelier.kernels.torch_internals import conv_with_weight

CANVAS_STEP = 8   # latents: the UNets halve them up to three times
Curve = Callable[[float], float]   # progress of denoising, 0 … 1 → what the strength is multiplied with


@dataclass(frozen=True, slots=True)
class WeightedAdapter:
    """One adapter of a fusion: how strong it is, along which curve over the steps, and in which region."""

    adapters: AdapterSet
    strength: float = 1.0
    curve: Curve | None = None    # None: the same at every step
    region: Tensor | None = None  # [h, w] of any size, 0 … 1: where in the picture it acts; None: everywhere
    prompt: str = ""              # what is drawn in its region; empty: what the drawing's prompt says
    own_canvas: bool = False      # the UNet sees its region alone, as if it were the whole picture

    def strength_at(self, progress: float) -> float:
        """The strength at ``progress`` of denoising (0 … 1), as the curve sets it."""
        return self.strength * (1.0 if self.curve is None else self.curve(progress))


@dataclass(frozen=True, slots=True)
class PromptRegion:
    """A part of the picture with a prompt of its own: ``region [h, w]`` of any size, 0 … 1."""

    prompt: str
    region: Tensor


@dataclass(frozen=True, slots=True)
class RegionText:
    """A region's prompt as the UNet reads it: ``features [2n, T, D]``, negative ones first; of SDXL ``pooled``."""

    features: Tensor
    pooled: Tensor | None = None   # [2n, D]


@dataclass(frozen=True, slots=True)
class Fusion:
    """Several adapters and how they act together; drawn while mounted, never merged.

    ``apart`` is LoRA-Composite (Zhong et al. 2024, arXiv 2402.16843): one pass of the UNet for each adapter, and the
    mean of the answers. Parts with a region act in passes of their own too: answer = u + Σ Mᵢ ⊙ (aᵢ − u), where u is
    what all parts without a region give, and aᵢ the same with part i, and with the prompt of its region where it has
    one. So do ``prompt_regions``, which have no part. ``texts``: those prompts, one for each of :meth:`passes`.

    A region with a canvas of its own is denoised by itself, on the rectangle around it, and is mixed in where it
    overlaps others (Mixture of Diffusers, Barbero Jiménez 2023, arXiv 2302.02412): its subject is drawn whole, at the
    size that was taught, and nothing of one subject can reach the other but through what is shared at the border.
    """

    parts: tuple[WeightedAdapter, ...]
    gates: GateSet | None = None
    separate_passes: bool = False
    record: GateRecord | None = None
    prompt_regions: tuple[PromptRegion, ...] = ()
    texts: tuple[RegionText | None, ...] = ()

    def passes(self) -> list[UNetPass]:
        """The runs of the UNet that one answer is made of; their weights add up to 1 at every place."""
        everywhere = tuple(i for i, part in enumerate(self.parts) if part.region is None)
        regions = [(i, part.region) for i, part in enumerate(self.parts) if part.region is not None]
        if self.separate_passes:
            return [UNetPass((i,), 1 / len(self.parts)) for i in everywhere] or [UNetPass((), 1.0)]
        if not regions and not self.prompt_regions:
            return [UNetPass(everywhere, 1.0)]
        return [*(UNetPass((*everywhere, i), region, self.parts[i].prompt, self.parts[i].own_canvas)
                  for i, region in regions),
                *(UNetPass(everywhere, one.region, one.prompt) for one in self.prompt_regions),
                UNetPass(everywhere, None)]   # fmt: skip


@dataclass(frozen=True, slots=True)
class UNetPass:
    """One run of the UNet: the parts that act in it, and how much its answer counts."""

    parts: tuple[int, ...]
    weight: float | Tensor | None   # everywhere alike; or [h, w]; or what the others leave of 1
    prompt: str = ""                # of its own; empty: the drawing's
    own_canvas: bool = False        # on the rectangle around its region, and nothing else


def with_prompt_regions(mix: Mix | Fusion, regions: Sequence[PromptRegion]) -> Mix | Fusion:
    """What acts in a drawing, and prompts for parts of the picture.

    Raises:
        SettingError: the adapters act in passes of their own already.
    """
    if not regions:
        return mix
    if isinstance(mix, Mix):
        mix = Fusion(tuple(WeightedAdapter(adapters, strength) for adapters, strength in mix.active()))
    if mix.separate_passes:
        raise SettingError("composite draws with one adapter at a time, so it can't follow prompts of regions. Use "
                           "another method, or remove the regions.")
    return replace(mix, prompt_regions=tuple(regions))


@contextmanager
def mount_fusion(models: Mapping[str, nn.Module], fusion: Fusion) -> Iterator[None]:
    """Let the adapters act as the fusion says while the context is open; the weights are never touched.

    Text encoders read the prompt before there is a timestep: what is adapted there is the plain sum.

    Raises:
        MountError: an adapter does not fit.
    """
    stage = _FusionState(fusion)
    layers: dict[nn.Module, _LayerHook] = {}
    for i, part in enumerate(fusion.parts):
        if part.strength:
            for name, module in find_target_modules(models, part.adapters).items():
                layer = layers.setdefault(module, _LayerHook(name, module, stage))
                layer.add(i, part.adapters[name], part.adapters.scale_of(name))
    with ExitStack() as stack:
        for clock in (stage.clock, *_clocks(fusion)):
            stack.enter_context(models["unet"].register_forward_pre_hook(clock.read_timestep, with_kwargs=True))
        for module, layer in layers.items():
            stack.enter_context(module.register_forward_hook(layer))
        passes = fusion.passes()
        if len(passes) > 1:
            unet = models["unet"]
            texts = fusion.texts or (None,) * len(passes)
            stack.enter_context(replace_forward(unet, partial(_run_passes, unet.forward, passes, texts, stage)))
        yield


def _clocks(fusion: Fusion) -> list[TimestepTracker]:
    modules = (module for part in fusion.parts for module in part.adapters.modules())
    return [module for module in modules if isinstance(module, TimestepTracker)]


class _FusionState:
    """Which parts are acting at this moment, and how strongly."""

    def __init__(self, fusion: Fusion) -> None:
        self.fusion, self.clock = fusion, TimestepTracker()
        self.turn = tuple(range(len(fusion.parts)))

    def strength(self, part: int, name: str) -> float:
        """Of one part, in one layer."""
        one = self.fusion.parts[part]
        if not name.startswith("unet."):
            return one.strength
        return one.strength_at(self.clock.progress) if part in self.turn else 0.0


def _run_passes(
    forward: Callable[..., Any], passes: Sequence[UNetPass], texts: Sequence[RegionText | None], stage: _FusionState,
    *args: Any, **kwargs: Any,
) -> Any:   # fmt: skip
    """The weighted mean of what the UNet answers with the parts and the prompt of each pass."""
    before = stage.turn
    sample = args[0] if args else kwargs.pop("sample")
    answers: list[Any] = []
    try:
        for one, text in zip(passes, texts, strict=True):
            stage.turn = one.parts
            arguments = _with_text(kwargs, text) if text else kwargs
            rows, columns = _canvas(one, sample)
            answers.append(forward(sample[..., rows, columns], *args[1:], **arguments))
            if one.own_canvas:
                answers[-1] = (_placed(answers[-1][0], like=sample, rows=rows, columns=columns),)
    finally:
        stage.turn = before
    weights = _weights(passes, answers[-1][0], shared=any(texts))
    total = sum(answer[0] * weight for answer, weight in zip(answers, weights, strict=True))
    return (total,) if isinstance(answers[-1], tuple) else answers[-1].__class__({"sample": total})


def _canvas(one: UNetPass, sample: Tensor) -> tuple[slice, slice]:
    """Rows and columns of the latents that a pass sees: all, or a rectangle that the UNet's levels can halve."""
    if not one.own_canvas or not isinstance(one.weight, Tensor) or not one.weight.any():
        return slice(None), slice(None)
    region: Any = _resize_region(one.weight, sample)
    touched = region[0, 0] > 0
    return _span(touched.any(1)), _span(touched.any(0))


def _span(touched: Tensor) -> slice:
    """From the first touched place to the last, widened to whole steps inside the side."""
    places = touched.nonzero().flatten().tolist()
    start, end = places[0] // CANVAS_STEP * CANVAS_STEP, -(-(places[-1] + 1) // CANVAS_STEP) * CANVAS_STEP
    return slice(start, min(len(touched), end))


def _placed(answer: Tensor, *, like: Tensor, rows: slice, columns: slice) -> Tensor:
    """A canvas's answer at its place in the whole, zeros elsewhere."""
    whole = answer.new_zeros((*answer.shape[:-2], *like.shape[-2:]))
    whole[..., rows, columns] = answer
    return whole


def _with_text(arguments: Mapping[str, Any], text: RegionText) -> dict[str, Any]:
    """The UNet's arguments with another prompt in their last rows: negative ones come first."""
    found = {**arguments, "encoder_hidden_states": _in_last_rows(arguments["encoder_hidden_states"], text.features)}
    if text.pooled is not None:
        conditions = arguments["added_cond_kwargs"]
        pooled = _in_last_rows(conditions["text_embeds"], text.pooled)
        found["added_cond_kwargs"] = {**conditions, "text_embeds": pooled}
    return found


def _in_last_rows(rows: Tensor, last: Tensor) -> Tensor:
    last = last[-len(rows) :].to(rows)   # without guidance there are no negative rows
    return torch.cat([rows[: len(rows) - len(last)], last])


def _weights(passes: Sequence[UNetPass], like: Tensor, *, shared: bool) -> list[Any]:
    """How much each answer counts, at the size of the latents.

    ``shared``: regions with prompts share the places where they overlap, instead of adding up.
    """
    weights: list[Any] = [_resize_region(one.weight, like) for one in passes if one.weight is not None]
    if shared:
        most = torch.stack(weights).sum(0).clamp(min=1.0)
        weights = [weight / most for weight in weights]
    rest: Any = 1.0
    for weight in weights:
        rest = rest - weight
    return [*weights, rest][: len(passes)]


def _resize_region(weight: float | Tensor, like: Tensor) -> float | Tensor:
    """A region at the size of the latents ``like [B, C, h, w]``."""
    if not isinstance(weight, Tensor):
        return weight
    size = tuple(like.shape[-2:])
    return F.interpolate(weight[None, None].float(), size, mode="bilinear", antialias=True).to(like)


class _LayerHook:
    """A layer's hook: its adapters' outputs, each apart, put together by its gate or added."""

    def __init__(self, name: str, module: nn.Module, stage: _FusionState) -> None:
        self.name, self.stage = name, stage
        self.adapters: dict[int, Adapter] = {}
        self.scales: dict[int, float] = {}
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}
        self.whole = getattr(module, "groups", 1) == 1 and isinstance(module, nn.Linear | nn.Conv2d)
        self.stacked: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        gates = stage.fusion.gates
        self.gate: Gate | None = gates.get(name) if gates is not None else None

    @torch.no_grad()
    def add(self, part: int, adapter: Adapter, scale: float) -> None:
        """One more adapter. In a fusion they don't learn, so factors are computed once."""
        self.adapters[part], self.scales[part] = adapter, scale
        if self.whole and not adapter.live and not adapter.adds_bias and (pair := adapter.factors()) is not None:
            self.pairs[part] = pair

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        found = ((part, self.stage.strength(part, self.name) * scale) for part, scale in self.scales.items())
        acting = {part: strength for part, strength in found if strength}
        if not acting:
            return None
        first = is_channels_first(module)
        base = output.movedim(1, -1) if first else output
        parts = self._outputs(module, args[0], acting)
        moments = self.stage.clock.batch_progress
        if self.gate is None:
            mixed = base + parts.sum(0)
        else:
            if (record := self.stage.fusion.record) is not None:
                self._note(record, acting, self.gate.mean_gate(base, parts, moments))
            mixed = self.gate(base, parts, moments)
        return mixed.movedim(-1, 1) if first else mixed

    def _note(self, record: GateRecord, acting: Mapping[int, float], opened: Tensor) -> None:
        row = torch.full((len(self.stage.fusion.parts),), float("nan"))
        row[list(acting)] = opened.float().cpu()
        record.add_step(self.name, self.stage.clock.progress, row)

    def _outputs(self, module: nn.Module, x: Tensor, acting: Mapping[int, float]) -> Tensor:
        """What each acting part adds at its strength, ``[K, …, m]`` with features last."""
        if acting.keys() <= self.pairs.keys():
            return self._side_by_side(module, x, acting)
        found = [self._alone(module, x, part) * strength for part, strength in acting.items()]
        return torch.stack([one.movedim(1, -1) if is_channels_first(module) else one for one in found])

    def _alone(self, module: nn.Module, x: Tensor, part: int) -> Tensor:
        adapter = self.adapters[part]
        update, shift = adapter(x, module), adapter.bias_delta(bias_of(module))
        if shift is None:
            return update
        beyond = update.dim() - 2 if is_channels_first(module) else 0
        return update + shift.to(update).reshape(-1, *(1 for _ in range(beyond)))

    def _side_by_side(self, module: nn.Module, x: Tensor, acting: Mapping[int, float]) -> Tensor:
        """The same for low-rank pairs: one product with all ``down``, and one batched product with all ``up``."""
        ups, downs = self._stacked(tuple(acting))
        down = downs.flatten(0, 1).to(x)
        if isinstance(module, nn.Conv2d):
            kernel = down.reshape(len(down), -1, *module.kernel_size)
            hidden = conv_with_weight(module, x, kernel).movedim(1, -1)
        else:
            hidden = F.linear(x, down)
        count, rank = downs.shape[:2]
        rows = hidden.reshape(-1, count, rank).transpose(0, 1)   # [K, tokens, rank]
        strengths = torch.tensor(list(acting.values()), device=x.device)[:, None, None]
        found = rows @ (ups.to(x.device) * strengths).to(x.dtype)
        return found.reshape(count, *hidden.shape[:-1], -1)

    def _stacked(self, parts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """``up [K, rank, m]`` and ``down [K, rank, columns]``; smaller ranks are filled up with zeros."""
        if parts not in self.stacked:
            pairs = [self.pairs[part] for part in parts]
            rank = max(len(down) for _, down in pairs)
            ups = torch.stack([F.pad(up.T, (0, 0, 0, rank - len(down))) for up, down in pairs])
            self.stacked[parts] = ups, torch.stack([F.pad(down, (0, 0, 0, rank - len(down))) for _, down in pairs])
        return self.stacked[parts]

"""A base model's weights, for what is computed from them: updates that depend on W, merged bases, extracted LoRAs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from atelier.adapters.attach.merge import merge
from atelier.adapters.attach.mount import find_module
from atelier.adapters.core.atomic_write import atomic_folder
from atelier.adapters.core.base import AdapterSet, Spec
from atelier.adapters.core.family import FAMILIES, family_title
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.export import PRECISIONS
from atelier.adapters.formats.low_rank import (
    EXACT,
    LowRankLimits,
    Pair,
    Vectors,
    WeightChange,
    WeightOf,
    lora_with_vectors,
    nearest_low_rank,
)
from atelier.adapters.formats.native import write_tensors
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.base_models.original_layout import to_original


def weight_lookup(base: str) -> WeightOf:
    """Look-up of a base model's original weights by module name; it is loaded when the first is asked for.

    The look-up raises BaseError where the base can't be loaded or has no such module.
    """

    @cache
    def model() -> BaseModel:
        """The base model in float32 on the CPU, loaded once."""
        return load(base, "cpu", torch.float32)

    def weight_of(name: str) -> Tensor:
        """The original weight, or the bias, of a module by its dotted name."""
        module = find_module(model().models(), name.removesuffix(".bias"))
        weight = getattr(module, "bias" if name.endswith(".bias") else "weight", None)
        if weight is None:
            raise BaseError(f"{base} has no {name}, which the adapter changes. Choose the base model it was made for.")
        assert isinstance(weight, Tensor)
        return weight.detach()

    return weight_of


def save_merged(base: str, mix: Mix, out: Path, *, single_file: bool, precision: str) -> int:
    """Write the base model with the Mix in its weights: a diffusers folder, or a single file in the original layout.

    Returns:
        Bytes written.

    Raises:
        BaseError: no base model, or a family without an original layout.
        MountError: an adapter does not fit the base.
        OSError: ``out`` can't be written.
    """
    model, dtype = load(base, "cpu", torch.float32), PRECISIONS[precision]
    if single_file and not FAMILIES[model.info.family].single_file:
        raise BaseError(f"{family_title(model.info.family)} can't be written as a single file. Write it as a folder "
                        "with --to base.")
    with merge(model.models(), mix):
        return _write_file(model, out, dtype) if single_file else _write_folder(model, out, dtype)


def _write_file(model: BaseModel, out: Path, dtype: torch.dtype) -> int:
    parts: dict[str, nn.Module] = {**model.models(), "vae": model.vae}
    states = {name: part.state_dict() for name, part in parts.items()}
    tensors = {name: value.to(dtype).contiguous() if value.is_floating_point() else value
               for name, value in to_original(states, model.info.family).items()}   # fmt: skip
    write_tensors(out, tensors, {"format": "pt", "modelspec.prediction_type": model.info.prediction_type})
    return out.stat().st_size


def _write_folder(model: BaseModel, out: Path, dtype: torch.dtype) -> int:
    with atomic_folder(out) as partial:
        for part in (*model.models().values(), model.vae):
            part.to(dtype)
        model.pipeline.save_pretrained(partial, safe_serialization=True)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


@torch.no_grad()
def extract_lora(tuned: str, base: str, limits: LowRankLimits = EXACT) -> AdapterSet:
    """The difference of two base models, ``tuned`` − ``base``, as one LoRA over every linear layer and convolution.

    Changes of biases and normalizations are kept beside it.

    Raises:
        BaseError: either is no base model, they are of different families, or nothing differs.
    """
    new, old = (load(name, "cpu", torch.float32) for name in (tuned, base))
    if new.info.family != old.info.family:
        raise BaseError(f"{tuned} is {family_title(new.info.family)} and {base} is {family_title(old.info.family)}, "
                        "but both must be of the same family.")
    after, before = (_parameters(model) for model in (new, old))
    pairs: dict[Spec, Pair] = {}
    for spec in find_targets(old.models(), "all"):
        dense = after[f"{spec.name}.weight"] - before[f"{spec.name}.weight"]
        if dense.any():
            pairs[spec], _ = nearest_low_rank(WeightChange(spec, dense=dense), limits)
    vectors = _vector_differences(after, before)
    if not pairs and not vectors:
        raise BaseError(f"{tuned} and {base} have the same weights, so there is nothing to extract.")
    return lora_with_vectors(pairs, vectors)


def _parameters(model: BaseModel) -> dict[str, Tensor]:
    return {f"{component}.{name}": value for component, part in model.models().items()
            for name, value in part.named_parameters()}   # fmt: skip


def _vector_differences(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[Spec, Vectors]:
    """What differs in biases and normalizations."""
    found: dict[Spec, Vectors] = {}
    for name in (name.removesuffix(".weight") for name in before if name.endswith(".weight")):
        shape, norm = tuple(before[f"{name}.weight"].shape), before[f"{name}.weight"].dim() == 1
        parts = {"w_norm": "weight", "b_norm": "bias"} if norm else {"diff_b": "bias"}
        own = {part: after[f"{name}.{end}"] - before[f"{name}.{end}"] for part, end in parts.items()
               if f"{name}.{end}" in before}   # fmt: skip
        if any(value.any() for value in own.values()):
            found[Spec(name, shape)] = own
    return found

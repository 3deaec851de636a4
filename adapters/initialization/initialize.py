"""What fresh adapters take from the base model before training: its weights, its inputs, its gradients.

So begin PiSSA (weights), EVA (inputs) and LoRA-GA (gradients): here the statistics are collected, and each kind makes
its start of them (``Lora.initialize`` in ``adapters/kinds/lora.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atelier.adapters.attach.mount import find_target_modules
from atelier.adapters.core.base import AdapterSet, BaseStatistics, weight_of
from atelier.adapters.core.settings import SettingError
from atelier.adapters.initialization.rank_budget import (
    allocate_ranks,
    importance_from_gradients,
    importance_from_inputs,
)
from atelier.adapters.kinds.catalog import KINDS, create_adapters
from atelier.adapters.kinds.lora import LoraSettings
from atelier.kernels.torch_internals import two_sided_padding

UPDATES = 16      # of a short training of all weights
UPDATE_SIZE = 1e-4
PASSES = 4        # batches of training pictures: directions settle after a few
DIRECTIONS = 64   # of the inputs that are kept for each module
ROWS = 2048       # inputs of one call that are used, evenly spread: neighbours say almost the same

LossFunction = Callable[[], Tensor]   # runs the model on a batch of the training data and returns the loss


def initialize(adapters: AdapterSet, models: Mapping[str, nn.Module], loss: LossFunction | None = None) -> None:
    """Let every adapter of a fresh set take from the base model what its update is made of, and its rank.

    Args:
        adapters: as made by ``catalog.create_adapters``, not mounted.
        models: component name → model.
        loss: for starts that follow the inputs or the gradient; called a few times.

    Raises:
        MountError: the adapters do not fit the models.
        SettingError: the budget is too small for a single rank.
        ValueError: the kind needs training data and ``loss`` is missing.
    """
    modules = find_target_modules(models, adapters)
    wanted = KINDS[adapters.kind].required_statistics(adapters.settings) if adapters.kind in KINDS else ""
    if wanted and loss is None:
        raise ValueError(f"{adapters.kind} starts from the {wanted} of the base model, so it needs training data")
    found = collect_statistics(modules, wanted, loss) if loss is not None else {}
    if isinstance(adapters.settings, LoraSettings) and adapters.settings.budget:
        _allocate_ranks(adapters.settings, adapters, modules, found)
    for adapter in adapters:
        name = adapter.spec.name
        weight = weight_of(modules[name]).detach().float()
        adapter.initialize(BaseStatistics(weight, **{wanted: found[name]} if wanted else {}))


def _allocate_ranks(
    settings: LoraSettings, adapters: AdapterSet, modules: Mapping[str, nn.Module], found: Mapping[str, Tensor]
) -> None:
    """Give every layer the rank that it is worth."""
    most = 2 * settings.rank
    if settings.start == "gradient":
        worth = importance_from_gradients(found, {name: weight_of(module) for name, module in modules.items()}, most)
    else:
        worth = {name: shares[:most] for name, shares in importance_from_inputs(found).items()}
    ranks = allocate_ranks(adapters.specs, worth, settings.budget)
    if not any(ranks.values()):
        least = min(spec.rows + spec.columns for spec in adapters.specs)
        raise SettingError(f"budget is {settings.budget}, but one rank per layer already takes {least}. Set a larger "
                           "budget, or 0.")
    device = next(adapters.parameters()).device
    adapters.replace_with(create_adapters(adapters.kind, settings.to_dict(), adapters.specs, ranks).to(device))


def collect_statistics(modules: Mapping[str, nn.Module], wanted: str, loss: LossFunction) -> dict[str, Tensor]:
    """Watch ``modules`` (name → module) during a few batches and return what is ``wanted`` of each.

    ``inputs``: ``[k, columns]``, singular vectors of all inputs times their singular values, largest first.
    ``gradient``: mean gradient of the loss, in the shape of the weight. ``movement``: how far each weight moves in a
    few updates of all of them, which are put back. Empty: nothing is run.
    """
    match wanted:
        case "inputs":
            return _inputs(modules, loss)
        case "gradient":
            return _gradients(modules, loss)
        case "movement":
            return _movements(modules, loss)
        case _:
            return {}


def _inputs(modules: Mapping[str, nn.Module], loss: LossFunction) -> dict[str, Tensor]:
    sketches: dict[str, Tensor] = {}

    def watch(module: nn.Module, args: tuple[Any, ...], *, name: str) -> None:
        """Fold a layer's inputs into what is known of their main directions."""
        rows = _rows(module, args[0].detach().float())
        known = sketches.get(name)
        sketches[name] = _main_directions(rows if known is None else torch.cat([known, rows]))

    with ExitStack() as stack, torch.no_grad():
        for name, module in modules.items():
            stack.enter_context(module.register_forward_pre_hook(partial(watch, name=name)))
        for _ in range(PASSES):
            loss()
    return sketches


def _rows(module: nn.Module, x: Tensor) -> Tensor:
    """What the rows of the weight matrix are multiplied with: ``[at most ROWS, columns]``, patches for Conv2d."""
    if isinstance(module, nn.Conv2d):
        x = x[:, : module.in_channels // module.groups]   # groups see different channels; the first stands for all
        border = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, two_sided_padding(module), border)
        x = F.unfold(x, module.kernel_size, module.dilation, 0, module.stride).mT
    rows = x.flatten(0, -2)
    return rows[:: -(-len(rows) // ROWS)]


def _main_directions(rows: Tensor) -> Tensor:
    """``σᵢ·vᵢ`` of ``rows``, at most DIRECTIONS: from the smaller of the two Gram matrices."""
    if len(rows) <= rows.shape[1]:
        values, left = torch.linalg.eigh(rows @ rows.T)
        return (left.flip(1)[:, :DIRECTIONS].T @ rows).contiguous()   # uᵢᵀX = σᵢ·vᵢᵀ
    values, right = torch.linalg.eigh(rows.T @ rows)
    spread = values.clamp_min(0).sqrt()
    return (right * spread).flip(1)[:, :DIRECTIONS].T.contiguous()


def _gradients(modules: Mapping[str, nn.Module], loss: LossFunction) -> dict[str, Tensor]:
    weights = {name: weight_of(module) for name, module in modules.items()}
    totals: dict[str, Tensor] = {}
    with torch.enable_grad(), _differentiable(list(weights.values())):
        for _ in range(PASSES):
            parts = torch.autograd.grad(loss(), list(weights.values()), allow_unused=True)
            for (name, weight), part in zip(weights.items(), parts, strict=True):
                own = torch.zeros_like(weight) if part is None else part
                totals[name] = totals.get(name, 0) + own.float() / PASSES
    return totals


def _movements(modules: Mapping[str, nn.Module], loss: LossFunction) -> dict[str, Tensor]:
    """Train all weights for a few updates, note how far each has moved, and put them back to the bit."""
    weights = {name: weight_of(module) for name, module in modules.items()}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    optimizer = torch.optim.Adam(weights.values(), UPDATE_SIZE)
    try:
        with torch.enable_grad(), _differentiable(list(weights.values())):
            for _ in range(UPDATES):
                parts = torch.autograd.grad(loss(), list(weights.values()), allow_unused=True)
                for weight, part in zip(weights.values(), parts, strict=True):
                    weight.grad = part
                optimizer.step()
        return {name: (weight.detach().float() - before[name].float()).abs() for name, weight in weights.items()}
    finally:
        for name, weight in weights.items():
            weight.grad = None
            weight.data.copy_(before[name])


@contextmanager
def _differentiable(weights: Sequence[Tensor]) -> Iterator[None]:
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight, was in zip(weights, before, strict=True):
            weight.requires_grad_(was)

"""How the two factors of a low-rank pair should step: LoRA+, LoRA-Pro and scaled gradients, for a training loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.kinds.break_for_make import BreakForMake
from atelier.adapters.kinds.lora import Lora

_DAMPING = 1e-6   # of the mean squared length of a factor's rows: a factor that has just left zero is nearly singular


def lora_plus_groups(adapters: AdapterSet, ratio: float = 16.0) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer with LoRA+'s rates (Hayou et al. 2024, arXiv 2402.12354).

    ``up`` starts at zero and moves the output directly, so it can take ``ratio`` times the learning rate of ``down``.
    A loop with a schedule multiplies its rate with each group's ``ratio``.

    Returns:
        Two groups, of which the first holds everything that is not an ``up``; an empty one is left out.
    """
    ups = [p for adapter in adapters for name, p in adapter.named_parameters() if name.startswith("up")]
    chosen = {id(p) for p in ups}
    others = [p for p in adapters.parameters() if id(p) not in chosen]
    return [group for group in ({"params": others, "ratio": 1.0}, {"params": ups, "ratio": ratio}) if group["params"]]


@torch.no_grad()
def lora_pro_gradients(up: Tensor, down: Tensor, of_up: Tensor, of_down: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """LoRA-Pro's gradients (Wang et al. 2024, arXiv 2407.18242, theorem 2.1).

    Among all steps of the two factors these move the product as nearly as a low-rank pair can along the gradient G of
    the whole weight: ``scale · (up @ d + u @ down) = P G + (1 − P) G Q`` with P and Q the projections on the columns
    of ``up`` and the rows of ``down``.

    Args:
        up: ``[rows, rank]``.
        down: ``[rank, columns]``.
        of_up: gradient of the loss for ``up``, scale · G @ downᵀ.
        of_down: gradient for ``down``, scale · upᵀ @ G.
        scale: of the product in the update.

    Returns:
        New gradients for ``up`` and ``down``. While ``up`` is still zero they are the old ones.
    """
    return _moved_gradients(up, down, of_up, of_down, scale) if up.any() else (of_up, of_down)


def _moved_gradients(up: Tensor, down: Tensor, of_up: Tensor, of_down: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The same for an ``up`` that has left zero."""
    left, right = _damped(up.T @ up), _damped(down @ down.T)
    whole_down = torch.linalg.solve(left, of_down) / scale**2
    whole_up = torch.linalg.solve(right, of_up.T).T / scale**2
    across = whole_up - up @ torch.linalg.solve(left, up.T @ whole_up)
    mix = _sylvester(left, right, -whole_down @ down.T)
    return across - up @ mix, whole_down + mix @ down


@torch.no_grad()
def apply_lora_pro(adapters: AdapterSet) -> None:
    """Replace the gradients of every LoRA by LoRA-Pro's, in place; call between backward pass and optimizer step."""
    loras = [one for one in adapters if isinstance(one, Lora) and not one.has_first and one.up.grad is not None]
    moved = torch.stack([one.up.any() for one in loras]).tolist() if loras else []   # asked together: a GPU waits once
    for one in (one for one, has_moved in zip(loras, moved, strict=True) if has_moved):
        up, down = one.up, one.down
        if up.grad is not None and down.grad is not None:
            up.grad, down.grad = _moved_gradients(up, down, up.grad, down.grad, one.scale)


@torch.no_grad()
def scaled_gradients(up: Tensor, down: Tensor, of_up: Tensor, of_down: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled gradients (Zhang & Pilanci 2024, arXiv 2402.02347): ``of_up (down downᵀ)⁻¹`` and ``(upᵀ up)⁻¹ of_down``.

    The first-order change of the product ``up @ down`` then does not depend on how it is split into factors.

    Args:
        up: ``[rows, rank]``.
        down: ``[rank, columns]``.
        of_up: gradient for some rows of ``up``: frozen ones need none.
        of_down: gradient for some columns of ``down``.
    """
    return torch.linalg.solve(_damped(down @ down.T), of_up.T).T, torch.linalg.solve(_damped(up.T @ up), of_down)


@torch.no_grad()
def apply_scaled_gradients(adapters: AdapterSet) -> None:
    """Scale the gradients of every split adapter, in place; call between backward pass and optimizer step."""
    for adapter in adapters:
        if isinstance(adapter, BreakForMake) and adapter.up.grad is not None and adapter.down.grad is not None:
            scaled = scaled_gradients(*adapter.halves(), adapter.up.grad, adapter.down.grad)
            adapter.up.grad, adapter.down.grad = scaled


def _damped(gram: Tensor) -> Tensor:
    return gram + _DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def _sylvester(left: Tensor, right: Tensor, sides: Tensor) -> Tensor:
    """X with ``left @ X + X @ right = sides``, for symmetric positive matrices: both diagonal in their own axes."""
    a, u = torch.linalg.eigh(left)
    b, v = torch.linalg.eigh(right)
    return u @ ((u.T @ sides @ v) / (a[:, None] + b)) @ v.T

"""Averages of snapshots, made after the training: what a moving average of the weights would have given."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.settings import SettingError


@torch.no_grad()
def average_adapters(snapshots: Sequence[AdapterSet]) -> AdapterSet:
    """The mean of each parameter over snapshots of one run (Izmailov et al. 2018, arXiv 1803.05407).

    Factors are averaged, not their products: along one run they move little, and the result has the rank of one.

    Raises:
        SettingError: there is none, or what is trained has changed between them, as in kinds that choose anew half way.
    """
    if not snapshots:
        raise SettingError("There are no saved steps to average. Train with snapshots above 0.")
    result = copy.deepcopy(snapshots[-1])
    tensors = [one.tensors() for one in snapshots]
    parameters = {parameter.data_ptr() for parameter in snapshots[-1].parameters()}
    trained = {key for key, value in tensors[-1].items() if value.data_ptr() in parameters}
    if any(not torch.equal(one[key], value) for one in tensors for key, value in tensors[-1].items()
           if key not in trained):   # fmt: skip
        raise SettingError("These steps can't be averaged: the run has changed between them which values it trains.")
    result.load_tensors({
        key: torch.stack([one[key] for one in tensors]).mean(0) if key in trained else value
        for key, value in tensors[-1].items()
    })   # fmt: skip
    return result

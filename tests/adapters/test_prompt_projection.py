"""DECOR's projection against numpy's, and what it promises: nothing of the unwanted is left, the rest stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from atelier.adapters.prompt_projection import remove_directions


@pytest.fixture
def unwanted() -> torch.Tensor:
    return torch.randn(3, 5) @ torch.randn(5, 20)


def test_nothing_is_left_of_the_unwanted_and_the_rest_is_untouched(unwanted: torch.Tensor):
    prompt = torch.randn(2, 7, 20)
    found = remove_directions(prompt, unwanted, share=1.0).numpy()
    span, _ = np.linalg.qr(unwanted.numpy().T)
    expected = prompt.numpy() - prompt.numpy() @ span @ span.T
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found @ unwanted.numpy().T).max() < 1e-3


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_strength_goes_from_the_prompt_to_the_projection(unwanted: torch.Tensor, strength: float):
    prompt = torch.randn(7, 20)
    whole = remove_directions(prompt, unwanted)
    assert_close(remove_directions(prompt, unwanted, strength), prompt + strength * (whole - prompt))


def test_only_the_main_directions_count(unwanted: torch.Tensor):
    """A hundredth of the energy lies across the main direction: at a share of 0.9 it is left alone."""
    main, small = torch.eye(20)[:1], 0.1 * torch.eye(20)[1:2]
    found = remove_directions(torch.ones(1, 20), torch.cat([main, small]), share=0.9)
    assert_close(found, torch.ones(1, 20) - main)
    found = remove_directions(torch.ones(1, 20), torch.cat([main, small]), share=0.999)
    assert_close(found, torch.ones(1, 20) - main - 10 * small)


def test_features_keep_their_precision_and_empty_texts_take_nothing():
    prompt = torch.randn(7, 20).half()
    found = remove_directions(prompt, torch.zeros(3, 20))
    assert found.dtype == torch.float16
    assert torch.equal(found, prompt)

"""Dropout with masks of our own."""

from __future__ import annotations

import pytest
import torch

from armm.dropout import Dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.25, 0.9])
def test_a_share_is_dropped_and_the_mean_kept(p: float, dtype: torch.dtype) -> None:
    """An odd number of numbers: masks come in fours."""
    torch.manual_seed(0)
    x = torch.ones(7, 3, 9973, dtype=dtype, requires_grad=True)
    out = Dropout(p)(x)
    out.sum().backward()
    n = x.numel()
    assert out.dtype == dtype and out.shape == x.shape
    assert abs(float((out == 0).sum()) - p * n) < 5 * (p * (1 - p) * n) ** 0.5
    assert len(out.unique()) == 2 and float(out.detach().max()) == pytest.approx(1 / (1 - p), rel=1e-2)
    assert x.grad is not None and torch.equal(x.grad, out.detach())


def test_masks_follow_torchs_generator() -> None:
    """Exact resume and activation checkpointing set it; two calls must not get one mask."""
    dropout, x = Dropout(0.5), torch.ones(64, 64)
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    state = torch.get_rng_state()
    third = dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first) and torch.equal(dropout(x), second) and not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x), third) and not torch.equal(second, third)


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(1 << 18)) > 0).float() - 0.5
    for distance in (1, 2, 3, 4, 16, 64):
        correlation = float((kept[:-distance] * kept[distance:]).mean()) * 4
        assert abs(correlation) < 5 / (1 << 18) ** 0.5


def test_nothing_is_dropped_outside_of_training() -> None:
    x = torch.randn(5)
    assert Dropout(0.5).eval()(x) is x and Dropout(0.0)(x) is x

"""Filters: pure functions from logits to logits, applied in the order they are listed, before the noise.

Each is made by a function named after it, `filters=[temperature(0.9), top_k(50), top_p(0.95)]`, and knows nothing about
batches or positions: (R, V) float32 logits in, the same shape out, -inf where a symbol is ruled out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from armm.errors import InputError

Filter = Callable[[Tensor], Tensor]


def temperature(t: float) -> Filter:
    """Divide the logits by t; 0 leaves the most probable symbol alone (the lowest one among equals).

    Raises InputError: t is negative, not a number, or too small to divide by.
    """
    if not 0 <= t < float("inf") or 0 < t < 1e-6:
        raise InputError(f"temperature is {t}, it must be 0 or at least 0.000001; 0 is greedy, 1 samples the model")

    def apply(logits: Tensor) -> Tensor:
        if t > 0:
            return logits / t
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits, float("-inf")).scatter(-1, best, logits.gather(-1, best))

    return apply


def top_k(k: int) -> Filter:
    """Keep the k most probable symbols (Fan et al., arXiv:1805.04833); equals of the k-th stay too.

    Raises InputError: k is less than 1.
    """
    if k < 1:
        raise InputError(f"top_k is {k}, it must be at least 1; leave it out to keep every symbol")

    def apply(logits: Tensor) -> Tensor:
        if k >= logits.shape[-1]:
            return logits
        least = logits.topk(k, dim=-1).values[..., -1:]
        return logits.masked_fill(logits < least, float("-inf"))

    return apply


def top_p(p: float) -> Filter:
    """Keep the fewest symbols whose probability is at least p (nucleus sampling, Holtzman et al., arXiv:1904.09751).

    Raises InputError: p is not in (0, 1].
    """
    if not 0 < p <= 1:
        raise InputError(f"top_p is {p}, it must be greater than 0 and at most 1; 1 keeps every symbol")

    def apply(logits: Tensor) -> Tensor:
        if p == 1:
            return logits
        ordered, index = logits.sort(dim=-1, descending=True, stable=True)
        probability = ordered.softmax(-1)
        before = probability.cumsum(-1) - probability  # mass of the more probable ones
        keep = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, before < p)
        return logits.masked_fill(~keep, float("-inf"))

    return apply

"""Nats of symbols under a softmax, with a gradient written out: for training on a CPU.

Plain code makes six passes over logits of a hundred megabytes, four of them in float32 whatever the logits are. Here a
few rows at a time go through all of it while they are in the cache, and no probabilities are kept.
Axes: N symbols, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

CACHED = 1 << 17  # logits that are worked on at a time


def nats_of(logits: Tensor, symbols: Tensor) -> Tensor:
    """(N, V) logits of any precision and (N,) symbols -> (N,) float32 -log softmax(logits)[symbol]."""
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        return CrossEntropy.apply(logits, symbols)
    return F.cross_entropy(logits.float(), symbols, reduction="none")


class CrossEntropy(Function):
    """The same, a few rows at a time."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, symbols: Tensor) -> Tensor:
        norms = torch.empty(len(logits), dtype=precise(logits), device=logits.device)
        nats = torch.empty_like(norms)
        for rows in parts(logits):
            own = logits[rows].to(norms.dtype)
            torch.logsumexp(own, dim=-1, out=norms[rows])
            torch.sub(norms[rows], own.gather(-1, symbols[rows, None])[:, 0], out=nats[rows])
        ctx.save_for_backward(logits, symbols, norms)
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, symbols, norms = ctx.saved_tensors
        out, minus_one = torch.empty_like(logits), norms.new_full((1, 1), -1.0)
        for rows in parts(logits):
            own = (logits[rows].to(norms.dtype) - norms[rows, None]).exp_()
            own.scatter_add_(-1, symbols[rows, None], minus_one.expand(len(own), 1))
            torch.mul(own, grad[rows, None], out=own)
            out[rows] = own
        return out, None


def precise(x: Tensor) -> torch.dtype:
    """The precision in which sums over V are made."""
    return torch.promote_types(x.dtype, torch.float32)


def parts(logits: Tensor) -> Iterator[slice]:
    size = max(CACHED // logits.shape[-1], 1)
    for first in range(0, len(logits), size):
        yield slice(first, first + size)

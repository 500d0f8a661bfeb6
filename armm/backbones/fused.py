"""Pieces of a transformer block with their gradients written out: for training on a CPU.

There a small model is bound by passes over memory, not by arithmetic: autograd makes some thirty of them for the
gradient of a norm, a rotation and the cut into heads. The mathematics is that of the plain code beside which these are
called; sums are rounded in another order.
Axes: B rows, N positions, D width, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

LONGEST = 512  # positions that are seen; beyond, attention weights kept for the backward pass take too much memory
BLOCK = 64  # queries


def applies(x: Tensor) -> bool:
    """Whether a gradient will be asked for, on a CPU, of code that runs as it is written."""
    return x.device.type == "cpu" and x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def product_type(x: Tensor) -> torch.dtype:
    """The precision in which matrix products are made of x."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


# ------------------------------------------------------------------------ norms and activations


def reciprocal_rms(x: Tensor, eps: float) -> Tensor:
    """(..., D) -> (..., 1), computed in float32 at least."""
    precise = torch.promote_types(x.dtype, torch.float32)
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise).square_()
    return square.div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)


class RMSNorm(Function):
    """x / rms(x), in the precision of the product that comes next."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        rstd = reciprocal_rms(x, eps)
        ctx.save_for_backward(x, rstd)
        return (x * rstd).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, rstd = ctx.saved_tensors
        grad, size = grad.to(x.dtype).contiguous(), x.shape[-1]
        # the gradient of a layer norm about mean 0, but for the part that went through the mean
        whole = torch.ops.aten.native_layer_norm_backward(
            grad, x, [size], torch.zeros_like(rstd), rstd, None, None, [True, False, False]
        )[0]
        return whole.addcmul_(grad.sum(-1, keepdim=True), rstd, value=1 / size), None, None


class SquaredReLU(Function):
    """relu(x)², whose gradient is 2 relu(x). Overwrites x, which nobody else may need: a product's result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        kept = x.detach().relu_()
        ctx.save_for_backward(kept)
        return kept * kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (kept,) = ctx.saved_tensors
        return (grad * kept).mul_(2)


# ------------------------------------------------------------------------------------ attention


class Heads(Function):
    """The cut into heads, with the norm of queries and keys, and their rotation, in the precision of the input.

    (B, N, 3 H E) -> queries, keys and values, (B, H, N, E) each. The two commute: the norm of a pair is that of the
    pair turned.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, n_heads: int, eps: float | None, turns: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        whole = qkv.unflatten(-1, (3 * n_heads, -1))  # (B, N, 3 H, E)
        x, v = whole[:, :, : 2 * n_heads].contiguous(), whole[:, :, 2 * n_heads :]
        out, rstd = turned(x, turns, back=False), None
        if eps is not None:
            rstd = reciprocal_rms(x, eps)
            out.mul_(rstd)
        ctx.n_heads = n_heads
        ctx.save_for_backward(*(() if rstd is None else (x, rstd, out)), *(turns or ()))
        ctx.n_saved = 0 if rstd is None else 3
        q, k = out.chunk(2, dim=2)
        return by_head(q), by_head(k), by_head(v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gq: Tensor, gk: Tensor, gv: Tensor) -> tuple[Tensor, None, None, None]:
        saved = ctx.saved_tensors  # once: activation checkpointing computes them for this
        normed, turns = saved[: ctx.n_saved], saved[ctx.n_saved :]
        b, h, n, e = gv.shape
        whole, grad = gv.new_empty(b, n, 3 * h, e), gv.new_empty(b, n, 2 * h, e)
        grad[:, :, :h], grad[:, :, h:], whole[:, :, 2 * h :] = by_head(gq), by_head(gk), by_head(gv)
        back = turned(grad, turns or None, back=True)
        if normed:
            x, rstd, out = normed
            along = grad.mul_(out).sum(-1, keepdim=True).mul_(rstd).mul_(rstd)
            back.mul_(rstd).addcmul_(x, along, value=-1 / e)
        whole[:, :, : 2 * h] = back
        return whole.flatten(2), None, None, None


def by_head(x: Tensor) -> Tensor:
    """(B, N, H, E) -> (B, H, N, E), or the reverse, in that order in memory."""
    return x.transpose(1, 2).contiguous()


def turns_of(rotation: tuple[Tensor, Tensor], n_heads: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(1, 1, N, E / 2) cosines and sines -> (N, 2 H, E) each, as `turned` takes them: for all layers."""
    cos, sin = (own[0, 0, :, None].to(dtype) for own in rotation)
    return torch.cat([cos, cos], -1).repeat(1, 2 * n_heads, 1), torch.cat([-sin, sin], -1).repeat(1, 2 * n_heads, 1)


def turned(x: Tensor, turns: Sequence[Tensor] | None, back: bool) -> Tensor:
    """(B, N, 2 H, E) rotated, or rotated back, as `transformer.rotate` pairs entries."""
    if turns is None:
        return x.clone()
    cos, sin = turns
    half = x.shape[-1] // 2
    swapped = torch.cat([x[..., half:], x[..., :half]], dim=-1)
    return torch.addcmul(x * cos, swapped, sin, value=-1 if back else 1)


class CausalAttention(Function):
    """Softmax attention by plain products, its weights kept; (B H, N, E) queries, keys and values -> (B H, N, E).

    In bfloat16 products are several times faster than torch's flash kernel for CPUs; in float32 they are not. Queries
    are taken a block at a time, with the keys that they see.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        scale, out, kept = q.shape[2] ** -0.5, [], []
        for block, keys in blocks(q.shape[1], window):
            own, seen = q[:, block], k[:, keys]
            scores = torch.baddbmm(q.new_empty(()), own, seen.mT, beta=0, alpha=scale)
            scores += unseen(block, keys, window, q.dtype)
            kept.append(scores.softmax(-1))
            out.append(kept[-1] @ v[:, keys])
        ctx.save_for_backward(q, k, v, *kept)
        ctx.window = window
        return torch.cat(out, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *kept = ctx.saved_tensors
        scale, grad = q.shape[2] ** -0.5, grad.contiguous()
        gq, gk, gv = [], torch.zeros_like(k), torch.zeros_like(v)
        for (block, keys), weights in zip(blocks(q.shape[1], ctx.window), kept, strict=True):
            scores = torch._softmax_backward_data(  # type: ignore[attr-defined]
                grad[:, block] @ v[:, keys].mT, weights, -1, weights.dtype
            )
            gq.append(torch.baddbmm(q.new_empty(()), scores, k[:, keys], beta=0, alpha=scale))
            gk[:, keys].baddbmm_(scores.mT, q[:, block], alpha=scale)
            gv[:, keys].baddbmm_(weights.mT, grad[:, block])
        return torch.cat(gq, dim=1), gk, gv, None


def blocks(n: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Blocks of N queries, and the keys that some of a block see."""
    for begin in range(0, n, BLOCK):
        end = min(begin + BLOCK, n)
        yield slice(begin, end), slice(0 if window is None else max(0, begin + 1 - window), end)


def unseen(block: slice, keys: slice, window: int | None, dtype: torch.dtype) -> Tensor:
    """(N, S): minus infinity for the keys that a query does not see, 0 for the others."""
    q, k = torch.arange(block.start, block.stop)[:, None], torch.arange(keys.start, keys.stop)
    hidden = k > q if window is None else (k > q) | (k <= q - window)
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))


def attend_causally(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """(B, H, N, E) queries, keys and values -> (B, H, N, E)."""
    whole: Tensor = CausalAttention.apply(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), window)
    return whole.unflatten(0, q.shape[:2])

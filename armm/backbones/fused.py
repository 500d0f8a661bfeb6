"""Pieces of a transformer block with their gradients written out: for training on a CPU.

There a small model is bound by passes over memory, not by arithmetic: autograd makes some thirty of them for the
gradient of a norm, a rotation and the cut into heads. The mathematics is that of the plain code beside which these are
called; sums are rounded in another order.
Axes: B rows, N positions, D width, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

LONGEST = 512  # positions; beyond, attention weights that are kept for the backward pass take too much memory


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
    """(1, 1, N, E / 2) cosines and sines -> (N, 2 H, E) and (N, 1, E / 2), as `turned` takes them."""
    cos, sin = (own[0, 0, :, None].to(dtype) for own in rotation)
    return torch.cat([cos, cos], -1).repeat(1, 2 * n_heads, 1), sin


def turned(x: Tensor, turns: Sequence[Tensor] | None, back: bool) -> Tensor:
    """(B, N, 2 H, E) rotated, or rotated back, as `transformer.rotate` pairs entries."""
    if turns is None:
        return x.clone()
    cos, sin = turns
    out, half = x * cos, x.shape[-1] // 2
    out[..., :half].addcmul_(x[..., half:], sin, value=1 if back else -1)
    out[..., half:].addcmul_(x[..., :half], sin, value=-1 if back else 1)
    return out


class CausalAttention(Function):
    """Softmax attention by plain products, its weights kept; (B H, N, E) queries, keys and values -> (B H, N, E).

    In bfloat16 products are several times faster than torch's flash kernel for CPUs; in float32 they are not.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = q.shape[1]
        mask = torch.full((1, n, n), float("-inf"), dtype=q.dtype).triu_(1)
        weights = torch.baddbmm(mask, q, k.mT, alpha=q.shape[2] ** -0.5).softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        return weights @ v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, weights = ctx.saved_tensors
        grad = grad.contiguous()
        scores = torch.ops.aten._softmax_backward_data(grad @ v.mT, weights, -1, weights.dtype)
        scores = scores.mul_(q.shape[2] ** -0.5)
        return scores @ k, scores.mT @ q, weights.mT @ grad


def attend_causally(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, H, N, E) queries, keys and values -> (B, H, N, E)."""
    whole: Tensor = CausalAttention.apply(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
    return whole.unflatten(0, q.shape[:2])

"""Pieces of a transformer block with their gradients written out: for training on a CPU.

There a small model is bound by passes over memory, not by arithmetic: autograd makes some thirty of them for the gradient
of a norm, a rotation and the cut into heads. The mathematics is that of the plain code beside which these are called;
sums are rounded in another order.
Axes: B rows, N positions, D width, H heads, E head width.
"""

from __future__ import annotations

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


class RMSNorm(Function):
    """x / rms(x), in the precision of the product that comes next."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        out, rstd = torch.ops.aten._fused_rms_norm(x, [x.shape[-1]], None, eps)
        ctx.save_for_backward(x, rstd)
        return out.to(dtype)

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
    """relu(x)², whose gradient is 2 relu(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        kept = x.relu()
        ctx.save_for_backward(kept)
        return kept.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (kept,) = ctx.saved_tensors
        return (grad * kept).mul_(2)


# ------------------------------------------------------------------------------------ attention


class Heads(Function):
    """The cut into heads, with the norm of queries and keys, and their rotation.

    (B, N, 3 H E) -> queries, keys and values, (B, H, N, E) each.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, n_heads: int, eps: float | None, rotation: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        cut = qkv.unflatten(-1, (3, n_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, H, N, E)
        qk, v = cut[:2].float(), cut[2].contiguous()
        rstd = None
        if eps is not None:
            square = torch.linalg.vector_norm(qk, dim=-1, keepdim=True).square_()
            rstd = square.div_(qk.shape[-1]).add_(eps).rsqrt_()
        out = torch.empty(qk.shape, dtype=torch.float32)
        turn(qk, rotation, 1.0, out)
        if rstd is not None:
            out.mul_(rstd)
        out = out.to(qkv.dtype)
        ctx.eps, ctx.n_heads = eps, n_heads
        ctx.save_for_backward(*(() if rstd is None else (qkv, rstd, out)), *(rotation or ()))
        return out[0], out[1], v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gq: Tensor, gk: Tensor, gv: Tensor) -> tuple[Tensor, None, None, None]:
        saved = list(ctx.saved_tensors)
        normed = [saved.pop(0) for _ in range(3)] if ctx.eps is not None else None
        b, h, n, e = gv.shape
        whole = torch.empty(b, n, 3 * h * e, dtype=gv.dtype)
        parts = whole.unflatten(-1, (3, h, e)).permute(2, 0, 3, 1, 4)
        parts[2] = gv
        grad = torch.empty(2, b, h, n, e, dtype=torch.float32)
        grad[0], grad[1] = gq, gk
        back = torch.empty_like(grad)
        turn(grad, (saved[0], saved[1]) if saved else None, -1.0, back)
        if normed:
            qkv, rstd, out = normed
            qk = qkv.unflatten(-1, (3, h, e)).permute(2, 0, 3, 1, 4)[:2]
            # the norm is the same before and after a rotation, and so is the product with the gradient
            along = grad.mul_(out).sum(-1, keepdim=True)
            back.mul_(rstd).addcmul_(qk.float(), along.mul_(rstd).mul_(rstd), value=-1 / e)
        parts[:2] = back
        return whole, None, None, None


def turn(x: Tensor, rotation: tuple[Tensor, Tensor] | None, sign: float, out: Tensor) -> None:
    """(*, N, E) rotated by cosines and sines (*, N, E / 2), or back with sign -1, as `transformer.rotate` pairs them."""
    if rotation is None:
        out.copy_(x)
        return
    cos, sin = rotation
    torch.mul(x, torch.cat([cos, cos], -1), out=out)
    half = x.shape[-1] // 2
    out[..., :half].addcmul_(x[..., half:], sin, value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin, value=sign)


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
        scores = torch._softmax_backward_data(grad @ v.mT, weights, -1, weights.dtype).mul_(q.shape[2] ** -0.5)
        return scores @ k, scores.mT @ q, weights.mT @ grad


def attend_causally(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, H, N, E) queries, keys and values -> (B, H, N, E)."""
    whole: Tensor = CausalAttention.apply(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
    return whole.unflatten(0, q.shape[:2])

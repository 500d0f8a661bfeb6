"""The transformer, a few positions at a time, beside a cache of keys and values.

A step of a small model is bound by the number of its operations, one of a large model by reading its weights: every
query is a row of one (M, D) matrix, and nothing is computed twice.
Axes: R rows of one call, N positions of each, M = R N queries, S keys, D width, H heads, G key/value heads, E head
width.
"""

from __future__ import annotations

from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armm.backbones.backbone import BackboneState
from armm.exactness import at_least

if TYPE_CHECKING:
    from armm.backbones.fast import CompiledSteps
    from armm.backbones.transformer import Block, TransformerBackbone

CACHE_STEP = 128  # key/value caches grow in multiples of this


class TransformerState(BackboneState):
    """Keys and values by position, each row at its own length.

    Queries of a step attend to a whole number of `CACHE_STEP`s of cache, masked, so that their sums are in the same
    order however long the cache is; those of a prompt are read together.
    """

    def __init__(self, backbone: TransformerBackbone, n_rows: int, min_rows: int = 1) -> None:
        self.backbone, self.config, self.min_rows = backbone, backbone.config, min_rows
        config, like = backbone.config, backbone.like
        self.cache = like.new_zeros(config.n_layers, 2, n_rows, config.kv_heads, CACHE_STEP, config.head_width)
        self.lengths = [0] * n_rows
        e = config.head_width  # x @ swap = (-b, a) for x = (a, b): the other half of a rotation
        swap = torch.zeros(e, e, device=like.device, dtype=like.dtype)
        half = torch.arange(e // 2, device=like.device)
        swap[half, half + e // 2], swap[half + e // 2, half] = 1.0, -1.0
        self.swap = swap
        self.compiles = False

    def compile(self) -> None:
        self.compiles = True

    @cached_property
    def _compiled_steps(self) -> CompiledSteps | None:
        """Everything but the products in compiled code; None without numba, and where there is none for the device."""
        if not self.compiles or find_spec("numba") is None:
            return None
        from armm.backbones.fast import compiled_steps

        return compiled_steps(self.backbone, exact=self.min_rows > 1)

    def _reserve(self, length: int) -> None:
        missing = length - self.cache.shape[4]
        if missing > 0:  # doubling keeps the copying linear
            grown = max(missing, self.cache.shape[4])
            self.cache = F.pad(self.cache, (0, 0, 0, -(-grown // CACHE_STEP) * CACHE_STEP))

    def extend(
        self, rows: Tensor, x: Tensor, values: Tensor | None, counts: list[int], stepwise: bool = False
    ) -> Tensor:
        backbone, config, (r, n, _) = self.backbone, self.config, x.shape
        listed = rows.tolist()
        before = [self.lengths[row] for row in listed]
        longest = max(before) + n
        self._reserve(longest)
        stepwise = stepwise or n == 1
        if stepwise and self._compiled_steps is not None:
            for row, start, count in zip(listed, before, counts, strict=True):
                self.lengths[row] = start + count
            return self._extend_compiled(self._compiled_steps, rows, x, values, before)
        everyone = len(listed) == len(self.lengths) and listed == list(range(r))
        together = before[0] if everyone and n == 1 and min(before) == max(before) else None
        positions = torch.tensor(before, device=x.device)[:, None] + torch.arange(n, device=x.device)  # (R, N)
        span = self._span(before, longest, stepwise)
        causal = not stepwise and not any(before) and not config.window
        mask = None if causal else self._mask(positions, span)
        x = at_least(x.flatten(0, 1), self.min_rows)  # (M, D)
        values = None if values is None else at_least(values.flatten(0, 1), self.min_rows)
        rotation = self._rotation(at_least(positions.flatten(), self.min_rows))
        first = x = backbone.start(x, at_least(positions.flatten(), self.min_rows))
        n_qk, m = config.n_heads + config.kv_heads, r * n
        for layer, own in enumerate(backbone.split_values(values)):
            block: Block = backbone.blocks[layer]  # type: ignore[assignment]
            x = block.enter(x, first)
            qkv = block.attention.qkv(normed(block.attention_norm, x)).view(len(x), -1, config.head_width)
            qk, v = qkv[:, :n_qk], qkv[:, n_qk:]
            if own is not None:
                v = v + block.attention.value_scale * own.view(len(x), -1, config.head_width)
            if config.qk_norm:
                qk = normed(block.attention.norm, qk)
            if rotation is not None:
                qk = torch.addcmul(qk * rotation[0], qk @ self.swap, rotation[1])
            keys, stored = self.cache[layer].unbind(0)
            if together is not None:
                keys[:, :, together], stored[:, :, together] = qk[:m, config.n_heads :], v[:m]
            else:
                keys[rows[:, None], :, positions] = qk[:m, config.n_heads :].unflatten(0, (r, n))
                stored[rows[:, None], :, positions] = v[:m].unflatten(0, (r, n))
            keys, stored = keys[:, :, span], stored[:, :, span]
            if not everyone:
                keys, stored = keys[rows], stored[rows]
            q = qk[:m, : config.n_heads].unflatten(0, (r, n))
            attended = (self._attend_apart if stepwise else self._attend)(q, keys, stored, mask)
            x = x + block.attention.out(at_least(attended.reshape(m, config.width), self.min_rows))
            x = x + block.mlp(normed(block.mlp_norm, x))
        for row, start, count in zip(listed, before, counts, strict=True):
            self.lengths[row] = start + count
        return normed(backbone.norm, x)[:m].view(r, n, -1)

    def _extend_compiled(
        self, steps: CompiledSteps, rows: Tensor, x: Tensor, values: Tensor | None, before: list[int]
    ) -> Tensor:
        """Every new position of every row as a query of its own."""
        r, n, _ = x.shape
        positions = (torch.tensor(before)[:, None] + torch.arange(n)).flatten()
        own = self.backbone.split_values(None if values is None else values.flatten(0, 1))
        x = self.backbone.start(x.flatten(0, 1), positions)
        angles = self.backbone.angles(positions)
        row = rows.repeat_interleave(n) if n > 1 else rows
        return steps(x, own, angles, self.cache, row.numpy(), positions.numpy()).view(r, n, -1)

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        """(M,) positions -> (M, 1, E) cosines and sines of both halves."""
        angles = self.backbone.angles(positions)
        if angles is None:
            return None
        cos, sin = angles.cos(), angles.sin()
        dtype = self.cache.dtype
        return torch.cat([cos, cos], -1)[:, None].to(dtype), torch.cat([sin, sin], -1)[:, None].to(dtype)

    def _span(self, before: list[int], longest: int, stepwise: bool) -> slice:
        """The cached positions that any query sees."""
        window = self.config.window
        if not stepwise:
            return slice(max(min(before) + 1 - (window or longest), 0), longest)
        oldest = 0
        if window and self.min_rows == 1:  # in an exact state sums may not begin where other rows make them begin
            oldest = max(min(before) + 1 - window, 0) // CACHE_STEP * CACHE_STEP
        return slice(oldest, -(-longest // CACHE_STEP) * CACHE_STEP)

    def _mask(self, positions: Tensor, span: slice) -> Tensor:
        """(R, N) positions -> (R, 1, N, S), added to the scores: 0 where a query sees a key, -inf elsewhere."""
        distance = positions[:, None, :, None] - torch.arange(span.start, span.stop, device=positions.device)
        seen = distance >= 0
        if self.config.window:
            seen &= distance < self.config.window
        return torch.zeros_like(distance, dtype=self.cache.dtype).masked_fill_(~seen, float("-inf"))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """(R, N, H, E) queries, (R, G, S, E) keys and values -> (R, N, H, E), all queries of a row together."""
        return attend(q.transpose(1, 2), k, v, mask, mask is None, self.config.attention_softcap, 0.0).transpose(1, 2)

    def _attend_apart(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """The same, each query for itself, as if it were a row."""
        if mask is None or q.shape[1] == 1:
            return self._attend(q, k, v, mask)
        rows = []
        for own, keys, values, seen in zip(q, k, v, mask, strict=True):
            n = len(own)
            keys, values = keys.expand(n, *keys.shape), values.expand(n, *values.shape)
            rows.append(self._attend(own[:, None], keys, values, seen.transpose(0, 1)[:, None])[:, 0])
        return torch.stack(rows)

    def truncate(self, lengths: list[int]) -> None:
        self.lengths = [min(old, new) for old, new in zip(self.lengths, lengths, strict=True)]

    def gather_rows(self, index: Tensor) -> None:
        self.cache = self.cache[:, :, index]
        self.lengths = [self.lengths[i] for i in index.tolist()]

    def copy_row(self, row: int, source: BackboneState, source_row: int) -> None:
        assert isinstance(source, TransformerState)
        length = source.lengths[source_row]
        self._reserve(length)
        self.cache[:, :, row, :, :length] = source.cache[:, :, source_row, :, :length]
        self.lengths[row] = length


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """A norm of the last axis.

    torch's RMS norm is a dozen small operations on a CPU, its layer norm is one; and the layer norm of (x, -x), whose
    mean is 0, is the RMS norm of x.
    """
    if not isinstance(norm, nn.RMSNorm) or x.is_cuda:
        return norm(x)
    size = x.shape[-1]
    out = F.layer_norm(torch.cat([x, -x], dim=-1), (2 * size,), eps=norm.eps or 0.0)[..., :size]
    return out if norm.weight is None else out * norm.weight


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, softcap: float | None, dropout: float
) -> Tensor:
    """Softmax attention.

    (B, H, N, E) queries, (B, G, S, E) keys and values, (B or 1, 1, N, S) mask (bool, or added) -> (B, H, N, E).
    """
    if softcap is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout, enable_gqa=q.shape[1] != k.shape[1]
        )
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    scores = softcap * torch.tanh(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 / softcap)
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return F.dropout(scores.softmax(-1), dropout) @ v

"""The transformer, a few positions at a time, beside a cache of keys and values.

A step of a small model is bound by the number of its operations, one of a large model by reading its weights: every
query is a row of one (M, D) matrix, and nothing is computed twice.
Axes: R rows of one call, N positions of each, M = R N queries, S keys, D width, H heads, G key/value heads, E head
width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armm.backbones.backbone import BackboneState
from armm.backbones.positions import Rotations, Visibility
from armm.exactness import at_least
from armm.graphs import Recordings, records

if TYPE_CHECKING:
    from armm.backbones.fast import CompiledSteps
    from armm.backbones.team_steps import TeamSteps
    from armm.backbones.transformer import Block, TransformerBackbone

CACHE_STEP = 128  # key/value caches grow in multiples of this
SHORT = 128  # positions that attention is quick about without a product of matrices
MANY = 32  # rows from which the time of an operation is that of its numbers


class TransformerState(BackboneState):
    """Keys and values by position, each row at its own length.

    Queries of a step attend to a whole number of `CACHE_STEP`s of cache, masked, so that their sums are in the same
    order however long the cache is; those of a prompt are read together, beside those of other prompts.
    """

    def __init__(self, backbone: TransformerBackbone, n_rows: int, min_rows: int = 1) -> None:
        self.backbone, self.config, self.min_rows = backbone, backbone.config, min_rows
        config, like = backbone.config, backbone.like
        self.lengths = [0] * n_rows
        self.rotations = Rotations(backbone)
        self._recordings: Recordings | None = None
        self._replace_cache(like.new_zeros(config.n_layers, 2, n_rows, config.kv_heads, CACHE_STEP, config.head_width))
        self._know_positions(CACHE_STEP)
        e = config.head_width  # x @ swap = (-b, a) for x = (a, b): the other half of a rotation
        swap = torch.zeros(e, e, device=like.device, dtype=like.dtype)
        half = torch.arange(e // 2, device=like.device)
        swap[half, half + e // 2], swap[half + e // 2, half] = 1.0, -1.0
        self.swap = swap
        self.compiles = False
        self._inputs: tuple[Tensor, ...] | None = None  # of what is recorded: rows, x, positions, values

    def compile(self) -> None:
        self.compiles = True
        if records(self.cache.device):
            self._recordings = Recordings(self.cache.device)

    @cached_property
    def _compiled_steps(self) -> CompiledSteps | TeamSteps | None:
        """Everything but the products in compiled code; None without numba, and where there is none for the device."""
        if not self.compiles or find_spec("numba") is None:
            return None
        from armm.backbones.fast import compiled_steps

        return compiled_steps(self.backbone, exact=self.min_rows > 1)

    def _reserve(self, length: int) -> None:
        missing = length - self.cache.shape[4]
        if missing > 0:  # doubling keeps the copying linear
            grown, used = max(missing, self.cache.shape[4]), max(self.lengths)
            size = self.cache.shape[4] + -(-grown // CACHE_STEP) * CACHE_STEP
            cache = self.cache.new_zeros(*self.cache.shape[:4], size, self.cache.shape[5])
            cache[..., :used, :] = self.cache[..., :used, :]
            self._replace_cache(cache)
            self._know_positions(size)

    def _replace_cache(self, cache: Tensor) -> None:
        self.cache = cache
        self.stored_of = [(layer[0], layer[1]) for layer in cache.unbind(0)]  # keys and values of each layer
        if self._recordings is not None:
            self._recordings.clear()

    def _know_positions(self, n: int) -> None:
        """Have tables for positions below n."""
        self.visibility = Visibility(n, self.config.window, self.cache)
        self.turns: tuple[Tensor, ...] | None = None
        if self.config.position == "rope":  # (n, 1, E) cosines and sines of both halves
            table = self.rotations.up_to(n)[:, :n, None].to(self.cache.dtype)
            self.turns = torch.cat([table, table], dim=-1).unbind(0)

    def extend(
        self, rows: Tensor, x: Tensor, values: Tensor | None, counts: list[int], stepwise: bool = False
    ) -> Tensor:
        listed, n = rows.tolist(), x.shape[1]
        before = [self.lengths[row] for row in listed]
        self._reserve(max(before) + n)
        for row, start, count in zip(listed, before, counts, strict=True):
            self.lengths[row] = start + count
        if not stepwise and n > 1:
            return self._read(listed, x, values, counts, before)
        if self._compiled_steps is not None:
            return self._extend_compiled(self._compiled_steps, rows, x, values, before)
        return self._step(rows, listed, x, values, before)

    def _step(self, rows: Tensor, listed: list[int], x: Tensor, values: Tensor | None, before: list[int]) -> Tensor:
        """Every new position of every row as a query of its own, beside the cache of all rows."""
        r, n, _ = x.shape
        everyone = len(listed) == len(self.lengths) and listed == list(range(r))
        together = before[0] if everyone and n == 1 and min(before) == max(before) else None
        positions = torch.tensor([range(start, start + n) for start in before], device=x.device)  # (R, N)
        span = self._span(before, max(before) + n)
        values = None if values is None else values.flatten(0, 1)
        if self._recordings is not None and everyone and n == 1:
            return self._replayed(self._recordings, rows, x, values, positions, span)
        return self._apart(rows, x, values, positions, span, everyone, together)

    def _apart(
        self,
        rows: Tensor,
        x: Tensor,
        values: Tensor | None,
        positions: Tensor,
        span: slice,
        everyone: bool,
        together: int | None,
    ) -> Tensor:
        """(R, N, D) at (R, N) positions -> (R, N, D).

        everyone: the rows are all rows, in order. together: the one position that they are at, if that is so.
        """
        r, n, _ = x.shape
        mask = self.visibility.mask(positions, span)[:, None]

        def attended(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, stored = self.stored_of[layer]
            if together is not None:
                keys.select(2, together).copy_(k)
                stored.select(2, together).copy_(v)
            else:
                keys[rows[:, None], :, positions] = k.unflatten(0, (r, n))
                stored[rows[:, None], :, positions] = v.unflatten(0, (r, n))
            keys, stored = (own.narrow(2, span.start, span.stop - span.start) for own in (keys, stored))
            if not everyone:
                keys, stored = keys[rows], stored[rows]
            return self._attend_apart(q.unflatten(0, (r, n)), keys, stored, mask).flatten(0, 1)

        return self._blocks(x.flatten(0, 1), values, positions.flatten(), attended).view(r, n, -1)

    def _replayed(
        self,
        recordings: Recordings,
        rows: Tensor,
        x: Tensor,
        values: Tensor | None,
        positions: Tensor,
        span: slice,
    ) -> Tensor:
        """A step of all rows, recorded for each span of the cache."""
        given = (rows, x, positions) if values is None else (rows, x, positions, values)
        if self._inputs is None or [own.shape for own in self._inputs] != [own.shape for own in given]:
            self._inputs = tuple(torch.empty_like(own) for own in given)
            recordings.clear()
        for own, new in zip(self._inputs, given, strict=True):
            own.copy_(new)
        rows, x, positions, *others = self._inputs

        def body() -> tuple[Tensor]:
            return (self._apart(rows, x, others[0] if others else None, positions, span, True, None),)

        (contexts,) = recordings.run((span.start, span.stop), body)
        return contexts

    def _read(
        self, listed: list[int], x: Tensor, values: Tensor | None, counts: list[int], before: list[int]
    ) -> Tensor:
        """Prompts: the units of all rows share the products, and each row attends by itself.

        So what a row reads cannot depend on the others, where a product's rows do not depend on their number.
        """
        (r, n, _), steps = x.shape, self._compiled_steps
        short = [start + count <= SHORT for start, count in zip(before, counts, strict=True)]
        if steps is not None and steps.for_short and len(set(short)) == 2:  # which way depends on the row alone
            contexts = torch.zeros_like(x)
            for kind in (False, True):
                own = [i for i, is_short in enumerate(short) if is_short == kind]
                parts = [[values_of[i] for i in own] for values_of in (listed, counts, before)]
                contexts[own] = self._read(parts[0], x[own], None if values is None else values[own], *parts[1:])
            return contexts
        real = torch.tensor([i * n + j for i, count in enumerate(counts) for j in range(count)], device=x.device)
        starts = torch.tensor(before, device=x.device)[:, None] + torch.arange(n, device=x.device)
        positions = starts.flatten()[real]
        # row of the cache, its queries, their positions, the first one that they see, and what hides others
        pieces: list[tuple[int, slice, slice, int, Tensor | None]] = []
        first = 0
        for row, start, count in zip(listed, before, counts, strict=True):
            own, new = slice(first, first + count), slice(start, start + count)
            oldest = max(start + 1 - (self.config.window or new.stop), 0)
            whole = start == 0 and not self.config.window
            mask = None if whole else self.visibility.mask(positions[None, own], slice(oldest, new.stop))[:, None]
            pieces.append((row, own, new, oldest, mask))
            first += count

        def attends(layer: int, q: Tensor) -> Tensor:
            out = torch.empty_like(q)
            for row, own, new, oldest, mask in pieces:
                keys, stored = self.cache[layer, :, None, row, :, oldest : new.stop]  # (1, G, S, E)
                out[own] = self._attend(q[None, own], keys, stored, mask)[0]
            return out

        def attended(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            for row, own, new, _, _ in pieces:
                cache = self.cache[layer, :, row]  # (2, G, S, E)
                cache[0, :, new], cache[1, :, new] = k[own].transpose(0, 1), v[own].transpose(0, 1)
            return attends(layer, q)

        x = x.flatten(0, 1)[real]
        values = None if values is None else values.flatten(0, 1)[real]
        contexts = x.new_zeros(r * n, x.shape[1])
        if steps is not None and steps.for_short and all(short):
            x = self.backbone.start(x, positions)
            contexts[real] = steps(x, values, self.cache, np.repeat(listed, counts), positions.numpy())
        elif steps is not None and not steps.for_short:
            x = self.backbone.start(x, positions)
            contexts[real] = steps.read(x, values, self.cache, np.repeat(listed, counts), positions.numpy(), attends)  # type: ignore[attr-defined]
        else:
            contexts[real] = self._blocks(x, values, positions, attended)
        return contexts.view(r, n, -1)

    def _blocks(
        self,
        x: Tensor,
        values: Tensor | None,
        positions: Tensor,
        attended: Callable[[int, Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """(M, D) embeddings at (M,) positions -> (M, D) contexts.

        attended: of a layer's (M, H, E) queries, (M, G, E) keys and values, which it keeps -> (M, H, E).
        """
        config, m = self.config, len(x)
        positions = at_least(positions, self.min_rows)
        turns = None if self.turns is None else tuple(table[positions] for table in self.turns)
        values = None if values is None else at_least(values, self.min_rows)
        first = x = self.backbone.start(at_least(x, self.min_rows), positions)
        parts = (config.n_heads + config.kv_heads, config.kv_heads)
        for layer, own in enumerate(self.backbone.split_values(values)):
            block: Block = self.backbone.blocks[layer]  # type: ignore[assignment]
            x = block.enter(x, first)
            qkv = block.attention.qkv(normed(block.attention_norm, x)).view(len(x), -1, config.head_width)
            qk, v = qkv.split(parts, dim=1)
            if own is not None:
                v = v + block.attention.value_scale * own.view(len(x), -1, config.head_width)
            if config.qk_norm:
                qk = normed(block.attention.norm, qk)
            if turns is not None:
                qk = torch.addcmul(qk * turns[0], self._turned(qk), turns[1])
            if len(x) > m:
                qk, v = qk[:m], v[:m]
            q, k = qk.tensor_split((config.n_heads,), dim=1)
            mixed = attended(layer, q, k, v)
            x = x + block.attention.out(at_least(mixed.reshape(m, config.width), self.min_rows))
            x = x + block.mlp(normed(block.mlp_norm, x))
        return normed(self.backbone.norm, x)[:m]

    def _turned(self, x: Tensor) -> Tensor:
        """(M, *, E) pairs (a, b), half of E apart -> (-b, a)."""
        if len(x) < MANY:
            return x @ self.swap  # one operation, and exact
        a, b = x.chunk(2, dim=-1)
        return torch.cat([-b, a], dim=-1)

    def _extend_compiled(
        self, steps: CompiledSteps | TeamSteps, rows: Tensor, x: Tensor, values: Tensor | None, before: list[int]
    ) -> Tensor:
        """Every new position of every row as a query of its own."""
        r, n, _ = x.shape
        positions = np.add.outer(before, np.arange(n)).ravel()
        x, row = x.flatten(0, 1), rows.numpy()
        if self.config.position == "learned":
            x = self.backbone.start(x, torch.from_numpy(positions))
        values = None if values is None else values.flatten(0, 1)
        return steps(x, values, self.cache, np.repeat(row, n) if n > 1 else row, positions).view(r, n, -1)

    def _span(self, before: list[int], longest: int) -> slice:
        """The cached positions that any query of a step sees."""
        window = self.config.window
        oldest = 0
        if window and self.min_rows == 1:  # in an exact state sums may not begin where other rows make them begin
            oldest = max(min(before) + 1 - window, 0) // CACHE_STEP * CACHE_STEP
        return slice(oldest, -(-longest // CACHE_STEP) * CACHE_STEP)

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
        self._replace_cache(self.cache[:, :, index])
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

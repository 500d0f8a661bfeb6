"""A transformer's whole step in one compiled function, that several threads go through side by side.

Its matrices are panels (`armm.panels`). Every piece of the step is shared out by outputs, heads or rows, and what a
thread computes is the same whoever computes it, so that results depend neither on the number of threads nor of rows.

Axes: M queries, B rows of the cache, L layers, D width, H heads, G key/value heads, S cached positions, E head width,
F hidden.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from armm.backbones.fast_loop import (
    Heads,
    Norm,
    activate_row,
    enter_row,
    keep,
    look,
    split,
)
from armm.compiled import ZERO, copy, inner, kept
from armm.panels import multiply_digits, multiply_floats, share
from armm.team import meet, together


class Matrices(NamedTuple):
    """A linear layer of every block.

    Attributes:
        panels: (L,) addresses. n_panels: of each.
        scales: (L, N) of int8 weights, which digits are multiplied with; (0, 0) for float32 weights.
        bias: (L, N), only where there are scales; (0, 0) for none.
    """

    panels: np.ndarray
    n_panels: int
    scales: np.ndarray
    bias: np.ndarray


class Norms(NamedTuple):
    """A norm of every block, or the last one."""

    kind: int
    eps: float
    gain: np.ndarray  # (L, D), (0, 0) for none
    bias: np.ndarray  # (L, D), (0, 0) for none


class Blocks(NamedTuple):
    """All that is learned, and what it is like."""

    heads: Heads
    activation: int
    n_hidden: int
    scale: np.ndarray  # (L, 2), (0, 0) for none
    value_layer: np.ndarray  # (L,) int64, which value embeddings a layer takes, -1 for none
    value_scale: np.ndarray  # (L,)
    attention_norm: Norms
    qkv: Matrices
    out: Matrices
    mlp_norm: Norms
    mlp_enter: Matrices
    mlp_out: Matrices
    norm: Norms


class Taken(NamedTuple):
    """What a product takes: numbers, or digits of numbers."""

    numbers: np.ndarray  # (M, K) float32
    digits: np.ndarray  # (2M, K) uint8
    step: np.ndarray  # (M,)


class Room(NamedTuple):
    """What a step of M rows works on; widths of results are filled up to whole panels."""

    first: np.ndarray  # (M, D)
    delta: np.ndarray  # (M, D)
    qkv: np.ndarray  # (M, (H + 2G) E)
    queries: np.ndarray  # (M, H, E)
    mixed: np.ndarray  # (M, H E)
    hidden: np.ndarray  # (M, F or 2F)
    entered: Taken  # (M, D)
    attended: Taken  # (M, H E)
    activated: Taken  # (M, F)


@together
@inner
def part_of_step(
    blocks: Blocks, room: Room, stream: np.ndarray, values: np.ndarray, rotation: np.ndarray, cache: np.ndarray,
    row: np.ndarray, position: np.ndarray, thread: int, n_threads: int, meeting: np.ndarray,
) -> None:  # fmt: skip
    n_rows, e, heads = len(row), cache.shape[5], blocks.heads
    n_parts, scores = heads.n_heads + 2 * cache.shape[3], np.empty(cache.shape[4], np.float32)
    nothing, no_rows = np.empty(0, np.float32), room.delta[:0]
    for layer in range(len(cache)):
        for m in range(thread, n_rows, n_threads):
            if layer == 0:
                copy(room.first[m], stream[m])
            scale = blocks.scale[layer] if len(blocks.scale) else nothing
            enter_taken(stream, room, m, layer > 0, scale, norm_of(blocks.attention_norm, layer, nothing))
        meet(meeting, n_threads)
        multiply(blocks.qkv, layer, room.entered, room.qkv, thread, n_threads)
        meet(meeting, n_threads)
        own, own_cache = blocks.value_layer[layer], cache[layer]
        added = values[own] if own >= 0 else no_rows
        first, last = share(n_rows * n_parts, thread, n_threads)
        for item in range(first, last):
            m, h = item // n_parts, item % n_parts
            part, value_scale = room.qkv[m, h * e : (h + 1) * e], blocks.value_scale[layer]
            keep(part, h, m, added, value_scale, rotation, own_cache, row[m], position[m], heads, room.queries)  # type: ignore[arg-type]
        meet(meeting, n_threads)
        first, last = share(n_rows * heads.n_heads, thread, n_threads)
        for item in range(first, last):
            m, h = item // heads.n_heads, item % heads.n_heads
            mixed = room.mixed[m, h * e : (h + 1) * e]
            look(room.queries[m, h], h, own_cache, row[m], position[m], heads, scores, mixed)
        meet(meeting, n_threads)
        for m in range(thread, n_rows, n_threads):
            take(room.mixed[m], room.attended, m, len(blocks.out.scales) > 0)
        meet(meeting, n_threads)
        multiply(blocks.out, layer, room.attended, room.delta, thread, n_threads)
        meet(meeting, n_threads)
        for m in range(thread, n_rows, n_threads):
            enter_taken(stream, room, m, True, nothing, norm_of(blocks.mlp_norm, layer, nothing))
        meet(meeting, n_threads)
        multiply(blocks.mlp_enter, layer, room.entered, room.hidden, thread, n_threads)
        meet(meeting, n_threads)
        for m in range(thread, n_rows, n_threads):
            activate_row(room.hidden[m], blocks.activation, blocks.n_hidden)
            take(room.hidden[m, : blocks.n_hidden], room.activated, m, len(blocks.mlp_out.scales) > 0)
        meet(meeting, n_threads)
        multiply(blocks.mlp_out, layer, room.activated, room.delta, thread, n_threads)
        meet(meeting, n_threads)
    for m in range(thread, n_rows, n_threads):
        y = room.delta[m, : stream.shape[1]]
        enter_row(stream[m], y, nothing, room.first[m], norm_of(blocks.norm, 0, nothing))
        copy(stream[m], y)
    meet(meeting, n_threads)


@kept
def step(
    blocks: Blocks, room: Room, stream: np.ndarray, values: np.ndarray, rotation: np.ndarray, cache: np.ndarray,
    row: np.ndarray, position: np.ndarray, n_threads: int,
) -> None:  # fmt: skip
    """(M, D) embeddings in `stream` become contexts; keys and values are written into the cache.

    Args:
        values: (layers that take some, M, G E). rotation: (2, S, E / 2) by position; both empty for none.
        cache: (L, 2, B, G, S, E). row, position: (M,) int64, of every query.
    """
    part_of_step((blocks, room, stream, values, rotation, cache, row, position), n_threads)


@inner
def enter_taken(stream: np.ndarray, room: Room, m: int, adds: bool, scale: np.ndarray, norm: Norm) -> None:
    """Add what the last product gave to a row of the stream, and let the next one take its norm."""
    y = room.delta[m, : stream.shape[1]]
    if not adds:
        for i in range(len(y)):
            y[i] = ZERO
    enter_row(stream[m], y, scale, room.first[m], norm)
    take(y, room.entered, m, len(room.entered.digits) > 0)


@inner
def norm_of(norms: Norms, layer: int, nothing: np.ndarray) -> Norm:
    gain = norms.gain[layer] if len(norms.gain) else nothing
    bias = norms.bias[layer] if len(norms.bias) else nothing
    return Norm(norms.kind, norms.eps, gain, bias)


@inner
def take(x: np.ndarray, taken: Taken, m: int, of_digits: bool) -> None:
    """(K,) numbers become row m of what a product takes."""
    if of_digits:
        split(x, taken.digits[2 * m], taken.digits[2 * m + 1], taken.step, m)
    else:
        copy(taken.numbers[m], x)


@inner
def multiply(matrices: Matrices, layer: int, taken: Taken, out: np.ndarray, thread: int, n_threads: int) -> None:
    """A thread's part of a layer's product -> (M, N)."""
    if len(matrices.scales):
        bias = matrices.bias[layer] if len(matrices.bias) else taken.step[:0]
        multiply_digits(
            matrices.panels[layer], taken.digits, taken.step, matrices.scales[layer], bias, out, thread, n_threads
        )
    else:
        multiply_floats(matrices.panels[layer], matrices.n_panels, taken.numbers, out, thread, n_threads)

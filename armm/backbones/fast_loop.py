"""A transformer's step between its matrix products, compiled by numba: norms, rotations, attention, activations.

With a few rows a block is some forty operators of a few microseconds each; here it is four. What products take and
give is a float32 array; or a uint16 one, the upper halves of float32 numbers, which are bfloat16; or, since products of
integers are exact, two digits of each number (`split` and `join`). A row's arithmetic is its own and in an order that
its own length alone decides, so its results are the same, bit for bit, whatever rows stand beside it.

Axes: M queries, B rows of the cache, D width, H heads, G key/value heads, S cached positions, E head width, F hidden.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import overload

from armm.compiled import ONE, ZERO, add_product, copy, exp, inner, kept, sigmoid, tanh
from armm.panels import BASE, split
from armm.team import meet, together

RMS, LAYER = 0, 1
RELU2, GELU, SWIGLU = 0, 1, 2


class Norm(NamedTuple):
    """A norm of the last axis."""

    kind: int
    eps: float
    gain: np.ndarray  # (D,), empty for none
    bias: np.ndarray  # (D,), empty for none


class Heads(NamedTuple):
    """What attention is like."""

    n_heads: int
    window: int  # 0 for none
    softcap: float  # 0 for none
    qk_eps: float  # of the norm of queries and keys; negative for none


@together
@inner
def enter_rows(
    x: np.ndarray, delta: Any, scale: np.ndarray, first: np.ndarray, norm: Norm, out: Any, thread: int, n_threads: int,
    meeting: np.ndarray,
) -> None:  # fmt: skip
    y = np.empty(x.shape[1], np.float32)
    for m in range(thread, len(x), n_threads):
        widen(delta, m, y)
        enter_row(x[m], y, scale, first[m], norm)
        narrow(y, out, m)


@kept
def enter(
    x: np.ndarray, delta: Any, scale: np.ndarray, first: np.ndarray, norm: Norm, out: Any, n_threads: int
) -> None:
    """(M, D) x += delta, x = scale[0] x + scale[1] first, out = norm(x); an empty scale changes nothing."""
    enter_rows((x, delta, scale, first, norm, out), n_threads)


@inner
def enter_row(x: np.ndarray, y: np.ndarray, scale: np.ndarray, first: np.ndarray, norm: Norm) -> None:
    """The same of (D,) x and y for delta; y becomes the result."""
    width = len(x)
    for i in range(width):
        x[i] += y[i]
    if len(scale):
        for i in range(width):
            x[i] = scale[0] * x[i] + scale[1] * first[i]
    mean, square = ZERO, ZERO
    if norm.kind == LAYER:
        mean = total(x) / np.float32(width)
    for i in range(width):
        y[i] = x[i] - mean
    square = dot(y, y) / np.float32(width)
    factor = ONE / np.float32(math.sqrt(square + np.float32(norm.eps)))
    for i in range(width):
        y[i] *= factor
    if len(norm.gain):
        for i in range(width):
            y[i] *= norm.gain[i]
    if len(norm.bias):
        for i in range(width):
            y[i] += norm.bias[i]


@together
@inner
def attend_rows(
    qkv: Any, own: np.ndarray, value_scale: float, rotation: np.ndarray, cache: np.ndarray, row: np.ndarray,
    position: np.ndarray, heads: Heads, queries: np.ndarray, out: Any, thread: int, n_threads: int, meeting: np.ndarray,
) -> None:  # fmt: skip
    e, n_heads, n_queries = cache.shape[4], heads.n_heads, len(row)
    keep_rows(qkv, own, value_scale, rotation, cache, row, position, heads, queries, thread, n_threads, meeting)
    meet(meeting, n_threads)
    scores, mixed = np.empty(cache.shape[3], np.float32), np.empty(n_heads * e, np.float32)
    for m in range(thread, n_queries, n_threads):
        for h in range(n_heads):
            look(queries[m, h], h, cache, row[m], position[m], heads, scores, mixed[h * e : (h + 1) * e])
        narrow(mixed, out, m)


@kept
def attend(
    qkv: Any, own: np.ndarray, value_scale: float, rotation: np.ndarray, cache: np.ndarray, row: np.ndarray,
    position: np.ndarray, heads: Heads, out: Any, n_threads: int,
) -> None:  # fmt: skip
    """Write keys and values of all queries, and attend.

    Args:
        qkv: (M, (H + 2G) E). own: (M, G E) value embeddings, empty for none, added `value_scale` times.
        rotation: (2, S, E / 2) cosines and sines by position, empty for none.
        cache: (2, B, G, S, E). row, position: (M,) int64, of every query.
        out: (M, H E).
    """
    queries = np.empty((len(row), heads.n_heads, cache.shape[4]), np.float32)
    attend_rows((qkv, own, value_scale, rotation, cache, row, position, heads, queries, out), n_threads)


@together
@inner
def put_rows(x: np.ndarray, out: Any, thread: int, n_threads: int, meeting: np.ndarray) -> None:
    for m in range(thread, len(x), n_threads):
        narrow(x[m], out, m)


@kept
def put(x: np.ndarray, out: Any, n_threads: int) -> None:
    """(M, I) float32 -> what a product takes."""
    put_rows((x, out), n_threads)


@inner
def keep_rows(
    qkv: Any, own: np.ndarray, value_scale: float, rotation: np.ndarray, cache: np.ndarray, row: np.ndarray,
    position: np.ndarray, heads: Heads, queries: np.ndarray, thread: int, n_threads: int, meeting: np.ndarray,
) -> None:  # fmt: skip
    e, n_parts = cache.shape[4], heads.n_heads + 2 * cache.shape[2]
    whole = np.empty(n_parts * e, np.float32)
    for m in range(thread, len(row), n_threads):
        widen(qkv, m, whole)
        for h in range(n_parts):
            part = whole[h * e : (h + 1) * e]
            keep(part, h, m, own, value_scale, rotation, cache, row[m], position[m], heads, queries)


remember_rows = together(keep_rows)


@kept
def remember(
    qkv: Any, own: np.ndarray, value_scale: float, rotation: np.ndarray, cache: np.ndarray, row: np.ndarray,
    position: np.ndarray, heads: Heads, queries: np.ndarray, n_threads: int,
) -> None:  # fmt: skip
    """Write keys and values, and the (M, H, E) queries."""
    remember_rows((qkv, own, value_scale, rotation, cache, row, position, heads, queries), n_threads)


@inner
def keep(
    part: np.ndarray, h: int, m: int, own: np.ndarray, value_scale: float, rotation: np.ndarray, cache: np.ndarray,
    row: int, position: int, heads: Heads, queries: np.ndarray,
) -> None:  # fmt: skip
    """Make a query, a key or a value of (E,) part h of a row, and put it where it belongs."""
    n_heads, n_groups, e = heads.n_heads, cache.shape[2], len(part)
    if h < n_heads + n_groups:
        if heads.qk_eps >= 0:
            factor = ONE / np.float32(math.sqrt(dot(part, part) / np.float32(e) + np.float32(heads.qk_eps)))
            for i in range(e):
                part[i] *= factor
        if rotation.size:
            rotate(part, rotation[0, position], rotation[1, position])
    elif own.size:
        g = h - n_heads - n_groups
        for i in range(e):
            part[i] += np.float32(value_scale) * own[m, g * e + i]
    if h < n_heads:
        copy(queries[m, h], part)
    elif h < n_heads + n_groups:
        copy(cache[0, row, h - n_heads, position], part)
    else:
        copy(cache[1, row, h - n_heads - n_groups, position], part)


@inner
def look(
    query: np.ndarray, h: int, cache: np.ndarray, row: int, position: int, heads: Heads, scores: np.ndarray,
    out: np.ndarray,
) -> None:  # fmt: skip
    """What an (E,) query of head h finds -> (E,). scores: room for as many as there are positions."""
    end = position + 1
    begin = max(end - heads.window, 0) if heads.window else 0
    g = h * cache.shape[2] // heads.n_heads
    own_scores = scores[: end - begin]
    score(query, cache[0, row, g, begin:end], own_scores, np.float32(heads.softcap))
    mix(own_scores, cache[1, row, g, begin:end], out)


@together
@inner
def activate_rows(
    hidden: Any, kind: int, n_rows: int, n_hidden: int, out: Any, thread: int, n_threads: int, meeting: np.ndarray
) -> None:
    y = np.empty(2 * n_hidden if kind == SWIGLU else n_hidden, np.float32)
    for m in range(thread, n_rows, n_threads):
        widen(hidden, m, y)
        activate_row(y, kind, n_hidden)
        narrow(y[:n_hidden], out, m)


@kept
def activate(hidden: Any, kind: int, n_rows: int, n_hidden: int, out: Any, n_threads: int) -> None:
    """(M, F or 2F) -> (M, F): ReLU squared, GELU (tanh approximation) or gated SiLU."""
    activate_rows((hidden, kind, n_rows, n_hidden, out), n_threads)


@inner
def activate_row(y: np.ndarray, kind: int, n_hidden: int) -> None:
    """The same of (F or 2F,) numbers; the result is the first (F,) of them."""
    if kind == RELU2:
        for i in range(n_hidden):
            positive = max(y[i], ZERO)
            y[i] = positive * positive
    elif kind == GELU:
        for i in range(n_hidden):
            cube = y[i] * y[i] * y[i]
            inside = np.float32(math.sqrt(2 / math.pi)) * (y[i] + np.float32(0.044715) * cube)
            y[i] = np.float32(0.5) * y[i] * (ONE + tanh(inside))
    else:
        for i in range(n_hidden):
            y[i] = y[i] * sigmoid(y[i]) * y[n_hidden + i]


@kept
def multiply(x: np.ndarray, weights: np.ndarray, bias: np.ndarray, out: np.ndarray) -> None:
    """(M, I) x @ (I, O) weights + (O,) bias -> (M, O); an empty bias adds nothing."""
    for m in range(len(out)):
        for o in range(out.shape[1]):
            out[m, o] = bias[o] if len(bias) else ZERO
    add_product(out, x, weights)


# ------------------------------------------------------------------------ arithmetic

# these reorder a sum, always in the same way: the length of the loop, not of a loop around it, says how
reduction = njit(error_model="numpy", fastmath={"contract", "reassoc"})


@reduction
def dot(x: np.ndarray, y: np.ndarray) -> np.float32:
    out = ZERO
    for i in range(len(x)):
        out += x[i] * y[i]
    return out


@reduction
def total(x: np.ndarray) -> np.float32:
    out = ZERO
    for i in range(len(x)):
        out += x[i]
    return out


@inner
def score(query: np.ndarray, keys: np.ndarray, out: np.ndarray, softcap: np.float32) -> None:
    """(E,), (S, E) -> (S,) softmax of the scores, with a cap unless it is 0."""
    factor = ONE / np.float32(math.sqrt(len(query)))
    for t in range(len(out)):
        out[t] = dot(query, keys[t]) * factor
    if softcap != ZERO:
        for t in range(len(out)):
            out[t] = softcap * tanh(out[t] / softcap)
    top, mass = out[0], ZERO
    for t in range(len(out)):
        top = out[t] if out[t] > top else top
    for t in range(len(out)):
        out[t] = exp(out[t] - top)
    for t in range(len(out)):
        mass += out[t]
    for t in range(len(out)):
        out[t] /= mass


@inner
def mix(weights: np.ndarray, values: np.ndarray, out: np.ndarray) -> None:
    """(S,), (S, E) -> (E,) the weighted sum of values."""
    for i in range(len(out)):
        out[i] = ZERO
    for t in range(len(weights)):
        for i in range(len(out)):
            out[i] += weights[t] * values[t, i]


@inner
def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> None:
    """Rotate the pairs (x[i], x[i + E / 2]) of (E,) numbers."""
    half = len(cos)
    for i in range(half):
        a, b = x[i], x[half + i]
        x[i] = a * cos[i] - b * sin[i]
        x[half + i] = b * cos[i] + a * sin[i]


def widen(x: Any, m: int, out: np.ndarray) -> None:
    """Row m of what a product gave -> (I,) float32."""


@overload(widen)
def _widen(x: Any, m: int, out: np.ndarray) -> Any:
    def from_floats(x: Any, m: int, out: np.ndarray) -> Any:
        copy(out, x[m])

    def from_halves(x: Any, m: int, out: np.ndarray) -> Any:
        halves = out.view(np.uint16)
        for i in range(len(out)):
            halves[2 * i] = np.uint16(0)
            halves[2 * i + 1] = x[m, i]

    def from_digits(x: Any, m: int, out: np.ndarray) -> Any:
        join(x[0], x[1], x[2], m, out)

    if isinstance(x, types.BaseTuple):
        return from_digits
    return from_floats if x.dtype == types.float32 else from_halves  # type: ignore[attr-defined]


def narrow(x: np.ndarray, out: Any, m: int) -> None:
    """(I,) float32 -> row m of what a product takes; halves are rounded to nearest, ties to even."""


@overload(narrow)
def _narrow(x: np.ndarray, out: Any, m: int) -> Any:
    def to_floats(x: np.ndarray, out: Any, m: int) -> Any:
        copy(out[m], x)

    def to_halves(x: np.ndarray, out: Any, m: int) -> Any:
        bits = x.view(np.uint32)
        for i in range(len(x)):
            out[m, i] = np.uint16((bits[i] + np.uint32(0x7FFF) + ((bits[i] >> np.uint32(16)) & np.uint32(1))) >> 16)

    def to_digits(x: np.ndarray, out: Any, m: int) -> Any:
        split(x, out[0][m, 0], out[0][m, 1], out[1], m)

    if isinstance(out, types.BaseTuple):
        return to_digits
    return to_floats if out.dtype == types.float32 else to_halves  # type: ignore[attr-defined]


@inner
def join(sums: np.ndarray, step: np.ndarray, scales: np.ndarray, m: int, out: np.ndarray) -> None:
    """Row m of (M, 2, O) sums of high and low digits, (M,) steps, (O,) scales of the weights -> (O,)."""
    for o in range(len(out)):
        out[o] = (BASE * sums[m, 0, o] + sums[m, 1, o]) * step[m] * scales[o]

"""The causal convolution head's inner loop, compiled by numba: `ConvState.fill` without an operator per step.

Each row's arithmetic is its own and in a fixed order, so its results are the same, bit for bit, whatever rows stand
beside it and however many threads there are: the compiler may fuse a product and a sum, and reorder nothing. All of it
stands in one file, because numba tells by the file's age whether what it has kept of it on disk is still right.

Axes: R rows, n symbols of a call, N stored rows, L layers, M ring slots, k taps, W residual channels, P places of a
unit, K its symbols, C channels of a place, H features, S skip layers, V vocabulary, I inputs and O outputs of a
product, m mixture components.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from armm.compiled import ONE, TWO, ZERO, copy, exp, inner, kept, scalar, silu, tanh
from armm.panels import add_floats, filled
from armm.team import together

LOWEST, LARGEST = np.int32(-(2**31)), np.int32(2**31 - 1)
ARTANH = tuple(np.float32(1 / c) for c in (15, 13, 11, 9, 7, 5, 3, 1))


class Network(NamedTuple):
    """The convolutions, every matrix as panels of (1 + inputs, 16) (`armm.panels`)."""

    table: np.ndarray  # (C * (V + 1), W)
    lags: np.ndarray  # (L, k - 1) int64
    taps: np.ndarray  # (L, panels of (k * W, 2W)), oldest first
    residual: np.ndarray  # (L, panels of (W, W))
    skip: np.ndarray  # (L, panels of (W, H))
    hidden: np.ndarray  # (S - 1, panels of (H, H))
    skip_bias: np.ndarray  # (S, H)


class Readout(NamedTuple):
    """From features to logits: a softmax, of all channels together where `is_joint`, or a mixture of logistics where
    `n_components` is not 0."""

    enter: np.ndarray  # (C, panels of (H, H)); empty for one channel
    enter_bias: np.ndarray  # (C, H)
    earlier: np.ndarray  # (C, C, V, H)
    out: np.ndarray  # (C, panels of (H, V)); (1, panels of (H, O)) for a mixture, O is V ** C for a joint softmax
    out_bias: np.ndarray  # (C, V); (1, O)
    softcap: float  # 0 for none
    n_components: int
    is_joint: bool


class Memory(NamedTuple):
    """What a `ConvState` remembers, read and written in place."""

    history: np.ndarray  # (M, L, N, W)
    bias: np.ndarray  # (L, P, N, 2W)
    features: np.ndarray  # (N, H)
    open_unit: np.ndarray  # (N, K) int64
    before: np.ndarray  # (N, C) int64


class Lanes(NamedTuple):
    """Rows; those that take their steps side by side are all at the same channel of a place. int64."""

    which: np.ndarray  # (R,) place among the rows of the call
    row: np.ndarray  # (R,) in memory
    clock: np.ndarray  # (R,) ring time of the open place
    start: np.ndarray  # (R,) symbols known of the open unit


class Scratch(NamedTuple):
    """What a step works on; what products are added to is filled up to whole panels."""

    x: np.ndarray  # (R, W)
    taps: np.ndarray  # (R, k * W)
    sums: np.ndarray  # (R, 2W)
    gated: np.ndarray  # (R, W)
    features: np.ndarray  # (R, H)
    hidden: np.ndarray  # (R, H)
    out: np.ndarray  # (R, O)
    masses: np.ndarray  # (m + 1, V)


# ------------------------------------------------------------------------ the loop


@kept
def fill(
    network: Network, readout: Readout, memory: Memory, lanes: Lanes, parts: np.ndarray, noise: np.ndarray,
    temperature: float, drawn: np.ndarray, logits: np.ndarray, n_threads: int,
) -> None:  # fmt: skip
    """Draw the next n symbols of rows. (parts + 1,) where each part begins and the last one ends.

    noise: (R, n, V), empty for none. drawn: (R, n). logits: (R, n, V).
    """
    fill_parts((network, readout, memory, lanes, parts, noise, temperature, drawn, logits), n_threads)


@inner
def fill_lanes(
    network: Network, readout: Readout, memory: Memory, lanes: Lanes, noise: np.ndarray, temperature: float,
    drawn: np.ndarray, logits: np.ndarray,
) -> None:  # fmt: skip
    """The same of rows that take their steps side by side; `noise`, `drawn` and `logits` are those of all rows."""
    n_rows, channels, n_values = len(lanes.row), memory.before.shape[1], logits.shape[2]
    w, n_features = network.table.shape[1], memory.features.shape[1]
    scratch = Scratch(
        np.zeros((n_rows, filled(w)), np.float32),
        np.zeros((n_rows, network.taps.shape[2] - 1), np.float32),
        np.zeros((n_rows, filled(2 * w)), np.float32),
        np.zeros((n_rows, w), np.float32),
        np.zeros((n_rows, filled(n_features)), np.float32),
        np.zeros((n_rows, filled(n_features)), np.float32),
        np.zeros((n_rows, filled(readout.out_bias.shape[1])), np.float32),
        np.empty((readout.n_components + 1, n_values), np.float32),
    )
    for i in range(drawn.shape[1]):
        channel = (lanes.start[0] + i) % channels
        if i == 0 or channel == 0:
            step(network, memory, lanes, scratch, i)
        if readout.n_components:
            read_mixture(readout, memory, lanes, scratch, i, channel, logits)
        elif readout.is_joint:
            read_joint(readout, memory, lanes, scratch, i, channel, logits)
        else:
            read_softmax(readout, memory, lanes, scratch, i, channel, logits)
        for r in range(n_rows):
            which, scores = lanes.which[r], scratch.masses[0]
            copy(scores, logits[which, i])
            if noise.size:
                for v in range(n_values):
                    scores[v] = scores[v] / np.float32(temperature) + noise[which, i, v]
            symbol = first_highest(scores)
            memory.open_unit[lanes.row[r], lanes.start[r] + i] = symbol
            drawn[which, i] = symbol
    for r in range(n_rows):
        copy(memory.features[lanes.row[r]], scratch.features[r, :n_features])


@together
@inner
def fill_parts(
    network: Network, readout: Readout, memory: Memory, lanes: Lanes, parts: np.ndarray, noise: np.ndarray,
    temperature: float, drawn: np.ndarray, logits: np.ndarray, thread: int, n_threads: int, meeting: np.ndarray,
) -> None:  # fmt: skip
    for part in range(thread, len(parts) - 1, n_threads):
        a, b = parts[part], parts[part + 1]
        own = Lanes(lanes.which[a:b], lanes.row[a:b], lanes.clock[a:b], lanes.start[a:b])
        fill_lanes(network, readout, memory, own, noise, temperature, drawn, logits)


@inner
def step(network: Network, memory: Memory, lanes: Lanes, scratch: Scratch, i: int) -> None:
    """Rows' open places, i symbols on: their features, and the layers' inputs for the ring."""
    x, taps, sums, gated, features = scratch.x, scratch.taps, scratch.sums, scratch.gated, scratch.features
    n_layers, n_old, w = network.lags.shape[0], network.lags.shape[1], gated.shape[1]
    channels, mask = memory.before.shape[1], len(memory.history) - 1  # the ring's size is a power of two
    for r in range(len(lanes.row)):
        embed(network, memory, lanes.row[r], (lanes.start[r] + i) // channels, x[r, :w])
        copy(features[r], network.skip_bias[0])
    for layer in range(n_layers):
        for r in range(len(lanes.row)):
            row, place = lanes.row[r], (lanes.start[r] + i) // channels
            clock = lanes.clock[r] + place - lanes.start[r] // channels
            copy(memory.history[clock & mask, layer, row], x[r, :w])
            for tap in range(n_old):
                slot = (clock - network.lags[layer, tap]) & mask
                copy(taps[r, tap * w :], memory.history[slot, layer, row])
            copy(taps[r, n_old * w :], x[r, :w])
            copy(sums[r], memory.bias[layer, place, row])
        add_floats(sums, taps, network.taps[layer])
        for r in range(len(lanes.row)):
            for j in range(w):
                signal = tanh(sums[r, j])
                gated[r, j] = signal + signal * tanh(sums[r, w + j])  # twice the gate, see `ConvState`
        add_floats(features, gated, network.skip[layer])
        if layer < n_layers - 1:
            add_floats(x, gated, network.residual[layer])
    silu(features)
    for number in range(len(network.hidden)):
        for r in range(len(lanes.row)):
            copy(scratch.hidden[r], features[r])
            copy(features[r], network.skip_bias[1 + number])
        add_floats(features, scratch.hidden, network.hidden[number])
        silu(features)


@inner
def embed(network: Network, memory: Memory, row: int, place: int, x: np.ndarray) -> None:
    """What the symbols of the place before say, as the (W,) input of the first layer."""
    channels = memory.before.shape[1]
    n_values = len(network.table) // channels
    for j in range(len(x)):
        x[j] = ZERO
    for c in range(channels):
        symbol = memory.open_unit[row, (place - 1) * channels + c] if place else memory.before[row, c]
        own = network.table[c * n_values + symbol]
        for j in range(len(x)):
            x[j] += own[j]


@inner
def read_softmax(
    readout: Readout, memory: Memory, lanes: Lanes, scratch: Scratch, i: int, channel: int, logits: np.ndarray
) -> None:
    """Logits of a channel of rows' open places, i symbols on."""
    hidden, out, cap = scratch.features, scratch.out, np.float32(readout.softcap)
    if readout.enter.size:
        hidden = scratch.hidden
        for r in range(len(lanes.row)):
            copy(hidden[r], readout.enter_bias[channel])
        add_floats(hidden, scratch.features, readout.enter[channel])
        for r in range(len(lanes.row)):
            first = lanes.start[r] + i - channel
            for c in range(channel):
                own = readout.earlier[channel, c, memory.open_unit[lanes.row[r], first + c]]
                for j in range(len(own)):
                    hidden[r, j] += own[j]
            for j in range(hidden.shape[1]):
                hidden[r, j] = max(hidden[r, j], ZERO)
    for r in range(len(lanes.row)):
        copy(out[r], readout.out_bias[channel])
    add_floats(out, hidden, readout.out[channel])
    for r in range(len(lanes.row)):
        own = logits[lanes.which[r], i]
        for v in range(len(own)):
            own[v] = out[r, v] if cap == ZERO else cap * tanh(out[r, v] / cap)


@inner
def read_joint(
    readout: Readout, memory: Memory, lanes: Lanes, scratch: Scratch, i: int, channel: int, logits: np.ndarray
) -> None:
    """The same of a softmax over all channels together: of those that agree with the earlier ones."""
    n_values = logits.shape[2]
    for r in range(len(lanes.row)):
        copy(scratch.out[r], readout.out_bias[0])
    add_floats(scratch.out, scratch.features, readout.out[0])
    for r in range(len(lanes.row)):
        first, at, n = lanes.start[r] + i - channel, 0, readout.out_bias.shape[1]
        for c in range(channel):
            n //= n_values
            at += memory.open_unit[lanes.row[r], first + c] * n
        n //= n_values
        for v in range(n_values):
            logits[lanes.which[r], i, v] = log_sum(scratch.out[r, at + v * n : at + (v + 1) * n])


@inner
def read_mixture(
    readout: Readout, memory: Memory, lanes: Lanes, scratch: Scratch, i: int, channel: int, logits: np.ndarray
) -> None:
    """The same of a mixture of logistics, as `LogisticMixtureDistribution` has it."""
    n, channels, last = readout.n_components, memory.before.shape[1], logits.shape[2] - 1
    masses, n_out = scratch.masses, readout.out_bias.shape[1]
    for r in range(len(lanes.row)):
        copy(scratch.out[r], readout.out_bias[0])
    add_floats(scratch.out, scratch.features, readout.out[0])
    for r in range(len(lanes.row)):
        first = lanes.start[r] + i - channel
        levels = memory.open_unit[lanes.row[r], first : first + channel]
        parameters = scratch.out[r, :n_out].reshape(-1, n)  # weights, C means, C log-scales, C (C - 1) / 2 couplings
        norm = log_sum(parameters[0])
        for m in range(n):
            joint = parameters[0, m] - norm
            for c in range(channel + 1):
                mean = parameters[1 + c, m]
                for j in range(c):
                    coupling = parameters[1 + 2 * channels + c * (c - 1) // 2 + j, m]
                    mean += tanh(coupling) * centre(levels[j], last)
                mean = min(max(mean, np.float32(-10)), np.float32(10))
                log_scale = min(max(parameters[1 + channels + c, m], np.float32(-7)), np.float32(7))
                precision = np.float32(math.exp(-log_scale))
                log_width = np.float32(math.log(-math.expm1(np.float32(-2 / last) * precision)))
                if c < channel:
                    joint += log_mass(mean, precision, log_width, levels[c], last)
            log_masses(masses[m], mean, precision, log_width, joint)
        log_mixture(logits[lanes.which[r], i], masses)


# ------------------------------------------------------------------------ arithmetic


@scalar
def softplus(x: np.float32) -> np.float32:
    """log(1 + exp(x)); log(1 + e) is 2 artanh(s) with s = e / (2 + e) in [0, 1/3]."""
    e = exp(-abs(x))
    s = e / (TWO + e)
    square, series = s * s, ARTANH[0]
    for coefficient in ARTANH[1:]:
        series = series * square + coefficient
    return max(x, ZERO) + TWO * s * series


@scalar
def centre(level: int, last: int) -> np.float32:
    return np.float32(level) * np.float32(2 / last) - ONE


@scalar
def log_inside(mean: np.float32, precision: np.float32, level: int, last: int) -> np.float32:
    """Log of what a logistic has above a level's lower edge and below its upper one; their product, that is."""
    distance, half = centre(level, last) - mean, np.float32(1 / last)
    return -softplus((distance - half) * precision) - softplus(-(distance + half) * precision)


@inner
def log_mass(mean: np.float32, precision: np.float32, log_width: np.float32, level: int, last: int) -> np.float32:
    """Log of the probability of a level, the outer ones reaching to infinity."""
    distance, half = centre(level, last) - mean, np.float32(1 / last)
    if level == 0:
        return -softplus(-(distance + half) * precision)
    if level == last:
        return -softplus((distance - half) * precision)
    return log_inside(mean, precision, level, last) + log_width


@inner
def log_masses(
    out: np.ndarray, mean: np.float32, precision: np.float32, log_width: np.float32, log_weight: np.float32
) -> None:
    """Log of the joint probability of a component and each of the (V,) levels."""
    last = len(out) - 1
    for level in range(len(out)):
        out[level] = log_weight + log_width + log_inside(mean, precision, level, last)
    for level in (0, last):
        out[level] = log_weight + log_mass(mean, precision, log_width, level, last)


@inner
def log_mixture(out: np.ndarray, masses: np.ndarray) -> None:
    """(m, V) log-probabilities -> (V,), the logs of their sums over components; `masses` has room for V more."""
    n, total = len(masses) - 1, masses[-1]
    for v in range(len(out)):
        out[v], total[v] = masses[0, v], ZERO
    for m in range(1, n):
        for v in range(len(out)):
            out[v] = max(out[v], masses[m, v])
    for m in range(n):
        for v in range(len(out)):
            total[v] += exp(masses[m, v] - out[v])
    for v in range(len(out)):
        out[v] += np.float32(math.log(total[v]))


@inner
def log_sum(x: np.ndarray) -> np.float32:
    """Log of the sum of exp of (m,) numbers."""
    top, total = x[0], ZERO
    for m in range(len(x)):
        top = max(top, x[m])
    for m in range(len(x)):
        total += exp(x[m] - top)
    return top + np.float32(math.log(total))


@inner
def first_highest(x: np.ndarray) -> int:
    """The first place of the largest of (V,) numbers: of their bits, in vectors, as a maximum of numbers is not."""
    best = LOWEST
    for v in range(len(x)):
        best = max(best, in_order(x[v]))
    for v in range(len(x)):
        if in_order(x[v]) == best:
            return v
    return 0


@scalar
def in_order(x: np.float32) -> np.int32:
    """An integer that is larger for larger numbers, and the same for both zeros."""
    bits = np.int32(np.float32(x + ZERO).view(np.int32))
    return bits ^ ((bits >> np.int32(31)) & LARGEST)

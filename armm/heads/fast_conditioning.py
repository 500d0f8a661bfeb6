"""What a convolution head's gates see beside the symbols, in compiled code: contexts of rows as biases of all places.

Of one row there is little to compute, and operators for it take longer to call than to run.
Axes: R rows, D width, P places of a unit, Z conditioning channels, L layers, W residual channels, N stored rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from armm.compiled import copy, inner, kept
from armm.panels import add_floats, filled, multiply_floats, share
from armm.team import meet, together


class Maps(NamedTuple):
    """The matrices, as panels (`armm.panels`)."""

    upsample: np.ndarray  # of (D, P * Z), with their bias
    gates: np.ndarray  # (L, panels of (Z, 2W))
    gate_bias: np.ndarray  # (L, 2W)


@kept
def condition(
    maps: Maps, context: np.ndarray, halo: np.ndarray, rows: np.ndarray, bias: np.ndarray, n_threads: int
) -> None:
    """(R, D) contexts and an (R, P, Z) halo, empty for none, become rows of the (L, P, N, 2W) bias."""
    conditions = np.empty((len(rows), filled(maps.upsample.shape[0] * maps.upsample.shape[2])), np.float32)
    condition_part((maps, context, halo, rows, conditions, bias), n_threads)


@together
@inner
def condition_part(
    maps: Maps, context: np.ndarray, halo: np.ndarray, rows: np.ndarray, conditions: np.ndarray, bias: np.ndarray,
    thread: int, n_threads: int, meeting: np.ndarray,
) -> None:  # fmt: skip
    multiply_floats(maps.upsample.ctypes.data, len(maps.upsample), context, conditions, thread, n_threads)
    meet(meeting, n_threads)
    n_layers, n_places, width = bias.shape[0], bias.shape[1], bias.shape[3]
    z = maps.gates.shape[2] - 1
    sums, x = np.empty((n_places, filled(width)), np.float32), np.empty((n_places, z), np.float32)
    first, last = share(len(rows) * n_layers, thread, n_threads)
    for item in range(first, last):
        r, layer = item // n_layers, item % n_layers
        for p in range(n_places):
            copy(x[p], conditions[r, p * z : (p + 1) * z])
            if halo.size:
                for i in range(z):
                    x[p, i] += halo[r, p, i]
            copy(sums[p], maps.gate_bias[layer])
        add_floats(sums, x, maps.gates[layer])
        for p in range(n_places):
            copy(bias[layer, p, rows[r]], sums[p, :width])

"""The integers of the noise in compiled code, the same as those of `armm.generation.noise` in every bit.

Axes: M symbols, V values of each.
"""

from __future__ import annotations

import numpy as np

from armm.compiled import inner, kept

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
ONE, DROPPED = np.uint64(1), np.uint64(12)


@inner
def mix(x: np.uint64) -> np.uint64:
    """SplitMix64's finaliser."""
    x = (x ^ (x >> np.uint64(30))) * FIRST
    x = (x ^ (x >> np.uint64(27))) * SECOND
    return x ^ (x >> np.uint64(31))


@kept
def uniforms(seed: np.uint64, samples: np.ndarray, positions: np.ndarray, out: np.ndarray) -> None:
    """Fill (M, V) with numbers between 0 and 1, exactly representable, from (M,) uint64 samples and positions."""
    begin = mix(seed + GOLDEN)
    for m in range(len(samples)):
        key = mix(begin ^ ((samples[m] + ONE) * GOLDEN))
        key = mix(key + (positions[m] + ONE) * GOLDEN)
        for v in range(out.shape[1]):
            bits = mix(key + (np.uint64(v) + ONE) * GOLDEN) >> DROPPED
            out[m, v] = (np.float64(bits) + 0.5) * 2.0**-52

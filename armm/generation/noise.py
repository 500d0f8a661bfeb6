"""Noise without a generator: Gumbel noise as a pure function of (seed, sample, position, symbol value).

A sample is `argmax(logits + noise)` (the Gumbel-max trick), so it depends on nothing but the logits: not on the batch,
its order, or what was drawn before. The hash is three rounds of SplitMix64's finaliser (Steele et al. 2014) on 64-bit
integers, the same on every device.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def wrapped(constant: int) -> int:
    """An unsigned 64-bit constant as torch's signed integer."""
    return constant - (1 << 64) if constant >= 1 << 63 else constant


GOLDEN = wrapped(0x9E3779B97F4A7C15)
MIX = (wrapped(0xBF58476D1CE4E5B9), wrapped(0x94D049BB133111EB))


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of int64 that scatters every bit."""
    x = _shifted(x, 30).bitwise_xor_(x).mul_(MIX[0])
    x = _shifted(x, 27).bitwise_xor_(x).mul_(MIX[1])
    return _shifted(x, 31).bitwise_xor_(x)


def gumbel(seed: int, samples: Tensor, positions: Tensor, values: int | Tensor, compiled: bool = False) -> Tensor:
    """Standard Gumbel noise for values that the next symbol can take.

    Args:
        seed: any integer of 64 bits.
        samples: (*) int64, the number of the sample within its request, never its place in a batch.
        positions: (*) int64, of the symbol in its stream.
        values: V for all of [0, V), or (*, C) int64 to ask about some of them.
        compiled: hash in compiled code; the same numbers, a third of the time.

    Returns: (*, V) or (*, C) float32, finite.
    """
    if compiled and isinstance(values, int) and samples.device.type == "cpu":
        uniform = _compiled_uniforms(seed, samples, positions, values)
    else:
        key = mix(torch.full_like(samples, wrapped(seed % (1 << 64))) + GOLDEN)
        key = mix(key ^ (samples + 1) * GOLDEN)
        key = mix(key + (positions + 1) * GOLDEN)
        numbers = torch.arange(values, device=samples.device) if isinstance(values, int) else values
        bits = _shifted(mix(key[..., None] + (numbers + 1) * GOLDEN), 12)  # 52 bits: with the half, never 0 nor 1
        uniform = bits.double().add_(0.5).mul_(2.0**-52)
    return uniform.log_().neg_().log_().float().neg_()


def _compiled_uniforms(seed: int, samples: Tensor, positions: Tensor, n_values: int) -> Tensor:
    from armm.generation.fast_noise import uniforms

    out = np.empty((samples.numel(), n_values))
    flat = [x.flatten().numpy().view(np.uint64) for x in (samples, positions)]
    uniforms(np.uint64(seed % (1 << 64)), *flat, out)
    return torch.from_numpy(out).view(*samples.shape, n_values)

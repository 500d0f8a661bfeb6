"""Dropout (Srivastava et al. 2014), quick on a CPU.

There torch draws a mask a number at a time: 4.7 ms for 400,000 of them, as long as several matrix products. numpy's
SFC64 (pracrand.sourceforge.net) makes the bits in 0.1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

LEVELS = 1 << 16  # the probability is a multiple of one in so many


class Dropout(nn.Dropout):
    """torch's own, with masks from a generator that is seeded by torch's: who sets that or puts it back gets the same
    masks."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        if type(x) is not Tensor or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        return x * mask(x, self.p)


def mask(x: Tensor, p: float) -> Tensor:
    """Of x's shape and type: 0 with probability p, otherwise what keeps the mean."""
    n_dropped = min(round(p * LEVELS), LEVELS - 1)
    generator = np.random.SFC64(int(torch.randint(2**63 - 1, ())))
    words = generator.random_raw(-(-x.numel() // 4)).view(np.uint16)[: x.numel()]
    kept = torch.from_numpy(words >= n_dropped).view(x.shape)
    return kept.to(x.dtype).mul_(LEVELS / (LEVELS - n_dropped))

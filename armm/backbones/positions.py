"""What steps ask about positions, looked up: fewer operations, and the same numbers in every call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from armm.backbones.transformer import TransformerBackbone

BLOCK = 128  # positions whose angles are computed together, so that they are the same however many are known


class Rotations:
    """Cosines and sines of rotary positions."""

    def __init__(self, backbone: TransformerBackbone) -> None:
        self.angles, self.device = backbone.angles, backbone.like.device
        self.table = torch.zeros(2, 0, 0, device=self.device)

    def up_to(self, n: int) -> Tensor:
        """(2, at least n, E / 2), empty for other positions than rotary ones."""
        while self.table.shape[1] < n:
            known = self.table.shape[1]
            starts = range(known, max(n, 2 * known), BLOCK)
            blocks = [self.angles(torch.arange(at, at + BLOCK, device=self.device)) for at in starts]
            if blocks[0] is None:
                break
            more = [torch.stack([own.cos(), own.sin()]) for own in blocks if own is not None]
            self.table = torch.cat([self.table, *more] if known else more, dim=1)
        return self.table


class Visibility:
    """Which of the cached keys a query sees: those before it and its own, as far back as the window reaches.

    Args:
        n: positions of the cache.
    """

    def __init__(self, n: int, window: int | None, like: Tensor) -> None:
        self.n = n
        distance = torch.arange(n - 1, -n - 1, -1, device=like.device)
        hidden = (distance < 0) | (distance >= (window or n))
        self.by_distance = like.new_zeros(2 * n).masked_fill_(hidden, float("-inf"))  # from n - 1 down to -n

    def mask(self, positions: Tensor, keys: slice) -> Tensor:
        """(*) positions of queries -> (*, S), added to the scores of keys: 0 where a query sees one, -inf elsewhere."""
        shifted = self.by_distance.unfold(0, keys.stop - keys.start, 1)  # a window for each distance of the first key
        return shifted[self.n - 1 + keys.start - positions]

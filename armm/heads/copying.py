"""A softmax, or a copy: with some probability a pixel is that of a known neighbour, all its channels at once.

Drawings, tiles and screens have few colours, and a softmax over 256 levels a channel has to learn each of them. Mixing
in copies is the pointer of text models (arXiv:1609.07843) on pixels, and what the colour cache of WebP is for.
Axes: * any leading axes, H features, J neighbours, C channels, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armm.errors import InputError
from armm.heads.cross_entropy import nats_of
from armm.heads.distributions import Distribution, DistributionConfig, SoftmaxDistribution


@dataclass(frozen=True)
class Copying(DistributionConfig):
    """A mixture of a softmax and of copies of the known pixels around; for heads of whole rows.

    Attributes:
        rows: so many rows above may be copied from.
        columns: so many pixels to the left, and in the rows above to either side.
    """

    rows: int = 3
    columns: int = 4

    def __post_init__(self) -> None:
        if self.rows < 0 or self.columns < 1:
            raise InputError(f"rows {self.rows} must be at least 0 and columns {self.columns} at least 1")

    def build(self, width: int, vocab: int, channels: int) -> Distribution:
        left = [(0, x) for x in range(1, self.columns + 1)]
        above = [(y, x) for y in range(1, self.rows + 1) for x in range(-self.columns, self.columns + 1)]
        return CopyingDistribution(width, vocab, channels, [*left, *above])


class CopyingDistribution(Distribution):
    """p(pixel) = w_0 softmax(pixel) + sum over neighbours of w_j [pixel = neighbour j], channel by channel.

    Behind the H features stand the neighbours' symbols, (*, H + J C); V where there is none, which equals nothing.
    """

    def __init__(self, width: int, vocab: int, channels: int, neighbours: list[tuple[int, int]]) -> None:
        super().__init__()
        self.width, self.vocab, self.channels = width, vocab, channels
        self.neighbours = tuple(neighbours)
        self.softmax = SoftmaxDistribution(width, vocab, channels, None)
        self.weights = nn.Linear(width, 1 + len(neighbours))
        nn.init.normal_(self.weights.weight, std=0.02)
        nn.init.zeros_(self.weights.bias)
        with torch.no_grad():  # starts as the softmax, nearly
            self.weights.bias[0] = 4.0

    def _parts(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(*, H) features, (*, J, C) neighbours, (*, 1 + J) float32 log-weights, -inf of those that are not there."""
        told = features[..., self.width :].long().unflatten(-1, (len(self.neighbours), self.channels))
        features = features[..., : self.width]
        weights = self.weights(features).float()
        there = F.pad(told[..., 0] < self.vocab, (1, 0), value=True)
        return features, told, weights.masked_fill(~there, float("-inf")).log_softmax(-1)

    def _further(self, joint: Tensor, told: Tensor, level: Tensor, softmax: Tensor) -> Tensor:
        """(*, 1 + J) joint log-probabilities of component and symbols, with one channel more: its (*) level.

        told: (*, J) the neighbours' levels of that channel. softmax: (*) its log-probability by the softmax.
        """
        copies = torch.where(told == level[..., None], joint[..., 1:], float("-inf"))
        return torch.cat([joint[..., :1] + softmax[..., None], copies], dim=-1)

    def _softmax(self, features: Tensor, symbols: Tensor, channel: int) -> Tensor:
        """(*) log-probability of a channel's level by the softmax."""
        logits = self.softmax.logits(features, symbols[..., :channel])
        nats = nats_of(logits.flatten(0, -2), symbols[..., channel].flatten())
        return -nats.view(symbols.shape[:-1])

    def logits(self, features: Tensor, earlier: Tensor) -> Tensor:
        features, told, joint = self._parts(features)
        channel = earlier.shape[-1]
        for c in range(channel):
            joint = self._further(joint, told[..., c], earlier[..., c], self._softmax(features, earlier, c))
        share = joint.softmax(-1)
        softmax = self.softmax.logits(features, earlier).softmax(-1)
        copies = softmax.new_zeros(*softmax.shape[:-1], self.vocab + 1)  # the last for neighbours that are not there
        copies = copies.scatter_add(-1, told[..., channel], share[..., 1:])
        return (copies[..., :-1] + share[..., :1] * softmax).clamp(min=1e-30).log()

    def log_prob(self, features: Tensor, symbols: Tensor) -> Tensor:
        features, told, joint = self._parts(features)
        before, channels = torch.zeros_like(joint[..., 0]), []
        for c in range(self.channels):
            joint = self._further(joint, told[..., c], symbols[..., c], self._softmax(features, symbols, c))
            total = joint.logsumexp(-1)
            channels.append(total - before)
            before = total
        return torch.stack(channels, dim=-1)

    def set_unigram(self, log_unigram: Tensor) -> None:
        self.softmax.set_unigram(log_unigram)

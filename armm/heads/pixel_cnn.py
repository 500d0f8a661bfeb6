"""PixelCNN (arXiv:1601.06759, 3.3) and Gated PixelCNN (arXiv:1606.05328), over whole rows of an image.

With a mixture of logistics and dropout, the gated one is PixelCNN++ (arXiv:1701.05517) without its down-sampling.
Axes: as in `row_stack`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from armm.dropout import Dropout
from armm.errors import InputError
from armm.heads.distributions import DistributionConfig, Softmax
from armm.heads.halo import PixelEmbedder
from armm.heads.head import Head, HeadConfig, Unit
from armm.heads.row_stack import MaskedConv, OwnRow, RowLayer, RowsAbove, RowStackHead, check_rows, neighbours


@dataclass(frozen=True)
class PixelCNN(HeadConfig):
    """Masked convolutions: a 7×7 one, then residual blocks of 3×3. Pixels above and to the right are its blind spot.

    Attributes:
        channels: h; the residual stream has 2h.
        n_layers: residual blocks.
        first: kernel of the first convolution, odd.
        kernel: of the blocks, odd.
        hidden: of the layer before the distribution; 4h by default.
        dropout: of the blocks' outputs, in training.
        distribution: of a pixel's channels.
    """

    channels: int = 32
    n_layers: int = 5
    first: int = 7
    kernel: int = 3
    hidden: int | None = None
    dropout: float = 0.0
    distribution: DistributionConfig = field(default_factory=Softmax)

    def __post_init__(self) -> None:
        check_sizes(self.channels, self.n_layers, self.dropout, self.first, self.kernel)

    def build(self, width: int, unit: Unit) -> Head:
        check_rows(unit, "PixelCNN")
        stream, h = 2 * self.channels, self.channels
        enter = MaskedConv(PixelEmbedder(unit).width, stream, self.first, strictly=True)
        layers = [MaskedBlock(h, self.kernel, self.dropout) for _ in range(self.n_layers)]
        return RowStackHead(width, unit, enter, layers, stream, self.hidden or 4 * h, self.distribution)


@dataclass(frozen=True)
class GatedPixelCNN(HeadConfig):
    """Two stacks of gated convolutions, over the rows above and along the row, so that there is no blind spot.

    Attributes:
        channels: of each stack.
        n_layers: gated layers.
        first: kernel of the first layer, odd.
        kernel: of the others, odd.
        hidden: of the layer before the distribution; twice `channels` by default.
        dropout: of the gated outputs, in training.
        distribution: of a pixel's channels: a softmax, or a mixture of logistics as in PixelCNN++.
    """

    channels: int = 32
    n_layers: int = 6
    first: int = 7
    kernel: int = 3
    hidden: int | None = None
    dropout: float = 0.0
    distribution: DistributionConfig = field(default_factory=Softmax)

    def __post_init__(self) -> None:
        check_sizes(self.channels, self.n_layers, self.dropout, self.first, self.kernel)

    def build(self, width: int, unit: Unit) -> Head:
        check_rows(unit, "GatedPixelCNN")
        c = self.channels
        enter = TwoStacks(PixelEmbedder(unit).width, c, self.first)
        layers = [GatedLayer(c, self.kernel, self.dropout) for _ in range(self.n_layers)]
        return RowStackHead(width, unit, enter, layers, 2 * c, self.hidden or 2 * c, self.distribution)


def check_sizes(channels: int, n_layers: int, dropout: float, *kernels: int) -> None:
    """Raises InputError: sizes that no stack of layers has."""
    if channels < 1 or n_layers < 1:
        raise InputError(f"channels {channels} and n_layers {n_layers} must be at least 1")
    for kernel in kernels:
        if kernel < 3 or kernel % 2 == 0:
            raise InputError(f"a kernel is {kernel}, it must be odd and at least 3")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout}, it must be at least 0 and less than 1")


class MaskedBlock(RowLayer):
    """x + expand(masked(reduce(x))), each after a rectifier: the residual block of PixelCNN."""

    def __init__(self, h: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Linear(2 * h, h), nn.Linear(h, 2 * h)
        self.conv = MaskedConv(h, h, kernel, strictly=False)
        self.dropout, self.left = Dropout(dropout), self.conv.left

    def _reduced(self, x: Tensor) -> Tensor:
        return F.relu(self.reduce(F.relu(x)))

    def _expanded(self, x: Tensor) -> Tensor:
        return self.dropout(self.expand(F.relu(x)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self._expanded(self.conv(self._reduced(x)))

    def row(self, x: Tensor, above: Tensor) -> Tensor:
        return x + self._expanded(self.conv.row(self._reduced(x), above))

    def leave(self, x: Tensor, above: Tensor) -> Tensor:
        return self.conv.leave(self._reduced(x), above)


class TwoStacks(RowLayer):
    """From pixels to both stacks, side by side: what the rows above say, and what the row says to the left as well."""

    def __init__(self, inputs: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.above = RowsAbove(inputs, channels, kernel // 2, kernel)
        self.own = OwnRow(inputs, channels, kernel // 2, strictly=True)
        self.left = self.above.left

    def forward(self, x: Tensor) -> Tensor:
        vertical = self.above(x)
        return torch.cat([vertical, vertical + self.own(x)], dim=-1)

    def row(self, x: Tensor, above: Tensor) -> Tensor:
        vertical = self.above.row(x, above)
        return torch.cat([vertical, vertical + self.own.row(x, above)], dim=-1)

    def leave(self, x: Tensor, above: Tensor) -> Tensor:
        return self.above.leave(x, above)


def gate(x: Tensor) -> Tensor:
    """tanh of one half of the channels times the sigmoid of the other."""
    signal, opening = x.chunk(2, dim=-1)
    return torch.tanh(signal) * torch.sigmoid(opening)


class GatedLayer(RowLayer):
    """A gated layer of both stacks; the vertical one, which knows rows above only, is heard by the other."""

    def __init__(self, channels: int, kernel: int, dropout: float) -> None:
        super().__init__()
        # rows of the vertical stack know the rows above them, so its own row may be seen whole
        self.vertical = nn.Conv2d(channels, 2 * channels, (kernel // 2 + 1, kernel))
        self.horizontal = OwnRow(channels, 2 * channels, kernel // 2 + 1, strictly=False)
        self.link = nn.Linear(2 * channels, 2 * channels)
        self.out = nn.Linear(channels, channels)
        self.dropout = Dropout(dropout)
        self.rows, self.left = kernel // 2, kernel // 2 * channels

    def _join(self, v: Tensor, h: Tensor, seen: Tensor, along: Tensor) -> Tensor:
        """Both stacks a layer on: `seen` is the vertical convolution, `along` the horizontal one."""
        v = v + self.dropout(gate(seen))
        return torch.cat([v, h + self.out(self.dropout(gate(along + self.link(seen))))], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        v, h = x.chunk(2, dim=-1)
        half = self.vertical.kernel_size[1] // 2
        maps = F.pad(rearrange(v, "s u w c -> s c u w"), (half, half, self.rows, 0))
        seen = rearrange(self.vertical(maps), "s c u w -> s u w c")
        return self._join(v, h, seen, self.horizontal(h))

    def row(self, x: Tensor, above: Tensor) -> Tensor:
        v, h = x.chunk(2, dim=-1)
        rows = torch.cat([rearrange(above, "r w (y c) -> r y w c", y=self.rows), v[:, None]], dim=1)
        known = neighbours(rows, self.vertical.kernel_size[1])
        seen = F.linear(known, self.vertical.weight.flatten(1), self.vertical.bias)
        return self._join(v, h, seen, self.horizontal.row(h, above))

    def leave(self, x: Tensor, above: Tensor) -> Tensor:
        v = x.chunk(2, dim=-1)[0]
        return torch.cat([above[..., v.shape[-1] :], v], dim=-1)

"""PixelRNN (arXiv:1601.06759): the Row LSTM and the Diagonal BiLSTM, over whole rows of an image.

Row LSTM: the states of a row come from those of the row above, all columns at once. Diagonal BiLSTM: one recurrence
from the left and one from the right, each along the diagonals; rows are skewed, so that a diagonal is a column and all
its places are computed at once. What comes from the right is moved down by a row, so that nobody sees what follows.
Axes: as in `row_stack`; h channels of a state, T diagonals.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armm.dropout import Dropout
from armm.heads.distributions import DistributionConfig, Softmax
from armm.heads.halo import PixelEmbedder
from armm.heads.head import Head, HeadConfig, Unit
from armm.heads.pixel_cnn import check_sizes
from armm.heads.row_stack import MaskedConv, OwnRow, RowLayer, RowStackHead, check_rows, neighbours


@dataclass(frozen=True)
class RowLSTM(HeadConfig):
    """A masked 7×7 convolution, then residual LSTM layers that run down the rows.

    Attributes:
        channels: h, of an LSTM's state; the residual stream has 2h.
        n_layers: LSTM layers.
        first: kernel of the first convolution, odd.
        kernel: of the input along the row and of the state above, odd.
        hidden: of the layer before the distribution; 4h by default.
        dropout: of the LSTMs' outputs, in training.
        distribution: of a pixel's channels.
    """

    channels: int = 32
    n_layers: int = 3
    first: int = 7
    kernel: int = 3
    hidden: int | None = None
    dropout: float = 0.0
    distribution: DistributionConfig = field(default_factory=Softmax)

    def __post_init__(self) -> None:
        check_sizes(self.channels, self.n_layers, self.dropout, self.first, self.kernel)

    def build(self, width: int, unit: Unit) -> Head:
        check_rows(unit, "RowLSTM")
        stream, h = 2 * self.channels, self.channels
        enter = MaskedConv(PixelEmbedder(unit).width, stream, self.first, strictly=True)
        layers = [RowLSTMLayer(stream, h, self.kernel, self.dropout) for _ in range(self.n_layers)]
        return RowStackHead(width, unit, enter, layers, stream, self.hidden or 4 * h, self.distribution)


@dataclass(frozen=True)
class DiagonalBiLSTM(HeadConfig):
    """A masked 7×7 convolution, then residual pairs of LSTMs along the diagonals: every pixel sees all before it.

    Attributes:
        channels: h, of an LSTM's state; the residual stream has 2h.
        n_layers: pairs of LSTMs.
        first: kernel of the first convolution, odd.
        hidden: of the layer before the distribution; 4h by default.
        dropout: of the LSTMs' outputs, in training.
        distribution: of a pixel's channels.
    """

    channels: int = 32
    n_layers: int = 3
    first: int = 7
    hidden: int | None = None
    dropout: float = 0.0
    distribution: DistributionConfig = field(default_factory=Softmax)

    def __post_init__(self) -> None:
        check_sizes(self.channels, self.n_layers, self.dropout, self.first)

    def build(self, width: int, unit: Unit) -> Head:
        check_rows(unit, "DiagonalBiLSTM")
        stream, h = 2 * self.channels, self.channels
        enter = MaskedConv(PixelEmbedder(unit).width, stream, self.first, strictly=True)
        layers = [DiagonalLayer(stream, h, self.dropout) for _ in range(self.n_layers)]
        return RowStackHead(width, unit, enter, layers, stream, self.hidden or 4 * h, self.distribution)


def cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """An LSTM's new (*, h) state and memory from its (*, 4h) sums (output, forget, input, content) and old memory."""
    n = c.shape[-1]
    output, forget, enter = gates[..., : 3 * n].sigmoid().chunk(3, dim=-1)
    c = forget * c + enter * torch.tanh(gates[..., 3 * n :])
    return output * torch.tanh(c), c


class RowLSTMLayer(RowLayer):
    """x + W h, h and c of a row from h and c of the row above and from x along the row."""

    def __init__(self, channels: int, h: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.h, self.kernel, self.left = h, kernel, 2 * h
        self.input = OwnRow(channels, 4 * h, kernel // 2 + 1, strictly=False, bias=True)
        self.state = nn.Linear(kernel * h, 4 * h, bias=False)
        self.out = nn.Linear(h, channels)
        self.dropout = Dropout(dropout)

    def _step(self, sums: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
        """(R, W, 4h) from the input, (R, W, 2h) h and c above -> the row's h and c."""
        h, c = above.chunk(2, dim=-1)
        return cell(sums + self.state(neighbours(h[:, None], self.kernel)), c)

    def forward(self, x: Tensor) -> Tensor:
        sums, states = self.input(x), []
        h = c = x.new_zeros(x.shape[0], x.shape[2], self.h)
        for own in sums.unbind(1):  # down the rows
            h, c = self._step(own, torch.cat([h, c], dim=-1))
            states.append(h)
        return x + self.dropout(self.out(torch.stack(states, dim=1)))

    def row(self, x: Tensor, above: Tensor) -> Tensor:
        return x + self.dropout(self.out(self._step(self.input.row(x, above), above)[0]))

    def leave(self, x: Tensor, above: Tensor) -> Tensor:
        return torch.cat(self._step(self.input.row(x, above), above), dim=-1)


def skew(x: Tensor) -> Tensor:
    """(*, U, W, n) -> (*, U, W + U - 1, n), row u moved right by u, zeros elsewhere."""
    *_, n_rows, width, _ = x.shape
    flat = F.pad(x, (0, 0, 0, n_rows)).flatten(-3, -2)
    return flat[..., : n_rows * (width + n_rows - 1), :].unflatten(-2, (n_rows, width + n_rows - 1))


def unskew(x: Tensor) -> Tensor:
    """The inverse of `skew`."""
    *_, n_rows, diagonals, _ = x.shape
    width = diagonals - n_rows + 1
    return F.pad(x.flatten(-3, -2), (0, 0, 0, n_rows)).unflatten(-2, (n_rows, width + n_rows))[..., :width, :]


class DiagonalLayer(RowLayer):
    """x + W [h from the left, h from the right and a row above]."""

    def __init__(self, channels: int, h: int, dropout: float) -> None:
        super().__init__()
        self.h, self.left = h, 2 * h  # of a row the next one needs both directions' h
        self.input = nn.Linear(channels, 2 * 4 * h)
        # by direction: h of the place above, then of the place before
        self.state = nn.Parameter(torch.randn(2, 2 * h, 4 * h) * (2 * h) ** -0.5)
        self.out = nn.Linear(2 * h, channels)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        n_segments, n_rows, _, _ = x.shape
        left, right = self.input(x).chunk(2, dim=-1)
        sums = skew(torch.stack([left, right.flip(2)]))  # (2, S, U, T, 4h)
        begun = x.new_ones(n_rows, sums.shape[3]).triu()[:, :, None]  # row u begins at diagonal u
        h = c = x.new_zeros(2, n_segments, n_rows, self.h)
        states = []
        for t, own in enumerate(sums.unbind(3)):
            known = torch.cat([F.pad(h[:, :, :-1], (0, 0, 1, 0)), h], dim=-1)  # above and before, in skewed rows
            moved = torch.bmm(known.flatten(1, 2), self.state).view(own.shape)
            h, c = cell(own + moved, c)
            h, c = h * begun[:, t], c * begun[:, t]  # what lies left of the image is zero
            states.append(h)
        left, right = unskew(torch.stack(states, dim=3)).unbind(0)
        right = F.pad(right.flip(2)[:, :-1], (0, 0, 0, 0, 1, 0))  # a row down
        return x + self._join(left, right)

    def _join(self, left: Tensor, right: Tensor) -> Tensor:
        return self.dropout(self.out(torch.cat([left, right], dim=-1)))

    def _along(self, sums: Tensor, above: Tensor, direction: int) -> Tensor:
        """One direction through one row: (R, W, 4h) from the input, (R, W, h) h above -> (R, W, h)."""
        n = self.h
        sums = sums + above @ self.state[direction, :n]
        h = c = above.new_zeros(len(above), n)
        states = []
        for own in sums.unbind(1):
            h, c = cell(torch.addmm(own, h, self.state[direction, n:]), c)
            states.append(h)
        return torch.stack(states, dim=1)

    def row(self, x: Tensor, above: Tensor) -> Tensor:
        n = 4 * self.h
        sums = F.linear(x, self.input.weight[:n], self.input.bias[:n])
        left_above, right_above = above.chunk(2, dim=-1)
        return x + self._join(self._along(sums, left_above, 0), right_above)

    def leave(self, x: Tensor, above: Tensor) -> Tensor:
        left_above, right_above = above.chunk(2, dim=-1)
        left, right = self.input(x).chunk(2, dim=-1)
        right = self._along(right.flip(1), right_above.flip(1), 1).flip(1)
        return torch.cat([self._along(left, left_above, 0), right], dim=-1)

"""Heads of images that code row by row with a state: PixelCNN, Gated PixelCNN and the PixelRNNs (arXiv:1601.06759).

A stack of layers, each of which knows the rows above whole and of its own row what lies to the left. In parallel a
layer sees all rows at once; step by step it sees the open row, and beside it what the row above has left for it.
Axes: S segments, R rows of a state, U units (rows of the image), W pixels of a row, C channels of a pixel, K = W C
symbols, I and O channels of features, A of what a row leaves, H of the last features, V vocabulary, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from armm.errors import InputError
from armm.heads.distributions import DistributionConfig
from armm.heads.halo import PixelEmbedder
from armm.heads.head import Head, HeadState, Unit
from armm.heads.row_state import RowState


class RowLayer(nn.Module, ABC):
    """Features from features: place x of row y is a function of all rows above y, and of row y up to and with x.

    Attributes:
        left: A, channels of what a row leaves to the one below; zeros stand above the first.
    """

    left: int

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(S, U, W, I) -> (S, U, W, O), all rows at once."""

    @abstractmethod
    def row(self, x: Tensor, above: Tensor) -> Tensor:
        """(R, W, I) of one row and (R, W, A) from the row above -> (R, W, O)."""

    @abstractmethod
    def leave(self, x: Tensor, above: Tensor) -> Tensor:
        """(R, W, I) of a whole row and (R, W, A) from the row above -> (R, W, A) for the row below."""


def neighbours(x: Tensor, columns: int) -> Tensor:
    """(R, rows, W, I) -> (R, W, I * rows * columns): every place's neighbours, in the order of a conv's weight."""
    half = columns // 2
    windows = F.pad(x, (0, 0, half, half)).unfold(2, columns, 1)  # (R, rows, W, I, columns)
    return rearrange(windows, "r y w i x -> r w (i y x)")


def to_the_left(x: Tensor, places: int, strictly: bool) -> Tensor:
    """(R, W, I) -> (R, W, I * places): each place and those to its left, or only the latter, in a weight's order."""
    padded = F.pad(x, (0, 0, places - (not strictly), 0))[:, : x.shape[1] + places - 1]
    return rearrange(padded.unfold(1, places, 1), "r w i x -> r w (i x)")


class RowsAbove(RowLayer):
    """A convolution over so many rows above, `columns` wide, none of it masked."""

    def __init__(self, inputs: int, outputs: int, rows: int, columns: int) -> None:
        super().__init__()
        self.conv, self.rows = nn.Conv2d(inputs, outputs, (rows, columns)), rows
        self.left = rows * inputs

    def forward(self, x: Tensor) -> Tensor:
        half = self.conv.kernel_size[1] // 2
        maps = rearrange(x[:, :-1], "s u w i -> s i u w")
        return rearrange(self.conv(F.pad(maps, (half, half, self.rows, 0))), "s o u w -> s u w o")

    def row(self, x: Tensor, above: Tensor) -> Tensor:
        rows = rearrange(above, "r w (y i) -> r y w i", y=self.rows)
        return F.linear(neighbours(rows, self.conv.kernel_size[1]), self.conv.weight.flatten(1), self.conv.bias)

    def leave(self, x: Tensor, above: Tensor) -> Tensor:
        return torch.cat([above[..., x.shape[-1] :], x], dim=-1)


class OwnRow(RowLayer):
    """A convolution over the place itself and those to its left; strictly (mask A): over the latter only."""

    def __init__(self, inputs: int, outputs: int, places: int, strictly: bool, bias: bool = False) -> None:
        super().__init__()
        self.conv, self.strictly, self.left = nn.Conv2d(inputs, outputs, (1, places), bias=bias), strictly, 0

    def forward(self, x: Tensor) -> Tensor:
        return self.row(x.flatten(0, 1), x).unflatten(0, x.shape[:2])

    def row(self, x: Tensor, above: Tensor) -> Tensor:
        places = self.conv.kernel_size[1]
        return F.linear(to_the_left(x, places, self.strictly), self.conv.weight.flatten(1), self.conv.bias)

    def leave(self, x: Tensor, above: Tensor) -> Tensor:
        return above


class MaskedConv(RowLayer):
    """The masked convolution of PixelCNN: rows above whole, the own row to the left (mask A) and the place too (B)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, strictly: bool) -> None:
        super().__init__()
        self.above = RowsAbove(inputs, outputs, kernel // 2, kernel)
        self.own = OwnRow(inputs, outputs, kernel // 2 + (not strictly), strictly)
        self.left = self.above.left

    def forward(self, x: Tensor) -> Tensor:
        return self.above(x) + self.own(x)

    def row(self, x: Tensor, above: Tensor) -> Tensor:
        return self.above.row(x, above) + self.own.row(x, above)

    def leave(self, x: Tensor, above: Tensor) -> Tensor:
        return self.above.leave(x, above)


class RowStackHead(Head):
    """Embedded pixels, a first layer that does not see its own place, more layers, two layers at each place.

    Args:
        enter: the first layer, from `PixelEmbedder(unit).width` channels; blind to its own place.
        layers: from and to `channels`.
        n_features: H, of the hidden layer before the distribution.
    """

    def __init__(
        self,
        width: int,
        unit: Unit,
        enter: RowLayer,
        layers: Sequence[RowLayer],
        channels: int,
        n_features: int,
        distribution: DistributionConfig,
    ) -> None:
        super().__init__()
        self.unit, self.channels = unit, channels
        self.embed = PixelEmbedder(unit)
        self.upsample = nn.Linear(width, unit.places * channels)
        nn.init.zeros_(self.upsample.weight)  # starts unconditional
        nn.init.zeros_(self.upsample.bias)
        self.enter, self.layers = enter, nn.ModuleList(layers)
        self.read = nn.Linear(channels, n_features)
        self.distribution = distribution.build(n_features, unit.vocab, unit.channels)
        self.neighbours = self.distribution.neighbours
        self.n_rows_told = max((y for y, _ in self.neighbours), default=0)

    # ------------------------------------------------------- pieces of both views

    @property
    def stack(self) -> list[RowLayer]:
        """The first layer and the others."""
        return [self.enter, *self.layers]  # type: ignore[list-item]

    @property
    def n_features(self) -> int:
        """H, with what the distribution is told of neighbours."""
        return self.read.out_features + len(self.neighbours) * self.unit.channels

    @property
    def left(self) -> list[int]:
        """What a row leaves to the one below: of each layer, and of symbols that the distribution is told."""
        return [*(layer.left for layer in self.stack), self.n_rows_told * self.unit.channels]

    def pixels(self, symbols: Tensor) -> Tensor:
        """(*, K) symbols -> (*, W, E) embedded pixels."""
        pixels = symbols.unflatten(-1, (-1, self.unit.channels))
        return self.embed(pixels, torch.ones_like(pixels[..., 0], dtype=torch.bool))

    def conditioning(self, context: Tensor) -> Tensor:
        """(*, D) contexts -> (*, W, I), added to the first layer's output."""
        return self.upsample(context).unflatten(-1, (self.unit.places, self.channels))

    def features(self, x: Tensor, symbols: Tensor, above: Tensor) -> Tensor:
        """(R, W, I), the row's (R, K) symbols and (R, W, rows C) of `symbols_above` -> (R, W, H)."""
        features = F.relu(self.read(F.relu(x)))
        if not self.neighbours:
            return features
        vocab, width = self.unit.vocab, self.unit.places
        own = vocab - symbols.unflatten(-1, (-1, self.unit.channels))
        rows = torch.cat([rearrange(above, "r w (y c) -> r y w c", y=self.n_rows_told), own[:, None]], dim=1)
        reach = max(abs(x) for _, x in self.neighbours)
        rows = F.pad(rows, (0, 0, reach, reach))  # 0, and so V, outside
        told = [rows[:, -1 - y, reach - x : reach - x + width] for y, x in self.neighbours]
        return torch.cat([features, vocab - torch.cat(told, dim=-1)], dim=-1)

    def symbols_above(self, symbols: Tensor) -> Tensor:
        """(S, U, K) -> (S, U, W, rows C) V less the symbols of the rows above each, oldest first; 0 outside."""
        own = (self.unit.vocab - symbols.unflatten(-1, (-1, self.unit.channels))).float()
        n = self.n_rows_told
        rows = [F.pad(own[:, : -1 - i], (0, 0, 0, 0, i + 1, 0))[:, : own.shape[1]] for i in range(n)][::-1]
        return torch.cat(rows, dim=-1) if rows else own[..., :0]

    def parallel(self, context: Tensor, symbols: Tensor) -> Tensor:
        """(S, U, W, H) features of every place from the symbols before it."""
        x = self.enter(self.pixels(symbols)) + self.conditioning(context)
        for layer in self.layers:
            x = layer(x)
        flat = [t.flatten(0, 1) for t in (x, symbols, self.symbols_above(symbols))]
        return self.features(*flat).unflatten(0, x.shape[:2])

    def row(self, symbols: Tensor, condition: Tensor, above: list[Tensor]) -> Tensor:
        """(R, W, H) features of one row's places from its (R, K) symbols, (R, W, I) condition and the row above."""
        x = self.pixels(symbols)
        for number, (layer, left) in enumerate(zip(self.stack, above[:-1], strict=True)):
            x = layer.row(x, left)
            x = x + condition if number == 0 else x
        return self.features(x, symbols, above[-1])

    def leave(self, symbols: Tensor, condition: Tensor, above: list[Tensor]) -> list[Tensor]:
        """What a whole row leaves to the one below, of every layer."""
        x, below = self.pixels(symbols), []
        for number, (layer, left) in enumerate(zip(self.stack, above[:-1], strict=True)):
            below.append(layer.leave(x, left))
            if number < len(self.layers):
                x = layer.row(x, left)
                x = x + condition if number == 0 else x
        if not self.n_rows_told:
            return [*below, above[-1]]
        own = self.unit.vocab - symbols.unflatten(-1, (-1, self.unit.channels))
        return [*below, torch.cat([above[-1][..., own.shape[-1] :], own.to(above[-1])], dim=-1)]

    # ------------------------------------------------------------- the contract

    def logits(self, context: Tensor, symbols: Tensor, known: Tensor, header: Tensor) -> Tensor:
        features = self.parallel(context, symbols)
        inside = symbols.clamp(max=self.unit.vocab - 1).unflatten(-1, (-1, self.unit.channels))
        channels = [self.distribution.logits(features, inside[..., :c]) for c in range(self.unit.channels)]
        return torch.stack(channels, dim=-2).flatten(-3, -2)

    def log_prob(
        self, context: Tensor, symbols: Tensor, known: Tensor, header: Tensor, read: Tensor | None = None
    ) -> Tensor:
        features = self.parallel(context, symbols if read is None else read)
        inside = symbols.clamp(max=self.unit.vocab - 1).unflatten(-1, (-1, self.unit.channels))
        return torch.where(known, self.distribution.log_prob(features, inside).flatten(-2), 0.0)

    def state(self, n_rows: int, min_rows: int = 1) -> HeadState:
        return RowState(self, n_rows, min_rows)

    def hidden_matrices(self) -> list[nn.Parameter]:
        own = [parameter for layer in self.layers for parameter in layer.parameters() if parameter.dim() > 1]
        return [*own, self.upsample.weight, self.read.weight]  # type: ignore[list-item]

    def set_unigram(self, log_unigram: Tensor) -> None:
        self.distribution.set_unigram(log_unigram)


def check_rows(unit: Unit, name: str) -> None:
    """Raises InputError: the units are not whole rows of an image."""
    if unit.block is None or not unit.whole_rows:
        raise InputError(
            f"the {name} head codes whole rows of images of one size; leave the image's block out and set its size, or "
            "use armm.heads.CausalConv"
        )

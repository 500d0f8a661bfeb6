"""Tiny modalities with every feature that the core knows: what the unit tests build their models from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from armm.embedders import UnitEmbedder
from armm.heads import CausalConv, HeadConfig, Unit
from armm.modality import Modality
from armm.sequence import Segment


def segment_of(name: str, symbols: Sequence[int], k: int, header: tuple[int, ...] = ()) -> Segment:
    """Symbols as a segment whose last unit may be partial."""
    n_units = -(-len(symbols) // k)
    units = torch.zeros(n_units * k, dtype=torch.int64)
    units[: len(symbols)] = torch.tensor(symbols, dtype=torch.int64)
    return Segment(name, units.view(n_units, k), len(symbols), header)


TIME = CausalConv(channels=4, kernel=2, dilations=(1, 4))
PIXELS = CausalConv(channels=4, kernel=2, dilations=(1, 2))


@dataclass(frozen=True)
class Letters(Modality):
    """One symbol per unit. With `ended` the length is coded, otherwise a segment runs on as long as anyone wants."""

    vocab: int = 6
    ended: bool = True
    max_units: int | None = None
    head: HeadConfig | None = None
    name: str = "letters"

    def encode(self, raw: Sequence[int]) -> Segment:
        return segment_of(self.name, raw, 1)

    def decode(self, segment: Segment) -> list[int]:
        return segment.flat().tolist()


@dataclass(frozen=True)
class Clip(Modality):
    """Frames of several samples, the last one partial, whose head runs on across their borders."""

    vocab: int = 5
    unit_symbols: int = 3
    ended: bool = True
    max_units: int | None = None
    head: HeadConfig | None = TIME
    name: str = "clip"

    def encode(self, raw: Sequence[int]) -> Segment:
        return segment_of(self.name, raw, self.unit_symbols)

    def decode(self, segment: Segment) -> list[int]:
        return segment.flat().tolist()


@dataclass(frozen=True)
class Picture(Modality):
    """An image in blocks; where `sizes_differ`, its rows and columns of units, up to those of `size`, are coded."""

    size: tuple[int, int] = (4, 4)
    block: tuple[int, int] = (1, 4)
    symbol_channels: int = 1
    vocab: int = 5
    sizes_differ: bool = False
    head: HeadConfig | None = PIXELS
    name: str = "picture"

    @property
    def unit_symbols(self) -> int:
        return prod(self.block) * self.symbol_channels

    @property
    def grid(self) -> tuple[int, int]:
        return self.size[0] // self.block[0], self.size[1] // self.block[1]

    @property
    def header_sizes(self) -> tuple[int, ...]:
        return self.grid if self.sizes_differ else ()

    def header(self, coded: tuple[int, ...]) -> tuple[int, ...]:
        return (coded[0] + 1, coded[1] + 1) if self.sizes_differ else self.grid

    def coded_header(self, header: tuple[int, ...]) -> tuple[int, ...]:
        return (header[0] - 1, header[1] - 1) if self.sizes_differ else ()

    def n_units(self, header: tuple[int, ...]) -> int:
        return header[0] * header[1]

    @property
    def unit(self) -> Unit:
        whole_rows = self.block == (1, self.size[1]) and not self.sizes_differ
        values = torch.linspace(-1, 1, self.vocab)[:, None]
        return Unit(self.vocab, self.unit_symbols, self.symbol_channels, False, self.block, whole_rows, values)

    def build_embedder(self, width: int) -> nn.Module:
        return UnitEmbedder(self.vocab, self.unit_symbols, width, 4, grid=self.grid)

    def encode(self, raw: Tensor) -> Segment:
        """(units, K) symbols, for pictures of the largest size."""
        return Segment(self.name, raw, None, self.grid)

    def decode(self, segment: Segment) -> Tensor:
        return segment.symbols


def hash_parameters(module: nn.Module, scale: float = 1.0, seed: int = 0) -> None:
    """Overwrite every parameter by an integer hash of its place: the same on every machine and version of torch."""
    for number, parameter in enumerate(module.parameters()):
        x = torch.arange(parameter.numel(), dtype=torch.int64) + 1_000_003 * (number + 1) + 7_368_787 * seed
        for _ in range(3):
            x = ((x ^ (x >> 13)) * 0x45D9F3B) % (1 << 31)
        uniform = x.double() / (1 << 30) - 1
        width = parameter.shape[-1] if parameter.dim() > 1 else 4
        if parameter.dim() == 4:  # of a convolution; larger weights would saturate the gates and hide what they hear
            width = parameter[0].numel()
        with torch.no_grad():
            parameter.copy_((uniform * scale * (3 / width) ** 0.5).view(parameter.shape))


def hash_symbols(n: int, vocab: int, seed: int = 0) -> list[int]:
    """n symbols below `vocab` by an integer hash."""
    x = torch.arange(n, dtype=torch.int64) + 15_485_863 * (seed + 1)
    for _ in range(3):
        x = ((x ^ (x >> 13)) * 0x45D9F3B) % (1 << 31)
    return ((x >> 8) % vocab).tolist()

"""Units into vectors: one table row for a token, small concatenated embeddings and one matrix for more symbols.

Sound that is only listened to is told by its spectrum better than sample by sample: `SpectrumEmbedder`.

Concatenated small embeddings, not their mean, keep what stands where. The extra row `vocab` of every
table is "unknown".
Axes: M units, K symbols, F header fields.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class TokenEmbedder(nn.Module):
    """One symbol per unit: a table."""

    def __init__(self, vocab: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocab + 1, width) * width**-0.5)

    def forward(self, symbols: Tensor, index: Tensor, header: Tensor) -> Tensor:
        """(M, 1) symbols -> (M, width)."""
        return F.embedding(symbols[:, 0], self.weight)


class PixelFeatures(nn.Module):
    """A convolution over the pixels of a unit, five wide: edges are learned once, not at every place anew.

    Args:
        n_features: of a pixel, all its channels.
        channels: of the result.
        block: (height, width) of the unit.
    """

    def __init__(self, n_features: int, channels: int, block: tuple[int, int]) -> None:
        super().__init__()
        self.block = block
        kernel = (5 if block[0] > 1 else 1, 5 if block[1] > 1 else 1)
        self.convolution = nn.Conv2d(n_features, channels, kernel, padding="same")

    def forward(self, symbols: Tensor) -> Tensor:
        """(M, K, e) embedded symbols -> (M, places * channels)."""
        pixels = rearrange(symbols, "m (h w c) e -> m (c e) h w", h=self.block[0], w=self.block[1])
        return rearrange(F.silu(self.convolution(pixels)), "m f h w -> m (h w f)")


class UnitEmbedder(nn.Module):
    """Several symbols per unit.

    Args:
        vocab, symbols: V and K.
        width: of the result.
        symbol_width: of each symbol's own embedding.
        values: (V, n) what a symbol means as numbers; stands beside its embedding.
        grid: (rows, columns) at most, for units that lie on a grid whose header is (rows, columns): learned axial
            embeddings of a unit's row and column are added (Image Transformer, arXiv:1802.05751).
        block: (height, width) of a unit in pixels, with `channels`: `PixelFeatures` in place of the pixels.
    """

    values: Tensor

    def __init__(
        self,
        vocab: int,
        symbols: int,
        width: int,
        symbol_width: int = 16,
        values: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        block: tuple[int, int] | None = None,
        channels: int = 0,
    ) -> None:
        super().__init__()
        values = torch.zeros(vocab, 0) if values is None else values
        self.register_buffer("values", torch.cat([values, values.new_zeros(1, values.shape[1])]), persistent=False)
        n_features = symbol_width + values.shape[1]
        self.symbol = nn.Parameter(torch.randn(vocab + 1, symbol_width))
        self.features: PixelFeatures | None = None
        n_inputs = symbols * n_features
        if block and channels:
            n_places = block[0] * block[1]
            self.features = PixelFeatures(n_inputs // n_places, channels, block)
            n_inputs = n_places * channels
        self.project = nn.Linear(n_inputs, width, bias=False)
        self.grid = grid
        if grid:
            self.row = nn.Parameter(torch.randn(grid[0], width) * 0.1)
            self.column = nn.Parameter(torch.randn(grid[1], width) * 0.1)

    def forward(self, symbols: Tensor, index: Tensor, header: Tensor) -> Tensor:
        """(M, K) symbols, (M,) index of each unit in its segment, (M, F) header -> (M, width)."""
        embedded = torch.cat([self.symbol, self.values], dim=1)[symbols]  # (M, K, e)
        vectors = self.project(self.features(embedded) if self.features else embedded.flatten(1))
        if self.grid:
            n_columns = header[:, 1]
            vectors = vectors + self.row[index // n_columns] + self.column[index % n_columns]
        return vectors


class SpectrumEmbedder(nn.Module):
    """Frames of samples by their short-time power spectrum on the mel scale, two halves of a frame and its whole.

    The scale is that of O'Shaughnessy (Speech Communication, 1987), `2595 log10(1 + f / 700)`, its triangles those of
    Davis and Mermelstein (1980). Logarithms are of the energy plus a floor, so that silence is a number.

    Args:
        amplitudes: (V,) of the symbols. sample_rate: in Hz.
        width: of the result. n_bands: of each window.
    """

    amplitudes: Tensor

    def __init__(self, amplitudes: Tensor, symbols: int, sample_rate: int, width: int, n_bands: int = 24) -> None:
        super().__init__()
        self.register_buffer("amplitudes", torch.cat([amplitudes, amplitudes.new_zeros(1)]), persistent=False)
        half = symbols // 2
        self.spans = [(0, symbols), (0, half), (half, 2 * half)] if half >= 8 else [(0, symbols)]
        for number, (first, last) in enumerate(self.spans):
            window = torch.hann_window(last - first + 2, periodic=False)[1:-1] if last - first > 1 else torch.ones(1)
            bands = mel_bands(last - first, sample_rate, n_bands)
            self.register_buffer(f"window{number}", window, persistent=False)
            self.register_buffer(f"bands{number}", bands, persistent=False)
        self.norm = nn.LayerNorm(len(self.spans) * n_bands)
        self.project = nn.Linear(len(self.spans) * n_bands, width)

    def forward(self, symbols: Tensor, index: Tensor, header: Tensor) -> Tensor:
        """(M, K) symbols -> (M, width)."""
        samples = self.amplitudes[symbols].float()  # a Fourier transform has no lower precision
        energies = []
        for number, (first, last) in enumerate(self.spans):
            window, bands = self.get_buffer(f"window{number}"), self.get_buffer(f"bands{number}")
            spectrum = torch.fft.rfft(samples[:, first:last] * window.float())
            energies.append((spectrum.real.square() + spectrum.imag.square()) @ bands.float())
        features = torch.cat(energies, dim=1).add(FLOOR).log()
        return self.project(self.norm(features.to(self.norm.weight.dtype)))


FLOOR = 1e-4  # energy of a band, of samples in [-1, 1]; quiet speech is above it


def mel_bands(n: int, sample_rate: int, n_bands: int) -> Tensor:
    """(n // 2 + 1, n_bands) weights of the frequencies of a real Fourier transform of n samples, in triangles."""
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, n_bands + 2) / 2595) - 1)
    frequencies = torch.linspace(0, sample_rate / 2, n // 2 + 1)[:, None]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    weights = torch.minimum(rising, falling).clamp(min=0)
    # a band narrower than the step of frequencies takes the nearest of them
    nearest = (frequencies - middle).abs().argmin(dim=0)
    weights[nearest, torch.arange(n_bands)] = weights[nearest, torch.arange(n_bands)].clamp(min=1e-3)
    return weights / weights.sum(0, keepdim=True)

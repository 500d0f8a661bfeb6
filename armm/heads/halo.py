"""The halo: an ordinary 2-D convolution over the pixels already known around a unit.

It is the vertical stack of a Gated PixelCNN (arXiv:1606.05328), so there is no blind spot. It reads pixels, not
states: for the next unit it is computed from the last few known rows, and nothing has to be cached.
Axes: S segments, U units, K symbols, P places (pixels) of a unit, C channels, W pixels of a row, Z halo channels,
F header fields.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from armm.heads.head import Unit

SYMBOL_WIDTH = 8  # of a level's embedding; wide enough for 256 ordered levels


class PixelEmbedder(nn.Module):
    """Levels of a pixel's channels as one vector, with a last entry of 1 that marks the inside of the image."""

    values: Tensor

    def __init__(self, unit: Unit) -> None:
        super().__init__()
        values = torch.zeros(unit.vocab, 0) if unit.values is None else unit.values
        self.register_buffer("values", F.pad(values, (0, 0, 0, 1)), persistent=False)
        self.symbol = nn.Parameter(torch.randn(unit.vocab + 1, SYMBOL_WIDTH))
        self.width = unit.channels * (SYMBOL_WIDTH + values.shape[1]) + 1

    def forward(self, pixels: Tensor, inside: Tensor | None) -> Tensor:
        """(*, C) pixels, (*,) bool -> (*, width), zero where not inside; None for all inside."""
        features = F.embedding(pixels, torch.cat([self.symbol, self.values], dim=1)).flatten(-2)
        features = F.pad(features, (0, 1), value=1.0)
        return features if inside is None else features * inside[..., None]


class RowHalo(nn.Module):
    """For units that are whole rows: everything above is known, and one pass serves all rows.

    A (rows x 5) convolution over the rows above, then residual (2 x 3) convolutions that see the row above and the own
    row of features, which know only rows above. In a clip, what stood near the same place in earlier frames is added.
    """

    def __init__(self, unit: Unit, channels: int, rows: int, n_layers: int) -> None:
        super().__init__()
        self.unit, self.rows = unit, rows
        self.embed = PixelEmbedder(unit)
        self.enter = nn.Conv2d(self.embed.width, channels, (rows, 5), padding=(0, 2))
        self.past = FramesBefore(self.embed.width, channels, unit.frame_rows) if unit.frame_rows else None
        self.reach = (self.past.reach if self.past else rows) + n_layers
        self.layers = nn.ModuleList(nn.Conv2d(channels, channels, (2, 3), padding=(0, 1)) for _ in range(n_layers))

    def _stack(self, pixels: Tensor, inside: Tensor | None) -> Tensor:
        """(S, U, W, C) pixels, (S, U) bool or None for all -> (S, U, W, Z); row u sees rows before u."""
        shown = None if inside is None else inside[..., None].expand(pixels.shape[:-1])
        x = rearrange(self.embed(pixels, shown), "s u w e -> s e u w")
        above = self.enter(F.pad(x[:, :, :-1], (0, 0, self.rows, 0)))
        x = above if self.past is None else above + self.past(x)
        x = x if inside is None else x * inside[:, None, :, None]
        for layer in self.layers:
            x = x + layer(F.pad(F.silu(x), (0, 0, 1, 0)))
            x = x if inside is None else x * inside[:, None, :, None]
        return rearrange(x, "s z u w -> s u w z")

    def forward(self, symbols: Tensor, header: Tensor) -> Tensor:
        """(S, U, K) symbols -> (S, U, P, Z) for every unit."""
        pixels = rearrange(symbols, "s u (w c) -> s u w c", c=self.unit.channels)
        return self._stack(pixels, None)

    def at(self, symbols: Tensor, index: Tensor, header: Tensor) -> Tensor:
        """(S, U, K) symbols, (S,) which unit -> (S, P, Z) for that unit, from the rows within reach alone."""
        rows = index[:, None] + torch.arange(-self.reach, 1, device=index.device)
        near = symbols.gather(
            1, rows.clamp(min=0, max=symbols.shape[1] - 1)[..., None].expand(-1, -1, symbols.shape[2])
        )
        pixels = rearrange(near, "s u (w c) -> s u w c", c=self.unit.channels)
        return self._stack(pixels, rows >= 0)[:, -1]


class FramesBefore(nn.Module):
    """Around the same place in each of the two frames before: where things are, and how they move.

    A (5 x 5) convolution over both, then residual (3 x 3) ones. In those frames rows below the own one are known too,
    as many as a frame has.
    """

    def __init__(self, n_features: int, channels: int, frame_rows: int) -> None:
        super().__init__()
        self.frame_rows, self.below = frame_rows, min(2, frame_rows - 1)
        n_layers = min(2, frame_rows - 1 - self.below)
        self.reach = 2 * frame_rows + 2 + n_layers
        self.enter = nn.Conv2d(2 * n_features, channels, (3 + self.below, 5), padding=(0, 2))
        self.layers = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=(0, 1)) for _ in range(n_layers))

    def forward(self, x: Tensor) -> Tensor:
        """(S, e, U, W) features of all rows -> (S, Z, U, W); row u sees rows before u, zeros before the first."""
        n, n_rows = len(self.layers), x.shape[2]
        known = F.pad(x, (0, 0, self.reach, 0))
        size = n_rows + 2 * n + 2 + self.below  # rows that the convolutions use up, n of them on either side
        first = [self.reach - shift * self.frame_rows - 2 - n for shift in (1, 2)]
        p = self.enter(torch.cat([known[:, :, at : at + size] for at in first], dim=1))
        for layer in self.layers:
            p = p[:, :, 1:-1] + layer(F.silu(p))
        return p


class BlockHalo(nn.Module):
    """For any other block: a window of `border` pixels above, left and right, masked to what earlier units tell."""

    def __init__(self, unit: Unit, channels: int, border: int, n_layers: int) -> None:
        super().__init__()
        assert unit.block is not None
        self.unit, self.border = unit, border
        self.embed = PixelEmbedder(unit)
        self.enter = nn.Conv2d(self.embed.width, channels, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(n_layers))

    def _windows(self, symbols: Tensor, index: Tensor, header: Tensor) -> Tensor:
        """(S, U, K) symbols, (S, n) units -> (S, n, P, Z)."""
        height, width = self.unit.block or (1, 1)
        pixels = rearrange(symbols, "s u (p c) -> s (u p) c", c=self.unit.channels)
        columns = header[:, 1, None, None, None]
        unit = index[:, :, None, None]
        dy = torch.arange(-self.border, height, device=symbols.device)[:, None]
        dx = torch.arange(-self.border, width + self.border, device=symbols.device)
        y, x = (unit // columns) * height + dy, (unit % columns) * width + dx  # (S, n, window height, window width)
        source = torch.div(y, height, rounding_mode="floor") * columns + torch.div(x, width, rounding_mode="floor")
        inside = (y >= 0) & (x >= 0) & (x < columns * width) & (source < unit)
        place = source * (height * width) + (y % height) * width + x % width
        place = torch.where(inside, place, 0)
        window = pixels[torch.arange(len(pixels), device=symbols.device)[:, None, None, None], place]
        features = rearrange(self.embed(window, inside), "s n y x e -> (s n) e y x")
        z = self.enter(features)
        for layer in self.layers:
            z = z + layer(F.silu(z))
        z = z[:, :, self.border :, self.border : self.border + width]
        return rearrange(z, "(s n) z y x -> s n (y x) z", n=index.shape[1])

    def forward(self, symbols: Tensor, header: Tensor) -> Tensor:
        """(S, U, K) symbols, (S, F) header -> (S, U, P, Z) for every unit."""
        index = torch.arange(symbols.shape[1], device=symbols.device).expand(symbols.shape[:2])
        return self._windows(symbols, index, header)

    def at(self, symbols: Tensor, index: Tensor, header: Tensor) -> Tensor:
        """(S, U, K) symbols, (S,) which unit, (S, F) header -> (S, P, Z) for that unit."""
        return self._windows(symbols, index[:, None], header)[:, 0]

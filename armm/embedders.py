"""Units into vectors: one table row for a token, small concatenated embeddings and one matrix for more symbols.

Concatenated small embeddings, not their mean, keep what stands where. The extra row `vocab` of every
table is "unknown".
Axes: M units, K symbols, F header fields.
"""

from __future__ import annotations

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


class UnitEmbedder(nn.Module):
    """Several symbols per unit.

    Args:
        vocab, symbols: V and K.
        width: of the result.
        symbol_width: of each symbol's own embedding.
        values: (V, n) what a symbol means as numbers; stands beside its embedding.
        grid: (rows, columns) at most, for units that lie on a grid whose header is (rows, columns): learned axial
            embeddings of a unit's row and column are added (Image Transformer, arXiv:1802.05751).
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
    ) -> None:
        super().__init__()
        values = torch.zeros(vocab, 0) if values is None else values
        self.register_buffer("values", torch.cat([values, values.new_zeros(1, values.shape[1])]), persistent=False)
        n_features = symbol_width + values.shape[1]
        self.symbol = nn.Parameter(torch.randn(vocab + 1, symbol_width))
        self.project = nn.Linear(symbols * n_features, width, bias=False)
        self.grid = grid
        if grid:
            self.row = nn.Parameter(torch.randn(grid[0], width) * 0.1)
            self.column = nn.Parameter(torch.randn(grid[1], width) * 0.1)

    def forward(self, symbols: Tensor, index: Tensor, header: Tensor) -> Tensor:
        """(M, K) symbols, (M,) index of each unit in its segment, (M, F) header -> (M, width)."""
        features = torch.cat([self.symbol, self.values], dim=1)[symbols]  # (M, K, e)
        vectors = self.project(rearrange(features, "m k e -> m (k e)"))
        if self.grid:
            n_columns = header[:, 1]
            vectors = vectors + self.row[index // n_columns] + self.column[index % n_columns]
        return vectors

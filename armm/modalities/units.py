"""A run of symbols of any length as units."""

from __future__ import annotations

import torch
from torch import Tensor

from armm.sequence import Segment


def ragged_segment(modality: str, symbols: Tensor, unit_symbols: int) -> Segment:
    """(length,) int64 symbols as a segment whose last unit may be partial.

    No symbols make a segment of no units.
    """
    length = symbols.shape[0]
    n_units = -(-length // unit_symbols)
    if length == n_units * unit_symbols:
        return Segment(modality, symbols.reshape(n_units, unit_symbols))
    units = torch.zeros(n_units * unit_symbols, dtype=torch.int64)
    units[:length] = symbols
    return Segment(modality, units.reshape(n_units, unit_symbols), n_symbols=length)

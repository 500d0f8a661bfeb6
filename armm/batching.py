"""Documents as one batch of tensors, padded on the right.

Axes: B rows, S segments of one modality, U units, K symbols of a unit, F header fields.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from armm.grammar import END, Grammar
from armm.sequence import Batch, Document, Segment, SegmentBatch


@dataclass
class Placed:
    """The segments of one modality in a batch, and of each its row, first position, units, length, n_given and cut."""

    segments: list[Segment] = field(default_factory=list)
    numbers: list[tuple[int, int, int, int, int, bool]] = field(default_factory=list)


def collate(documents: Sequence[Document], grammar: Grammar) -> Batch:
    """Documents as one batch.

    Raises InputError: a document that this grammar cannot code.
    """
    lengths, control = [], []
    placed: defaultdict[str, Placed] = defaultdict(Placed)
    for row, document in enumerate(documents):
        grammar.check_structure(document)
        position = 0
        for segment in document:
            name = segment.modality
            if grammar.layout is None:
                control.append((row, position, 1 + grammar.names.index(name)))
                position += 1
            position += len(grammar.modalities[name].header_sizes)
            n_units = grammar.payload_units(segment)
            placed[name].segments.append(segment)
            placed[name].numbers.append((row, position, n_units, segment.length, segment.n_given, segment.cut))
            position += n_units
        if grammar.layout is None:
            control.append((row, position, END))
            position += 1
        lengths.append(position)
    segments = {name: _stack(name, placed[name], grammar) for name in grammar.names if name in placed}
    rows, positions, values = torch.tensor(control, dtype=torch.int64).view(-1, 3).unbind(1)
    unscored = frozenset(
        name for name, own in placed.items() if all(n_given >= n_units for _, _, n_units, _, n_given, _ in own.numbers)
    )
    return Batch(torch.tensor(lengths), segments, rows, positions, values, max(lengths, default=0), unscored)


def _stack(name: str, placed: Placed, grammar: Grammar) -> SegmentBatch:
    """The numbers by NumPy: with as few of them, half the time is what a tensor's operation costs whatever it does."""
    modality, segments = grammar.modalities[name], placed.segments
    rows, starts, n_units, lengths, given, cut = np.array(placed.numbers).T.copy()
    n, u, k = len(segments), max(int(n_units.max()), 1), modality.unit_symbols
    known = np.arange(u * k) < lengths[:, None]
    if known.all():
        symbols = torch.stack([segment.symbols for segment in segments]).view(n, u * k)
        grammar.check_symbols(name, symbols, given >= n_units)
    else:
        inside = np.zeros((n, u * k), dtype=np.int64)
        for own, segment in zip(inside, segments, strict=True):
            own[: segment.length] = segment.flat().numpy()
        symbols = torch.from_numpy(inside)
        grammar.check_symbols(name, symbols, given >= n_units)
        inside[~known] = modality.vocab
    unit = np.arange(u)
    weights = (unit < n_units[:, None]) & (unit >= given[:, None])
    ends = np.zeros((n, u), dtype=np.int64)
    if modality.ended:
        is_last = (unit == n_units[:, None] - 1) & (cut == 0)[:, None]
        ends = np.where(is_last, 1 + (lengths[:, None] - unit * k).clip(0, k), 0)
    return SegmentBatch(
        symbols=symbols.view(n, u, k),
        known=torch.from_numpy(known).view(n, u, k),
        header=_rows([segment.header for segment in segments]),
        coded=_rows([grammar.coded_header(segment) for segment in segments]),
        n_units=torch.from_numpy(n_units),
        rows=torch.from_numpy(rows),
        starts=torch.from_numpy(starts),
        weights=torch.from_numpy(weights.astype(np.float32)),
        ends=torch.from_numpy(ends),
    )


def _rows(rows: list[tuple[int, ...]]) -> torch.Tensor:
    """(S, F) int64; rows of nothing are columns of none."""
    return torch.from_numpy(np.array(rows, dtype=np.int64).reshape(len(rows), -1))

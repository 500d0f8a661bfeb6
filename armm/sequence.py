"""Segments, documents and batches: the data that everything else passes around.

A *symbol* is an integer in `[0, vocab)`. A *unit* is `K` symbols that the backbone sees as one position. A *segment*
is a run of units of one modality, a *document* a list of segments.

Axes: B rows (documents), N positions of a row, S segments of one modality in a batch, U units of a segment,
K symbols of a unit, F header fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

Shape = tuple[str, tuple[int, ...], int | None, tuple[int, ...]]
"""Of a segment: its modality, (units, symbols of a unit), how many symbols there are, and its header."""


@dataclass(frozen=True)
class Segment:
    """A run of units of one modality.

    Attributes:
        modality: the modality's name in its model.
        symbols: (U, K) int64, row-major in coding order. What stands after the first `n_symbols` means nothing.
        n_symbols: how many symbols there are; `None` for all `U * K`. Only the last unit may be partial.
        header: what a decoder must know before the payload, such as rows and columns of units.
        n_given: how many leading units are a condition: seen by the model, not scored and not trained on.
        cut: a window of something longer: it does not end with its last unit.
    """

    modality: str
    symbols: Tensor
    n_symbols: int | None = None
    header: tuple[int, ...] = ()
    n_given: int = 0
    cut: bool = False

    def __post_init__(self) -> None:
        if self.symbols.dim() != 2 or self.symbols.dtype != torch.int64:
            raise ValueError(
                f"segment {self.modality!r}: symbols must be (U, K) int64, "
                f"got {tuple(self.symbols.shape)} {self.symbols.dtype}"
            )
        n_units, k = self.symbols.shape
        least = (n_units - 1) * k + 1 if n_units > 1 else 0  # one unit may be empty: how an empty segment is coded
        if self.n_symbols is not None and not least <= self.n_symbols <= n_units * k:
            raise ValueError(
                f"segment {self.modality!r}: {self.n_symbols} symbols do not end in the last of {n_units} units of {k}"
            )

    @cached_property
    def shape(self) -> Shape:
        """Everything but the symbols' values, what is given, and whether it is cut."""
        return self.modality, tuple(self.symbols.shape), self.n_symbols, tuple(self.header)

    @property
    def n_units(self) -> int:
        return self.symbols.shape[0]

    @property
    def length(self) -> int:
        """The number of symbols."""
        return self.symbols.numel() if self.n_symbols is None else self.n_symbols

    def flat(self) -> Tensor:
        """(length,) the symbols in coding order, without padding."""
        symbols = self.symbols.reshape(-1)
        return symbols if self.n_symbols is None else symbols[: self.n_symbols]

    def window(self, first: int, n_units: int, n_given: int = 0) -> Segment:
        """Some of its units, the first `n_given` of them as a condition."""
        k, last = self.symbols.shape[1], min(first + n_units, self.n_units)
        return replace(
            self,
            symbols=self.symbols[first:last],
            n_symbols=min(self.length, last * k) - first * k,
            n_given=n_given,
            cut=self.cut or last < self.n_units,
        )

    def as_condition(self) -> Segment:
        """The same segment, given rather than scored."""
        return replace(self, n_given=max(self.n_units, 1))  # an empty segment is coded as one empty unit

    def as_unknown(self, vocab: int) -> Segment:
        """The same segment with the symbol V everywhere, "unknown", given: a condition that is not told."""
        return replace(self.as_condition(), symbols=torch.full_like(self.symbols, vocab))


Document = list[Segment]


@dataclass
class SegmentBatch:
    """All segments of one modality in a batch, right-padded.

    Attributes:
        symbols: (S, U, K) int64; the value `vocab`, outside the alphabet, wherever `known` is False.
        known: (S, U, K) bool: the symbol exists.
        header: (S, F) int64.
        coded: (S, C) int64: the symbols by which headers are coded; C is 0 where they are known.
        n_units: (S,) int64.
        rows: (S,) the row that each segment stands in.
        starts: (S,) the position of its first unit in that row.
        weights: (S, U) float32: 1 where the unit is scored, 0 where it is given or padding.
        ends: (S, U) int64 end decisions, 0 for "more follow", 1 + j for "the last unit, with j symbols".
    """

    symbols: Tensor
    known: Tensor
    header: Tensor
    coded: Tensor
    n_units: Tensor
    rows: Tensor
    starts: Tensor
    weights: Tensor
    ends: Tensor

    @cached_property
    def listed(self) -> Tensor | None:
        """(M,) the units that exist, as indices into all S U of them; None where all do."""
        present = self.present().flatten()
        return None if bool(present.all()) else present.nonzero()[:, 0]

    def present(self) -> Tensor:
        """(S, U) bool: the unit exists."""
        steps = torch.arange(self.symbols.shape[1], device=self.symbols.device)
        return steps < self.n_units[:, None]

    def scored(self) -> Tensor:
        """(S, U, K) float32: 1 where a symbol counts in loss and bits."""
        return self.known * self.weights[..., None]


@dataclass
class Batch:
    """Documents ready for a model: ragged by length, padded on the right, never on the left.

    Attributes:
        lengths: (B,) units of each row, control and header units included.
        segments: the payload by modality name.
        control_rows, control_positions, control_values: (M,) each: the control units and the index of what they say.
        n_positions: the largest length, known without asking a device.
        unscored: modalities of which all segments are given whole.
    """

    lengths: Tensor
    segments: dict[str, SegmentBatch]
    control_rows: Tensor
    control_positions: Tensor
    control_values: Tensor
    n_positions: int
    unscored: frozenset[str] = frozenset()

    @property
    def n_rows(self) -> int:
        return self.lengths.shape[0]

    def reading(self, symbols: Mapping[str, Tensor]) -> Batch:
        """The same batch with other payload symbols, by modality."""
        segments = dict(self.segments)
        for name, own in symbols.items():
            segments[name] = replace(segments[name], symbols=own)
            segments[name].listed = self.segments[name].listed
        return replace(self, segments=segments)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def each(self, change: Callable[[Any], Any]) -> Batch:
        """The same batch of changed tensors: on another device, or as arrays to be sent to another process.

        Which units exist is found out here, where the batch comes from: asking a GPU makes everyone wait for it.
        """
        segments = {}
        for name, segment in self.segments.items():
            segments[name] = SegmentBatch(*(change(getattr(segment, field.name)) for field in fields(SegmentBatch)))
            segments[name].listed = None if segment.listed is None else change(segment.listed)
        return Batch(
            change(self.lengths),
            segments,
            change(self.control_rows),
            change(self.control_positions),
            change(self.control_values),
            self.n_positions,
            self.unscored,
        )

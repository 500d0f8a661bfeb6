"""Row by row, pixel by pixel: the stepwise view of the heads in `row_stack`.

What the rows above are for a layer is a few numbers at each column, which the layer left when the row above was
finished. The open row is computed anew, in parallel over its columns, for every pixel: a step of so small a network is
bound by the number of its operations, not by their size, and nothing has to be taken back when guesses were wrong.
Axes: as in `row_stack`; n stored rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from armm.heads.head import Choose, HeadState

if TYPE_CHECKING:
    from armm.heads.row_stack import RowStackHead


class RowState(HeadState):
    """The open row's symbols and condition, and what the row above it left for every layer."""

    looks_ahead = True

    def __init__(self, head: RowStackHead, n_rows: int, min_rows: int) -> None:
        self.head, self.unit, self.min_rows = head, head.unit, min_rows
        like, places = head.upsample.weight, head.unit.places
        self.above = [like.new_zeros(n_rows, places, left) for left in head.left]
        self.condition = like.new_zeros(n_rows, places, head.channels)
        self.features = like.new_zeros(n_rows, head.n_features)  # of the open place
        self.open_unit = torch.full((n_rows, head.unit.symbols), head.unit.vocab, device=like.device)
        self.length = [0] * n_rows  # symbols known of the segment
        self.fresh = [False] * n_rows  # `features` are those of the open place

    def load(self, rows: Tensor, context: Tensor, symbols: Tensor, lengths: Tensor, header: Tensor) -> None:
        open_unit = torch.div(lengths, self.unit.symbols, rounding_mode="floor")
        wide, spread = self._widen(symbols), self._widen(context)
        above = [left.new_zeros(len(wide), *left.shape[1:]) for left in self.above]
        for unit in range(int(open_unit.max())):
            below = self.head.leave(wide[:, unit], self.head.conditioning(spread[:, unit]), above)
            above_it = (unit < self._widen(open_unit))[:, None, None]
            above = [torch.where(above_it, new, old) for new, old in zip(below, above, strict=True)]
        for own, new in zip(self.above, above, strict=True):
            own[rows] = new[: len(rows)]
        each = torch.arange(len(rows), device=rows.device)
        self.open_unit[rows] = symbols[each, open_unit]
        self._condition(rows, context[each, open_unit])
        for row, length in zip(rows.tolist(), lengths.tolist(), strict=True):
            self.length[row], self.fresh[row] = length, False

    def open(self, rows: Tensor, context: Tensor) -> None:
        wide = self._widen(rows)
        left = self.head.leave(self.open_unit[wide], self.condition[wide], [above[wide] for above in self.above])
        for own, new in zip(self.above, left, strict=True):
            own[rows] = new[: len(rows)]
        self.open_unit[rows] = self.unit.vocab
        self._condition(rows, context)

    def _condition(self, rows: Tensor, context: Tensor) -> None:
        condition = self.head.conditioning(self._widen(context).to(self.condition.dtype))
        self.condition[rows] = condition[: len(rows)]

    def extend(self, rows: Tensor, symbols: Tensor) -> None:
        listed = rows.tolist()
        at = torch.tensor([self.length[row] % self.unit.symbols for row in listed], device=rows.device)
        self.open_unit[rows, at] = symbols
        for row in listed:
            self.length[row] += 1
            self.fresh[row] &= self.length[row] % self.unit.channels != 0

    def logits(self, rows: Tensor) -> Tensor:
        listed, channels = rows.tolist(), self.unit.channels
        stale = [row for row in listed if not self.fresh[row]]
        if stale:
            index = torch.tensor(stale, device=rows.device)
            place = [self.length[row] % self.unit.symbols // channels for row in stale]
            whole = self._row(index, self.open_unit[index])
            self.features[index] = whole[torch.arange(len(stale)), torch.tensor(place, device=rows.device)]
            for row in stale:
                self.fresh[row] = True
        out = torch.empty(len(listed), self.unit.vocab, device=rows.device)
        for channel in {self.length[row] % channels for row in listed}:
            group = [i for i, row in enumerate(listed) if self.length[row] % channels == channel]
            chosen = self._widen(rows[group])
            at = torch.tensor([self.length[row] % self.unit.symbols for row in chosen.tolist()], device=rows.device)
            earlier = self.open_unit[chosen[:, None], at[:, None] - channel + torch.arange(channel, device=rows.device)]
            out[group] = self.head.distribution.logits(self.features[chosen], earlier)[: len(group)]
        return out

    def ahead(self, rows: Tensor, guesses: Tensor, choose: Choose | None = None) -> Tensor:
        listed, channels, n = rows.tolist(), self.unit.channels, guesses.shape[1]
        at = self.length[listed[0]] % self.unit.symbols
        assert at % channels == 0 and n % channels == 0, "looking ahead begins and ends between places"
        assert all(self.length[row] % self.unit.symbols == at for row in listed), "at the same place of their units"
        guessed = self.open_unit[rows]
        guessed[:, at : at + n] = guesses
        features = self._row(rows, guessed)[:, at // channels : (at + n) // channels].flatten(0, 1)
        wide, known = self._widen(features), guesses.unflatten(1, (-1, channels)).clone()  # (R, P, C)
        found = []
        for channel in range(channels):
            told = self._widen(known[:, :, :channel].flatten(0, 1))
            logits = self.head.distribution.logits(wide, told)[: len(features)].unflatten(0, (len(rows), -1))
            if choose is not None:
                known[:, :, channel] = choose(logits, channel)
            found.append(logits)
        return torch.stack(found, dim=2).flatten(1, 2)

    def gather_rows(self, index: Tensor) -> None:
        self.above = [above[index] for above in self.above]
        self.condition, self.features = self.condition[index], self.features[index]
        self.open_unit = self.open_unit[index]
        listed = index.tolist()
        self.length, self.fresh = [self.length[i] for i in listed], [self.fresh[i] for i in listed]

    def _row(self, rows: Tensor, symbols: Tensor) -> Tensor:
        """(R, W, H) features of the open row of some rows, if its symbols were (R, K) these."""
        wide = self._widen(rows)
        above = [left[wide] for left in self.above]
        return self.head.row(self._widen(symbols), self.condition[wide], above)[: len(rows)]

    def _widen(self, x: Tensor) -> Tensor:
        """(R, *) rows or what belongs to them, the last one repeated until there are at least `min_rows`."""
        missing = self.min_rows - len(x)
        return x if missing <= 0 else torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])

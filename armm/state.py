"""The stepwise view of a model: documents being written, one row each, every row at its own place.

The rows' symbol streams are the truth. Everything else (keys and values, convolution histories) is a cache indexed by
position: `truncate` cuts the streams and forgets later positions, and a head whose history is then too new is rebuilt
from the symbols and contexts that are still there.

Axes: B rows of the state, R rows of one call, N units, K symbols of a unit, D width, V alphabet, F header fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from armm.errors import InputError
from armm.grammar import Cursor, Slot, Stage
from armm.sequence import Document

if TYPE_CHECKING:
    from armm.model import AutoregressiveModel


class NewUnit(NamedTuple):
    """A unit that an extension completed."""

    slot: Slot
    symbols: list[int]
    index: int
    header: tuple[int, ...]


class State:
    """Rows of documents being written.

    `extend` appends symbols and returns the logits of the next ones; `truncate` takes symbols back; `gather_rows`
    copies, drops and reorders rows; `len` is the number of symbols of the longest row and `lengths` of each.
    """

    def __init__(self, model: AutoregressiveModel, n_rows: int) -> None:
        self.model, self.grammar = model, model.grammar
        self.device = model.begin.device
        self.cursors: list[Cursor] = [self.grammar.start() for _ in range(n_rows)]
        self.streams: list[list[int]] = [[] for _ in range(n_rows)]
        width, value_width = model.backbone_config.width, model.backbone_config.value_width
        self._backbone = model.backbone.state(n_rows)
        self._heads = {name: model.head(name).state(n_rows) for name in model.modalities}
        # per row and modality: the segment, its length and the open unit's position that the head's state is at
        self._synced: list[tuple[str, int, int, int] | None] = [None] * n_rows
        # rows whose extension was one payload symbol: its modality, segment start and the segment's length with it
        self._followed: dict[int, tuple[str, int, int]] = {}
        with torch.no_grad():
            begin = model.begin.expand(n_rows, 1, width)
            values = begin.new_zeros(n_rows, 1, value_width) if value_width else None
            rows = torch.arange(n_rows, device=self.device)
            self._contexts = self._backbone.extend(rows, begin, values, [1] * n_rows)

    def __len__(self) -> int:
        return max(len(stream) for stream in self.streams)

    @property
    def n_rows(self) -> int:
        return len(self.streams)

    @property
    def lengths(self) -> list[int]:
        """Symbols of every row."""
        return [len(stream) for stream in self.streams]

    @property
    def done(self) -> list[bool]:
        """Rows whose document is complete, or fills the context."""
        return [cursor.stage == Stage.DONE for cursor in self.cursors]

    def document(self, row: int) -> Document:
        """What a row says so far."""
        return self.grammar.parse(self.streams[row])

    # ---------------------------------------------------------------- writing

    @torch.no_grad()
    def extend(self, symbols: Tensor | Sequence[Sequence[int]]) -> Tensor:
        """Append symbols to the rows.

        Args:
            symbols: for each row the symbols to append, any number of them, also none: (B, T), or a list per row.

        Returns: (B, V) float32 logits of each row's next symbol, V the largest alphabet among them; -inf outside a
            row's own alphabet, and everywhere but at 0 in a row that is done.

        Raises InputError: a symbol outside its alphabet, or after the end; no row has changed then.
        """
        added = symbols.tolist() if isinstance(symbols, Tensor) else symbols
        assert len(added) == self.n_rows, "one list of symbols per row"
        rows, new_units, before = [], [], self.lengths
        try:
            for row, own in enumerate(added):
                units = self._push(row, own)
                if units:
                    rows.append(row)
                    new_units.append(units)
        except InputError:  # a refused call changes nothing
            self._followed.clear()
            self.truncate(before)
            raise
        self._follow(added)
        if rows:
            self._run_backbone(rows, new_units)
        return self._next_logits()

    def _push(self, row: int, symbols: Sequence[int]) -> list[NewUnit]:
        """Move a row over symbols; the units it completed."""
        cursor, grammar, units = self.cursors[row], self.grammar, []
        for symbol in symbols:
            slot, position, start = cursor.slot(), cursor.position, cursor.start
            header, payload = cursor.header, cursor.payload
            if slot.stage == Stage.DONE:
                raise InputError(f"row {row} has ended after {len(self.streams[row])} symbols; no symbol can follow")
            if not 0 <= symbol < grammar.vocab(slot):
                raise InputError(
                    f"row {row}: symbol {symbol} at {len(self.streams[row])} is outside [0, {grammar.vocab(slot)})"
                )
            completed = grammar.push(cursor, symbol)
            self.streams[row].append(symbol)
            if slot.stage == Stage.PAYLOAD and len(symbols) == 1:
                self._followed[row] = (slot.modality, start, len(payload))
            if completed and slot.stage in (Stage.CONTROL, Stage.HEADER):
                units.append(NewUnit(slot, [symbol], 0, ()))
            elif completed:
                index = position - start
                own = payload[index * grammar.modalities[slot.modality].unit_symbols :]
                units.append(NewUnit(Slot(Stage.PAYLOAD, slot.modality, 0), own, index, header))
        return units

    def _follow(self, added: Sequence[Sequence[int]]) -> None:
        """Let the heads' states take the one new payload symbol of rows that they stand right before."""
        groups: dict[str, list[int]] = {}
        for row, (name, start, length) in self._followed.items():
            synced = self._synced[row]
            if synced is not None and synced[:3] == (name, start, length - 1):
                groups.setdefault(name, []).append(row)
                self._synced[row] = (name, start, length, synced[3])
        self._followed.clear()
        for name, listed in groups.items():
            symbols = torch.tensor([added[row][0] for row in listed], device=self.device)
            self._heads[name].extend(torch.tensor(listed, device=self.device), symbols)

    def _run_backbone(self, rows: list[int], new_units: list[list[NewUnit]]) -> None:
        """Append each row's new units to the backbone and keep the contexts."""
        counts = [len(units) for units in new_units]
        n = max(counts)
        config = self.model.backbone_config
        x = self._contexts.new_zeros(len(rows) * n, config.width)
        values = x.new_zeros(len(rows) * n, config.value_width) if config.value_width else None
        groups: dict[Slot, list[tuple[int, NewUnit]]] = {}
        for i, units in enumerate(new_units):
            for j, unit in enumerate(units):
                groups.setdefault(unit.slot, []).append((i * n + j, unit))
        for slot, members in groups.items():
            where = torch.tensor([place for place, _ in members], device=self.device)
            vectors, own_values = self.model.embed(slot, *self._stack(slot, [unit for _, unit in members]))
            x[where] = vectors.to(x.dtype)
            if values is not None and own_values is not None:
                values[where] = own_values.to(values.dtype)
        index = torch.tensor(rows, device=self.device)
        x = x.view(len(rows), n, -1)
        values = values.view(len(rows), n, -1) if values is not None else None
        contexts = self._backbone.extend(index, x, values, counts)
        ends = [self.cursors[row].position for row in rows]
        missing = max(ends) + 1 - self._contexts.shape[1]
        if missing > 0:
            self._contexts = F.pad(self._contexts, (0, 0, 0, max(missing, self._contexts.shape[1])))
        for i, (row, end, count) in enumerate(zip(rows, ends, counts, strict=True)):
            self._contexts[row, end + 1 - count : end + 1] = contexts[i, :count]

    def _stack(self, slot: Slot, units: list[NewUnit]) -> tuple[Tensor, Tensor, Tensor]:
        """Symbols (M, K), indices (M,) and headers (M, F) of units of one kind."""
        symbols = [unit.symbols for unit in units]
        if slot.stage == Stage.PAYLOAD:
            modality = self.grammar.modalities[slot.modality]
            symbols = [own + [modality.vocab] * (modality.unit_symbols - len(own)) for own in symbols]
        return (
            torch.tensor(symbols, device=self.device),
            torch.tensor([unit.index for unit in units], device=self.device),
            torch.tensor([unit.header for unit in units], dtype=torch.int64, device=self.device),
        )

    # ---------------------------------------------------------------- reading

    def _next_logits(self) -> Tensor:
        groups: dict[Slot, list[int]] = {}
        for row, cursor in enumerate(self.cursors):
            groups.setdefault(cursor.slot(), []).append(row)
        kinds = [slot for slot in groups if slot.stage != Stage.DONE]
        n_symbols = max((self.grammar.vocab(slot) for slot in kinds), default=1)
        whole = len(groups) == 1 and len(kinds) == 1
        out = torch.empty(0) if whole else torch.full((self.n_rows, n_symbols), float("-inf"), device=self.device)
        for slot, listed in groups.items():
            rows = torch.tensor(listed, device=self.device)
            if slot.stage == Stage.DONE:
                out[rows, 0] = 0.0
                continue
            logits = self._logits_of(slot, listed, rows)
            if whole:
                return logits
            out[rows, : logits.shape[1]] = logits
        return out

    def _logits_of(self, slot: Slot, listed: list[int], rows: Tensor) -> Tensor:
        """(R, V) logits of rows whose next symbol is of the same kind."""
        if slot.stage != Stage.PAYLOAD:
            cursors = [self.cursors[row] for row in listed]
            position = torch.tensor([cursor.position for cursor in cursors], device=self.device)
            index = torch.tensor([cursor.position - cursor.start for cursor in cursors], device=self.device)
            return self.model.structure_logits(slot, self._contexts[rows, position], index)
        self._sync(slot.modality, listed)
        return self._heads[slot.modality].logits(rows)

    def _sync(self, name: str, listed: list[int]) -> None:
        """Bring a head's state to where the rows' cursors are."""
        to_open, to_load = [], []
        for row in listed:
            cursor, synced = self.cursors[row], self._synced[row]
            length = len(cursor.payload)
            if synced == (name, cursor.start, length, cursor.position):
                continue
            steps_on = synced is not None and synced[:3] == (name, cursor.start, length)
            steps_on = steps_on and synced is not None and synced[3] == cursor.position - 1
            (to_open if steps_on else to_load).append(row)
            self._synced[row] = (name, cursor.start, length, cursor.position)
        if to_open:
            rows = torch.tensor(to_open, device=self.device)
            position = torch.tensor([self.cursors[row].position for row in to_open], device=self.device)
            self._heads[name].open(rows, self._contexts[rows, position])
        if to_load:
            self._load(name, to_load)

    def _load(self, name: str, listed: list[int]) -> None:
        modality = self.grammar.modalities[name]
        cursors, k = [self.cursors[row] for row in listed], modality.unit_symbols
        n_units = max(len(cursor.payload) // k for cursor in cursors) + 1
        symbols = torch.full((len(listed), n_units * k), modality.vocab)
        for i, cursor in enumerate(cursors):
            symbols[i, : len(cursor.payload)] = torch.tensor(cursor.payload, dtype=torch.int64)
        rows = torch.tensor(listed, device=self.device)
        starts = torch.tensor([cursor.start for cursor in cursors], device=self.device)
        positions = starts[:, None] + torch.arange(n_units, device=self.device)
        context = self._contexts[rows[:, None], positions.clamp(max=self._contexts.shape[1] - 1)]
        lengths = torch.tensor([len(cursor.payload) for cursor in cursors], device=self.device)
        header = torch.tensor([cursor.header for cursor in cursors], dtype=torch.int64, device=self.device)
        self._heads[name].load(rows, context, symbols.view(len(listed), n_units, k).to(self.device), lengths, header)

    # ----------------------------------------------------------- moving around

    def truncate(self, lengths: int | Sequence[int]) -> None:
        """Keep only the first `lengths[i]` symbols of row i (of every row, for an int)."""
        wanted = [lengths] * self.n_rows if isinstance(lengths, int) else list(lengths)
        assert len(wanted) == self.n_rows and min(wanted) >= 0, "one length per row, none negative"
        for row, length in enumerate(wanted):
            if length >= len(self.streams[row]):
                continue
            del self.streams[row][length:]
            cursor = self.grammar.start()
            for symbol in self.streams[row]:
                self.grammar.push(cursor, symbol)
            self.cursors[row], self._synced[row] = cursor, None
        self._backbone.truncate([cursor.position + 1 for cursor in self.cursors])

    def gather_rows(self, index: Sequence[int]) -> None:
        """Row i becomes a copy of what row `index[i]` was; rows may be repeated, dropped and added."""
        where = torch.tensor(list(index), dtype=torch.int64, device=self.device)
        self.cursors = [self.cursors[i].copy() for i in index]
        self.streams = [list(self.streams[i]) for i in index]
        self._synced = [self._synced[i] for i in index]
        self._contexts = self._contexts[where]
        self._backbone.gather_rows(where)
        for head in self._heads.values():
            head.gather_rows(where)

"""The stepwise view of a model: documents being written, one row each, every row at its own place.

The rows' symbol streams are the truth. Everything else (keys and values, convolution histories) is a cache indexed by
position: `truncate` cuts the streams and forgets later positions, and a head whose history is then too new is rebuilt
from the symbols and contexts that are still there.

Axes: B rows of the state, R rows of one call, N units, K symbols of a unit, D width, V alphabet, F header fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from armm.errors import InputError
from armm.exactness import MIN_ROWS, at_least, rows_needed
from armm.grammar import Cursor, Slot, Stage
from armm.heads import Choose
from armm.new_units import BEGIN, NewUnit, embed_units
from armm.sequence import Document

if TYPE_CHECKING:
    from armm.model import AutoregressiveModel


@lru_cache(maxsize=64)
def _index(rows: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # for states inside and outside of it
        return torch.tensor(rows, dtype=torch.int64, device=device)


class Synced(NamedTuple):
    """The place that a head's state of a row is at: a segment, its length so far, and the open unit's position."""

    modality: str
    start: int
    length: int
    position: int


class State:
    """Rows of documents being written.

    `extend` appends symbols and returns the logits of the next ones; `truncate` takes symbols back; `gather_rows`
    copies, drops and reorders rows; `len` is the number of symbols of the longest row and `lengths` of each.

    Args:
        exact: pad every product to 16 rows and attend query by query, so that logits do not depend on the other rows.
        compiled: the backbone takes its steps in compiled code, and heads what comes between units, where there is such
            (`pip install "armm[fast]"`).
    """

    @torch.no_grad()
    def __init__(self, model: AutoregressiveModel, n_rows: int, exact: bool = False, compiled: bool = False) -> None:
        self.model, self.grammar = model, model.grammar
        self.device = model.begin.device
        self.min_rows = MIN_ROWS if exact else 1
        self.cursors: list[Cursor] = [self.grammar.start() for _ in range(n_rows)]
        self.streams: list[list[int]] = [[] for _ in range(n_rows)]
        backbone_rows = rows_needed(model.backbone) if exact else 1
        self._backbone = model.backbone.state(n_rows, backbone_rows)
        head_rows = {name: rows_needed(model.head(name)) if exact else 1 for name in model.modalities}
        self._heads = {name: model.head(name).state(n_rows, head_rows[name]) for name in model.modalities}
        if compiled:
            self._backbone.compile()
            for head in self._heads.values():
                head.compile()
        self._synced: list[Synced | None] = [None] * n_rows
        self._marks: list[tuple[int, Cursor]] = [(0, self.grammar.start()) for _ in range(n_rows)]
        # completed units that the backbone has not read yet, by row
        self._waiting: dict[int, list[NewUnit]] = {row: [BEGIN] for row in range(n_rows)}
        self._contexts = model.begin.new_zeros(n_rows, 1, model.backbone_config.width)

    def __len__(self) -> int:
        return max(self.lengths, default=0)

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
        self.append(added)
        return self.logits(range(self.n_rows))

    @torch.no_grad()
    def append(self, added: Sequence[Sequence[int]], stepwise: bool = False, unknown: bool = False) -> None:
        """Append symbols to the rows, a list for each, without asking what comes next.

        Args:
            stepwise: several units of a row are read as if they had been appended one call each.
            unknown: payload symbols may be V, "unknown": conditions that are not told.

        Raises InputError: as `extend` does.
        """
        if any(added[row] and units != [BEGIN] for row, units in self._waiting.items()):
            self._read_waiting()
        before, waiting = self.lengths, {row: list(units) for row, units in self._waiting.items()}
        followed: dict[int, Synced] = {}
        try:
            for row, own in enumerate(added):
                if len(own) > 1:
                    self._marks[row] = (len(self.streams[row]), self.cursors[row].copy())
                for symbol in own:
                    place = self._push(row, symbol, unknown)
                    if place is not None and len(own) == 1:
                        followed[row] = place
        except InputError:  # a refused call changes nothing
            self._waiting = waiting
            self.truncate(before)
            raise
        self._follow(followed)
        several = [row for row, units in self._waiting.items() if len(units) > 1]
        if stepwise and several:
            self._read_waiting(stepwise=True)
        elif several:  # rows that wait for a single unit take it as a step, later or here, behind what all begin with
            steps = [row for row in several if self._waiting[row][0] is BEGIN and len(self._waiting[row]) == 2]
            self._read_waiting(steps, stepwise=True)
            self._read_waiting([row for row in several if row in self._waiting])

    def _push(self, row: int, symbol: int, unknown: bool = False) -> Synced | None:
        """Move a row over a symbol; where a head stands that has followed, if it belonged to a payload."""
        cursor, grammar = self.cursors[row], self.grammar
        slot, position, start = cursor.slot(), cursor.position, cursor.start
        header, payload = cursor.header, cursor.payload
        if slot.stage == Stage.DONE:
            raise InputError(f"row {row} has ended after {len(self.streams[row])} symbols; no symbol can follow")
        if not 0 <= symbol < grammar.vocab(slot) + (unknown and slot.stage == Stage.PAYLOAD):
            raise InputError(
                f"row {row}: symbol {symbol} at {len(self.streams[row])} is outside [0, {grammar.vocab(slot)})"
            )
        completed = grammar.push(cursor, symbol)
        self.streams[row].append(symbol)
        if completed and slot.stage in (Stage.CONTROL, Stage.HEADER):
            self._waiting.setdefault(row, []).append(NewUnit(slot, [symbol], 0, ()))
        elif completed:
            self._wait(row, slot, position - start, payload, header)
        return Synced(slot.modality, start, len(payload), position) if slot.stage == Stage.PAYLOAD else None

    def _wait(self, row: int, slot: Slot, index: int, payload: list[int], header: tuple[int, ...]) -> None:
        """A payload unit is complete and waits for the backbone."""
        own = payload[index * self.grammar.modalities[slot.modality].unit_symbols :]
        unit = NewUnit(Slot(Stage.PAYLOAD, slot.modality, 0), own, index, header)
        self._waiting.setdefault(row, []).append(unit)

    def _follow(self, followed: dict[int, Synced]) -> None:
        """Let heads' states that stand right before the one new payload symbol of rows take it."""
        groups: dict[str, list[int]] = {}
        for row, place in followed.items():
            if self._synced[row] == place._replace(length=place.length - 1):
                groups.setdefault(place.modality, []).append(row)
                self._synced[row] = place
        for name, listed in groups.items():
            symbols = torch.tensor([self.streams[row][-1] for row in listed], device=self.device)
            self._heads[name].extend(torch.tensor(listed, device=self.device), symbols)

    def _read_waiting(self, rows: list[int] | None = None, stepwise: bool = False) -> None:
        """Append completed units of some rows, or all, to the backbone and keep the contexts."""
        rows = list(self._waiting) if rows is None else rows
        if not rows:
            return
        new_units = [self._waiting.pop(row) for row in rows]
        counts = [len(units) for units in new_units]
        x, values = embed_units(self.model, new_units, self.min_rows, self._contexts.dtype)
        contexts = self._backbone.extend(self._index(rows), x, values, counts, stepwise)
        ends = [self.cursors[row].position for row in rows]
        self._reserve(max(ends) + 1)
        if x.shape[1] == 1 and len(rows) > 1:
            self._contexts[self._index(rows), torch.tensor(ends, device=self.device)] = contexts[:, 0]
            return
        for i, (row, end, count) in enumerate(zip(rows, ends, counts, strict=True)):
            self._contexts[row, end + 1 - count : end + 1] = contexts[i, :count]

    def _index(self, rows: Sequence[int]) -> Tensor:
        """Rows as a tensor, which nobody writes into."""
        return _index(tuple(rows), self.device)

    def _open_contexts(self, listed: list[int]) -> Tensor:
        """(R, D) of the open units of rows."""
        positions = [self.cursors[row].position for row in listed]
        if len(listed) == 1:
            return self._contexts[listed[0], positions[0]][None]
        return self._contexts[self._index(listed), torch.tensor(positions, device=self.device)]

    def _reserve(self, n_positions: int) -> None:
        missing = n_positions - self._contexts.shape[1]
        if missing > 0:
            self._contexts = F.pad(self._contexts, (0, 0, 0, max(missing, self._contexts.shape[1])))

    # ---------------------------------------------------------------- reading

    @torch.no_grad()
    def logits(self, rows: Sequence[int]) -> Tensor:
        """(R, V) float32 logits of the next symbol of some rows, as `extend` returns them for all."""
        self._read_waiting()
        groups: dict[Slot, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(self.cursors[row].slot(), []).append(i)
        if len(groups) == 1:
            (slot,) = groups
            return self._logits_of(slot, list(rows))
        n_symbols = max((self.grammar.vocab(slot) for slot in groups if slot.stage != Stage.DONE), default=1)
        out = torch.full((len(rows), n_symbols), float("-inf"), device=self.device)
        for slot, places in groups.items():
            logits = self._logits_of(slot, [rows[i] for i in places])
            out[torch.tensor(places, device=self.device), : logits.shape[1]] = logits
        return out

    def _logits_of(self, slot: Slot, listed: list[int]) -> Tensor:
        """(R, V) logits of rows whose next symbol is of the same kind."""
        if slot.stage == Stage.DONE:
            return torch.zeros(len(listed), 1, device=self.device)
        if not self.reads_context_only(slot):
            self._sync(slot.modality, listed)
            return self._heads[slot.modality].logits(self._index(listed))
        cursors = [self.cursors[row] for row in listed]
        return self._of_context(
            slot, self._open_contexts(listed), [cursor.position - cursor.start for cursor in cursors]
        )

    def _of_context(self, slot: Slot, context: Tensor, index: list[int]) -> Tensor:
        """(M, V) logits from (M, D) contexts of open units, the index-th of their segments."""
        if slot.stage == Stage.PAYLOAD:
            return self._heads[slot.modality].of_context(context)
        where = torch.tensor(index + [0] * (self.min_rows - len(index)), device=self.device)
        return self.model.structure_logits(slot, at_least(context, self.min_rows), where)[: len(index)]

    def _sync(self, name: str, listed: list[int]) -> None:
        """Bring a head's state to where the rows' cursors are."""
        to_open, to_load = [], []
        for row in listed:
            cursor, synced = self.cursors[row], self._synced[row]
            here = Synced(name, cursor.start, len(cursor.payload), cursor.position)
            if synced == here:
                continue
            (to_open if synced == here._replace(position=cursor.position - 1) else to_load).append(row)
            self._synced[row] = here
        if to_open:
            self._heads[name].open(self._index(to_open), self._open_contexts(to_open))
        for some in [to_load] if self.min_rows == 1 and to_load else [[row] for row in to_load]:
            self._load(name, some)

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

    # ------------------------------------------------------- several symbols at once

    @torch.no_grad()
    def fill(self, rows: Sequence[int], n: int, choose: Choose) -> list[list[int]]:
        """Write the next n payload symbols of rows of one modality, whose open units have room for them.

        Args:
            choose: picks the i-th of them for all rows: (R, V) logits, i -> (R,) symbols.

        Returns: what was written, a list per row.
        """
        index = self._open(rows)
        name = self.cursors[rows[0]].modality
        drawn = self._heads[name].fill(index, n, choose).tolist()
        self._record(rows, drawn)
        return drawn

    @torch.no_grad()
    def fill_plain(
        self, rows: Sequence[int], n: int, noise: Tensor | None, temperature: float
    ) -> tuple[list[list[int]], Tensor] | None:
        """`fill` by argmax(logits / temperature + noise) in compiled code, where there is such.

        noise: (R, n, V), or None for none. Returns: what was written, and its (R, n, V) logits.
        """
        index = self._open(rows)
        found = self._heads[self.cursors[rows[0]].modality].fill_plain(index, n, noise, temperature)
        if found is None:
            return None
        drawn = found[0].tolist()
        self._record(rows, drawn)
        return drawn, found[1]

    @torch.no_grad()
    def ahead(self, rows: Sequence[int], guesses: Tensor, choose: Choose | None = None) -> Tensor:
        """(R, n, V) logits of the next symbols of open units, each given the (R, n) guesses before it.

        Nothing is written; `accept` writes what was guessed last.

        Args:
            choose: see `HeadState.ahead`.
        """
        return self._heads[self.cursors[rows[0]].modality].ahead(self._open(rows), guesses, choose)

    @torch.no_grad()
    def accept(self, rows: Sequence[int], symbols: Tensor) -> None:
        """Write the (R, n) symbols that `ahead` was given last."""
        self._heads[self.cursors[rows[0]].modality].accept(self._open(rows), symbols)
        self._record(rows, symbols.tolist())

    def looks_ahead(self, row: int) -> bool:
        """Whether `ahead` can be asked about a row's open unit."""
        return self.cursors[row].stage == Stage.PAYLOAD and self._heads[self.cursors[row].modality].looks_ahead

    def _open(self, rows: Sequence[int]) -> Tensor:
        self._read_waiting()
        self._sync(self.cursors[rows[0]].modality, list(rows))
        return self._index(rows)

    def _record(self, rows: Sequence[int], written: list[list[int]]) -> None:
        """Put symbols into the streams that the heads have already."""
        for row, symbols in zip(rows, written, strict=True):
            cursor = self.cursors[row]
            slot, position, start, header, payload = (
                cursor.slot(), cursor.position, cursor.start, cursor.header, cursor.payload
            )  # fmt: skip
            completed = self.grammar.push_payload(cursor, symbols)
            self.streams[row].extend(symbols)
            self._synced[row] = Synced(slot.modality, start, len(payload), position)
            if completed:
                self._wait(row, slot, position - start, payload, header)

    @torch.no_grad()
    def verify(self, guesses: Sequence[Sequence[int]]) -> list[list[Tensor]]:
        """Append guesses, a list for each row, and return the (V,) logits after each: those of one step at a time.

        Take back with `truncate` what was guessed wrong. Logits are empty after the end of a document, and where the
        next symbol's head reads more than the context.

        Raises InputError: as `extend` does.
        """
        self._read_waiting()
        asked: dict[Slot, list[tuple[int, int, int, int]]] = {}  # row, number of the guess, position, index in segment
        scouts = [cursor.copy() for cursor in self.cursors]
        self.append(guesses, stepwise=True)
        self._read_waiting(stepwise=True)
        for row, (own, scout) in enumerate(zip(guesses, scouts, strict=True)):
            for number, symbol in enumerate(own):
                self.grammar.push(scout, symbol)
                place = (row, number, scout.position, scout.position - scout.start)
                asked.setdefault(scout.slot(), []).append(place)
        out: list[list[Tensor]] = [[torch.empty(0)] * len(own) for own in guesses]
        for slot, places in asked.items():
            if slot.stage == Stage.DONE or not self.reads_context_only(slot):
                continue
            rows = torch.tensor([place[0] for place in places], device=self.device)
            position = torch.tensor([place[2] for place in places], device=self.device)
            logits = self._of_context(slot, self._contexts[rows, position], [place[3] for place in places])
            for (row, number, _, _), own in zip(places, logits, strict=True):
                out[row][number] = own
        return out

    def verifies(self, row: int) -> bool:
        """Whether `verify` has logits of a row: its open segment's head reads the context alone."""
        modality = self.cursors[row].modality
        return bool(modality) and self._heads[modality].context_only

    def reads_context_only(self, slot: Slot) -> bool:
        """Whether the logits of such a symbol are a function of its unit's context."""
        return slot.stage != Stage.PAYLOAD or self._heads[slot.modality].context_only

    # ----------------------------------------------------------- moving around

    @torch.no_grad()
    def truncate(self, lengths: int | Sequence[int]) -> None:
        """Keep only the first `lengths[i]` symbols of row i (of every row, for an int)."""
        wanted = [lengths] * self.n_rows if isinstance(lengths, int) else list(lengths)
        assert len(wanted) == self.n_rows and min(wanted) >= 0, "one length per row, none negative"
        self._read_waiting()
        for row, length in enumerate(wanted):
            if length >= len(self.streams[row]):
                continue
            marked, cursor = self._marks[row]
            cursor = cursor.copy() if marked <= length else self.grammar.start()
            for symbol in self.streams[row][marked if marked <= length else 0 : length]:
                self.grammar.push(cursor, symbol)
            del self.streams[row][length:]
            self.cursors[row], self._synced[row] = cursor, None
            self._marks[row] = (length, cursor.copy())
        self._backbone.truncate([cursor.position + 1 for cursor in self.cursors])

    @torch.no_grad()
    def gather_rows(self, index: Sequence[int]) -> None:
        """Row i becomes a copy of what row `index[i]` was; rows may be repeated, dropped and added."""
        waiting = {i: list(self._waiting[row]) for i, row in enumerate(index) if row in self._waiting}
        self._waiting = waiting  # what nobody has asked about may never be needed
        where = torch.tensor(list(index), dtype=torch.int64, device=self.device)
        self.cursors = [self.cursors[i].copy() for i in index]
        self.streams = [list(self.streams[i]) for i in index]
        self._synced, self._marks = [self._synced[i] for i in index], [self._marks[i] for i in index]
        self._contexts = self._contexts[where]
        self._backbone.gather_rows(where)
        for head in self._heads.values():
            head.gather_rows(where)

    @torch.no_grad()
    def copy_row(self, row: int, source: State, source_row: int) -> None:
        """A row becomes a copy of one of another state of the same model."""
        source._read_waiting()
        self._waiting.pop(row, None)
        self.cursors[row], self.streams[row] = source.cursors[source_row].copy(), list(source.streams[source_row])
        self._marks[row], self._synced[row] = source._marks[source_row], None
        n = self.cursors[row].position + 1
        self._reserve(n)
        self._contexts[row, :n] = source._contexts[source_row, :n]
        self._backbone.copy_row(row, source._backbone, source_row)

"""The sampling engine, written once on `State`: it knows streams of symbols and no modality.

Every symbol is `argmax(filtered logits + noise)`, the noise a pure function of (seed, sample, place, value). So a
sample is one fixed point of the network: computed alone or in a batch, in order or guessed ahead and verified, it is
the same wherever the logits are, and an exact state makes them the same to the last bit.

Rows move unit by unit. A row whose sample is finished takes the next one from the queue at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from armm.generation.draw import Drawer, guided
from armm.generation.filter import Row, where_prompt_ends
from armm.generation.lane import Lane, Settings
from armm.generation.proposers import View
from armm.generation.requests import Start
from armm.generation.stops import StopWatch
from armm.generation.units import UnitDrawer
from armm.grammar import Stage
from armm.model import AutoregressiveModel
from armm.state import State

READ_TOGETHER = 1024  # symbols of prompts, padded; with more of them there is nothing left to share


@dataclass(frozen=True)
class Drawn:
    """Symbols that a sample has just got."""

    prompt: int
    index: int
    symbols: list[int]


@dataclass(frozen=True)
class Finished:
    """A sample that has come to its end; `text` is what a stop string left of segment number `segment`."""

    prompt: int
    index: int
    symbols: list[int]
    n_prompt: int
    log_probs: list[float]
    stop: str
    text: str | None = None
    segment: int = 0


class Guess(NamedTuple):
    """A symbol that a proposer guesses, and what filters know before it."""

    symbol: int
    row: Row


class Engine:
    """Draws the samples of a queue in the rows of one state.

    Args:
        starts: where the samples of every prompt begin.
        queue: (prompt, index) of every sample, in the order in which they are begun.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: AutoregressiveModel,
        starts: Sequence[Start],
        queue: Iterable[tuple[int, int]],
        settings: Settings,
    ) -> None:
        self.model, self.starts, self.settings = model, starts, settings
        self.queue = deque(queue)
        self.drawer = Drawer(settings.seed, settings.filters, model.begin.device, settings.compiled)
        self.twins = settings.guidance is not None
        self.width = model.grammar.largest_alphabet
        self.units = UnitDrawer(model.grammar, self.drawer, settings)
        n = min(settings.batch_size, len(self.queue))
        self.state = model.state(n * (1 + self.twins), settings.exact, settings.compiled)
        self.read: dict[int, int] = {}  # prompts that `prompts` has read, and their rows
        self.prompts = self.state
        self.lanes = [self._begin(row, n) for row in range(n)]

    # ------------------------------------------------------------------ the queue

    @torch.inference_mode()
    def run(self) -> Iterator[Drawn | Finished]:
        """Everything that happens, as it happens."""
        while self.lanes:
            for row in range(len(self.lanes)):
                while lane := self.lanes[row]:
                    if not (lane.stop or self._has_ended(row)):
                        break
                    yield self._finish(row)
                    if not self.queue:
                        lane.stop = "gone"
                        break
                    self.lanes[row] = self._begin(row, len(self.lanes))
            going = [row for row, lane in enumerate(self.lanes) if lane.stop != "gone"]
            if len(going) < len(self.lanes):
                twins = [len(self.lanes) + row for row in going] if self.twins else []
                self.state.gather_rows(going + twins)
                self.lanes = [self.lanes[row] for row in going]
            if self.lanes:
                before = [len(lane.drawn) for lane in self.lanes]
                self._advance()
                for lane, n in zip(self.lanes, before, strict=True):
                    yield Drawn(lane.prompt, lane.index, lane.drawn[n:])

    def _begin(self, row: int, n_lanes: int) -> Lane:
        """Let a row begin the next sample of the queue."""
        prompt, index = self.queue.popleft()
        start = self.starts[prompt]
        source, source_row, twin = self._prompt(prompt)
        self.state.copy_row(row, source, source_row)
        if self.twins:
            self.state.copy_row(n_lanes + row, source, twin)
        if not self.queue:
            self.read, self.prompts = {}, self.state  # what was read is not needed again
        cursor = self.state.cursors[row]
        watch = None
        if self.settings.stops:
            watch = StopWatch(self.settings.stops, self.model.grammar)
            watch.read(start.read)
        return Lane(prompt, index, start, where_prompt_ends(cursor), watch)

    def _prompt(self, prompt: int) -> tuple[State, int, int]:
        """Where a prompt has been read: a state, its row, and its twin's.

        Prompts that come up soon are read beside it. What one is followed by cannot depend on the others, for an exact
        state is tested to read a prompt in company as alone.
        """
        if prompt not in self.read:
            self.read = {prompt: 0}
            longest = len(self.starts[prompt].read)
            for other, _ in self.queue:
                if other in self.read:
                    continue
                longest = max(longest, len(self.starts[other].read))
                if len(self.read) == self.settings.batch_size or longest * (1 + len(self.read)) > READ_TOGETHER:
                    break
                self.read[other] = len(self.read)
            self.prompts = self._read([self.starts[each] for each in self.read])
        row = self.read[prompt]
        return self.prompts, row, len(self.read) + row

    def _read(self, starts: Sequence[Start]) -> State:
        """A state whose rows have read prompts, and below them those of their twins, if there are any."""
        n = len(starts)
        state = self.model.state(n * (1 + self.twins), self.settings.exact, self.settings.compiled)
        nothing: list[list[int]] = [[]] * n
        state.append([start.read for start in starts] + (nothing if self.twins else []))
        if self.twins:
            state.append(nothing + [start.without or [] for start in starts], unknown=True)
        return state

    def _has_ended(self, row: int) -> bool:
        """Whether a sample is complete; notes why."""
        lane, cursor = self.lanes[row], self.state.cursors[row]
        if cursor.stage == Stage.DONE:
            lane.stop = "context" if cursor.cut else "end"
        elif self.settings.max_symbols is not None and len(lane.drawn) >= self.settings.max_symbols:
            lane.stop = "length"
        elif self.drawer.reads_rows and self._is_complete(Row.at(cursor, lane.began)):
            lane.stop = "grammar"
        return bool(lane.stop)

    def _is_complete(self, row: Row) -> bool:
        return any(keep.complete(row) for keep in self.settings.filters)

    def _finish(self, row: int) -> Finished:
        lane = self.lanes[row]
        symbols = [*lane.start.read, *lane.drawn]
        found = (lane.watch.text, lane.watch.segment) if lane.watch and lane.stop == "stop" else (None, 0)
        return Finished(lane.prompt, lane.index, symbols, len(lane.start.read), lane.nats, lane.stop, *found)

    # -------------------------------------------------------------------- one step

    def _advance(self) -> None:
        """Draw one symbol of every row, or all that are left in its open unit."""
        single: list[int] = []
        # by modality, symbols there and missing in the unit, symbols to draw, and whether some are given
        units: dict[tuple[str, int, int, int, bool], list[int]] = {}
        for row, lane in enumerate(self.lanes):
            cursor = self.state.cursors[row]
            n = cursor.unit_length if cursor.stage == Stage.PAYLOAD else 1
            if self.settings.max_symbols is not None:
                n = min(n, self.settings.max_symbols - len(lane.drawn))
            if n == 1 and (cursor.stage != Stage.PAYLOAD or not self.state.looks_ahead(row)):
                single.append(row)
            else:
                at = len(cursor.payload) % self.model.modalities[cursor.modality].unit_symbols
                kind = (cursor.modality, at, cursor.unit_length, n, bool(lane.start.given))
                units.setdefault(kind, []).append(row)
        appended = self._draw_one(single) if single else {}
        for (*_, n, _), rows in units.items():
            lanes = [self.lanes[row] for row in rows]
            drawn, nats = self.units.draw(self.state, self._with_twins(rows), lanes, n)
            for lane, symbols, own in zip(lanes, drawn, nats, strict=True):
                lane.take(symbols, own)
        if appended:
            self._append(appended)

    def _with_twins(self, rows: Sequence[int]) -> list[int]:
        return [*rows, *(len(self.lanes) + row for row in rows)] if self.twins else list(rows)

    def _rows(self, rows: Sequence[int]) -> list[Row]:
        """What filters may know about rows of the state; none if none asks."""
        if not self.drawer.reads_rows:
            return []
        return [Row.at(self.state.cursors[row], self.lanes[row].began) for row in rows]

    # ------------------------------------------------------- symbols one by one

    def _draw_one(self, rows: list[int]) -> dict[int, list[int]]:
        """The next symbol of some rows, by row."""
        lanes = [self.lanes[row] for row in rows]
        ahead = [lane.ahead for lane in lanes if lane.ahead is not None]
        if len(ahead) == len(lanes):
            logits = torch.stack(ahead)
        else:
            logits = self._widened(self.state.logits(self._with_twins(rows)))
            logits = guided(logits, self.settings.guidance) if self.settings.guidance is not None else logits
        possible = self._force(rows, logits)
        drawn = self.drawer.draw(possible, self._rows(rows), [lane.place() for lane in lanes])
        nats = logits.log_softmax(-1).gather(-1, drawn[:, None])[:, 0].tolist()
        for lane, symbol, own in zip(lanes, drawn.tolist(), nats, strict=True):
            lane.ahead = None
            lane.take([symbol], [own])
        return {row: [symbol] for row, symbol in zip(rows, drawn.tolist(), strict=True)}

    def _widened(self, logits: Tensor) -> Tensor:
        """Logits over the model's largest alphabet: sums over them must not depend on the other rows' alphabets."""
        missing = self.width - logits.shape[-1]
        return F.pad(logits, (0, missing), value=float("-inf")) if missing else logits

    def _force(self, rows: Sequence[int], logits: Tensor) -> Tensor:
        """Where a plan says what begins next, leave that control symbol alone."""
        forced = self.settings.forced
        if forced is None:
            return logits
        for place, row in enumerate(rows):
            cursor = self.state.cursors[row]
            if cursor.stage == Stage.CONTROL:
                logits = logits.clone()
                logits[place] = float("-inf")
                logits[place, forced[len(cursor.closed)]] = 0.0
        return logits

    def _append(self, appended: dict[int, list[int]]) -> None:
        """Put drawn symbols into the state; where a proposer guesses what follows, verify that in the same call."""
        guesses = {row: own for row, symbols in appended.items() if (own := self._guesses(row, symbols))}
        lists: list[list[int]] = [[] for _ in range(self.state.n_rows)]
        for row, symbols in appended.items():
            for each in self._with_twins([row]):
                lists[each] = symbols + [guess.symbol for guess in guesses.get(row, [])]
        if not guesses:
            self.state.append(lists)
            return
        after = self.state.verify(lists)
        asked = [(row, number) for row, own in guesses.items() for number in range(len(own))]
        logits = torch.stack([self._widened(after[r][k]) for r, k in asked])
        rows = [guesses[r][k].row for r, k in asked] if self.drawer.reads_rows else []
        drawn = self.drawer.draw(logits, rows, [self.lanes[r].place(k) for r, k in asked]).tolist()
        nats = logits.log_softmax(-1)
        lengths = self.state.lengths
        for row, own in guesses.items():
            lane, first = self.lanes[row], asked.index((row, 0))
            right = 0
            while right < len(own) and drawn[first + right] == own[right].symbol and not lane.stop:
                if self.drawer.reads_rows and self._is_complete(own[right].row):
                    break
                lane.take([own[right].symbol], [float(nats[first + right, own[right].symbol])])
                right += 1
            lane.pace.record(len(own), right)
            lengths[row] = lane.length
            lane.ahead = self._widened(after[row][right]) if after[row][right].numel() else None
        self.state.truncate(lengths)

    def _guesses(self, row: int, symbols: list[int]) -> list[Guess]:
        """What a proposer makes of a row that is about to get symbols; only what the model can be asked about."""
        lane, proposer, grammar = self.lanes[row], self.settings.proposer, self.model.grammar
        if proposer is None or self.twins or lane.stop or not self.state.verifies(row):
            return []
        n = lane.pace.length(proposer.longest)
        if self.settings.max_symbols is not None:
            n = min(n, self.settings.max_symbols - len(lane.drawn))
        if n <= 0:
            return []
        scout = self.state.cursors[row].copy()
        for symbol in symbols:
            grammar.push(scout, symbol)
        stream = [*self.state.streams[row], *symbols]
        view = View(lane.prompt, lane.index, stream, scout.copy(), grammar, self.drawer)
        possible: list[Guess] = []
        for symbol in proposer.propose(view, n):
            slot = scout.slot()
            open_segment = slot.stage in (Stage.DECISION, Stage.PAYLOAD) and self.state.reads_context_only(slot)
            if not open_segment or not 0 <= symbol < grammar.vocab(slot):
                break
            possible.append(Guess(symbol, Row.at(scout, lane.began)))
            grammar.push(scout, symbol)
        return possible

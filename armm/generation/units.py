"""Drawing all symbols of a unit: one after the other, in compiled code, or as a fixed point of guesses.

Axes: R rows, n symbols, V alphabet.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from armm.generation.draw import Drawer, guided, keep_given
from armm.generation.filter import Row
from armm.generation.lane import Lane, Settings
from armm.generation.proposers import Proposer, UnitPace, View
from armm.grammar import Grammar
from armm.heads import Choose
from armm.state import State

Unit = tuple[list[list[int]], Tensor]  # (R, n) symbols and (R, n, V) logits


class UnitDrawer:
    """Draws the next symbols of rows that stand alike in their open units."""

    def __init__(self, grammar: Grammar, drawer: Drawer, settings: Settings) -> None:
        self.grammar, self.drawer, self.settings = grammar, drawer, settings
        self.pace = UnitPace()

    def draw(
        self, state: State, rows: list[int], lanes: Sequence[Lane], n: int
    ) -> tuple[list[list[int]], list[list[float]]]:
        """n symbols of each lane, and their log-probabilities.

        rows: of the lanes, and behind them those of their twins.
        """
        cursor = state.cursors[rows[0]]
        noise = self.drawer.noise([lane.place() for lane in lanes], n, self.grammar.vocab(cursor.slot()))
        given = [[-1] * len(lanes)] * n
        if any(lane.start.given for lane in lanes):
            given = [[lane.start.given.get(lane.length + k, -1) for lane in lanes] for k in range(n)]
        drawn, logits = (
            self._compiled(state, rows, lanes, n, noise)
            or self._guessed(state, rows, lanes, given, noise)
            or self._one_by_one(state, rows, lanes, given, noise)
        )
        nats = logits.log_softmax(-1).gather(-1, torch.tensor(drawn, device=logits.device)[..., None])[..., 0]
        return drawn, nats.tolist()

    def _compiled(
        self, state: State, rows: list[int], lanes: Sequence[Lane], n: int, noise: Tensor | None
    ) -> Unit | None:
        """In the head's compiled loop, where that is wanted, there, and enough."""
        temperature = self.drawer.temperature(state.cursors[rows[0]].modality)
        if (
            not self.settings.fast
            or temperature is None
            or len(rows) > len(lanes)
            or any(lane.start.given for lane in lanes)
        ):
            return None
        return state.fill_plain(rows, n, noise, temperature)

    def _one_by_one(
        self, state: State, rows: list[int], lanes: Sequence[Lane], given: list[list[int]], noise: Tensor | None
    ) -> Unit:
        """One symbol after the other. given: for each symbol a list for the lanes, -1 for none."""
        columns = noise.unbind(1) if noise is not None else [None] * len(given)
        written: list[list[int]] = [[] for _ in lanes]
        seen: list[Tensor] = []

        def choose(logits: Tensor, i: int) -> Tensor:
            if self.settings.guidance is not None:
                logits = guided(logits, self.settings.guidance)
            seen.append(logits)
            if self.drawer.filters:
                logits = self.drawer.filtered(logits, self._rows(state, rows, lanes, written))
            own = columns[i]
            symbols = keep_given((logits if own is None else logits + own).argmax(dim=-1), given[i])
            if self.drawer.reads_rows:
                for mine, symbol in zip(written, symbols.tolist(), strict=True):
                    mine.append(symbol)
            return symbols if len(rows) == len(lanes) else symbols.repeat(2)

        drawn = state.fill(rows, len(given), choose)
        return drawn[: len(lanes)], torch.stack(seen, dim=1)

    def _rows(self, state: State, rows: list[int], lanes: Sequence[Lane], written: list[list[int]]) -> list[Row]:
        """What filters may know about rows whose units have got symbols since; none if none asks."""
        if not self.drawer.reads_rows:
            return []
        own = zip(rows, lanes, written, strict=False)
        return [Row.at(state.cursors[row], lane.began, more) for row, lane, more in own]

    def _guessed(
        self, state: State, rows: list[int], lanes: Sequence[Lane], given: list[list[int]], noise: Tensor | None
    ) -> Unit | None:
        """As the fixed point of a proposer's guesses, where the head can be asked about them and that pays."""
        proposer, n = self.settings.proposer, len(given)
        if proposer is None or len(rows) > len(lanes) or self.drawer.reads_rows or not state.looks_ahead(rows[0]):
            return None
        cursor = state.cursors[rows[0]]
        channels = self.grammar.modalities[cursor.modality].symbol_channels
        if n % channels or len(cursor.payload) % channels:
            return None
        with self.pace.timed(n) as guessing:
            if guessing:
                guesses = self._first_guess(state, rows, lanes, n, proposer)
                return self._settle(state, rows, guesses, channels, given, noise)
            return self._one_by_one(state, rows, lanes, given, noise)

    def _first_guess(self, state: State, rows: list[int], lanes: Sequence[Lane], n: int, proposer: Proposer) -> Tensor:
        """(R, n) guesses, inside the alphabet."""
        guesses = []
        for row, lane in zip(rows, lanes, strict=True):
            view = View(lane.prompt, lane.index, state.streams[row], state.cursors[row], self.grammar, self.drawer)
            guesses.append((proposer.propose(view, n) + [0] * n)[:n])
        return torch.tensor(guesses, device=state.device).clamp(
            0, self.grammar.vocab(state.cursors[rows[0]].slot()) - 1
        )

    def _settle(
        self,
        state: State,
        rows: list[int],
        guesses: Tensor,
        channels: int,
        given: list[list[int]],
        noise: Tensor | None,
    ) -> Unit:
        """All places at once, from guesses of those before them, until they are what was guessed.

        The sample is the only such fixed point; after k calls at least its first k places are right (Wiggers &
        Hoogeboom, arXiv:2002.09928). Channels of a place are drawn one after the other, so that they wait for no
        further call; a row that is settled waits for the others, and is not computed again.
        """
        fixed = torch.tensor(given, device=guesses.device).T  # (R, n), -1 for none
        drawn, passes = guesses.clone(), [0] * len(rows)
        logits = guesses.new_empty(*guesses.shape, self.grammar.vocab(state.cursors[rows[0]].slot()), dtype=torch.float)
        moving = torch.arange(len(rows), device=guesses.device)
        while len(moving):
            before, listed = drawn[moving], moving.tolist()
            after = before.clone()
            choose = self._into(after, fixed[moving], None if noise is None else noise[moving], channels)
            logits[moving] = state.ahead([rows[place] for place in listed], before, choose)
            drawn[moving] = after
            for place in listed:
                passes[place] += 1
            moving = moving[(after != before).any(dim=1)]
        state.accept(rows, drawn)
        self.pace.passes.extend(passes)
        return drawn.tolist(), logits

    def _into(self, symbols: Tensor, fixed: Tensor, noise: Tensor | None, channels: int) -> Choose:
        """Draws a channel of all places into (R, n) symbols; (R, n) fixed ones are kept, -1 for none."""

        def choose(logits: Tensor, i: int) -> Tensor:
            kept = self.drawer.filtered(logits.flatten(0, 1), []).view_as(logits)
            drawn = (kept if noise is None else kept + noise[:, i::channels]).argmax(dim=-1)
            symbols[:, i::channels] = torch.where(fixed[:, i::channels] < 0, drawn, fixed[:, i::channels])
            return symbols[:, i::channels]

        return choose

"""Proposers guess what comes next; the model verifies several guesses in one call and keeps those that it would have
drawn itself. So they change the speed of a sample and nothing else (Gumbel coupling: Daliri et al., arXiv:2408.07978).

Where a unit is one symbol (text), guesses are verified as units of the backbone. Where a head writes many symbols of a
unit (rows of pixels, frames of samples), all of them are guessed and computed at once, and what comes out is the next
guess, until nothing changes: the fixed point is the sample (Wiggers & Hoogeboom, arXiv:2002.09928).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from armm.errors import InputError
from armm.generation.draw import Drawer, Place
from armm.grammar import Cursor, Grammar, Stage
from armm.model import AutoregressiveModel
from armm.state import State

REST = 32  # symbols during which a proposer that was wrong again and again is not asked


@dataclass(frozen=True)
class View:
    """What a proposer may know about a sample.

    Attributes:
        prompt, index: numbers of the prompt and the sample. stream: its symbols so far. cursor: the place after them.
        drawer: draws the sample's own symbols, so that a model's guesses can use its noise.
    """

    prompt: int
    index: int
    stream: Sequence[int]
    cursor: Cursor
    grammar: Grammar
    drawer: Drawer


class Proposer(ABC):
    """Guesses the next symbols of a stream.

    Attributes:
        longest: ask for at most so many at once.
    """

    longest: int = 16

    @abstractmethod
    def propose(self, view: View, n: int) -> list[int]:
        """At most n guesses; none where there is nothing to go by."""


@dataclass(frozen=True)
class NGram(Proposer):
    """What followed the last time that the last few symbols occurred, in the prompt or the output (prompt lookup
    decoding, Saxena 2023).

    Attributes:
        most, least: how many symbols to look for; the most that occur decide.
        longest: guesses at once.
    """

    most: int = 4
    least: int = 2
    longest: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise InputError(f"NGram(most={self.most}, least={self.least}): expected 1 <= least <= most")
        if self.longest < 1:
            raise InputError(f"NGram.longest is {self.longest}, it must be at least 1")

    def propose(self, view: View, n: int) -> list[int]:
        stream = list(view.stream)
        for size in range(min(self.most, len(stream) - 1), self.least - 1, -1):
            end = stream[-size:]
            last = end[-1]
            for place in range(len(stream) - 2, size - 2, -1):
                if stream[place] == last and stream[place - size + 1 : place + 1] == end:
                    follows = stream[place + 1 : place + 1 + n]
                    while len(follows) < n:  # what repeats every few symbols goes on repeating
                        follows += follows[: n - len(follows)]
                    return follows
        return []


@dataclass(frozen=True)
class UnitAbove(Proposer):
    """What stood at the same place of the unit before: the row above in an image of row strips."""

    def propose(self, view: View, n: int) -> list[int]:
        payload = view.cursor.payload
        size = view.grammar.modalities[view.cursor.modality].unit_symbols if view.cursor.modality else 1
        if view.cursor.stage != Stage.PAYLOAD or len(payload) < size:
            return Hold().propose(view, n)
        first = len(payload) - size
        return payload[first : first + n]


@dataclass(frozen=True)
class Hold(Proposer):
    """The last symbol goes on: silence, held notes, plain background; of pixels, all channels of the last one."""

    def propose(self, view: View, n: int) -> list[int]:
        if view.cursor.stage != Stage.PAYLOAD or not view.cursor.payload:
            return [0] * n
        channels = view.grammar.modalities[view.cursor.modality].symbol_channels
        last = view.cursor.payload[-channels:]
        return (last * (n // len(last) + 1))[:n]


@dataclass(frozen=True)
class FixedPoint(Proposer):
    """No idea to begin with: the first guess is the lowest symbol everywhere, every later one the previous result."""

    def propose(self, view: View, n: int) -> list[int]:
        return [0] * n


@dataclass(eq=False)
class Draft(Proposer):
    """What a smaller model of the same alphabet would draw with the same noise.

    Attributes:
        model: of the same modalities, in the same order, with the same alphabets.
        longest: guesses at once.
        n_kept: samples whose place the draft remembers at once; more than the engine's batch size.
    """

    model: AutoregressiveModel
    longest: int = 6
    n_kept: int = 64
    _states: dict[tuple[int, int], State] = field(default_factory=dict, repr=False)

    def check(self, model: AutoregressiveModel) -> None:
        """Raises InputError: the draft's streams mean something else than the model's."""
        own, other = self.model.grammar, model.grammar
        same = own.names == other.names and own.layout == other.layout
        sizes = [
            [
                (m.vocab, m.unit_symbols, m.ended, m.header_sizes, m.header((0,) * len(m.header_sizes)))
                for m in g.modalities.values()
            ]
            for g in (own, other)
        ]
        if not same or sizes[0] != sizes[1]:
            raise InputError(
                "the draft model has other modalities or another vocabulary than the model; "
                "train it with the same data section and the same tokenizer"
            )

    def propose(self, view: View, n: int) -> list[int]:
        context = self.model.grammar.context
        if context is not None and view.cursor.position >= context:
            return []  # more than the draft can read
        sample = (view.prompt, view.index)
        state = self._states.pop(sample, None) or self.model.state(1)
        if len(self._states) >= self.n_kept:
            del self._states[next(iter(self._states))]
        self._states[sample] = state
        known, stream = state.streams[0], list(view.stream)
        common = next((i for i, (a, b) in enumerate(zip(known, stream, strict=False)) if a != b), None)
        common = min(len(known), len(stream)) if common is None else common
        if common < len(known):
            state.truncate([common])
        if state.done[0]:
            return []
        logits = state.extend([stream[common:]])
        guesses: list[int] = []
        while len(guesses) < n and not state.done[0]:
            place = Place(view.index, len(stream) + len(guesses))
            guesses.append(int(view.drawer.guess(logits, place)))
            if len(guesses) < n:
                logits = state.extend([guesses[-1:]])
        return guesses


@dataclass
class Pace:
    """How many guesses to ask for: more after they were right, fewer after they were wrong, none for a while after
    they were wrong again and again."""

    wanted: int = 4
    misses: int = 0
    rest: int = 0

    def length(self, longest: int) -> int:
        if self.rest:
            self.rest -= 1
            return 0
        return min(self.wanted, longest)

    def record(self, n: int, right: int) -> None:
        self.wanted = min(2 * self.wanted, 64) if right == n else max(right + 1, 2)
        self.misses = 0 if right else self.misses + 1
        if self.misses >= 3:
            self.rest, self.misses = REST, 0


@dataclass
class UnitPace:
    """Whether guessing whole units pays, by the clock: both ways are timed, and the faster one is taken.

    It changes when a sample is ready, never what it is.
    """

    seconds: dict[bool, float] = field(default_factory=dict)
    guessing: bool = True
    n_units: int = 0
    passes: list[int] = field(default_factory=list)  # of every unit of every sample that was guessed

    @contextmanager
    def timed(self, n: int) -> Iterator[bool]:
        """Take the time of a unit of n symbols; says whether it is to be guessed."""
        self.choose()
        began = time.perf_counter()
        yield self.guessing
        spent = (time.perf_counter() - began) / n
        self.seconds[self.guessing] = 0.5 * (self.seconds.get(self.guessing, spent) + spent)

    def choose(self) -> bool:
        """Whether the next unit is to be guessed."""
        self.n_units += 1
        missing = [way for way in (True, False) if way not in self.seconds]
        if missing:
            self.guessing = missing[0]
        elif self.n_units % 32 == 0:
            self.guessing = not self.guessing  # look again: what the sample is like has changed
        else:
            self.guessing = self.seconds[True] <= self.seconds[False]
        return self.guessing

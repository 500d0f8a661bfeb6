"""A sample on its way, and what was asked for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from armm.generation.draw import Place
from armm.generation.filter import Filter
from armm.generation.proposers import Pace, Proposer
from armm.generation.requests import Start
from armm.generation.stops import StopWatch


@dataclass
class Lane:
    """A sample being drawn, in a row of the state.

    Attributes:
        began: segments closed, and symbols of the open one, where the prompt ended.
        drawn: symbols so far, not the prompt's. nats: their log-probabilities.
        ahead: logits of the next symbol, where a verification has left them.
    """

    prompt: int
    index: int
    start: Start
    began: tuple[int, int]
    watch: StopWatch | None
    drawn: list[int] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)
    stop: str = ""
    ahead: Tensor | None = None
    pace: Pace = field(default_factory=Pace)

    @property
    def length(self) -> int:
        """Of its stream."""
        return len(self.start.read) + len(self.drawn)

    def place(self, ahead: int = 0) -> Place:
        """Of the next symbol, or of one after it."""
        position = self.length + ahead
        return Place(self.index, position, self.start.given.get(position, -1))

    def take(self, symbols: Sequence[int], nats: Sequence[float]) -> None:
        """Get symbols, up to the one that completes a stop string."""
        if self.watch is None:
            self.drawn += symbols
            self.nats += nats
            return
        for symbol, value in zip(symbols, nats, strict=True):
            if not self.stop:
                self.drawn.append(symbol)
                self.nats.append(value)
                self.stop = "stop" if self.watch.push(symbol) else ""


@dataclass(frozen=True)
class Settings:
    """What a request asks for beside its prompts; `armm.generation.generate` documents each."""

    seed: int = 0
    filters: Sequence[Filter] = ()
    forced: list[int] | None = None
    max_symbols: int | None = None
    batch_size: int = 16
    proposer: Proposer | None = None
    stops: Sequence[str] = ()
    guidance: float | None = None
    exact: bool = False
    fast: bool = False
    compiled: bool = False

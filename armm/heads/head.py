"""The contract of a head: one distribution over a unit's symbols, seen in parallel and seen step by step.

Axes: S segments, U units, K symbols of a unit, D width of the backbone, V vocabulary, F header fields,
R rows of a state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Unit:
    """What a head has to know about the units of a modality.

    Attributes:
        vocab: V, the number of values a symbol can take; V itself stands for "unknown" and is never coded.
        symbols: K, symbols per unit.
        channels: consecutive symbols that share one place (the R, G, B of a pixel); divides `symbols`.
        continuous: a head's history runs on across unit borders (time) instead of starting anew (rows).
        block: (height, width) in pixels of a unit of an image, `None` where there is no second dimension.
        whole_rows: a block spans the whole width of the image, so that everything above it is known.
        values: (V, n) what each symbol means as numbers of order 1 (amplitudes), for heads that read them; or None.
        frame_rows: units of a frame, where images follow one another as the frames of a clip; 0 for single images.
    """

    vocab: int
    symbols: int = 1
    channels: int = 1
    continuous: bool = True
    block: tuple[int, int] | None = None
    whole_rows: bool = False
    values: Tensor | None = None
    frame_rows: int = 0

    @property
    def places(self) -> int:
        return self.symbols // self.channels


class Head(nn.Module, ABC):
    """Turns a context vector per unit, and the symbols already known, into a distribution per symbol."""

    @abstractmethod
    def logits(self, context: Tensor, symbols: Tensor, known: Tensor, header: Tensor) -> Tensor:
        """Logits of every symbol given all before it.

        Args:
            context: (S, U, D) from units before each unit only.
            symbols: (S, U, K) int64, the value V where not known.
            known: (S, U, K) bool. Unknown symbols come after all known ones.
            header: (S, F) int64.

        Returns: (S, U, K, V) float32; normalise with log_softmax.
        """

    @abstractmethod
    def log_prob(
        self, context: Tensor, symbols: Tensor, known: Tensor, header: Tensor, read: Tensor | None = None
    ) -> Tensor:
        """(S, U, K) float32 nats: the log-probability of each symbol, 0 where it is not known.

        read: (S, U, K) symbols that the head reads as the past instead, in training on corrupted inputs.
        """

    def log_prob_and_normaliser(
        self, context: Tensor, symbols: Tensor, known: Tensor, header: Tensor, read: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`log_prob`, and the (S, U, K) log of the sum that normalises each symbol's distribution."""
        logits = self.logits(context, symbols if read is None else read, known, header)
        normaliser = logits.logsumexp(-1)
        chosen = logits.gather(-1, symbols.clamp(max=logits.shape[-1] - 1)[..., None])[..., 0]
        return torch.where(known, chosen - normaliser, 0.0), torch.where(known, normaliser, 0.0)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Maps from hidden features to hidden features: (rows, columns), stacks of them, or convolutions."""
        return []

    @abstractmethod
    def state(self, n_rows: int, min_rows: int = 1) -> HeadState:
        """An empty state for stepping through one segment per row.

        min_rows: every matrix product has at least so many rows, so that its results do not depend on `n_rows`.
        """

    @abstractmethod
    def set_unigram(self, log_unigram: Tensor) -> None:
        """Start from a known (V,) log-frequency of the symbols instead of from the uniform distribution."""


class Choose(Protocol):
    """Picks the i-th of several next symbols: (R, V) logits -> (R,) symbols."""

    def __call__(self, logits: Tensor, i: int) -> Tensor: ...


class HeadState(ABC):
    """The step-by-step view of a head: one segment per row, each row at its own place.

    The caller owns the truth (symbols and contexts); the state is a cache that `load` can rebuild at any length,
    which is how prompts are read and how a truncated row goes on.

    Attributes:
        context_only: the open unit's context says everything: `of_context` is there, and nothing else is called.
        looks_ahead: `ahead` is there, so that guesses can be verified in one call.
    """

    context_only: ClassVar[bool] = False
    looks_ahead: ClassVar[bool] = False

    def of_context(self, context: Tensor) -> Tensor:
        """(M, D) contexts of open units -> (M, V) float32 logits of their symbol."""
        raise NotImplementedError("this head reads more than the context")

    @abstractmethod
    def load(self, rows: Tensor, context: Tensor, symbols: Tensor, lengths: Tensor, header: Tensor) -> None:
        """Put rows at a given point of their segments, in parallel.

        Args:
            rows: (R,) which rows.
            context: (R, U, D) of every unit up to and with the open one.
            symbols: (R, U, K) int64, the value V from `lengths` on.
            lengths: (R,) symbols known so far. Less than `U * K`: the open unit lacks at least one.
            header: (R, F).
        """

    @abstractmethod
    def open(self, rows: Tensor, context: Tensor) -> None:
        """Begin the next unit of rows whose last unit is full, with its (R, D) context."""

    @abstractmethod
    def extend(self, rows: Tensor, symbols: Tensor) -> None:
        """Record the next (R,) symbols of the open units."""

    @abstractmethod
    def logits(self, rows: Tensor) -> Tensor:
        """(R, V) float32 logits of the next symbol of rows whose open unit is not full."""

    @abstractmethod
    def gather_rows(self, index: Tensor) -> None:
        """Row i becomes what row `index[i]` was; `index` may repeat, drop or add rows."""

    def fill(self, rows: Tensor, n: int, choose: Choose) -> Tensor:
        """Write the next n symbols of open units, which have room for them, each as `choose` picks it.

        Returns: (R, n) int64.
        """
        drawn = []
        for i in range(n):
            drawn.append(choose(self.logits(rows), i))
            self.extend(rows, drawn[-1])
        return torch.stack(drawn, dim=1)

    def compile(self) -> None:
        """Compute between units in compiled code from now on, where there is such for this head and machine."""
        return

    def fill_plain(
        self, rows: Tensor, n: int, noise: Tensor | None, temperature: float
    ) -> tuple[Tensor, Tensor] | None:
        """`fill` in compiled code, each symbol argmax(logits / temperature + noise).

        Args:
            rows: (R,), no one twice.
            noise: (R, n, V) float32; none for argmax(logits), whatever the temperature.

        Returns: (R, n) int64 symbols and the (R, n, V) float32 logits that they were drawn from, the same whatever
        other rows there are; None where there is no such code, and nothing was written.
        """
        return None

    def ahead(self, rows: Tensor, guesses: Tensor, choose: Choose | None = None) -> Tensor:
        """Logits of each of the next symbols of open units, given the guesses before it; nothing is written.

        Args:
            rows: (R,), all at the same place of their units.
            guesses: (R, n) int64, no more than the units have room for.
            choose: takes the (R, P, V) logits of one channel of all places and the channel's number, and returns
                (R, P) symbols, which the channels after it are told instead of the guesses.

        Returns: (R, n, V) float32, the same numbers that stepping through the guesses gives.
        """
        raise NotImplementedError("this head does not look ahead")

    def accept(self, rows: Tensor, symbols: Tensor) -> None:
        """Record the next (R, n) symbols, after `ahead` was called with them as guesses."""
        for column in symbols.unbind(1):
            self.extend(rows, column)


class HeadConfig(ABC):
    """Which head, as a recipe names it: a frozen dataclass that builds the module."""

    @abstractmethod
    def build(self, width: int, unit: Unit) -> Head:
        """The head for a backbone of this width.

        Raises InputError: the head cannot model such units.
        """

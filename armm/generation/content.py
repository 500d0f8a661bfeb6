"""Filters about content: penalties for what was said, biases, banned and allowed symbols. Payload symbols alone.

Axes: R rows, V the largest alphabet among them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from armm.errors import InputError
from armm.generation.filter import Filter, Row, where_concerned

INF = float("inf")
LARGEST = 1e6  # of a bias or penalty, in nats: beyond it float32 has no logits left to tell apart


class ContentFilter(Filter):
    """A filter about payload symbols; a subclass says what happens to the rows that it concerns."""

    @property
    def reads_rows(self) -> bool:
        return True

    def __call__(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        return where_concerned(logits, rows, self.modality, self.reweigh)

    @abstractmethod
    def reweigh(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """(R, V) -> (R, V), for rows at a payload symbol of a modality that it is about."""

    def named(self) -> Sequence[int]:
        """The symbols that its fields name."""
        return ()

    def check(self, alphabets: Mapping[str, int]) -> None:
        super().check(alphabets)
        vocab = alphabets[self.modality] if self.modality else max(alphabets.values())
        outside = [symbol for symbol in self.named() if symbol >= vocab]
        if outside:
            of = f"of {self.modality!r} " if self.modality else ""
            raise InputError(f"{type(self).__name__} names symbol {outside[0]}; the symbols {of}are 0 to {vocab - 1}")


def counts(histories: Iterable[Sequence[int]], like: Tensor) -> Tensor:
    """How often every symbol occurs in the history of each row, (R, V) as `like`."""
    histories = list(histories)
    n_rows, vocab = like.shape
    lengths = np.array([len(history) for history in histories])
    symbols = np.fromiter(chain.from_iterable(histories), dtype=np.int64, count=lengths.sum())
    cells = np.repeat(np.arange(n_rows) * vocab, lengths) + symbols
    return torch.from_numpy(np.bincount(cells, minlength=n_rows * vocab)).view(n_rows, vocab).to(like)


def check_penalty(name: str, penalty: float, least: float, largest: float) -> None:
    if not least <= penalty <= largest:
        raise InputError(f"{name}.penalty is {penalty}; expected a number from {least:g} to {largest:g}")


@dataclass(frozen=True)
class RepetitionPenalty(ContentFilter):
    """Divide the positive logits of symbols seen in the segment by `penalty`, multiply the negative ones.

    The prompt counts (CTRL, Keskar et al., arXiv:1909.05858, 4.1, with the negative logits of Hugging Face). 1 changes
    nothing, 1.2 is what CTRL takes, less than 1 invites repetition.

    Raises InputError: penalty is not from 0.001 to 1000.
    """

    penalty: float
    modality: str = ""
    order: ClassVar[int] = 10
    single: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_penalty("RepetitionPenalty", self.penalty, 1e-3, 1e3)

    def reweigh(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        seen = counts((row.payload for row in rows), logits) > 0
        return torch.where(seen, torch.where(logits > 0, logits / self.penalty, logits * self.penalty), logits)


@dataclass(frozen=True)
class PresencePenalty(ContentFilter):
    """Subtract `penalty` nats from symbols generated at least once in the segment (OpenAI API, `presence_penalty`).

    0 changes nothing, a negative penalty invites repetition. The prompt does not count.

    Raises InputError: penalty is not from -1e6 to 1e6.
    """

    penalty: float
    modality: str = ""
    order: ClassVar[int] = 11
    single: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_penalty("PresencePenalty", self.penalty, -LARGEST, LARGEST)

    def reweigh(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        generated = counts((row.payload[row.n_given :] for row in rows), logits) > 0
        return logits - self.penalty * generated


@dataclass(frozen=True)
class FrequencyPenalty(ContentFilter):
    """Subtract `penalty` nats for each time that a symbol was generated in the segment (OpenAI API).

    0 changes nothing, a negative penalty invites repetition. The prompt does not count.

    Raises InputError: penalty is not from -1e6 to 1e6.
    """

    penalty: float
    modality: str = ""
    order: ClassVar[int] = 12
    single: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_penalty("FrequencyPenalty", self.penalty, -LARGEST, LARGEST)

    def reweigh(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        return logits - self.penalty * counts((row.payload[row.n_given :] for row in rows), logits)


@dataclass(frozen=True)
class LogitBias(ContentFilter):
    """Add nats to the logits of some symbols (OpenAI API, `logit_bias`): {symbol: nats}, or pairs of the two.

    Raises InputError: a symbol is negative or listed twice, or a bias is not from -1e6 to 1e6.
    """

    bias: Mapping[int, float] | Sequence[tuple[int, float]]
    modality: str = ""
    order: ClassVar[int] = 20

    def __post_init__(self) -> None:
        pairs = self.bias.items() if isinstance(self.bias, Mapping) else self.bias
        bias = tuple(sorted((symbol, float(nats)) for symbol, nats in pairs))
        symbols = checked_symbols("LogitBias.bias", [symbol for symbol, _ in bias])
        if len(symbols) < len(bias):
            raise InputError("LogitBias.bias lists a symbol twice; give each one number of nats")
        for symbol, nats in bias:
            if not isfinite(nats) or abs(nats) > LARGEST:
                raise InputError(
                    f"LogitBias.bias is {nats} for symbol {symbol}; expected -1e6 to 1e6 nats, or use Banned or Allowed"
                )
        object.__setattr__(self, "bias", bias)

    def reweigh(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        inside = [(symbol, nats) for symbol, nats in self._pairs() if symbol < logits.shape[-1]]
        added = torch.zeros(logits.shape[-1])
        added[torch.tensor([symbol for symbol, _ in inside], dtype=torch.int64)] = torch.tensor([n for _, n in inside])
        return logits + added.to(logits)

    def named(self) -> Sequence[int]:
        return [symbol for symbol, _ in self._pairs()]

    def _pairs(self) -> tuple[tuple[int, float], ...]:
        assert isinstance(self.bias, tuple)
        return self.bias


@dataclass(frozen=True)
class Banned(ContentFilter):
    """Rule some symbols out. Those that an alphabet does not have are ruled out there anyway.

    Raises InputError: a symbol is negative; or, when it is applied, a row has no symbol left.
    """

    symbols: Sequence[int]
    modality: str = ""
    order: ClassVar[int] = 21

    def __post_init__(self) -> None:
        object.__setattr__(self, "symbols", checked_symbols("Banned.symbols", self.symbols))

    def reweigh(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        return without(self, logits, member(self.symbols, logits))

    def named(self) -> Sequence[int]:
        return self.symbols


@dataclass(frozen=True)
class Allowed(ContentFilter):
    """Rule all but some symbols out.

    Raises InputError: no symbol is listed, or a negative one; or, when it is applied, a row has no symbol left.
    """

    symbols: Sequence[int]
    modality: str = ""
    order: ClassVar[int] = 22

    def __post_init__(self) -> None:
        object.__setattr__(self, "symbols", checked_symbols("Allowed.symbols", self.symbols))
        if not self.symbols:
            raise InputError("Allowed.symbols is empty; list the symbols that may come, or leave Allowed out")

    def reweigh(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        return without(self, logits, ~member(self.symbols, logits))

    def named(self) -> Sequence[int]:
        return self.symbols


def checked_symbols(what: str, symbols: Iterable[int]) -> tuple[int, ...]:
    """Symbols in ascending order, each once.

    Raises InputError: one is negative or no integer.
    """
    for symbol in (symbols := list(symbols)):
        if not isinstance(symbol, int) or symbol < 0:
            raise InputError(f"{what} lists {symbol!r}; symbols are integers from 0")
    return tuple(sorted(set(symbols)))


def member(symbols: Sequence[int], like: Tensor) -> Tensor:
    """(V,) bool: which of the values in (R, V) are among the symbols."""
    listed = torch.tensor(symbols, dtype=torch.int64)
    inside = torch.zeros(like.shape[-1], dtype=torch.bool)
    inside[listed[listed < len(inside)]] = True
    return inside.to(like.device)


def without(keep: Filter, logits: Tensor, out: Tensor) -> Tensor:
    """Logits with (V,) or (R, V) values ruled out.

    Raises InputError: a row that had symbols has none left.
    """
    left = logits.masked_fill(out, -INF)
    if bool(((left == -INF).all(-1) & (logits > -INF).any(-1)).any()):
        raise InputError(f"{type(keep).__name__} leaves no symbol that the model or another filter allows; loosen it")
    return left

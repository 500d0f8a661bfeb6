"""Filters: pure functions from logits to logits, applied before the noise.

    filters=[Temperature(0.9), TopK(50), Banned([10], modality="text")]

`arrange` puts them in one order whatever the order they are listed in: repetition, presence and frequency penalty;
bias, banned, allowed, grammar; temperature; top-k; top-p; min-p; typical. The first two groups are about *content*:
they act on payload symbols alone, and on those of one modality where `modality` names it. The others act on every
symbol, structure (what begins, how large, where it ends) included.

A filter knows nothing about batches: what it does to a row depends on that row, and not on how far other rows' larger
alphabets make the logits reach.

Axes: R rows, V the largest alphabet among them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isfinite, log
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from armm.errors import InputError, nearest
from armm.grammar import Cursor, Slot, Stage

INF = float("inf")
LARGEST = 1e6  # of a bias or penalty, in nats: beyond it float32 has no logits left to tell apart


@dataclass(frozen=True)
class Row:
    """What a filter may know about a row beside its logits.

    Attributes:
        slot: stage, modality and header field of the next symbol.
        payload: symbols of the open segment so far, the prompt's included, end decisions left out.
        n_given: how many of them the prompt gave; the others were generated.
        n_left: symbols until the segment ends, where an end decision or its header has said so; None while open.
    """

    slot: Slot
    payload: Sequence[int]
    n_given: int = 0
    n_left: int | None = None

    @classmethod
    def at(cls, cursor: Cursor, began: tuple[int, int], more: Sequence[int] = ()) -> Row:
        """The row at a cursor, or `more` symbols on in its open unit.

        began: segments closed, and symbols of the open one, where the prompt ended.
        """
        n_given = began[1] if len(cursor.closed) == began[0] else 0
        n_left = None
        if cursor.stage == Stage.PAYLOAD and cursor.last:
            n_left = cursor.unit_length - len(more)
        elif cursor.stage == Stage.PAYLOAD and cursor.n_total is not None:
            n_left = cursor.n_total - len(cursor.payload) - len(more)
        return cls(cursor.slot(), [*cursor.payload, *more], n_given, n_left)


class Filter(ABC):
    """A pure function of logits and rows. Subclasses are frozen dataclasses: their fields are their provenance.

    Attributes:
        order: its place; filters are applied by ascending `order`, those of one place as they are listed.
        reads_rows: whether it looks at `rows`; otherwise they may be empty.
        single: whether two of this order contradict each other, unless they are about different modalities.
        modality: the only modality that it is about; "" for all.
    """

    order: ClassVar[int]
    reads_rows: ClassVar[bool] = False
    single: ClassVar[bool] = False
    modality: str = ""

    @abstractmethod
    def __call__(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """(R, V) float32 logits in, the same shape out, -inf where a symbol is ruled out; one row for each if read."""

    def complete(self, row: Row) -> bool:
        """Whether the open segment can take no further symbol and should end here."""
        return False

    def check(self, alphabets: Mapping[str, int]) -> None:
        """Compare with a model's modalities and their alphabet sizes, before anything is generated.

        Raises InputError: it names a modality or a symbol that the model does not have.
        """
        if self.modality and self.modality not in alphabets:
            raise InputError(
                f"{type(self).__name__}.modality is {self.modality!r}; the model has {', '.join(alphabets)}"
                f"{nearest(self.modality, alphabets)}"
            )


def arrange(filters: Sequence[Filter]) -> list[Filter]:
    """Filters in the order they are applied, those of one place as they are listed.

    Raises InputError: something that is no filter, two that contradict each other, or nothing left of what is allowed.
    """
    for number, keep in enumerate(filters):
        if not isinstance(keep, Filter):
            raise InputError(f"filters[{number}] is {keep!r}; expected a filter such as TopK(50)")
    ordered = sorted(filters, key=lambda keep: keep.order)
    for number, one in enumerate(ordered):
        for other in ordered[number + 1 :]:
            same_symbols = one.modality == other.modality or "" in (one.modality, other.modality)
            if one.single and other.single and one.order == other.order and same_symbols:
                names = f"{type(one).__name__} and {type(other).__name__}"
                raise InputError(f"filters lists {names} for the same symbols; keep one of the two")
    for scope in {keep.modality for keep in ordered}:
        concerned = [keep for keep in ordered if keep.modality in ("", scope)]
        allowed = [set(keep.symbols) for keep in concerned if isinstance(keep, Allowed)]
        banned = [set(keep.symbols) for keep in concerned if isinstance(keep, Banned)]
        if allowed and not set.intersection(*allowed).difference(*banned):
            raise InputError("filters leaves no symbol: nothing is Allowed that is not Banned; take one of them out")
    return ordered


# --------------------------------------------------------------------- content


class ContentFilter(Filter):
    """A filter about payload symbols; a subclass says what happens to the rows that it concerns."""

    reads_rows: ClassVar[bool] = True

    def __call__(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        chosen = [i for i, row in enumerate(rows) if concerns(self.modality, row)]
        if not chosen:
            return logits
        if len(chosen) == len(rows):
            return self.reweigh(logits, rows)
        where = torch.tensor(chosen, dtype=torch.int64, device=logits.device)
        out = logits.clone()
        out[where] = self.reweigh(logits[where], [rows[i] for i in chosen])
        return out

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


def concerns(modality: str, row: Row) -> bool:
    """Whether the next symbol of a row is a payload symbol of a modality, or of any for ""."""
    return row.slot.stage == Stage.PAYLOAD and modality in ("", row.slot.modality)


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


# -------------------------------------------------------------------- any symbol


@dataclass(frozen=True)
class Temperature(Filter):
    """Divide the logits by t; 0 leaves the most probable symbol alone (the lowest one among equals).

    Raises InputError: t is negative, not a number, or too small to divide by.
    """

    t: float
    order: ClassVar[int] = 30
    single: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.t < INF or 0 < self.t < 1e-6:
            raise InputError(
                f"Temperature.t is {self.t}; expected 0 or at least 0.000001; 0 is greedy, 1 samples the model"
            )

    def __call__(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        if self.t > 0:
            return logits / self.t
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits, -INF).scatter(-1, best, logits.gather(-1, best))


@dataclass(frozen=True)
class TopK(Filter):
    """Keep the k most probable symbols (Fan et al., arXiv:1805.04833); equals of the k-th stay too.

    Raises InputError: k is not an integer from 1.
    """

    k: int
    order: ClassVar[int] = 40
    single: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or self.k < 1:
            raise InputError(f"TopK.k is {self.k}; expected an integer from 1; leave TopK out to keep every symbol")

    def __call__(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        if self.k >= logits.shape[-1]:
            return logits
        least = logits.topk(self.k, dim=-1).values[..., -1:]
        return logits.masked_fill(logits < least, -INF)


@dataclass(frozen=True)
class TopP(Filter):
    """Keep the fewest symbols whose probability is at least p (nucleus sampling, Holtzman et al., arXiv:1904.09751).

    The lower symbols among equals come first.

    Raises InputError: p is not in (0, 1].
    """

    p: float
    order: ClassVar[int] = 50
    single: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_mass("TopP", self.p)

    def __call__(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        if self.p == 1:
            return logits
        return keep_mass(logits, logits.argsort(dim=-1, descending=True, stable=True), self.p)


@dataclass(frozen=True)
class MinP(Filter):
    """Keep the symbols at least p times as probable as the most probable one (Nguyen et al., arXiv:2407.01082).

    0 keeps every symbol, 1 the most probable one and its equals.

    Raises InputError: p is not in [0, 1].
    """

    p: float
    order: ClassVar[int] = 60
    single: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise InputError(f"MinP.p is {self.p}; expected 0 to 1; 0 keeps every symbol")

    def __call__(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        if self.p == 0:
            return logits
        below = logits - logits.amax(dim=-1, keepdim=True) < log(self.p)
        return logits.masked_fill(below, -INF)


@dataclass(frozen=True)
class Typical(Filter):
    """Keep the fewest symbols whose probability is at least p, those of the most typical surprise first.

    The surprise -log p(symbol) of a typical symbol is near its mean, the entropy (locally typical sampling, Meister et
    al., arXiv:2202.00666). The lower symbols among equals come first. The most probable one may be ruled out.

    Raises InputError: p is not in (0, 1].
    """

    p: float
    order: ClassVar[int] = 70
    single: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_mass("Typical", self.p)

    def __call__(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        if self.p == 1:
            return logits
        nats = logits.double().log_softmax(-1)
        entropy = torch.special.entr(nats.exp()).sum(-1, keepdim=True)
        # rounded to float32, so that the order in which the sums were taken does not part equals
        atypical = (nats + entropy).abs().float()
        return keep_mass(logits, atypical.argsort(dim=-1, stable=True), self.p)


def check_mass(name: str, p: float) -> None:
    if not 0 < p <= 1:
        raise InputError(f"{name}.p is {p}; expected more than 0 and at most 1; 1 keeps every symbol")


def keep_mass(logits: Tensor, order: Tensor, p: float) -> Tensor:
    """Rule out what follows, in an order of (R, V) symbols, once those before have probability p.

    Sums run from the first symbol on, so trailing -inf do not change them.
    """
    relative = (logits - logits.amax(dim=-1, keepdim=True)).double().exp().gather(-1, order)
    mass = relative.cumsum(-1)
    keep = mass - relative < p * mass[..., -1:]
    return logits.masked_fill(~torch.zeros_like(keep).scatter(-1, order, keep), -INF)

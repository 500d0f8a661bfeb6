"""Filters: pure functions from logits to logits, applied before the noise.

    filters=[Temperature(0.9), TopK(50), Banned([10], modality="text")]

`arrange` puts them in one order whatever the order they are listed in: repetition, presence and frequency penalty;
bias, banned, allowed, grammar; temperature; top-k; top-p; min-p; typical. The first two groups are about *content*:
they act on payload symbols alone, and on those of one modality where `modality` names it. The others act on every
symbol, structure (what begins, how large, where it ends) included, or, where `modality` names one, on its payload
symbols alone: a cooler sound need not be a longer one.

A filter knows nothing about batches: what it does to a row depends on that row, and not on how far other rows' larger
alphabets make the logits reach.

Axes: R rows, V the largest alphabet among them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from armm.errors import InputError
from armm.generation.content import Allowed, Banned
from armm.generation.filter import Filter, Row, where_concerned

INF = float("inf")


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


class ShapeFilter(Filter):
    """A filter that looks at logits alone: of every symbol, or of the payload symbols of `modality`."""

    def __call__(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        if not self.modality:
            return self.reshape(logits)
        return where_concerned(logits, rows, self.modality, lambda own, _: self.reshape(own))

    @abstractmethod
    def reshape(self, logits: Tensor) -> Tensor:
        """(R, V) -> (R, V)."""


@dataclass(frozen=True)
class Temperature(ShapeFilter):
    """Divide the logits by t; 0 leaves the most probable symbol alone (the lowest one among equals).

    Raises InputError: t is negative, not a number, or too small to divide by.
    """

    t: float
    modality: str = ""
    order: ClassVar[int] = 30
    single: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.t < INF or 0 < self.t < 1e-6:
            raise InputError(
                f"Temperature.t is {self.t}; expected 0 or at least 0.000001; 0 is greedy, 1 samples the model"
            )

    def reshape(self, logits: Tensor) -> Tensor:
        if self.t > 0:
            return logits / self.t
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits, -INF).scatter(-1, best, logits.gather(-1, best))


@dataclass(frozen=True)
class TopK(ShapeFilter):
    """Keep the k most probable symbols (Fan et al., arXiv:1805.04833); equals of the k-th stay too.

    Raises InputError: k is not an integer from 1.
    """

    k: int
    modality: str = ""
    order: ClassVar[int] = 40
    single: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or self.k < 1:
            raise InputError(f"TopK.k is {self.k}; expected an integer from 1; leave TopK out to keep every symbol")

    def reshape(self, logits: Tensor) -> Tensor:
        if self.k >= logits.shape[-1]:
            return logits
        least = logits.topk(self.k, dim=-1).values[..., -1:]
        return logits.masked_fill(logits < least, -INF)


@dataclass(frozen=True)
class TopP(ShapeFilter):
    """Keep the fewest symbols whose probability is at least p (nucleus sampling, Holtzman et al., arXiv:1904.09751).

    The lower symbols among equals come first.

    Raises InputError: p is not in (0, 1].
    """

    p: float
    modality: str = ""
    order: ClassVar[int] = 50
    single: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_mass("TopP", self.p)

    def reshape(self, logits: Tensor) -> Tensor:
        if self.p == 1:
            return logits
        return keep_mass(logits, logits.argsort(dim=-1, descending=True, stable=True), self.p)


@dataclass(frozen=True)
class MinP(ShapeFilter):
    """Keep the symbols at least p times as probable as the most probable one (Nguyen et al., arXiv:2407.01082).

    0 keeps every symbol, 1 the most probable one and its equals.

    Raises InputError: p is not in [0, 1].
    """

    p: float
    modality: str = ""
    order: ClassVar[int] = 60
    single: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise InputError(f"MinP.p is {self.p}; expected 0 to 1; 0 keeps every symbol")

    def reshape(self, logits: Tensor) -> Tensor:
        if self.p == 0:
            return logits
        below = logits - logits.amax(dim=-1, keepdim=True) < log(self.p)
        return logits.masked_fill(below, -INF)


@dataclass(frozen=True)
class Typical(ShapeFilter):
    """Keep the fewest symbols whose probability is at least p, those of the most typical surprise first.

    The surprise -log p(symbol) of a typical symbol is near its mean, the entropy (locally typical sampling, Meister et
    al., arXiv:2202.00666). The lower symbols among equals come first. The most probable one may be ruled out.

    Raises InputError: p is not in (0, 1].
    """

    p: float
    modality: str = ""
    order: ClassVar[int] = 70
    single: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_mass("Typical", self.p)

    def reshape(self, logits: Tensor) -> Tensor:
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

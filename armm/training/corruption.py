"""Training on a past as a sampler leaves it: what is read is corrupted, what is coded is not, and bits are clean.

A model that is trained on the data's own past alone has never seen the small errors of its own samples, and they add
up: exposure bias (arXiv:1511.06732). Every corruption makes, of the symbols of one modality in a batch, those that are
read instead: by the backbone, and by the head as the past of later symbols.
Axes: S segments, U units, K symbols of a unit, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from armm.errors import InputError
from armm.model import AutoregressiveModel
from armm.sequence import Batch

Read = dict[str, Tensor]


class Corruption(ABC):
    """What is read instead of the data, as a recipe names it: a frozen dataclass.

    Attributes:
        guesses: it is given what the model would have drawn, from a first pass.
    """

    guesses: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, symbols: Tensor, vocab: int, guesses: Tensor | None) -> Tensor:
        """(S, U, K) symbols, some of them changed; V is "unknown". Draws from torch's generator.

        guesses: (S, U, K) a draw of the model for every symbol, given the data before it.
        """


@dataclass(frozen=True)
class Jitter(Corruption):
    """Samples, or pixels, a few levels off: rounded normal noise, for alphabets that are scales.

    Attributes:
        levels: standard deviation; of mu-law codes, of pixel values.
        share: of the segments; the others are read as they are.
    """

    levels: float = 2.0
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.levels <= 0:
            raise InputError(f"Jitter: levels is {self.levels}, it must be greater than 0; leave Jitter out for none")
        check_share("Jitter", "share", self.share)

    def __call__(self, symbols: Tensor, vocab: int, guesses: Tensor | None) -> Tensor:
        noise = (torch.randn(symbols.shape, device=symbols.device) * self.levels).round().long()
        chosen = torch.rand(len(symbols), 1, 1, device=symbols.device) < self.share
        return torch.where(chosen, (symbols + noise).clamp(0, vocab - 1), symbols)


@dataclass(frozen=True)
class TokenDropout(Corruption):
    """Some symbols are not told (word dropout, arXiv:1511.06349).

    Attributes:
        share: of the symbols.
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        check_share("TokenDropout", "share", self.share)

    def __call__(self, symbols: Tensor, vocab: int, guesses: Tensor | None) -> Tensor:
        return torch.where(torch.rand(symbols.shape, device=symbols.device) < self.share, vocab, symbols)


@dataclass(frozen=True)
class FrameDropout(Corruption):
    """Some units are not told, all their symbols at once: for what only conditions, such as audio to transcribe.

    Attributes:
        share: of the units.
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        check_share("FrameDropout", "share", self.share)

    def __call__(self, symbols: Tensor, vocab: int, guesses: Tensor | None) -> Tensor:
        dropped = torch.rand(*symbols.shape[:2], 1, device=symbols.device) < self.share
        return torch.where(dropped, vocab, symbols)


@dataclass(frozen=True)
class ScheduledSampling(Corruption):
    """Some symbols are what the model itself would have drawn: two passes, each in parallel (arXiv:1906.07651).

    Attributes:
        share: of the symbols.
    """

    share: float = 0.1

    guesses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_share("ScheduledSampling", "share", self.share)

    def __call__(self, symbols: Tensor, vocab: int, guesses: Tensor | None) -> Tensor:
        assert guesses is not None, "a first pass comes before"
        return torch.where(torch.rand(symbols.shape, device=symbols.device) < self.share, guesses, symbols)


def check_share(name: str, key: str, share: float) -> None:
    """Raises InputError: not a share of anything."""
    if not 0 < share <= 1:
        raise InputError(
            f"{name}: {key} is {share}, it must be greater than 0 and at most 1; leave {name} out for none"
        )


def corrupted(corruptions: Mapping[str, Sequence[Corruption]], batch: Batch, model: AutoregressiveModel) -> Read:
    """By modality, the (S, U, K) symbols of a batch that are read, each corruption after the one before it.

    What is unknown, or is not there, stays so.
    """
    present = [name for name in corruptions if name in batch.segments]
    guessed = [name for name in present if any(corruption.guesses for corruption in corruptions[name])]
    guesses = model.guess(batch, guessed) if guessed else {}
    read = {}
    for name in present:
        segment, vocab = batch.segments[name], model.modalities[name].vocab
        symbols = segment.symbols
        for corruption in corruptions[name]:
            symbols = corruption(symbols, vocab, guesses.get(name))
        read[name] = torch.where(segment.known & (segment.symbols < vocab), symbols, segment.symbols)
    return read

"""The contract of a filter: a pure function of a row's logits and of what the row is about to say.

Axes: R rows, V the largest alphabet among them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from armm.errors import InputError, nearest
from armm.grammar import Cursor, Slot, Stage


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


def where_concerned(
    logits: Tensor, rows: Sequence[Row], modality: str, change: Callable[[Tensor, Sequence[Row]], Tensor]
) -> Tensor:
    """(R, V) logits, changed in the rows at a payload symbol of a modality; of any for ""."""
    chosen = [
        i for i, row in enumerate(rows) if row.slot.stage == Stage.PAYLOAD and modality in ("", row.slot.modality)
    ]
    if not chosen:
        return logits
    if len(chosen) == len(rows):
        return change(logits, rows)
    where = torch.tensor(chosen, dtype=torch.int64, device=logits.device)
    out = logits.clone()
    out[where] = change(logits[where], [rows[i] for i in chosen])
    return out


def where_prompt_ends(cursor: Cursor) -> tuple[int, int]:
    """Segments closed, and symbols of the open one; between segments none, though a cursor holds the last's."""
    return len(cursor.closed), len(cursor.payload) if cursor.modality else 0


class Filter(ABC):
    """A pure function of logits and rows. Subclasses are frozen dataclasses: their fields are their provenance.

    Attributes:
        order: its place; filters are applied by ascending `order`, those of one place as they are listed.
        reads_rows: whether it looks at `rows`; otherwise they may be empty. One of a single modality does.
        single: whether two of this order contradict each other, unless they are about different modalities.
        modality: the only modality that it is about; "" for all.
    """

    order: ClassVar[int]
    single: ClassVar[bool] = False
    modality: str = ""

    @property
    def reads_rows(self) -> bool:
        return bool(self.modality)

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

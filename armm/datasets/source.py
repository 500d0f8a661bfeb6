"""The contract of a data source: where raw data comes from and which of it is training, validation and test."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from armm.modality import Modality

Item = dict[str, Any]
"""Raw data by modality name: `{"label": 3, "image": array}`. A model takes the names that its layout lists.

What a source has encoded already is there as an `armm.sequence.Segment`.
"""

OnError = Literal["fail", "skip"]


class Items(ABC):
    """A split: items by number. `draw` is the randomness of augmentation: an item is a pure function of both.

    Attributes:
        varies: whether an item differs from draw to draw; what does not is encoded once.
        encoded: whether items are read as segments, so that nothing is gained by keeping them in memory.
    """

    varies: ClassVar[bool] = False
    encoded: ClassVar[bool] = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def item(self, index: int, draw: int) -> Item:
        """Item `index`. `draw` differs from epoch to epoch in training and is fixed in validation and test."""

    def values(self, name: str) -> Iterator[Any]:
        """What every item that has it has under this name, reading no more than that."""
        for index in range(len(self)):
            item = self.item(index, 0)
            if name in item:
                yield item[name]

    def blocks(self) -> Sequence[int]:
        """How many items lie together, block after block; a shard's items are quicker to read after each other."""
        return [len(self)]

    def sizes(self, block: int) -> np.ndarray | None:
        """(n,) how large a block's items are, in any unit, or 0; None where that takes reading them."""
        return None


@dataclass(frozen=True)
class ListOfItems(Items):
    """Items held in memory, the same at every draw."""

    items: Sequence[Item]

    def __len__(self) -> int:
        return len(self.items)

    def item(self, index: int, draw: int) -> Item:
        return self.items[index]


@dataclass(frozen=True)
class Splits:
    """Training, validation and test data.

    Attributes:
        skipped: the unreadable files that were left out.
        fitted: by name, modalities with what they have learned already from this data; they learn nothing more.
    """

    train: Items
    val: Items
    test: Items
    skipped: tuple[Path, ...] = ()
    fitted: Mapping[str, Modality] = field(default_factory=dict)


class Source(ABC):
    """Where data comes from, as a recipe names it: a frozen dataclass."""

    @abstractmethod
    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        """The splits.

        Args:
            modalities: the model's, by name; they read files and state what sizes they take.
            path: the user's file or folder (`--data.path`), or None for the source's own place.
            on_error: whether an unreadable file ends the run or is left out and counted.

        Raises InputError: no data, wrong data, or a download that is impossible here; says where to put what.
        """

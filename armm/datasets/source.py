"""The contract of a data source: where raw data comes from and which of it is training, validation and test."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from armm.modality import Modality

Item = dict[str, Any]
"""Raw data by modality name: `{"label": 3, "image": array}`. A model takes the names that its layout lists."""

OnError = Literal["fail", "skip"]


class Items(ABC):
    """A split: items by number. `draw` is the randomness of augmentation: an item is a pure function of both.

    Attributes:
        varies: whether an item differs from draw to draw; what does not is encoded once.
    """

    varies: ClassVar[bool] = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def item(self, index: int, draw: int) -> Item:
        """Item `index`. `draw` differs from epoch to epoch in training and is fixed in validation and test."""


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
    """Training, validation and test data, and the unreadable files that were left out."""

    train: Items
    val: Items
    test: Items
    skipped: tuple[Path, ...] = ()


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

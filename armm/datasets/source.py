"""The contract of a data source: where raw data comes from and which of it is training, validation and test."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

import numpy as np

from armm.errors import InputError
from armm.modality import Modality

Item = dict[str, Any]
"""Raw data by modality name: `{"label": 3, "image": array}`. A model takes the names that its layout lists.

What a source has encoded already is there as an `armm.sequence.Segment`.
"""

OnError = Literal["fail", "skip"]


@dataclass(frozen=True)
class Part:
    """One segment of a document, before it is encoded.

    Attributes:
        name: of its modality. raw: what that encodes, or a segment. given: it is a condition, not scored.
    """

    name: str
    raw: Any
    given: bool = False


def spread(n: int, at_most: int | None) -> list[int]:
    """Numbers below n, evenly spread; all of them where that is not too many."""
    return np.linspace(0, n - 1, n if at_most is None else min(n, at_most), dtype=int).tolist()


def generator(*seeds: int) -> Random:
    """Of a few numbers of an item; NumPy's, for arrays of them, takes twice as long to begin."""
    return Random(" ".join(map(str, seeds)))


class Items(ABC):
    """A split: items by number. `draw` is the randomness of augmentation: an item is a pure function of both.

    Attributes:
        varies: whether an item differs from draw to draw; what does not is encoded once.
        encoded: whether items are read as segments, so that nothing is gained by keeping them in memory.
    """

    varies: bool = False
    encoded: ClassVar[bool] = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def item(self, index: int, draw: int) -> Item:
        """Item `index`. `draw` differs from epoch to epoch in training and is fixed in validation and test."""

    def parts(self, index: int, draw: int, layout: Sequence[str] | None) -> list[Part]:
        """Item `index` as a document: what the layout names, in its order; all of it where there is no layout.

        Raises InputError: the item lacks something.
        """
        item = self.item(index, draw)
        for name in layout or ():
            if name not in item:
                raise InputError(f"the data has no {name!r}, it has {', '.join(item)}; change the layout or the data")
        return [Part(name, item[name]) for name in layout or item]

    def where(self, index: int) -> str:
        """What the user knows an item by, such as its file; empty where it has no name."""
        return ""

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
        skipped: what was left out because it cannot be used, by name.
        fitted: by name, modalities with what they have learned already from this data; they learn nothing more.
    """

    train: Items
    val: Items
    test: Items
    skipped: tuple[Path | str, ...] = ()
    fitted: Mapping[str, Modality] = field(default_factory=dict)


class Source(ABC):
    """Where data comes from, as a recipe names it: a frozen dataclass.

    Attributes:
        marks_conditions: whether its items say themselves what of them is given.
    """

    marks_conditions: ClassVar[bool] = False

    @abstractmethod
    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        """The splits.

        Args:
            modalities: the model's, by name; they read files and state what sizes they take.
            path: the user's file or folder (`--data.path`), or None for the source's own place.
            on_error: whether an unreadable file ends the run or is left out and counted.

        Raises InputError: no data, wrong data, or a download that is impossible here; says where to put what.
        """

"""Labelled items with words to them: what translates between words and pictures, or words and sound, learns from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np

from armm.datasets.images import moved
from armm.datasets.manifest import Manifest, is_manifest
from armm.datasets.source import Item, Items, OnError, Part, Source, Splits, generator
from armm.errors import InputError
from armm.modality import Modality

LABEL, TEXT = "label", "text"


@dataclass(frozen=True, eq=False)
class CaptionedItems(Items):
    """Items of another source with a text each, as one of several documents.

    Attributes:
        captions: of each class, by its number; empty for the label itself.
        documents: modalities of each kind of document, all but the last given; none for the model's layout.
        varies: whether the kind is drawn anew at every visit; otherwise it goes by the item's number.
        shift: given pictures are moved by at most so many pixels; those to be made are not.
    """

    items: Items
    captions: Sequence[str]
    documents: Sequence[Sequence[str]]
    varies: bool = False
    shift: int = 0

    def __len__(self) -> int:
        return len(self.items)

    def item(self, index: int, draw: int) -> Item:
        item = self.items.item(index, draw)
        return {**item, TEXT: self._caption(item)}

    def parts(self, index: int, draw: int, layout: Sequence[str] | None) -> list[Part]:
        if not self.documents or layout is not None:
            return super().parts(index, draw, layout)
        rng = generator(index, draw)
        kind = rng.randrange(len(self.documents)) if self.varies else index % len(self.documents)
        names = self.documents[kind]
        own = super().parts(index, draw, names)
        given, last = own[:-1], own[-1]
        return [*(Part(part.name, self._shifted(part.raw, rng), given=True) for part in given), last]

    def _shifted(self, raw: Any, rng: Random) -> Any:
        is_picture = self.shift and isinstance(raw, np.ndarray) and raw.ndim >= 2
        return moved(raw, self.shift, rng) if is_picture else raw

    def values(self, name: str) -> Iterator[Any]:
        if name != TEXT:
            return self.items.values(name)
        if self.captions:
            return iter(self.captions)
        return (str(label) for label in self.items.values(LABEL))

    def where(self, index: int) -> str:
        return self.items.where(index)

    def blocks(self) -> Sequence[int]:
        return self.items.blocks()

    def _caption(self, item: Item) -> str:
        if LABEL not in item:
            raise InputError(
                f"the data has no {LABEL!r} to caption, it has {', '.join(item)}; name another data.source"
            )
        label = item[LABEL]
        if not self.captions:
            return str(label)
        if not isinstance(label, int) or not 0 <= label < len(self.captions):
            raise InputError(
                f"there is no caption for the class {label!r}; data.source.captions has {len(self.captions)}"
            )
        return self.captions[label]


@dataclass(frozen=True)
class Captioned(Source):
    """Another source, its items with a `text`: the caption of their label. If the path is a manifest: that instead.

    Args:
        source: whose items have a `label`.
        captions: the text of class 0, 1, ...; none for the label's own name.
        documents: for models of free documents, the kinds of documents that an item can be, such as [text, image] and
            [image, text]: all but the last segment are given. In training one is drawn at every visit.
        shift: with `documents`, training pictures that are given are moved by at most so many pixels at every visit.
    """

    source: Source
    captions: tuple[str, ...] = ()
    documents: tuple[tuple[str, ...], ...] = ()
    shift: int = 0

    marks_conditions: ClassVar[bool] = True

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        if path is not None and path.exists() and is_manifest(path):
            return Manifest().load(modalities, path, on_error)
        if self.shift < 0 or (self.shift and not self.documents):
            raise InputError(f"data.source.shift is {self.shift}; expected 0, or more where documents are named")
        for names in self.documents:
            for name in names:
                if name not in modalities:
                    raise InputError(
                        f"data.source.documents names {name!r}; the modalities are {', '.join(modalities)}"
                    )
        # the source's own reader is the first that reads files; here texts come from the captions
        readers = {name: modality for name, modality in modalities.items() if name != TEXT}
        splits = self.source.load(readers, path, on_error)

        def captioned(items: Items, is_training: bool) -> CaptionedItems:
            varies = items.varies or (is_training and (len(self.documents) > 1 or self.shift > 0))
            return CaptionedItems(items, self.captions, self.documents, varies, self.shift if is_training else 0)

        return Splits(
            captioned(splits.train, True),
            captioned(splits.val, False),
            captioned(splits.test, False),
            splits.skipped,
            splits.fitted,
        )

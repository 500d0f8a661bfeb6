"""Documents of any modalities, interleaved in any way: JSON manifests, and webdataset's tar shards."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from armm.datasets.files import READ_FIRST, SAMPLE, TRIES, check_fractions, existing, is_fitted, split_by_hash
from armm.datasets.segments import EXAMPLE
from armm.datasets.source import Item, Items, OnError, Part, Source, Splits, spread
from armm.datasets.volumes import JsonLines, TarShard, Volume, refuse
from armm.errors import InputError
from armm.modalities.label import Label
from armm.modality import Modality

LINES, TAR = ".jsonl", ".tar"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class ManifestItems(Items):
    """Documents of manifests or shards, loaded when they are asked for.

    Attributes:
        volumes: the files. which: numbers of the documents that are items, counted through all files, ascending.
        known: whether all were read once, so that they can be read and fit the model.
        on_error: otherwise, what to do about one that cannot be used: with `skip` the next takes its place.
        starts: (volumes + 1,) the number of each one's first document.
    """

    volumes: Sequence[Volume]
    modalities: Mapping[str, Modality]
    which: np.ndarray
    known: bool
    on_error: OnError
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.which)

    def where(self, index: int) -> str:
        volume, number = self._place(index)
        return volume.where(number)

    def item(self, index: int, draw: int) -> Item:
        """Of each modality, its first segment."""
        item: Item = {}
        for part in self.parts(index, draw, None):
            item.setdefault(part.name, part.raw)
        return item

    def parts(self, index: int, draw: int, layout: Sequence[str] | None) -> list[Part]:
        """The document as it was written; whether a layout allows it shows when it is encoded."""
        if self.known or self.on_error == "fail":
            return self._load(index, encode=False)
        for step in range(min(TRIES, len(self))):
            try:
                return self._load((index + step) % len(self), encode=True)
            except InputError as error:
                print(f"left out {self.where((index + step) % len(self))}: {error}", file=sys.stderr)
        raise InputError(f"{self.where(index)} and {TRIES} documents after it cannot be used; mend or remove them")

    def check(self, index: int) -> None:
        """Read a document, and encode what can be encoded yet.

        Raises InputError: it cannot be used.
        """
        self._load(index, encode=True)

    def values(self, name: str) -> Iterator[Any]:
        """Of every segment of that name; of other files nothing is read."""
        for index in range(len(self)):
            volume, number = self._place(index)
            for entry in volume.entries(number, self.modalities):
                if entry.name == name:
                    yield volume.raw(number, entry, self.modalities[name])

    def blocks(self) -> Sequence[int]:
        return [len(numbers) for _, numbers in self._by_volume()]

    def sizes(self, block: int) -> np.ndarray | None:
        """Bytes, unless all have been read anyway."""
        if self.known:
            return None
        volume, numbers = self._by_volume()[block]
        return volume.sizes[numbers]

    def select(self, indices: Sequence[int]) -> ManifestItems:
        """The same of some items."""
        return replace(self, which=self.which[np.asarray(sorted(indices), dtype=np.int64)])

    def digests(self) -> list[str]:
        places = (self._place(index) for index in range(len(self)))
        return [volume.digests[number] for volume, number in places]

    def labels(self, index: int) -> str:
        """All labels of a document, as one word."""
        volume, number = self._place(index)
        entries = volume.entries(number, self.modalities)
        own = [e for e in entries if isinstance(self.modalities[e.name], Label)]
        return " ".join(f"{e.name}={volume.raw(number, e, self.modalities[e.name])}" for e in own)

    def _load(self, index: int, encode: bool) -> list[Part]:
        volume, number = self._place(index)
        parts = []
        for entry in volume.entries(number, self.modalities):
            modality = self.modalities[entry.name]
            raw = volume.raw(number, entry, modality)
            parts.append(Part(entry.name, modality.encode(raw) if encode and is_fitted(modality) else raw, entry.given))
        return parts

    def _place(self, index: int) -> tuple[Volume, int]:
        document = int(self.which[index])
        at = int(np.searchsorted(self.starts, document, "right")) - 1
        return self.volumes[at], document - int(self.starts[at])

    def _by_volume(self) -> list[tuple[Volume, np.ndarray]]:
        """The volumes that have items, with the numbers of these."""
        cuts = np.searchsorted(self.which, self.starts)
        found = [(v, self.which[cuts[i] : cuts[i + 1]] - self.starts[i]) for i, v in enumerate(self.volumes)]
        return [(volume, numbers) for volume, numbers in found if len(numbers)]


@dataclass(frozen=True)
class Manifest(Source):
    """Documents of several modalities, named by `--data.path`: a `.jsonl` manifest, webdataset's `.tar` shards.

    A line of a manifest is a document, a list of segments: `[{"text": "a cat"}, {"image": "cat.png", "loss": false}]`.
    Paths are relative to the manifest. In a folder, files whose names begin with train, val and test are these splits;
    otherwise all documents together are dealt out by a hash of each, and one of each label to the training first.

    Args:
        val, test: shares of the documents, where the names do not say. seed: another deals them out differently.
    """

    val: float = 0.1
    test: float = 0.1
    seed: int = 0

    marks_conditions: ClassVar[bool] = True

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        if path is None:
            raise InputError(f"no data: name a manifest, lines such as {EXAMPLE}, with --data.path FILE.jsonl")
        check_fractions(self.val, self.test)
        files = find_volumes(existing(path))
        if not files:
            raise InputError(f"{path}: holds no {LINES} and no {TAR} file; put a manifest there, or change the path")
        named = {split: [file for file in files if file.name.startswith(split)] for split in SPLITS}
        if path.is_file() or not (named["train"] and named["val"]):
            return self._dealt(path, *read_volumes(files, modalities, on_error))
        (train, *bad), (val, *more) = (read_volumes(named[s], modalities, on_error) for s in ("train", "val"))
        test, *rest = read_volumes(named["test"], modalities, on_error) if named["test"] else (val,)
        return Splits(train, val, test, tuple(name for names in (*bad, *more, *rest) for name in names))

    def _dealt(self, path: Path, items: ManifestItems, skipped: tuple[str, ...]) -> Splits:
        if len(items) < 3:
            raise InputError(
                f"{path}: {len(items)} documents, at least 3 are needed: one to train, one to validate and one to test"
            )
        has_labels = any(isinstance(modality, Label) for modality in items.modalities.values())
        groups = [items.labels(index) for index in range(len(items))] if has_labels else []
        if len(set(groups)) + 2 > len(items):
            groups = []
        parts = split_by_hash(items.digests(), self.val, self.test, self.seed, groups)
        train, val, test = (items.select(part) for part in parts)
        return Splits(train, val, test, skipped)


def is_manifest(path: Path) -> bool:
    """Whether a path is, or holds, what `Manifest` reads."""
    return bool(find_volumes(path))


def find_volumes(path: Path) -> list[Path]:
    """The manifests at a path, or else the shards."""
    if path.is_file():
        return [path]
    inside = sorted(path.iterdir())
    for ending in (LINES, TAR):
        if found := [file for file in inside if file.suffix == ending and not file.name.startswith(".")]:
            return found
    return []


def read_volumes(
    files: Sequence[Path], modalities: Mapping[str, Modality], on_error: OnError
) -> tuple[ManifestItems, tuple[str, ...]]:
    """All documents of some files, and the names of those that cannot be used.

    Every document is looked at; the files that it names are there. Up to `READ_FIRST` documents are read too, of more
    only some, spread over all.

    Raises InputError: one cannot be used and `on_error` is "fail", or none can.
    """
    indexed = [(TarShard if file.suffix == TAR else JsonLines).index(file, modalities, on_error) for file in files]
    volumes = [own.volume for own in indexed]
    skipped = [name for own in indexed for name in own.skipped]
    starts = np.cumsum([0, *map(len, volumes)])
    n = int(starts[-1])
    known = n <= READ_FIRST
    items = ManifestItems(volumes, modalities, np.arange(n), known, on_error, starts)
    bad: list[int] = []
    for index in spread(n, None if known else SAMPLE):
        try:
            items.check(index)
        except InputError as error:
            refuse(items.where(index), error, on_error, skipped)
            bad.append(index)
    if len(bad) == n:
        names = ", ".join(map(str, files[:3]))
        raise InputError(
            f"{names}: no document can be used{f'; the first left out is {skipped[0]}' if skipped else ''}"
        )
    which = np.delete(np.arange(n), bad)
    return replace(items, which=which), tuple(skipped)

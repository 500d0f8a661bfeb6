"""Shards of any data that litdata has made (https://github.com/Lightning-AI/litData), here or in object storage.

Items are read one by one wherever they lie, so the order stays armm's own and a run can begin in the middle of it. What
is stored with pickle is refused: reading it would run whatever its author wrote.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from armm.datasets.source import Item, Items, OnError, Source, Splits
from armm.datasets.store import Store
from armm.errors import InputError
from armm.modality import Modality

INDEX = "index.json"


@dataclass(frozen=True, eq=False)
class LitItems(Items):
    """One set of litdata's; picklable for worker processes, each of which opens it for itself.

    Attributes:
        place: its folder or address.
        sizes_of_chunks: how many items each of its files has.
        fields: by modality name, which entry of an item is its data.
    """

    place: str
    sizes_of_chunks: Sequence[int]
    fields: Mapping[str, str]
    modalities: Mapping[str, Modality]
    _opened: dict[int, Any] = field(default_factory=dict, repr=False)

    encoded: ClassVar[bool] = True

    def __len__(self) -> int:
        return sum(self.sizes_of_chunks)

    def item(self, index: int, draw: int) -> Item:
        found = self._entries(index)
        item: Item = {}
        for name, entry in self.fields.items():
            modality = self.modalities[name]
            try:
                item[name] = modality.encode(_raw(found[entry], modality))
            except InputError as error:
                raise InputError(f"{self.place}, item {index}: {error}") from error
        return item

    def values(self, name: str) -> Any:
        return (_raw(self._entries(i)[self.fields[name]], self.modalities[name]) for i in range(len(self)))

    def blocks(self) -> Sequence[int]:
        return self.sizes_of_chunks

    def _entries(self, index: int) -> Mapping[str, Any]:
        try:
            found = self._dataset()[index]
        except (OSError, ValueError, RuntimeError, EOFError, IndexError, KeyError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"{self.place}, item {index}: cannot be read ({reason}); get its shard again") from error
        missing = [entry for entry in self.fields.values() if not isinstance(found, dict) or entry not in found]
        if missing:
            have = ", ".join(found) if isinstance(found, dict) else type(found).__name__
            raise InputError(
                f"{self.place}, item {index}: has no {missing[0]!r}, it has {have}; set data.source.fields"
            )
        return found

    def _dataset(self) -> Any:
        """litdata's own object; its file handles and threads must not cross a fork."""
        if os.getpid() not in self._opened:
            self._opened.clear()
            self._opened[os.getpid()] = _litdata().StreamingDataset(self.place, shuffle=False)
        return self._opened[os.getpid()]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}


def _raw(value: Any, modality: Modality) -> Any:
    """What a modality encodes: bytes are the content of a file that it reads, all else is as it is."""
    if not isinstance(value, bytes | bytearray | memoryview):
        return np.asarray(value) if hasattr(value, "__array__") else value
    with tempfile.NamedTemporaryFile(prefix="armm-", suffix=modality.suffix) as file:
        file.write(value)
        file.flush()
        return modality.load(Path(file.name))


@dataclass(frozen=True)
class LitData(Source):
    """Sets made by `litdata.optimize`, in folders or in object storage (`s3://bucket/train`), read item by item.

    An item is a dict; an entry that is bytes holds a file (a PNG, a WAV, a text), any other is what the modality takes:
    a string, an array, a class.

    Args:
        train, val, test: a set each; without a test the validation set is the test.
        fields: by modality, the entry of an item that is its data; the modality's own name by default.
    """

    train: str
    val: str
    test: str | None = None
    fields: dict[str, str] = field(default_factory=dict)

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        if path is not None:
            raise InputError("data.source.train and data.source.val name the sets; leave --data.path out")
        for name in self.fields:
            if name not in modalities:
                raise InputError(f"data.source.fields names {name!r}; the modalities are {', '.join(modalities)}")
        chunks = {place: _chunks(place) for place in (self.train, self.val, self.test or self.val)}
        _litdata()
        fields = {name: self.fields.get(name, name) for name in modalities}
        fitted: dict[str, Modality] = {}
        raw = LitItems(self.train, chunks[self.train], fields, modalities)
        for name, modality in modalities.items():
            learns = type(modality).fit is not Modality.fit
            fitted[name] = modality.fit(raw.values(name)) if learns and not modality.files() else modality
        train, val, test = (
            LitItems(place, chunks[place], fields, fitted) for place in (self.train, self.val, self.test or self.val)
        )
        return Splits(train, val, test, fitted=fitted)


def _chunks(place: str) -> list[int]:
    """Items of each file of a set.

    Raises InputError: it is no set, or one that must not or cannot be read here.
    """
    store = Store(place, Path(tempfile.gettempdir()))
    where = store.where(INDEX)
    try:
        found = json.loads(store.fresh(INDEX))
        formats = found["config"]["data_format"]
        chunks = [int(chunk["chunk_size"]) for chunk in found["chunks"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where} is no index of litdata ({error}); make the set with litdata.optimize") from error
    if any("pickle" in str(name) for name in formats):
        raise InputError(
            f"{where}: some of it is pickled, and reading that would run code; store bytes, numbers, strings or arrays"
        )
    if not sum(chunks):
        raise InputError(f"{where}: the set is empty; name another")
    return chunks


def _litdata() -> Any:
    try:
        import litdata
    except (ImportError, OSError) as error:
        raise InputError(f"these shards need the litdata package ({error}); pip install armm[storage]") from error
    return litdata

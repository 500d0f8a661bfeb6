"""Token shards: text that is encoded already, in files that are read by position and never loaded whole.

A set is a folder, here or in object storage:

- `index.json`: the format's version, the modality it was encoded by, the width of a symbol, and for each shard its
  SHA-256 and how much of it is training, validation and test;
- what the modality learned, such as `tokenizer.json`;
- `NAME.bin`: symbols, little-endian, 1, 2 or 4 bytes each (`numpy.memmap(path, dtype)` maps them): training, then
  validation, then test;
- `NAME.idx`: a row of three little-endian 64-bit integers for each piece of text, in the same order: where it ends in
  the .bin, counted in symbols; 1 if a document begins with it, 0 if it goes on from the piece before; its CRC-32.

`armm prepare` makes them (armm/datasets/preparing.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from armm.datasets.source import Item, Items, OnError, Source, Splits
from armm.datasets.store import CACHE_BYTES, Store
from armm.errors import InputError
from armm.modalities.units import ragged_segment
from armm.modality import Modality
from armm.spec import import_class

FORMAT, VERSION = "armm token shards", 1
INDEX = "index.json"
SPLITS = ("train", "val", "test")
N_TABLES = 32  # shards whose pieces are remembered


@dataclass(frozen=True)
class Shard:
    """What the index says about a shard.

    Attributes:
        name: of its two files, without their endings.
        sha256, table_sha256: of the .bin and of the .idx.
        pieces, symbols: how many there are for training, validation and test.
        documents, text_bytes: how many begin in it, and how much text it was.
    """

    name: str
    sha256: str
    table_sha256: str
    pieces: tuple[int, int, int]
    symbols: tuple[int, int, int]
    documents: int
    text_bytes: int

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Shard:
        """From JSON. Raises TypeError, KeyError, ValueError: it is damaged."""
        values = {field.name: content[field.name] for field in fields(cls)}
        for name in ("pieces", "symbols"):
            train, val, test = map(int, values[name])
            values[name] = train, val, test
        if not re.fullmatch(r"\d{6}-\d{3}", values["name"]):
            raise ValueError(f"a shard is called {values['name']!r}")
        return cls(**values)


class DamagedIndexError(InputError):
    """What says what a set consists of is not as it was written."""


@dataclass(frozen=True)
class Index:
    """A set.

    Attributes:
        modality: as in a recipe, without what was learned.
        learned: files of the set that hold it, with their SHA-256.
        vocab: its number of symbols. dtype: of the .bin files.
        text_unit: what bits of it are counted per.
        shards: in any order that stays.
    """

    modality: Any
    learned: Mapping[str, str]
    vocab: int
    dtype: str
    text_unit: str
    shards: tuple[Shard, ...]

    def to_json(self) -> str:
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        totals = {split: sum(shard.symbols[i] for shard in self.shards) for i, split in enumerate(SPLITS)}
        return json.dumps({**content, "total_symbols": totals}, indent=1) + "\n"

    @classmethod
    def parse(cls, content: bytes, where: str) -> Index:
        """Raises InputError: it is no index (DamagedIndexError), or one of another version."""
        try:
            found = json.loads(content)
            if found["format"] != FORMAT:
                raise ValueError(f"the format is {found['format']!r}")
            if found["version"] > VERSION:
                raise InputError(f"{where} is of version {found['version']}, this armm reads {VERSION}; update it")
            shards = tuple(map(Shard.parse, found["shards"]))
            np.dtype(found["dtype"])
            given = {name: found[name] for name in ("modality", "learned", "vocab", "dtype", "text_unit")}
            given["learned"] = {str(name): str(digest) for name, digest in found["learned"].items()}
            str(found["modality"]["class_path"])
            return cls(**given, shards=shards)
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedIndexError(
                f"{where} is no index of token shards ({error!r}); get it again, or run the same armm prepare again"
            ) from error


class ShardFiles:
    """The pieces of a set's shards; picklable for worker processes, which read for themselves.

    Args:
        store: where the files are.
    """

    def __init__(self, store: Store, index: Index) -> None:
        self.store, self.index = store, index
        self.dtype = np.dtype(index.dtype).newbyteorder("<")
        self._tables: OrderedDict[str, np.ndarray] = OrderedDict()

    def table(self, shard: Shard) -> np.ndarray:
        """(n, 3) rows of the .idx.

        Raises InputError: it is damaged.
        """
        if shard.name not in self._tables:
            n_bytes = sum(shard.pieces) * 24
            content = self._read(f"{shard.name}.idx", 0, n_bytes, lambda c: _sha256(c) == shard.table_sha256)
            self._tables[shard.name] = np.frombuffer(content, dtype="<u8").reshape(-1, 3).astype(np.int64)
            if len(self._tables) > N_TABLES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(shard.name)
        return self._tables[shard.name]

    def piece(self, shard: Shard, number: int) -> np.ndarray:
        """(n,) its symbols.

        Raises InputError: they are damaged.
        """
        table, width = self.table(shard), self.dtype.itemsize
        start, end = int(table[number - 1, 0]) if number else 0, int(table[number, 0])
        content = self._read(
            f"{shard.name}.bin", start * width, (end - start) * width, lambda c: zlib.crc32(c) == table[number, 2]
        )
        return np.frombuffer(content, dtype=self.dtype)

    def _read(self, name: str, start: int, n_bytes: int, is_good: Callable[[bytes], bool]) -> bytes:
        for again in (self.store.is_remote, False):
            content = self.store.read(name, start, n_bytes)
            if len(content) == n_bytes and is_good(content):
                return content
            if again:  # what is in the cache may be of another set that was there, or cut short
                self.store.forget(name)
        raise damaged(self.store.where(name))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": OrderedDict()}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def damaged(where: str) -> InputError:
    return InputError(
        f"{where} is damaged: it is not what was prepared; get the file again, or run the same armm prepare again, "
        "which makes only what is damaged anew"
    )


@dataclass(frozen=True, eq=False)
class TokenItems(Items):
    """The pieces of a split, each an item of one segment.

    Attributes:
        modality: whose symbols they are.
        split: 0 for training, 1 for validation, 2 for the test.
        first: (shards + 1,) the number of each shard's first item.
    """

    files: ShardFiles
    modality: Modality
    split: int
    first: np.ndarray

    encoded: ClassVar[bool] = True

    def __len__(self) -> int:
        return int(self.first[-1])

    def item(self, index: int, draw: int) -> Item:
        block = int(np.searchsorted(self.first, index, "right")) - 1
        shard = self.files.index.shards[block]
        before = sum(shard.pieces[: self.split])
        symbols = self.files.piece(shard, before + index - int(self.first[block]))
        flat = torch.from_numpy(symbols.astype(np.int64))
        return {self.modality.name: ragged_segment(self.modality.name, flat, self.modality.unit_symbols)}

    def blocks(self) -> Sequence[int]:
        return np.diff(self.first).tolist()

    def sizes(self, block: int) -> np.ndarray:
        """Symbols."""
        shard = self.files.index.shards[block]
        before = sum(shard.pieces[: self.split])
        table = self.files.table(shard)[:, 0]
        return np.diff(table, prepend=0)[before : before + shard.pieces[self.split]]


@dataclass(frozen=True)
class TokenShards(Source):
    """What `armm prepare` has made: a folder of token shards, of any size. Nothing of it is loaded whole.

    The model uses the tokenizer that the set was made with. Training, validation and test are those of the set.

    Args:
        url: the set in object storage, such as `s3://bucket/set`, instead of `--data.path`.
        cache: where its files are kept on this machine.
        cache_gb: how much of them. At least 16 shards should fit: so many are read from at a time.
    """

    url: str | None = None
    cache: str = "data/cache"
    cache_gb: float = CACHE_BYTES / 2**30

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        if (path is None) == (self.url is None):
            raise InputError(
                "name one set of token shards, by --data.path FOLDER or --data.source.url; armm prepare makes one"
            )
        if not 0 < self.cache_gb < math.inf:
            raise InputError(f"data.source.cache_gb is {self.cache_gb}, expected a number greater than 0")
        store = Store(self.url or str(path), Path(self.cache), int(self.cache_gb * 2**30))
        if path is not None and not (path / INDEX).is_file():
            raise InputError(
                f"{path}: has no {INDEX}, so it is no finished set of token shards; make one with armm prepare, or run "
                "the same armm prepare again to finish it"
            )
        index = Index.parse(store.fresh(INDEX), store.where(INDEX))
        if not store.is_remote:
            self._check_sizes(store, index)
        modality = fitted_to(index, store, modalities)
        files = ShardFiles(store, index)
        train, val, test = (TokenItems(files, modality, i, _starts(index, i)) for i in range(3))
        if not len(test):  # prepared without a test
            test = val
        return Splits(train, val, test, fitted={modality.name: modality})

    def _check_sizes(self, store: Store, index: Index) -> None:
        """Raises InputError: a file is missing or cut short. What is inside is compared when it is read."""
        for shard in index.shards:
            for ending, wanted in (
                (".bin", sum(shard.symbols) * np.dtype(index.dtype).itemsize),
                (".idx", sum(shard.pieces) * 24),
            ):
                if (n_bytes := store.size(shard.name + ending)) != wanted:
                    raise InputError(f"{damaged(store.where(shard.name + ending))} ({n_bytes} bytes of {wanted})")


def fitted_to(index: Index, store: Store, modalities: Mapping[str, Modality]) -> Modality:
    """The model's modality that reads the set, with what was learned for the set.

    Raises InputError: there is none, or it has learned something else already.
    """
    prepared = import_class(index.modality["class_path"], Modality)
    found = next((m for m in modalities.values() if type(m) is prepared), None)
    where = store.where(INDEX)
    if found is None:
        have = ", ".join(f"{name} ({type(m).__name__})" for name, m in modalities.items())
        raise InputError(f"{where}: made for {prepared.__name__}; the model has {have}; add such a modality")
    learned: dict[str, bytes] = {}
    for name, wanted in index.learned.items():
        learned[name] = store.fresh(name)
        if _sha256(learned[name]) != wanted:
            raise damaged(store.where(name))
    known = {} if _is_unfitted(found) else found.files()
    if known and known != learned:
        raise InputError(
            f"{where}: made with another tokenizer than the model has; prepare the texts with that of the model, or "
            "train a new model"
        )
    try:
        fitted = found.with_files(learned)
        vocab = fitted.vocab
    except InputError as error:
        raise InputError(f"{where}: {error}; the set was made for {_settings(index)}") from error
    if vocab != index.vocab or fitted.bits_per != index.text_unit:
        raise InputError(
            f"{where}: has {index.vocab} symbols and counts per {index.text_unit}, the model's {found.name!r} has "
            f"{vocab} and counts per {fitted.bits_per}; the set was made for {_settings(index)}: set that in the recipe"
        )
    return fitted


def _is_unfitted(modality: Modality) -> bool:
    try:
        return modality.vocab <= 0
    except InputError:
        return True


def _settings(index: Index) -> str:
    arguments = index.modality.get("init_args") or {}
    return ", ".join(f"{key}: {arguments[key]}" for key in ("kind", "vocab_size") if key in arguments) or str(arguments)


def _starts(index: Index, split: int) -> np.ndarray:
    return np.cumsum([0, *(shard.pieces[split] for shard in index.shards)])

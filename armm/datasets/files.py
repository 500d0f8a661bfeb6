"""Files as items: which files a folder has, reading them through a modality, and dividing them into splits."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from armm.datasets.source import Item, Items, OnError
from armm.errors import InputError
from armm.modality import Modality

IN_MEMORY_BYTES = 2**30
"""Arrays of files are kept in memory up to this size together; what does not fit is read again when needed."""

READ_FIRST = 10_000
"""So many files are all read before training, so that a bad one shows early. Of more, only some are."""
SAMPLE = 100
TRIES = 1000  # files in a row that cannot be read before a run that leaves them out ends

T = TypeVar("T")


def reader(modalities: Mapping[str, Modality], suffix: str = "") -> tuple[str, Modality]:
    """The name and the modality that reads the data's files: the first that reads any, or such with this ending.

    Raises InputError: the model has none.
    """
    for name, modality in modalities.items():
        if suffix in modality.suffixes or (not suffix and modality.suffixes):
            return name, modality
    names = ", ".join(modalities) or "none"
    wanted = f"{suffix} files" if suffix else "files"
    raise InputError(f"this data source needs a modality that reads {wanted}; the model has: {names}")


def existing(path: Path) -> Path:
    """`path`, which is there.

    Raises InputError: it is not.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check --data.path (it is relative to {Path.cwd()})")
    return path


class FileList(Sequence[Path]):
    """Files of a folder as one run of bytes: a million take some 50 MB, as paths ten times that.

    Args:
        folder: where. names: relative to it.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.folder = folder
        encoded = [os.fsencode(name) for name in names]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def name(self, index: int) -> str:
        """A file's path relative to the folder."""
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.folder / self.name(index % len(self))


def list_files(folder: Path, suffixes: Iterable[str] = (), left_out: Container[str] = ()) -> FileList:
    """Files in a folder and its sub-folders, sorted by their relative path.

    Hidden files and folders are left out. Links to folders are followed, each folder once.

    Args:
        folder: where.
        suffixes: endings with their dot, in any case; none for every file.
        left_out: names of folders that are passed over.

    Raises InputError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from error

    wanted = {suffix.lower() for suffix in suffixes}
    found: list[str] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(root)
        folders[:] = (
            [] if real in seen else [name for name in folders if not name.startswith(".") and name not in left_out]
        )
        if real not in seen:
            shown = [name for name in names if not name.startswith(".")]
            inside = os.path.relpath(root, folder)
            inside = "" if inside == "." else f"{Path(inside).as_posix()}/"
            found += [inside + name for name in shown if not wanted or os.path.splitext(name)[1].lower() in wanted]
        seen.add(real)
    return FileList(folder, sorted(found))


@dataclass(frozen=True, eq=False)
class FileItems(Items):
    """Files, each an item. Whatever was not kept in memory is read when it is asked for.

    Attributes:
        name, modality: of what the files hold.
        files: all that there are. which: the numbers of those that are items.
        kept: what is in memory, by the number of its file.
        extra: the rest of an item, such as its label.
        known: whether all were read once, so that they can be read and fit the model.
        on_error: otherwise, what to do about one that cannot be used: with `skip` the next file takes its place.
    """

    name: str
    modality: Modality
    files: Sequence[Path]
    which: np.ndarray
    kept: Mapping[int, Any]
    extra: Callable[[Path], Item]
    known: bool
    on_error: OnError
    _sizes: list[np.ndarray] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.which)

    def path(self, index: int) -> Path:
        """The file of an item."""
        return self.files[int(self.which[index])]

    def where(self, index: int) -> str:
        return str(self.path(index))

    def names(self, folder: Path) -> list[str]:
        """The files' paths relative to a folder that they are in."""
        if isinstance(self.files, FileList) and self.files.folder == folder:
            return [self.files.name(i) for i in self.which.tolist()]
        return [self.path(i).relative_to(folder).as_posix() for i in range(len(self))]

    def extras(self) -> Iterator[Item]:
        """The rest of every item; no file is read for it."""
        return (self.extra(self.path(i)) for i in range(len(self)))

    def item(self, index: int, draw: int) -> Item:
        if self.known or self.on_error == "fail":
            raw = self.kept.get(int(self.which[index]))
            path = self.path(index)
            return {self.name: self.modality.load(path) if raw is None else raw, **self.extra(path)}
        for step in range(min(TRIES, len(self))):
            path = self.path((index + step) % len(self))
            try:
                raw = self.modality.load(path)
                value = self.modality.encode(raw) if is_fitted(self.modality) else raw
                return {self.name: value, **self.extra(path)}
            except InputError as error:
                print(f"left out {path}: {error}", file=sys.stderr)
        raise InputError(f"{self.path(index)} and {TRIES} files after it cannot be used; mend or remove them")

    def values(self, name: str) -> Iterator[Any]:
        if name == self.name:
            return super().values(name)
        return (extra[name] for extra in self.extras() if name in extra)

    def sizes(self, block: int) -> np.ndarray | None:
        """Bytes of the files, unless all of them have been read anyway."""
        if self.known:
            return None
        if not self._sizes:
            sizes = (self.files[i].stat().st_size for i in self.which.tolist())
            self._sizes.append(np.fromiter(sizes, np.int64, len(self)))
        return self._sizes[0]

    def select(self, indices: Sequence[int]) -> FileItems:
        """The same of some items."""
        return replace(self, which=self.which[np.asarray(indices, dtype=np.int64)], _sizes=[])


def read_files(
    name: str,
    modality: Modality,
    paths: Sequence[Path],
    on_error: OnError,
    extra: Callable[[Path], Item],
) -> tuple[FileItems, tuple[Path, ...]]:
    """Read every file once, so that one that is damaged, or does not fit the model, is known before training.

    Of more than `READ_FIRST` files only some are read, spread over all; the others are read when training needs them.

    Args:
        name, modality: of what the files hold.
        paths: at least one file.
        on_error: what to do about a file that cannot be used.
        extra: the rest of an item, such as its label.

    Returns: the items, and the files that were skipped.

    Raises InputError: a file cannot be used and `on_error` is "fail", or none can.
    """
    kept: dict[int, Any] = {}
    bad: list[int] = []
    n_bytes, last_error = 0, None
    can_encode = is_fitted(modality)
    known = len(paths) <= READ_FIRST
    tried = range(len(paths)) if known else np.linspace(0, len(paths) - 1, SAMPLE, dtype=int).tolist()
    for number in tried:
        path = paths[number]
        try:
            raw = modality.load(path)
            if can_encode:
                _check_fit(path, modality, raw)
        except InputError as error:
            if on_error == "fail":
                others = "; or leave such files out by --data.on_error skip" if len(paths) > 1 else ""
                raise InputError(f"{error}{others}") from error
            bad.append(number)
            last_error = error
            continue
        n_bytes += raw.nbytes if isinstance(raw, np.ndarray) else len(raw) if isinstance(raw, str | bytes) else 0
        if known and n_bytes <= IN_MEMORY_BYTES:
            kept[number] = raw
    if len(bad) == len(tried):
        raise InputError(f"none of {len(tried)} files can be used; the last: {last_error}")
    which = np.delete(np.arange(len(paths)), bad)
    return FileItems(name, modality, paths, which, kept, extra, known, on_error), tuple(paths[i] for i in bad)


def is_fitted(modality: Modality) -> bool:
    """Whether it can encode yet; a vocabulary may still have to be learned from the data."""
    try:
        return modality.vocab > 0
    except InputError:
        return False


def _check_fit(path: Path, modality: Modality, raw: Any) -> None:
    try:
        modality.encode(raw)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def check_fractions(val: float, test: float, test_may_be_zero: bool = False, prefix: str = "data.source.") -> None:
    """Raises InputError: these are not the sizes of validation and test data."""
    for key, value, zero in (("val", val, False), ("test", test, test_may_be_zero)):
        if not (0 < value < 1 or (zero and value == 0)):
            raise InputError(f"{prefix}{key} is {value}; it is a share of the data: more than 0, less than 1")
    if val + test >= 1:
        raise InputError(f"{prefix}val {val} and test {test} leave nothing to train on; their sum must be below 1")


def split_by_hash(
    names: Sequence[str], val: float, test: float, seed: int, groups: Sequence[str] = ()
) -> tuple[list[int], list[int], list[int]]:
    """Indices of training, validation and test items; at least one of each.

    Names are put in the order of the SHA-256 of `"{seed}/{name}"`. The first of each group is for training, so that
    every label is; of the others the first `test` of all are the test items, the next `val` the validation items and
    the rest training items too. So the split depends on nothing but the names, and one file more moves few others.

    Args:
        names: in any order, at least two more than there are groups.
        val, test: shares that `check_fractions` has passed.
        seed: another seed is another split.
        groups: of each name; none where all are of one.

    Returns: (train, val, test), each sorted.
    """
    n = len(names)
    digests = b"".join(
        hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()[:8] for name in names
    )
    order: list[int] = np.argsort(np.frombuffer(digests, dtype=">u8"), kind="stable").tolist()
    first: dict[str, int] = {}
    for i in order:
        first.setdefault(groups[i] if groups else "", i)
    train = sorted(first.values())
    in_train = set(train)
    rest = [i for i in order if i not in in_train]
    assert len(rest) >= 2, (n, len(first))
    n_test = min(max(1, round(n * test)), len(rest) - 1)
    n_val = min(max(1, round(n * val)), len(rest) - n_test)
    return sorted(train + rest[n_test + n_val :]), sorted(rest[n_test : n_test + n_val]), sorted(rest[:n_test])


def split_sequence(sequence: Sequence[T], val: float, test: float) -> tuple[Sequence[T], Sequence[T], Sequence[T]]:
    """The first part, the part after it and the last part of a text: training, validation, test."""
    n = len(sequence)
    end_of_train, end_of_val = int(n * (1 - val - test)), int(n * (1 - test))
    return sequence[:end_of_train], sequence[end_of_train:end_of_val], sequence[end_of_val:]

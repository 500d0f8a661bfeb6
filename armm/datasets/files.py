"""Files as items: which files a folder has, reading them through a modality, and dividing them into splits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from armm.datasets.source import Item, Items, OnError
from armm.errors import InputError
from armm.modality import Modality

IN_MEMORY_BYTES = 2**30
"""Arrays of files are kept in memory up to this size together; what does not fit is read again when needed."""

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


def list_files(folder: Path, suffixes: Iterable[str] = (), left_out: Container[str] = ()) -> list[Path]:
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
    found: list[Path] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(root)
        folders[:] = (
            [] if real in seen else [name for name in folders if not name.startswith(".") and name not in left_out]
        )
        if real not in seen:
            paths = (Path(root, name) for name in names if not name.startswith("."))
            found += [path for path in paths if not wanted or path.suffix.lower() in wanted]
        seen.add(real)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


@dataclass(frozen=True, eq=False)
class FileItems(Items):
    """Files, each an item. Whatever was not kept in memory is read when it is asked for."""

    name: str
    modality: Modality
    paths: Sequence[Path]
    kept: Sequence[Any]
    extras: Sequence[Item]

    def __len__(self) -> int:
        return len(self.paths)

    def item(self, index: int, draw: int) -> Item:
        raw = self.kept[index]
        return {self.name: self.modality.load(self.paths[index]) if raw is None else raw, **self.extras[index]}

    def select(self, indices: Sequence[int]) -> FileItems:
        """The same of some files."""
        return FileItems(
            self.name,
            self.modality,
            [self.paths[i] for i in indices],
            [self.kept[i] for i in indices],
            [self.extras[i] for i in indices],
        )


def read_files(
    name: str,
    modality: Modality,
    paths: Sequence[Path],
    on_error: OnError,
    extra: Callable[[Path], Item] = lambda path: {},
) -> tuple[FileItems, tuple[Path, ...]]:
    """Read every file once, so that one that is damaged, or does not fit the model, is known before training.

    Args:
        name, modality: of what the files hold.
        paths: at least one file.
        on_error: what to do about a file that cannot be used.
        extra: the rest of an item, such as its label.

    Returns: the items, and the files that were skipped.

    Raises InputError: a file cannot be used and `on_error` is "fail", or none can.
    """
    kept: list[Any] = []
    good: list[Path] = []
    skipped: list[Path] = []
    n_bytes, last_error = 0, None
    can_encode = _is_fitted(modality)
    for path in paths:
        try:
            raw = modality.load(path)
            if can_encode:
                _check_fit(path, modality, raw)
        except InputError as error:
            if on_error == "fail":
                others = "; or leave such files out by --data.on_error skip" if len(paths) > 1 else ""
                raise InputError(f"{error}{others}") from error
            skipped.append(path)
            last_error = error
            continue
        n_bytes += raw.nbytes if isinstance(raw, np.ndarray) else 0
        kept.append(raw if n_bytes <= IN_MEMORY_BYTES else None)
        good.append(path)
    if not good:
        raise InputError(f"none of {len(paths)} files can be used; the last: {last_error}")
    return FileItems(name, modality, good, kept, [extra(path) for path in good]), tuple(skipped)


def _is_fitted(modality: Modality) -> bool:
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


def check_fractions(val: float, test: float, test_may_be_zero: bool = False) -> None:
    """Raises InputError: these are not the sizes of validation and test data."""
    for key, value, zero in (("val", val, False), ("test", test, test_may_be_zero)):
        if not (0 < value < 1 or (zero and value == 0)):
            raise InputError(f"data.source.{key} is {value}; it is a share of the data: more than 0, less than 1")
    if val + test >= 1:
        raise InputError(f"data.source.val {val} and test {test} leave nothing to train on; their sum must be below 1")


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
    order = sorted(range(n), key=lambda i: hashlib.sha256(f"{seed}/{names[i]}".encode()).digest())
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

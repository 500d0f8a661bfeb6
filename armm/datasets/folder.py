"""The user's own data: a file or a folder of files, sub-folders as labels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from armm.datasets.files import (
    FileItems,
    check_fractions,
    existing,
    list_files,
    read_files,
    reader,
    split_by_hash,
    split_sequence,
)
from armm.datasets.source import Item, ListOfItems, OnError, Source, Splits
from armm.errors import InputError
from armm.modality import Modality

LABEL = "label"
"""The name of the modality that sub-folders are labels for."""
FEW_TEXTS = 10
"""Fewer text files than this are cut inside, each of them, instead of dealt out whole."""


@dataclass(frozen=True)
class Folder(Source):
    """Your own files, named by `--data.path`: a folder, or one text file.

    Files are read by the model's first modality that reads files; those with other endings and hidden ones are left
    alone. If the model has a modality named `label`, the name of a file's sub-folder is its label. The files are dealt
    out to training, validation and test by a hash of their names, one of each label to the training before all others;
    fewer than ten texts are cut instead, each into a part to train on, one to validate and, at its end, one to test.

    Args:
        val: share of the files (or of each text) for validation.
        test: share of the files (or of each text) for the test.
        seed: another seed deals the files out differently.
    """

    val: float = 0.1
    test: float = 0.1
    seed: int = 0

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        if path is None:
            raise InputError("no data: name a file or a folder with --data.path PATH")
        return self.load_instead_of("", modalities, path, on_error)

    def load_instead_of(self, wanted: str, modalities: Mapping[str, Modality], path: Path, on_error: OnError) -> Splits:
        """The splits of the user's files, where a data set's own files were not found.

        Args:
            wanted: the data set's own files, for the message when there is nothing at all; or an empty string.
            modalities, path, on_error: as in `load`.
        """
        check_fractions(self.val, self.test)
        name, modality = reader(modalities)
        existing(path)
        # a file that the user names is read whatever its ending
        files = [path] if path.is_file() else list_files(path, modality.suffixes)
        if not files:
            endings = ", ".join(modality.suffixes)
            no = f"neither {wanted} nor a file" if wanted else "no file"
            raise InputError(
                f"{path}: holds {no} that ends in {endings}; put data for {name!r} there or change the path"
            )
        root = path.parent if path.is_file() else path
        labelled = LABEL in modalities and name != LABEL
        extra = Labels(root) if labelled else no_extra
        for file in files if labelled else ():
            extra(file)  # one outside the folders shows now
        items, skipped = read_files(name, modality, files, on_error, extra)
        if len(items) < FEW_TEXTS and all(isinstance(item, str) for item in items.values(name)):
            return _cut_texts(items, self.val, self.test, skipped)
        groups = [str(extra[LABEL]) for extra in items.extras()] if labelled else []
        n_needed = max(len(set(groups)), 1) + 2
        if len(items) < n_needed:
            each = f"one of each of {n_needed - 2} labels" if n_needed > 3 else "one"
            raise InputError(
                f"{path}: {len(items)} readable {_plural('file', len(items))} for {name!r}, at least {n_needed} are "
                f"needed: {each} to train, one to validate and one to test; add more"
            )
        parts = split_by_hash(items.names(root), self.val, self.test, self.seed, groups)
        train, val, test = (items.select(part) for part in parts)
        return Splits(train, val, test, skipped)


def own_data(wanted: str, modalities: Mapping[str, Modality], path: Path, on_error: OnError) -> Splits:
    """The user's own files at `path`, because a data set's own (`wanted`) are not there."""
    return Folder().load_instead_of(wanted, modalities, path, on_error)


@dataclass(frozen=True)
class Labels:
    """The label of a file: the folder that it is in below `root`."""

    root: Path

    def __call__(self, file: Path) -> Item:
        """Raises InputError: it is in none."""
        inside = str(file)[len(str(self.root)) :].lstrip(os.sep)
        folder, in_a_folder, _ = inside.partition(os.sep)
        if not in_a_folder:
            raise InputError(
                f"{file}: has no label; put it into a sub-folder of {self.root} that is named after its class"
            )
        return {LABEL: folder}


def no_extra(file: Path) -> Item:
    """Nothing beside what is in the file."""
    return {}


def _cut_texts(items: FileItems, val: float, test: float, skipped: tuple[Path, ...]) -> Splits:
    splits: tuple[list[Item], list[Item], list[Item]] = ([], [], [])
    for index in range(len(items)):
        item = items.item(index, draw=0)
        parts = split_sequence(item[items.name], val, test)
        for split, part in zip(splits, parts, strict=True):
            if part:
                split.append({**item, items.name: part})
    if not all(splits):
        n = sum(len(text) for text in items.values(items.name))
        more = f" and {len(items) - 1} more" if len(items) > 1 else ""
        raise InputError(
            f"{items.path(0)}{more}: {n} {_plural('character', n)} of text are too few to cut into training, "
            "validation and test; add more"
        )
    train, val_items, test_items = splits
    return Splits(ListOfItems(train), ListOfItems(val_items), ListOfItems(test_items), skipped)


def _plural(word: str, n: int) -> str:
    return word if n == 1 else f"{word}s"

"""Text: one long text, and the standard library of the running Python."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from armm.datasets.files import check_fractions, existing, list_files, reader, split_sequence
from armm.datasets.folder import own_data
from armm.datasets.source import Item, ListOfItems, OnError, Source, Splits
from armm.errors import InputError
from armm.modality import Modality

SHAKESPEARE = Path("data/tinyshakespeare/input.txt")
SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"

MAX_MODULE_BYTES = 50_000
"""Larger modules are left out, so that none of them is most of a split."""
LEFT_OUT = {
    # what is no part of the library, its tests, and what a program wrote: tables and help texts
    *("site-packages", "dist-packages", "ensurepip", "test", "tests", "idlelib", "lib2to3", "turtledemo"),
    *("pydoc_data", "encodings", "__phello__", "__pycache__"),
}


@dataclass(frozen=True)
class Corpus(Source):
    """One text in one file, such as tiny Shakespeare: the beginning to train on, the end to validate.

    Without a path: `data/tinyshakespeare/input.txt` under the current folder. With one: that file, or the folder's
    `input.txt` or only text file. A folder of several texts is read as your own data.

    Args:
        val: share of the text for validation: its end, or what stands before the test part.
        test: share for the test, at the very end. 0: the test is the validation part again, as in nanoGPT.
    """

    val: float = 0.1
    test: float = 0.0

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        check_fractions(self.val, self.test, test_may_be_zero=True)
        name, modality = reader(modalities, ".txt")
        if path is None and not SHAKESPEARE.is_file():
            raise InputError(
                f"{SHAKESPEARE.resolve()}: not found; save {SHAKESPEARE_URL} there, "
                "or name your own text by --data.path"
            )
        file = SHAKESPEARE if path is None else _only_text(existing(path), modality)
        if file is None:
            assert path is not None
            return own_data("input.txt", modalities, path, on_error)
        text = modality.load(file)  # without its only file there is nothing to go on with, whatever `on_error` says
        train, val, test = split_sequence(text, self.val, self.test)
        test = test if self.test else val
        if not (train and val and test):
            raise InputError(
                f"{file}: {len(text)} characters are too few to cut into training, validation and test; use more text"
            )
        return Splits(ListOfItems([{name: train}]), ListOfItems([{name: val}]), ListOfItems([{name: test}]))


def _only_text(path: Path, modality: Modality) -> Path | None:
    if path.is_file():
        return path
    if (path / "input.txt").is_file():
        return path / "input.txt"
    files = list_files(path, modality.suffixes)
    return files[0] if len(files) == 1 else None


@dataclass(frozen=True)
class StandardLibrary(Source):
    """Built in: the sources of the running Python's standard library, with their docstrings.

    Tests, bundled packages, generated tables and modules above 50 kB are left out. A hash of a module's path says
    whether it belongs to the test (about one in 16), to validation (as many) or to training. With a path: your own
    data.

    Args:
        max_bytes: at most so many bytes of modules, taken in the order of another hash.
    """

    max_bytes: int = 2_000_000

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        if path is not None:
            return own_data("", modalities, path, on_error)
        name, _ = reader(modalities, ".txt")
        root = Path(sysconfig.get_paths()["stdlib"])
        splits: tuple[list[Item], list[Item], list[Item]] = ([], [], [])
        n_bytes = 0
        for file in sorted(library_modules(root), key=lambda file: _digest("order", file, root)):
            size = file.stat().st_size
            if not 0 < size <= min(MAX_MODULE_BYTES, self.max_bytes - n_bytes):
                continue
            try:
                text = file.read_bytes().decode("utf-8")
            except (OSError, UnicodeDecodeError):  # not a source after all
                continue
            n_bytes += size
            bucket = _digest("split", file, root)[0] % 16
            splits[{0: 2, 1: 1}.get(bucket, 0)].append({name: text})
        if not n_bytes:
            raise InputError(f"{root}: this Python has no library sources; name a text or a folder with --data.path")
        if not all(splits):
            raise InputError(
                f"data.source.max_bytes {self.max_bytes} is too few for training, validation and test modules; "
                "1000000 are enough"
            )
        train, val, test = splits
        return Splits(ListOfItems(train), ListOfItems(val), ListOfItems(test))


def library_modules(root: Path) -> list[Path]:
    """The library's modules that people wrote, sorted by path."""
    files = list_files(root, [".py"], LEFT_OUT)
    return [file for file in files if not file.name.startswith("_sysconfigdata")]  # written when Python was built


def _digest(purpose: str, file: Path, root: Path) -> bytes:
    return hashlib.sha256(f"{purpose}/{file.relative_to(root).as_posix()}".encode()).digest()

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

LEFT_OUT = frozenset(
    # what is no part of the library, its tests, and files that a program wrote: tables and help texts
    "site-packages dist-packages test tests idlelib lib2to3 ensurepip turtledemo pydoc_data encodings "
    "__phello__ _bundled __pycache__".split()
)


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
        name, modality = reader(modalities)
        if path is None and not SHAKESPEARE.is_file():
            raise InputError(
                f"{SHAKESPEARE.resolve()}: not found; save {SHAKESPEARE_URL} there, or name your own text by --data.path"
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
        return Splits(*(ListOfItems([{name: part}]) for part in (train, val, test)))


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

    Tests, bundled packages and generated tables are left out. A module belongs to the test where a hash of its path
    says so (about one in 16), to the validation in as many cases, and else to the training. With a path: your own data.

    Args:
        max_bytes: at most so many bytes of modules, taken in the order of another hash; the library has about 9 million.
    """

    max_bytes: int = 2_000_000

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        if path is not None:
            return own_data("", modalities, path, on_error)
        name, _ = reader(modalities)
        root = Path(sysconfig.get_paths()["stdlib"])
        splits: tuple[list[Item], list[Item], list[Item]] = ([], [], [])
        n_bytes = 0
        for file in sorted(_modules(root), key=lambda file: _digest("order", file, root)):
            source = file.read_bytes()
            if n_bytes + len(source) > self.max_bytes or not source:
                continue
            try:
                text = source.decode("utf-8")
            except UnicodeDecodeError:
                continue
            n_bytes += len(source)
            bucket = _digest("split", file, root)[0] % 16
            splits[{0: 2, 1: 1}.get(bucket, 0)].append({name: text})
        if not n_bytes:
            raise InputError(f"{root}: this Python has no library sources; name a text or a folder with --data.path")
        if not all(splits):
            raise InputError(
                f"data.source.max_bytes {self.max_bytes} is too few for training, validation and test modules; "
                "500000 is enough"
            )
        train, val, test = splits
        return Splits(ListOfItems(train), ListOfItems(val), ListOfItems(test))


def _modules(root: Path) -> list[Path]:
    return [
        file
        for file in list_files(root, [".py"])
        if not LEFT_OUT.intersection(file.relative_to(root).parts) and not file.name.startswith("_sysconfigdata")
    ]


def _digest(purpose: str, file: Path, root: Path) -> bytes:
    return hashlib.sha256(f"{purpose}/{file.relative_to(root).as_posix()}".encode()).digest()

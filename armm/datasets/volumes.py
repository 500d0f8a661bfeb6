"""Documents in files, read one by one wherever they stand: lines of JSON, and samples of webdataset's tar shards.

An index of byte ranges is made by reading a file once (of a tar its headers only); after that any document can be read
without what comes before it, so the order of training stays a pure function of its seed.
https://github.com/webdataset/webdataset: files of one sample stand side by side and share their name up to the first
dot; uncompressed.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from armm.datasets.segments import Entry, entries_of, parse_document
from armm.datasets.source import OnError
from armm.errors import InputError, nearest
from armm.modalities.label import Label
from armm.modality import Modality

CLASS = ".cls"  # webdataset's ending of a class
METADATA = ".json"


class Volume(ABC):
    """Documents of one file, by number."""

    path: Path
    sizes: np.ndarray
    """(n,) bytes of every document, those of its files included."""
    digests: Sequence[str]
    """Of every document, for dealing them out to training, validation and test."""

    def __len__(self) -> int:
        return len(self.sizes)

    @abstractmethod
    def where(self, number: int) -> str:
        """How messages call a document."""

    @abstractmethod
    def entries(self, number: int, modalities: Mapping[str, Modality]) -> list[Entry]:
        """A document as it was written."""

    @abstractmethod
    def raw(self, number: int, entry: Entry, modality: Modality) -> Any:
        """The data of one of its segments, loaded from its file where it is one.

        Raises InputError: the file cannot be read.
        """


@dataclass(frozen=True, eq=False)
class Indexed:
    """A volume, and what of it cannot be used."""

    volume: Volume
    skipped: tuple[str, ...]


def refuse(where: str, error: InputError, on_error: OnError, skipped: list[str]) -> None:
    """A document that cannot be used ends the run, or is counted.

    Raises InputError: with `on_error` "fail".
    """
    if on_error == "fail":
        raise InputError(f"{where}: {error}; or leave such documents out by --data.on_error skip") from error
    skipped.append(where)


# ---------------------------------------------------------------- lines of JSON


@dataclass(frozen=True, eq=False)
class JsonLines(Volume):
    """A manifest: one document a line; paths in it are relative to the folder that it is in.

    Attributes:
        numbers: (n,) of the lines, from 1. starts: (n,) where they begin. lengths: (n,) bytes.
    """

    path: Path
    numbers: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    sizes: np.ndarray
    digests: Sequence[str]

    @classmethod
    def index(cls, path: Path, modalities: Mapping[str, Modality], on_error: OnError) -> Indexed:
        """Read the lines once, and look for the files that they name.

        Raises InputError: the file cannot be read, or a line of it cannot be used and `on_error` is "fail".
        """
        skipped: list[str] = []
        rows: list[tuple[int, int, int, int]] = []
        digests: list[str] = []
        start = 0
        for number, line in enumerate(_lines(path), 1):
            own = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if own.strip():
                try:
                    entries = parse_document(own, modalities)
                    files = [path.parent / e.value for e in entries if modalities[e.name].is_named_by_path]
                    size = len(own) + sum(map(_file_size, files))
                except InputError as error:
                    refuse(f"{path} line {number}", error, on_error, skipped)
                else:
                    rows.append((number, start + len(line) - len(own), len(own), size))
                    digests.append(hashlib.sha256(own.strip()).hexdigest()[:16])
            start += len(line)
        table = np.array(rows, dtype=np.int64).reshape(-1, 4)
        numbers, starts, lengths, sizes = table.T
        return Indexed(cls(path, numbers, starts, lengths, sizes, digests), tuple(skipped))

    def where(self, number: int) -> str:
        return f"{self.path} line {self.numbers[number]}"

    def entries(self, number: int, modalities: Mapping[str, Modality]) -> list[Entry]:
        length = int(self.lengths[number])
        return parse_document(read_range(self.path, int(self.starts[number]), length), modalities)

    def raw(self, number: int, entry: Entry, modality: Modality) -> Any:
        return modality.load(self.path.parent / entry.value) if modality.is_named_by_path else entry.value


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            yield from file
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; check the path") from error


def _file_size(path: Path) -> int:
    try:
        if not path.is_file():
            raise InputError(f"{path}: there is no such file; put it there or mend the path (relative to the manifest)")
        return path.stat().st_size
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(path)!r} is no path of a file ({error}); mend it") from error


def read_range(path: Path, start: int, length: int) -> bytes:
    """Bytes of a file by their place.

    Raises InputError: they are no longer there.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            content = file.read(length)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; put it back") from error
    if len(content) < length:
        raise InputError(f"{path} is shorter than it was when the run began; put it back as it was")
    return content


# ------------------------------------------------------------------- tar shards


@dataclass(frozen=True, eq=False)
class TarShard(Volume):
    """A tar of webdataset's: a sample is a document.

    If a sample has a `.json` that is a list, that is the document, and the files that it names are those of the sample.
    Otherwise its files are the segments, in their order: each of the first modality that reads its ending, `.cls` of
    the first that is a label; files of other endings are left alone.

    Attributes:
        keys: of the samples. starts: (n,) where the headers of their first files begin.
    """

    path: Path
    keys: Sequence[str]
    starts: np.ndarray
    sizes: np.ndarray
    digests: Sequence[str]

    @classmethod
    def index(cls, path: Path, modalities: Mapping[str, Modality], on_error: OnError) -> Indexed:
        """Read the headers once, and the documents that are written as JSON.

        Raises InputError: it is no tar, or a sample of it cannot be used and `on_error` is "fail".
        """
        skipped: list[str] = []
        keys: list[str] = []
        rows: list[tuple[int, int]] = []
        seen: set[str] = set()
        try:
            with tarfile.open(path, "r:") as archive:
                for key, members, end in _samples(archive):
                    where = f"{path} sample {key}"
                    try:
                        if key in seen:
                            raise InputError("its files do not stand side by side; make the archive anew, sorted")
                        seen.add(key)
                        written = {m.name: archive.extractfile(m) for m in members if m.name.endswith(METADATA)}
                        texts = {name: file.read() for name, file in written.items() if file is not None}
                        _entries(key, [m.name for m in members], texts, modalities)
                    except InputError as error:
                        refuse(where, error, on_error, skipped)
                    else:
                        keys.append(key)
                        rows.append((members[0].offset, end - members[0].offset))
        except (OSError, tarfile.TarError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is no whole, uncompressed tar ({error}); unpack it, or fetch it again") from error
        table = np.array(rows, dtype=np.int64).reshape(-1, 2)
        digests = [hashlib.sha256(f"{path.name}/{key}".encode()).hexdigest()[:16] for key in keys]
        return Indexed(cls(path, keys, table[:, 0], table[:, 1], digests), tuple(skipped))

    def where(self, number: int) -> str:
        return f"{self.path} sample {self.keys[number]}"

    def entries(self, number: int, modalities: Mapping[str, Modality]) -> list[Entry]:
        files = self._files(number)
        texts = {name: content for name, content in files.items() if name.endswith(METADATA)}
        return _entries(self.keys[number], list(files), texts, modalities)

    def raw(self, number: int, entry: Entry, modality: Modality) -> Any:
        if not isinstance(entry.value, Member):
            return entry.value
        name, content = entry.value.name, self._files(number)[entry.value.name]
        if name.endswith(CLASS):
            text = content.decode("utf-8", "replace").strip()
            return int(text) if text.isdecimal() else text
        return load_content(modality, name, content)

    def _files(self, number: int) -> dict[str, bytes]:
        content = read_range(self.path, int(self.starts[number]), int(self.sizes[number]))
        try:
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
                files = [(member.name, archive.extractfile(member)) for member in archive if member.isfile()]
                return {name: file.read() for name, file in files if file is not None}
        except tarfile.TarError as error:
            raise InputError(f"the archive is not what it was when the run began ({error}); put it back") from error


@dataclass(frozen=True)
class Member:
    """A file of a sample."""

    name: str


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[str, list[tarfile.TarInfo], int]]:
    """Key, files and end of every sample."""
    members: list[tarfile.TarInfo] = []
    key = ""
    for member in archive:
        if not member.isfile():
            continue
        own = _key(member.name)
        if members and own != key:
            yield key, members, _end(members[-1])
            members = []
        key = own
        members.append(member)
    if members:
        yield key, members, _end(members[-1])


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _end(member: tarfile.TarInfo) -> int:
    blocks = -(-member.size // tarfile.BLOCKSIZE)
    return member.offset_data + blocks * tarfile.BLOCKSIZE


def _entries(
    key: str, names: Sequence[str], texts: Mapping[str, bytes], modalities: Mapping[str, Modality]
) -> list[Entry]:
    """The segments of a sample."""
    for content in texts.values():
        if content.lstrip().startswith(b"["):
            entries = parse_document(content, modalities)
            return [_in_sample(entry, key, names, modalities[entry.name]) for entry in entries]
    found = [Entry(name, Member(file)) for file in names if (name := _reader(file, modalities)) is not None]
    return found or entries_of([], modalities)


def _in_sample(entry: Entry, key: str, names: Sequence[str], modality: Modality) -> Entry:
    if not modality.is_named_by_path:
        return entry
    folder = key.rpartition("/")[0]
    wanted = f"{folder}/{entry.value}" if folder else entry.value
    if wanted not in names:
        raise InputError(f"has no file {entry.value!r}, it has {', '.join(names)}{nearest(wanted, names)}")
    return Entry(entry.name, Member(wanted), entry.given)


def _reader(file: str, modalities: Mapping[str, Modality]) -> str | None:
    """The first modality that reads a file of this ending."""
    ending = Path(file).suffix.lower()
    if ending == METADATA:
        return None
    for name, modality in modalities.items():
        if ending in modality.suffixes or (ending == CLASS and isinstance(modality, Label)):
            return name
    return None


def load_content(modality: Modality, name: str, content: bytes) -> Any:
    """Raw data from the content of a file that lies in an archive.

    Raises InputError: it is not what it should be; the message names the file in the archive.
    """
    with tempfile.NamedTemporaryFile(prefix="armm-", suffix=Path(name).suffix) as file:
        file.write(content)
        file.flush()
        try:
            return modality.load(Path(file.name))
        except InputError as error:
            raise InputError(str(error).replace(file.name, name)) from error

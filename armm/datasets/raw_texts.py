"""Texts in files of any size, cut into jobs that can be read apart from each other and in little memory.

A plain text file is one document, a line of a `.jsonl` file another; either may be gzipped. A large file that is not
gzipped is read in ranges of bytes. A document longer than `PIECE_BYTES` comes in pieces, cut at line ends.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from armm.datasets.files import list_files, split_by_hash
from armm.errors import InputError

PIECE_BYTES = 2**18
"""What training reads at once; windows and crops lie in one piece."""
BORDER_BYTES = 2**16  # so far a line end is looked for
FEW_TEXTS = 10
"""Fewer text files than this are cut inside, each of them, instead of dealt out whole."""
TRAIN, VAL, TEST = range(3)


class Piece(NamedTuple):
    """A document, or a part of one.

    Attributes:
        content: UTF-8, or any bytes.
        begins: whether a document begins here.
        split: TRAIN, VAL or TEST.
        place: file and byte, for messages.
    """

    content: bytes
    begins: bool
    split: int
    place: str


@dataclass(frozen=True)
class Source:
    """A file.

    Attributes:
        path: where it is. name: relative to what the user named; what the split depends on.
    """

    path: Path
    name: str
    n_bytes: int
    changed_ns: int

    @property
    def is_zipped(self) -> bool:
        return self.name.lower().endswith(".gz")

    @property
    def is_lines(self) -> bool:
        return self.name.lower().removesuffix(".gz").endswith(".jsonl")


@dataclass(frozen=True)
class Range:
    """Bytes of a file; a range has what begins in it. `split` is None where a hash decides."""

    source: Source
    start: int
    end: int
    split: int | None = None


Job = tuple[Range, ...]


@dataclass(frozen=True)
class Dealing:
    """How documents are dealt out: lines by a hash of the seed, their file's name and their place in it.

    Texts in files of their own are dealt out like those of a folder (`split_by_hash`); fewer than `FEW_TEXTS` are cut.
    """

    val: float
    test: float
    seed: int

    def split(self, name: str, number: int) -> int:
        digest = hashlib.sha256(f"{self.seed}/{name}/{number}".encode("utf-8", "surrogateescape")).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        return TEST if share < self.test else VAL if share < self.test + self.val else TRAIN


def find_sources(inputs: Sequence[Path], suffixes: Sequence[str]) -> list[Source]:
    """The files that inputs are, or hold.

    Args:
        suffixes: endings of the files that a folder is searched for; gzipped ones have `.gz` after it. Files that are
            named are read whatever their ending.

    Raises InputError: one is not there or cannot be read, or there is none.
    """
    endings = tuple(suffix + zipped for suffix in suffixes for zipped in ("", ".gz"))
    found: list[Source] = []
    for given in inputs:
        if not given.exists():
            raise InputError(f"{given}: no such file or folder; check the path (it is relative to {Path.cwd()})")
        files = list_files(given) if given.is_dir() else [given]
        for path in files:
            if path == given or path.name.lower().endswith(endings):
                name = path.name if path == given else path.relative_to(given).as_posix()
                try:
                    status = path.stat()
                except OSError as error:
                    raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
                found.append(Source(path, name, status.st_size, status.st_mtime_ns))
    if not any(source.n_bytes for source in found):
        names = ", ".join(map(str, inputs))
        what = "only empty files" if found else f"no file that ends in {', '.join(suffixes)}"
        raise InputError(f"{names}: {what}; name files or folders with text")
    return [source for source in found if source.n_bytes]


def plan(sources: Sequence[Source], job_bytes: int, dealing: Dealing) -> list[Job]:
    """Every byte in one job, of `job_bytes` each but for gzipped files, which are not divided.

    Raises InputError: too few files to deal out.
    """
    jobs: list[Job] = []
    ranges: list[Range] = []
    room = job_bytes
    for source, first, last, split in _parts(sources, dealing):
        while first < last:
            end = last if source.is_zipped else min(last, first + room)
            ranges.append(Range(source, first, end, split))
            first, room = end, room - (end - first)
            if room <= 0:
                jobs.append(tuple(ranges))
                ranges, room = [], job_bytes
    return [*jobs, tuple(ranges)] if ranges else jobs


def _parts(sources: Sequence[Source], dealing: Dealing) -> Iterator[tuple[Source, int, int, int | None]]:
    """The files, and what of each is for what; None where a hash decides line by line."""
    n = len(sources)
    if any(source.is_lines for source in sources):
        yield from ((source, 0, source.n_bytes, None) for source in sources)
    elif n < FEW_TEXTS and not any(source.is_zipped for source in sources):
        for source in sources:  # its beginning to train on, its end to test, as for a folder of few texts
            size = source.n_bytes
            end_of_train, end_of_val = int(size * (1 - dealing.val - dealing.test)), int(size * (1 - dealing.test))
            yield source, 0, end_of_train, TRAIN
            yield source, end_of_train, end_of_val, VAL
            yield source, end_of_val, size, TEST
    else:
        if n < 3:
            raise InputError(
                f"{sources[0].path}: {n} gzipped {'text' if n == 1 else 'texts'} cannot be dealt out to training, "
                "validation and test; unzip it, or give more files"
            )
        names = [source.name for source in sources]
        split_of = np.full(n, TRAIN)
        for split, numbers in enumerate(split_by_hash(names, dealing.val, max(dealing.test, 1e-9), dealing.seed)):
            split_of[numbers] = VAL if split == TEST and not dealing.test else split
        yield from ((source, 0, source.n_bytes, int(split_of[i])) for i, source in enumerate(sources))


def pieces(wanted: Range, field: str, dealing: Dealing, left_out: list[str] | None = None) -> Iterator[Piece]:
    """What begins in a range.

    Args:
        field: of the objects in `.jsonl` files, which holds the text.
        left_out: where it says which lines are no such objects, instead of ending with the first.

    Raises InputError: the file cannot be read, or a line is no such object.
    """
    source = wanted.source
    try:
        with cast(BinaryIO, gzip.open(source.path) if source.is_zipped else open(source.path, "rb")) as file:
            if source.is_lines:
                yield from _lines(file, wanted, field, dealing, left_out)
            else:
                yield from _blocks(file, wanted, dealing)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{source.path}: the gzip file is cut short or damaged ({error}); get it again") from error
    except OSError as error:
        raise InputError(f"{source.path}: cannot be read ({error.strerror or error}); check it") from error


def _lines(file: BinaryIO, wanted: Range, field: str, dealing: Dealing, left_out: list[str] | None) -> Iterator[Piece]:
    source, at = wanted.source, wanted.start
    if at:
        file.seek(at - 1)
        at += len(file.readline()) - 1
    while (source.is_zipped or at < wanted.end) and (line := file.readline()):
        place, start = f"{source.path}, the line at byte {at}", at
        at += len(line)
        if line.isspace():
            continue
        try:
            content = _text(line, field)
        except InputError as error:
            if left_out is None:
                raise InputError(f"{place}: {error}") from error
            left_out.append(f"{place}: {error}")
            continue
        split = dealing.split(source.name, start) if wanted.split is None else wanted.split
        yield from _cut(content, split, place)


def _text(line: bytes, field: str) -> bytes:
    """Raises InputError: the line is no object with a text."""
    try:
        found = json.loads(line)
        return found[field].encode()
    except UnicodeEncodeError as error:
        raise InputError("half a surrogate pair, which no text can hold; remove it") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"no JSON object with a text under {field!r}; mend it, or name another --field") from error


def _cut(content: bytes, split: int, place: str) -> Iterator[Piece]:
    """A document in pieces."""
    start = 0
    while start < len(content):
        end = len(content)
        if end - start > PIECE_BYTES:
            end = start + _last_border(content[start : start + PIECE_BYTES])
        yield Piece(content[start:end], start == 0, split, place)
        start = end


def _blocks(file: BinaryIO, wanted: Range, dealing: Dealing) -> Iterator[Piece]:
    source = wanted.source
    split = dealing.split(source.name, 0) if wanted.split is None else wanted.split
    at, end = (0, None) if source.is_zipped else (_border(file, wanted.start), _border(file, wanted.end))
    file.seek(at)
    rest = b""
    while True:
        n_bytes = PIECE_BYTES - len(rest) if end is None else min(PIECE_BYTES - len(rest), end - at - len(rest))
        block = rest + file.read(n_bytes) if n_bytes > 0 else rest
        if not block:
            return
        cut = _last_border(block) if len(block) == PIECE_BYTES else len(block)
        yield Piece(block[:cut], at == 0, split, f"{source.path}, at byte {at}")
        at, rest = at + cut, block[cut:]


def _border(file: BinaryIO, at: int) -> int:
    """The first place from `at` on where a text may be cut: after a line end, or else between characters."""
    if at == 0:
        return 0
    file.seek(at - 1)
    block = file.read(BORDER_BYTES)
    if len(block) < 2:  # the file's end
        return at
    found = block.find(b"\n")
    if found >= 0:
        return at + found
    after = block[1:5]
    # the file's end, or no UTF-8 at all, where these are all the rest of characters
    otherwise = len(after) if len(after) < 4 else 0
    return at + next((i for i, byte in enumerate(after) if byte & 0xC0 != 0x80), otherwise)


def _last_border(block: bytes) -> int:
    """The last place inside where a text may be cut."""
    found = block.rfind(b"\n", len(block) - BORDER_BYTES) + 1
    if found:
        return found
    return next((i for i in range(len(block) - 1, max(len(block) - 5, 0), -1) if block[i] & 0xC0 != 0x80), len(block))


def identity(sources: Sequence[Source]) -> str:
    """A digest of which files there are, and of when they last changed."""
    lines = (f"{source.name}\0{source.n_bytes}\0{source.changed_ns}\n" for source in sources)
    digest = hashlib.sha256()
    for line in lines:
        digest.update(os.fsencode(line))
    return digest.hexdigest()

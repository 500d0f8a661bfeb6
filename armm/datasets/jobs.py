"""One job of a preparation, as a worker does it: a part of the texts to one token shard or several.

A shard is finished once its record, `NAME.json`, is there. What was finished and still verifies is kept.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from armm.datasets.encoding import Encoder, encoder
from armm.datasets.raw_texts import PIECE_BYTES, Dealing, Job, Piece, Range, pieces
from armm.datasets.shards import SPLITS, Shard
from armm.datasets.store import write_aside
from armm.errors import InputError
from armm.modality import Modality

SLACK = 1.25  # a shard ends after so many times the wanted text
AGAIN = "run the same command again: what is finished is kept"


@dataclass(frozen=True)
class Settings:
    """What a set depends on besides its texts and modality.

    Attributes:
        field: of the objects in `.jsonl` files, which holds the text.
        val, test: shares of the documents. seed: of which.
        shard_bytes: text per shard.
        sample_bytes: text that a vocabulary is learned from.
        join: what to put between documents, so that they make one endless stream; None keeps them apart.
        on_error: `fail`, or `skip` for leaving out a file or line that cannot be used.
    """

    field: str = "text"
    val: float = 0.01
    test: float = 0.01
    seed: int = 0
    shard_bytes: int = 64 * 2**20
    sample_bytes: int = 32 * 2**20
    join: str | None = None
    on_error: str = "fail"

    @property
    def dealing(self) -> Dealing:
        return Dealing(self.val, self.test, self.seed)


@dataclass(frozen=True)
class Preparation:
    """What a worker has to know. `modality` has learned what it learns."""

    folder: Path
    modality: Modality
    settings: Settings

    @property
    def dtype(self) -> np.dtype:
        """The narrowest that holds every symbol."""
        vocab = self.modality.vocab
        return np.dtype("<u1" if vocab <= 2**8 else "<u2" if vocab <= 2**16 else "<u4")


def run_job(
    number: int, job: Job, preparation: Preparation, known: Sequence[Shard] | None
) -> tuple[list[Shard], int, list[str]]:
    """Make a job's shards, but for those that are there and verify.

    Args:
        known: what they are, where the set was finished once.

    Returns: the shards, the bytes of text that were encoded now, and what was left out.
    """
    try:
        return _shards(number, job, preparation, known)
    except OSError as error:  # its file name gets lost on the way to the parent
        place = error.filename or preparation.folder
        raise InputError(f"{place}: {error.strerror or error}; check the place and its space, then {AGAIN}") from error


def _shards(
    number: int, job: Job, preparation: Preparation, known: Sequence[Shard] | None
) -> tuple[list[Shard], int, list[str]]:
    settings = preparation.settings
    there = _written(number, preparation) if known is None else [(shard, shard is known[-1]) for shard in known]
    good = [shard if _verifies(shard, preparation) else None for shard, _ in there]
    if there and there[-1][1] and None not in good:
        return [shard for shard, _ in there], 0, []
    encode = encoder(preparation.modality)
    left_out: list[str] = []
    shards: list[Shard] = []
    n_new, last = 0, False
    found = joined(_all_pieces(job, settings, left_out), settings.join)
    piece = next(found, None)
    while not last:
        part = len(shards)
        shard = good[part] if part < len(good) else None
        draft = None if shard is not None else Draft(f"{number:06d}-{part:03d}", preparation, encode)
        n_bytes = 0
        while piece is not None and n_bytes < SLACK * settings.shard_bytes:
            n_bytes += len(piece.content)
            if draft is not None:
                draft.add(piece, left_out)
            piece = next(found, None)
        last = piece is None
        if shard is None:
            assert draft is not None
            shard = draft.write(last)
            n_new += n_bytes
        shards.append(shard)
    return shards, n_new, left_out


def _all_pieces(job: Job, settings: Settings, left_out: list[str]) -> Iterator[Piece]:
    for wanted in job:
        yield from readable(wanted, settings, left_out)


def joined(found: Iterator[Piece], separator: str | None) -> Iterator[Piece]:
    """Pieces of about `PIECE_BYTES` each: documents one after another, with something between them.

    Without a separator they stay apart.
    """
    if separator is None:
        yield from found
        return
    between = separator.encode()
    held: dict[int, list[Piece]] = {}
    n_held = dict.fromkeys(range(len(SPLITS)), 0)
    for piece in found:
        if held.get(piece.split) and n_held[piece.split] + len(piece.content) > PIECE_BYTES:
            yield _one(held.pop(piece.split), between)
            n_held[piece.split] = 0
        held.setdefault(piece.split, []).append(piece)
        n_held[piece.split] += len(piece.content)
    for rest in held.values():
        yield _one(rest, between)


def _one(held: list[Piece], between: bytes) -> Piece:
    content = b"".join((between if i and piece.begins else b"") + piece.content for i, piece in enumerate(held))
    return Piece(content, held[0].begins, held[0].split, held[0].place)


def readable(wanted: Range, settings: Settings, left_out: list[str]) -> Iterator[Piece]:
    """What begins in a range; what cannot be read ends it, or is written down."""
    try:
        yield from pieces(wanted, settings.field, settings.dealing, left_out if settings.on_error == "skip" else None)
    except InputError as error:
        if settings.on_error == "fail":
            raise
        left_out.append(str(error))


# ---------------------------------------------------------------------- shards


class Draft:
    """A shard in memory: as many symbols as `SLACK` times the wanted text gives."""

    def __init__(self, name: str, preparation: Preparation, encode: Encoder) -> None:
        self.name, self.preparation, self.encode = name, preparation, encode
        self.symbols: tuple[list[np.ndarray], ...] = tuple([] for _ in SPLITS)
        self.begins: tuple[list[bool], ...] = tuple([] for _ in SPLITS)
        self.text_bytes = 0

    def add(self, piece: Piece, left_out: list[str]) -> None:
        """Raises InputError: the piece cannot be encoded, and is not to be left out."""
        try:
            symbols = self.encode(piece.content)
        except InputError as error:
            if self.preparation.settings.on_error == "fail":
                raise InputError(f"{piece.place}: {error}") from error
            left_out.append(f"{piece.place}: {error}")
            return
        self.symbols[piece.split].append(np.array(symbols, dtype=self.preparation.dtype))
        self.begins[piece.split].append(piece.begins)
        self.text_bytes += len(piece.content)

    def write(self, last: bool) -> Shard:
        """Write the .bin, the .idx, and then the record that says they are there.

        Args:
            last: whether the job has no further shard.
        """
        whole = [symbols for split in self.symbols for symbols in split]
        contents = [symbols.data.cast("B") for symbols in whole]
        begins = [first for split in self.begins for first in split]
        table = np.empty((len(whole), 3), dtype="<u8")
        table[:, 0] = np.cumsum([len(symbols) for symbols in whole])
        table[:, 1] = begins
        table[:, 2] = [zlib.crc32(content) for content in contents]
        digest = hashlib.sha256()
        for content in contents:
            digest.update(content)
        train, val, test = self.symbols
        shard = Shard(
            name=self.name,
            sha256=digest.hexdigest(),
            table_sha256=hashlib.sha256(table.tobytes()).hexdigest(),
            pieces=(len(train), len(val), len(test)),
            symbols=(sum(map(len, train)), sum(map(len, val)), sum(map(len, test))),
            documents=sum(begins),
            text_bytes=self.text_bytes,
        )
        folder = self.preparation.folder
        write_aside(folder / f"{self.name}.bin", contents)
        write_aside(folder / f"{self.name}.idx", [table.tobytes()])
        write_aside(record_path(folder, self.name), [json.dumps({"shard": asdict(shard), "last": last}).encode()])
        return shard


def record_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _written(number: int, preparation: Preparation) -> list[tuple[Shard, bool]]:
    """What a job has written in an earlier run: its shards, and whether each is the job's last."""
    found: list[tuple[Shard, bool]] = []
    while (path := record_path(preparation.folder, f"{number:06d}-{len(found):03d}")).is_file():
        try:
            record = json.loads(path.read_bytes())
            found.append((Shard.parse(record["shard"]), bool(record["last"])))
        except (ValueError, KeyError, TypeError):
            break
    return found


def _verifies(shard: Shard, preparation: Preparation) -> bool:
    for ending, wanted in ((".bin", shard.sha256), (".idx", shard.table_sha256)):
        try:
            with open(preparation.folder / f"{shard.name}{ending}", "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != wanted:
                    return False
        except FileNotFoundError:
            return False
    return True

"""SHA-256 of files, as they are written and afterwards."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO


class Hashing:
    """A file to write to, whose checksum is known in the end."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def digest(file: BinaryIO, size: int) -> str:
    """The checksum of a file's first bytes."""
    file.seek(0)
    total = hashlib.sha256()
    while size and (piece := file.read(min(size, 1 << 20))):
        total.update(piece)
        size -= len(piece)
    return total.hexdigest()


def digest_of(path: Path) -> tuple[int, str]:
    """A file's size and checksum."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return size, digest(file, size)

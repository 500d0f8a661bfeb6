"""Files of a data set by name, in a folder of this machine or in object storage with a cache on disk.

Storage is reached through fsspec (https://filesystem-spec.readthedocs.io): `s3://bucket/set`, `gs://`, `https://` and
whatever else it knows, each with the package that fsspec names when it is missing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armm.errors import InputError

CACHE_BYTES = 32 * 2**30
TRIES = 3  # another process may remove a file from the cache between its arrival and its reading


@dataclass(frozen=True)
class Store:
    """The files of one data set.

    Attributes:
        place: a folder, or an address with `://`.
        cache: where files of object storage are kept.
        cache_bytes: so much of them; what was used longest ago goes first.
    """

    place: str
    cache: Path
    cache_bytes: int = CACHE_BYTES

    @property
    def is_remote(self) -> bool:
        return "://" in self.place

    def where(self, name: str) -> str:
        """A file's full name, for messages."""
        return f"{self.place.rstrip('/')}/{name}"

    def size(self, name: str) -> int:
        """Bytes of a file of this machine.

        Raises InputError: it is not there.
        """
        try:
            return self._path(name).stat().st_size
        except OSError as error:
            raise self._unreadable(name, error) from error

    def read(self, name: str, start: int = 0, n_bytes: int | None = None) -> bytes:
        """Some bytes of a file, all of it by default; fewer than `n_bytes` where the file ends before.

        Read by position: a file cut short gives an error that can be told, where a mapped one would kill the process,
        and what was read does not stay resident.

        Raises InputError: it is not there.
        """
        for left in reversed(range(TRIES)):
            try:
                with open(self._fetched(name) if self.is_remote else self._path(name), "rb", buffering=0) as file:
                    file.seek(start)
                    return _read(file, os.fstat(file.fileno()).st_size - start if n_bytes is None else n_bytes)
            except OSError as error:
                if isinstance(error, FileNotFoundError) and self.is_remote and left:
                    continue
                raise self._unreadable(name, error) from error
        raise AssertionError

    def fresh(self, name: str) -> bytes:
        """All of a small file, past the cache: an index may have been replaced.

        Raises InputError: it is not there.
        """
        if not self.is_remote:
            return self.read(name)
        file_system, root = self._file_system()
        try:
            return file_system.cat_file(f"{root}/{name}")
        except Exception as error:  # every storage has its own
            raise self._unreachable(name, error) from error

    def _path(self, name: str) -> Path:
        return Path(self.place) / name

    def _unreadable(self, name: str, error: OSError) -> InputError:
        return InputError(f"{self.where(name)}: cannot be read ({error.strerror or error}); get it again")

    # -------------------------------------------------------- object storage

    def _folder(self) -> Path:
        """The cache's folder of this place."""
        return self.cache / hashlib.sha256(self.place.rstrip("/").encode()).hexdigest()[:16]

    def _fetched(self, name: str) -> Path:
        """The file in the cache."""
        path = self._folder() / name
        try:
            os.utime(path)  # used now
            return path
        except FileNotFoundError:
            pass
        beside = path.with_name(f".{name}.{os.getpid()}")
        file_system, root = self._file_system()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file_system.get_file(f"{root}/{name}", str(beside))
            beside.replace(path)
        except Exception as error:  # every storage has its own
            raise self._unreachable(name, error) from error
        finally:
            beside.unlink(missing_ok=True)
        self._make_room(path)
        return path

    def forget(self, name: str) -> None:
        """Fetch a file anew when it is needed again."""
        (self._folder() / name).unlink(missing_ok=True)

    def _make_room(self, keep: Path) -> None:
        files: list[tuple[float, int, Path]] = []
        for path in self._folder().iterdir():
            with suppress(FileNotFoundError):  # another process was faster
                found = path.stat()
                files.append((found.st_mtime, found.st_size, path))
        excess = sum(size for _, size, _ in files) - self.cache_bytes
        for _, size, path in sorted(files):
            if excess <= 0:
                break
            if path != keep and not path.name.startswith("."):
                path.unlink(missing_ok=True)
                excess -= size

    def _file_system(self) -> tuple[Any, str]:
        try:
            from fsspec.core import url_to_fs

            file_system, root = url_to_fs(self.place.rstrip("/"))
        except (ImportError, ValueError, OSError) as error:
            raise InputError(f"{self.place}: {' '.join(str(error).split())}; pip install armm[storage]") from error
        return file_system, root

    def _unreachable(self, name: str, error: Exception) -> InputError:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return InputError(f"{self.where(name)}: cannot be fetched ({reason}); check the address and your access to it")


def _read(file: Any, n_bytes: int) -> bytes:
    parts: list[bytes] = []
    while n_bytes > 0 and (part := file.read(n_bytes)):  # an unbuffered read may return less
        parts.append(part)
        n_bytes -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def write_aside(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    """Write a file that is never seen half-written: beside its place, to the disk, then renamed.

    Raises OSError: it cannot be written; nothing stays.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)

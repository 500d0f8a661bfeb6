"""The idx format of MNIST (http://yann.lecun.com/exdb/mnist): big-endian sizes, then bytes; gzipped or not."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from armm.errors import InputError

UNSIGNED_BYTE = 0x08


def read_idx(path: Path, n_axes: int) -> np.ndarray:
    """The array in an idx file.

    Args:
        path: the file; gzipped if it begins as gzip files do, whatever its name.
        n_axes: how many axes it must have: 3 for images, 1 for labels.

    Returns: uint8, of the shape that the file states.

    Raises InputError: it cannot be read, is cut short, or is no idx file of unsigned bytes with so many axes.
    """
    again = "get the file again"
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: the gzip file is cut short or damaged ({error}); {again}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); {again}") from error
    wanted = bytes((0, 0, UNSIGNED_BYTE, n_axes))
    if content[:4] != wanted:
        raise InputError(
            f"{path}: not an idx file of bytes with {n_axes} axes: begins with {content[:4].hex(' ') or 'nothing'}, "
            f"not {wanted.hex(' ')}; {again}"
        )
    start = 4 + 4 * n_axes
    if len(content) < start:
        raise InputError(f"{path}: cut short, {len(content)} bytes are not even the header of {start}; {again}")
    shape = struct.unpack(f">{n_axes}I", content[4:start])
    n_wanted = start + math.prod(shape)
    if len(content) != n_wanted:
        sizes = " × ".join(map(str, shape))
        raise InputError(f"{path}: {len(content)} bytes, but {sizes} values make {n_wanted}; {again}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def find_idx(folders: list[Path], name: str) -> Path | None:
    """The file `name` in the first of `folders` that has it, as it is, with a dot for its second `-`, or gzipped."""
    stem, _, kind = name.rpartition("-idx")
    for folder in folders:
        for spelling in (name, f"{stem}.idx{kind}"):
            for ending in ("", ".gz"):
                if (folder / f"{spelling}{ending}").is_file():
                    return folder / f"{spelling}{ending}"
    return None

"""The bytes of a user's file, or one line that says why there are none."""

from __future__ import annotations

from pathlib import Path

from armm.errors import InputError


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises InputError: it is missing, a folder, unreadable or empty.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, expected a file; name a file in it") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"{path!s} cannot be read: {one_line(error)}; check the name and its permissions") from None
    if not content:
        raise InputError(f"{path} is empty (0 bytes); remove it or fetch it again")
    return content


def one_line(error: Exception) -> str:
    """What an exception of another library says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__

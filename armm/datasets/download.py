"""Downloads that torchvision and torchaudio do, made safe to fail: nothing half-written stays, one line says why."""

from __future__ import annotations

import http.client
import shutil
import socket
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from armm.errors import InputError

FAILURES = (OSError, RuntimeError, EOFError, tarfile.TarError, zlib.error, http.client.HTTPException)
TIMEOUT_SECONDS = 30.0


def is_free(folder: Path, archive: str) -> bool:
    """Whether a download may go to this folder: it is empty, or has the archive that the user put there to extract."""
    return folder.is_dir() and (not any(folder.iterdir()) or (folder / archive).is_file())


@contextmanager
def downloading(folder: Path, mend: str) -> Iterator[None]:
    """Let a package download into `folder`; if that fails or is interrupted, remove whatever is new there.

    Args:
        folder: is made if it does not exist, and removed again if the download fails.
        mend: which files the user can put where instead.

    Raises InputError: the download failed.
    """
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    before = set(folder.rglob("*"))
    timeout = socket.getdefaulttimeout()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # the packages wait for ever on a network that swallows packets, and offer no other way to limit it
        socket.setdefaulttimeout(TIMEOUT_SECONDS)
        yield
    except FAILURES as error:
        _remove_new(folder, before, made)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{folder}: the download failed ({reason[:200]}); {mend}") from error
    except BaseException:
        _remove_new(folder, before, made)
        raise
    finally:
        socket.setdefaulttimeout(timeout)


def _remove_new(folder: Path, before: set[Path], made: list[Path]) -> None:
    new = {path for path in folder.rglob("*") if path not in before} if folder.exists() else set()
    for path in sorted(new, key=lambda path: len(path.parts)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for parent in made:  # the innermost first
        if parent.exists() and not any(parent.iterdir()):
            parent.rmdir()

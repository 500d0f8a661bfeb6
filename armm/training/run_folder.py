"""A run's folder: which one is free, whose it is meanwhile, and what of it stays when a run fails."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from armm.errors import InputError
from armm.training.checkpoints import in_run
from armm.training.resuming import CONFIG

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

RUNS = Path("runs")
PATIENCE = 10.0
"""Seconds that a folder is waited for: a killed training's loaders notice after five that it is gone."""


def new_run(recipe: str) -> Path:
    """runs/<recipe>/<version>, the first version that is free."""
    folder = RUNS / recipe
    taken = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
    return folder / str(max(taken, default=-1) + 1)


def holds_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("metrics.json", "model", CONFIG))


def claim(folder: Path, is_new: bool) -> int | None:
    """Have no other training write into a folder as long as this process lives, or until the handle is closed.

    Raises InputError: another one does, or has begun a run there.
    """
    if fcntl is None or rank_zero_only.rank != 0:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    handle, end = os.open(folder, os.O_RDONLY), time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(handle)
                raise InputError(
                    f"{folder}: another training writes into it; wait for its end, or name another folder by --run_dir"
                ) from None
            time.sleep(0.2)
        except OSError:  # a file system without locks
            break
    if is_new and holds_run(folder):
        os.close(handle)
        raise InputError(f"{folder}: another training has begun there meanwhile; name another folder by --run_dir")
    return handle


@contextmanager
def keep_only_runs(folder: Path, is_new: bool) -> Iterator[None]:
    """Where what happens inside fails before it has left anything, remove the folder, and parents that it made.

    Raises InputError: the folder is another training's.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    was_empty = not missing and not any(folder.iterdir())
    handle = claim(folder, is_new)
    try:
        yield
    except BaseException:
        if not (folder / "model").exists() and not in_run(folder) and (missing or was_empty):
            shutil.rmtree(folder, ignore_errors=True)
            for path in missing[1:]:
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()
            if was_empty:
                folder.mkdir()
        raise
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def pointing_at(folder: Path) -> Iterator[None]:
    """Where what happens inside fails, say how to go on."""
    try:
        yield
    except Exception as error:
        if rank_zero_only.rank == 0 and in_run(folder):
            way = f"what was trained is kept; go on: armm train --resume {folder}"
            if isinstance(error, InputError):
                raise InputError(f"{error}; {way}") from error
            print(f"\n{way}", file=sys.stderr)
        raise

"""Checkpoints that are whole or not there: written aside, synced, renamed; their checksum is looked at before loading.

A checkpoint file is what `torch.save` writes (so `torch.load(path, weights_only=True)` reads it), then a line of JSON
with the checksum of all that, the step it was taken at, and a checksum of its own, then the length of that line and a
mark. A sharded checkpoint is a folder of such as the strategy writes, with that JSON, about every file, in
`manifest.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from armm.errors import InputError
from armm.training.digest import Hashing, digest, digest_of
from armm.training.sharded_checkpoints import is_sharded_checkpoint, read

FOLDER = "checkpoints"  # of a run
MARK = b"ARMMCKP1"
LENGTH = 8  # bytes of the length of the line of JSON
MANIFEST = "manifest.json"
READERS = 8  # files of a folder that are looked at together


class DamagedError(Exception):
    """A checkpoint is not what was written."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is whole.

    Attributes:
        step: optimiser steps taken. epoch: the one it was in. at: when, in seconds since 1970.
        damaged: those beside it that are not whole.
    """

    path: Path
    step: int
    epoch: int
    at: float
    damaged: tuple[Path, ...] = ()

    @property
    def when(self) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.at))


def sealed(about: Mapping[str, Any]) -> bytes:
    """What is said of a checkpoint, with a checksum."""
    return json.dumps({"about": about, "sha256": _digest_of(about)}).encode()


def opened(seal: bytes) -> dict[str, Any]:
    """Raises DamagedError: not what was sealed."""
    content = json.loads(seal)
    if content["sha256"] != _digest_of(content["about"]):
        raise DamagedError("what is said of it has changed")
    return content["about"]


def _digest_of(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def sync_folder(folder: Path) -> None:
    """Have the names of a folder's files survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class CheckedIO(TorchCheckpointIO):
    """Lightning's way to files, for every checkpoint that a Trainer writes or reads."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if "://" in str(path):  # a store of objects, which are whole or not there anyway
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with beside.open("wb") as file:
                hashing = Hashing(file)
                torch.save(checkpoint, hashing)  # type: ignore[arg-type]
                about = {"sha256": hashing.hash.hexdigest(), "size": file.tell(), "at": time.time()}
                about |= {"step": int(checkpoint["global_step"]), "epoch": int(checkpoint["epoch"])}
                line = sealed(about)
                file.write(line + len(line).to_bytes(LENGTH, "big") + MARK)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
            sync_folder(path.parent)
        finally:
            beside.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only)
        try:
            check(Path(path))
        except DamagedError as error:
            raise InputError(f"{path} is damaged: {error}; name another checkpoint") from error
        if is_sharded_checkpoint(Path(path)):
            return read(Path(path), like=lambda place: None)
        return torch.load(path, map_location=map_location, weights_only=True)


def check(path: Path) -> Saved:
    """Raises DamagedError: a checkpoint is not what was written, or none."""
    try:
        about = _check_folder(path) if path.is_dir() else _check_file(path)
        return Saved(path, int(about["step"]), int(about["epoch"]), float(about["at"]))
    except OSError as error:
        raise DamagedError(error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"what stands at its end is not as it should be ({error!r})") from error


def _check_file(path: Path) -> dict[str, Any]:
    tail = LENGTH + len(MARK)
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < tail:
            raise DamagedError(f"it has {size} bytes")
        file.seek(size - tail)
        length, mark = int.from_bytes(file.read(LENGTH), "big"), file.read()
        if mark != MARK or length > size - tail:
            raise DamagedError("its end is missing")
        file.seek(size - tail - length)
        about = opened(file.read(length))
        if about["size"] != size - tail - length or digest(file, about["size"]) != about["sha256"]:
            raise DamagedError("its checksum differs")
    return about


def _check_folder(folder: Path) -> dict[str, Any]:
    about = opened((folder / MANIFEST).read_bytes())
    files: dict[str, list[Any]] = about["files"]
    for name, (size, _) in files.items():
        if (folder / name).stat().st_size != size:
            raise DamagedError(f"the size of its {name} differs")
    if rank_zero_only.rank == 0:  # enough that one process reads them; the others go on with what it has found
        with ThreadPoolExecutor(READERS) as pool:
            found = pool.map(lambda name: list(digest_of(folder / name)), files)
            for (name, wanted), own in zip(files.items(), found, strict=True):
                if own != wanted:
                    raise DamagedError(f"the checksum of its {name} differs")
    return about


def seal(folder: Path, step: int, epoch: int, known: Mapping[str, tuple[int, str]] | None = None) -> None:
    """Sync a folder that a strategy has written its shards to, and write down their checksums.

    known: those that the processes that wrote the files have found.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        name = path.relative_to(folder).as_posix()
        files[name] = (known or {}).get(name) or digest_of(path)
    about = {"step": step, "epoch": epoch, "at": time.time(), "files": files}
    with (folder / MANIFEST).open("wb") as file:
        file.write(sealed(about))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


# ---------------------------------------------------------------------- those of a run


def place_for(run: Path, step: int, is_best: bool) -> Path:
    """Where a run's checkpoint goes."""
    return run / FOLDER / f"{'best' if is_best else 'step'}-{step:09d}.ckpt"


def in_run(run: Path) -> list[Path]:
    """A run's checkpoints, good or not, the newest first; those too that a SLURM job saved before it was requeued."""
    own = [path for path in (run / FOLDER).glob("*.ckpt") if not path.name.startswith(".")]
    return sorted([*own, *run.glob("hpc_ckpt_*.ckpt")], key=_age)


def _age(path: Path) -> tuple[float, str]:
    """Sorts the newest first."""
    try:
        return -path.stat().st_mtime_ns, path.name
    except OSError:
        return 0.0, path.name


def newest(run: Path, say: Callable[[str], None] = print) -> Saved | None:
    """The newest checkpoint of a run that is whole; those that are not are named."""
    found, damaged = [], []
    for path in in_run(run):
        try:
            found.append(check(path))
        except DamagedError as error:
            say(f"{path} is damaged: {error}; it is left out")
            damaged.append(path)
    best = max(found, key=lambda saved: (saved.step, saved.at), default=None)
    return best and replace(best, damaged=tuple(damaged))


def tidy(run: Path, keep: int, damaged: Container[Path] = ()) -> None:
    """Remove what is superseded: all but the newest few and the newest of the best; and what was left half-written.

    damaged: those that are not counted, and stay.
    """
    for path in (run / FOLDER).glob(".*.ckpt*"):
        remove(path)
    own = [path for path in in_run(run) if path.parent.name == FOLDER and path not in damaged]
    best = [path for path in own if path.name.startswith("best-")]
    for path in own[keep:]:
        if path not in best[:1]:
            remove(path)
    newest = [path for path in in_run(run) if path not in damaged][:keep]
    for path in run.glob("hpc_ckpt_*.ckpt"):
        if path not in damaged and path not in newest:
            remove(path)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

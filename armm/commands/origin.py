"""Where a sample came from, in its own file: everything that is needed to make it again.

A PNG carries it in a tEXt chunk `armm` (PNG specification, 11.3.3), a WAV in the comment of its LIST INFO chunk
(Multimedia Programming Interface and Data Specifications 1.0, 1991), any other file has it beside it as
`NAME.json`. It is JSON in ASCII without any time or place, so that the same sample gives the same bytes.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from armm.commands.prompting import Prompt
from armm.commands.request import Request
from armm.errors import InputError

FORMAT = 1
KEY = "armm_origin"  # holds the format
KEYWORD = b"armm"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
IHDR_END = 33  # of the signature and the first chunk of a PNG, which has 13 bytes


@dataclass(frozen=True)
class Model:
    """A bundle: where it was, and the hash of its content."""

    path: str
    hash: str


@dataclass(frozen=True)
class Versions:
    """Of what computed a sample; no numba is an empty string: compiled steps give other last bits."""

    armm: str
    torch: str
    python: str
    numba: str = ""


@dataclass(frozen=True)
class Machine:
    """How a sample was computed; exact samples are the same for any number of rows, not of threads."""

    versions: Versions
    device: str
    threads: int


@dataclass(frozen=True)
class Origin:
    """Where one file of a sample came from.

    Attributes:
        seed, index: of the sample. prompt_number: of its prompt, in a file of prompts.
        prompt: what it begins with. request: how it was drawn. model: the bundle that it was drawn from.
        machine: what computed it. exact: whether that makes the same sample in any batch.
        stop: why it ended. segment: which one of its document the file holds, and its `modality`.
        files: the names of all files of the sample.
    """

    seed: int
    index: int
    prompt_number: int
    prompt: Prompt
    request: Request
    model: Model
    machine: Machine
    exact: bool = True
    stop: str = ""
    segment: int = 0
    modality: str = ""
    files: tuple[str, ...] = field(default=())

    def same_sample(self, other: Origin) -> bool:
        """Whether both are from the same model, asked for the same."""
        mine, others = ((o.seed, o.index, o.prompt, o.request, o.model.hash, o.machine.device) for o in (self, other))
        return mine == others


# ------------------------------------------------------------------- as JSON


def to_json(origin: Origin, indent: int | None = None) -> str:
    return json.dumps({KEY: FORMAT, **asdict(origin)}, indent=indent, allow_nan=False)


def from_json(text: str) -> Origin:
    """The inverse of `to_json`.

    Raises InputError: it is not what `to_json` writes.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"its provenance is damaged: {error}") from None
    if not isinstance(data, dict) or KEY not in data:
        raise InputError("its provenance is damaged: it is none of armm's")
    if data.pop(KEY) != FORMAT:
        raise InputError("its provenance is of another format; use the armm that made it")
    origin = checked(data, Origin, "provenance")
    assert isinstance(origin, Origin)
    return origin


def checked(value: Any, kind: Any, what: str) -> Any:
    """A value of JSON as the type of a dataclass's field.

    Raises InputError: it is something else.
    """
    if get_origin(kind) is UnionType:
        if value is None:
            return None
        (kind,) = (own for own in get_args(kind) if own is not type(None))
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(checked(own, get_args(kind)[0], what) for own in value)
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        hints, known = get_type_hints(kind), {own.name: own for own in fields(kind)}
        lacking = {name for name, own in known.items() if own.default is MISSING} - set(value)  # others came later
        if wrong := sorted(lacking | (set(value) - set(known))):
            raise InputError(f"its provenance is damaged: {what} lacks or has {wrong[0]!r}")
        return kind(**{name: checked(own, hints[name], name) for name, own in value.items()})
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    raise InputError(f"its provenance is damaged: {what} is {str(value)[:40]!r}")


# ------------------------------------------------------------------ in files


def sidecar(path: Path) -> Path:
    """Where the provenance of a file stands that has no place for it."""
    return path.with_name(f"{path.name}.json")


def embedded(content: bytes, text: str) -> bytes | None:
    """A file with a text in it; None where its format has no place for one."""
    if content.startswith(SIGNATURE) and content[12:16] == b"IHDR":
        body = b"tEXt" + KEYWORD + b"\0" + text.encode("ascii")
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        return content[:IHDR_END] + chunk + content[IHDR_END:]
    if content[:4] == b"RIFF" and content[8:12] == b"WAVE":
        comment = text.encode("ascii") + b"\0"
        own = b"INFO" + _riff_chunk(b"ICMT", comment)
        whole = content + b"\0" * (len(content) % 2) + _riff_chunk(b"LIST", own)
        return b"RIFF" + struct.pack("<I", len(whole) - 8) + whole[8:]
    return None


def extracted(content: bytes) -> str | None:
    """The text that `embedded` put into a file; None where there is none.

    Raises InputError: it is damaged.
    """
    if content.startswith(SIGNATURE):
        for name, body, is_whole in _png_chunks(content):
            if name == b"tEXt" and body.startswith(KEYWORD + b"\0"):
                if not is_whole:
                    raise InputError("its provenance is damaged: the checksum is wrong")
                return body[len(KEYWORD) + 1 :].decode("latin-1")
    if content[:4] == b"RIFF" and content[8:12] == b"WAVE":
        for name, body in _riff_chunks(content[12:]):
            if name == b"LIST" and body[:4] == b"INFO":
                for key, comment in _riff_chunks(body[4:]):
                    if key == b"ICMT" and f'"{KEY}"'.encode() in comment:
                        return comment.rstrip(b"\0").decode("latin-1")
    return None


def read(path: Path) -> Origin | None:
    """Where a file came from; None where neither it nor a file beside it says so.

    Raises InputError: it cannot be read, or what it says is damaged.
    """
    try:
        text = extracted(path.read_bytes())
        if text is None and sidecar(path).is_file():
            text = sidecar(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; check the path") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if text is None:
        return None
    try:
        return from_json(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def write_with_origin(path: Path, save: Callable[[Path], None], origin: Origin) -> None:
    """Let `save` write a file, with where it came from in it, or beside it.

    Raises InputError: it cannot be written.
    """
    held = False

    def save_both(beside: Path) -> None:
        nonlocal held
        save(beside)
        whole = embedded(beside.read_bytes(), to_json(origin))
        if held := whole is not None:
            beside.write_bytes(whole)
        else:
            sidecar(path).unlink(missing_ok=True)  # of the file that is about to be replaced

    write_whole(path, save_both)
    if not held:
        text = to_json(origin, indent=1) + "\n"
        write_whole(sidecar(path), partial(_write_text, text))


def write_whole(path: Path, save: Callable[[Path], None]) -> None:
    """Let `save` write a file beside its place and move it there, so that there is never half of one.

    Raises InputError: it cannot be written.
    """
    beside = path.with_name(f".{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save(beside)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: how libsndfile says it
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be written: {reason}; check the place and its space") from error


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="ascii")


def _riff_chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _riff_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of every chunk."""
    at = 0
    while at + 8 <= len(content):
        size = struct.unpack_from("<I", content, at + 4)[0]
        yield content[at : at + 4], content[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Name and content of every chunk, and whether its checksum is right."""
    at = len(SIGNATURE)
    while at + 12 <= len(content):
        size = struct.unpack_from(">I", content, at)[0]
        end = at + 8 + size
        whole = content[end : end + 4] == struct.pack(">I", zlib.crc32(content[at + 4 : end]))
        yield content[at + 4 : at + 8], content[at + 8 : end], whole
        at = end + 4

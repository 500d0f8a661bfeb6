"""What the commands share: prompts from `--prompt [NAME=]VALUE`, masks, and which modality a file belongs to."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from armm.datasets.segments import parse_document
from armm.errors import InputError, nearest
from armm.modality import Modality
from armm.model import AutoregressiveModel
from armm.sequence import Document, Segment


@dataclass(frozen=True)
class Given:
    """One segment as it was given.

    Attributes:
        name: of its modality.
        value: a text or a label itself, or the path of a file.
        sha256: of the file's content; empty where the value itself is meant.
    """

    name: str
    value: str
    sha256: str = ""


@dataclass(frozen=True)
class Prompt:
    """What a sample begins with; `mask` is the picture that says which pixels of the last segment are kept."""

    given: tuple[Given, ...] = ()
    mask: Given | None = None


@runtime_checkable
class Maskable(Protocol):
    """A modality of pictures, parts of which may be unknown."""

    def encode_masked(self, raw: Any, keep: np.ndarray) -> Segment: ...


@contextmanager
def about_file(path: Path | str) -> Iterator[None]:
    """Mistakes found inside are about this file, or option, so their messages begin with it."""
    try:
        yield
    except InputError as error:
        if str(error).startswith(str(path)):
            raise
        raise InputError(f"{path}: {error}") from error


def parse_prompts(model: AutoregressiveModel, arguments: Sequence[str], option: str) -> Document:
    """Whole segments from command line arguments.

    Args:
        option: that the arguments were given to, for messages.

    Raises InputError: an unknown name, a missing one, or a value that the modality cannot read.
    """
    return read(model, Prompt(parse_given(model, arguments, option)), option)


def parse_given(model: AutoregressiveModel, arguments: Sequence[str], option: str) -> tuple[Given, ...]:
    """The modality and the value of arguments: each a segment, or a list of segments as JSON.

    Raises InputError: an unknown name, or a missing one.
    """
    given, known = [], list(model.modalities)
    for argument in arguments:
        if is_document(argument, known):
            with about_file(f"{option} {argument[:60]}"):
                given += [_given(model, own.name, own.value) for own in parse_document(argument, model.modalities)]
            continue
        name, separator, value = argument.partition("=")
        if not separator or name not in model.modalities:
            if len(known) > 1:
                raise InputError(
                    f"{option} {argument[:60]!r}: write it as NAME=VALUE, NAME one of {', '.join(known)}"
                    f"{nearest(name, known) if separator else ''}"
                )
            name, value = known[0], argument
        given.append(_given(model, name, value))
    return tuple(given)


def is_document(argument: str, known: Sequence[str]) -> bool:
    """Whether an argument is a list of segments as JSON, `[{"text": "seven"}]`, rather than a text.

    Where there is one modality, texts need no name: there it has to name that one.
    """
    beginning = re.match(r'\s*\[\s*\{\s*"(\w*)"\s*:', argument)
    return beginning is not None and (len(known) > 1 or beginning[1] in known)


def _given(model: AutoregressiveModel, name: str, value: Any) -> Given:
    value = value if isinstance(value, str) else json.dumps(value)
    return Given(name, value, sha256(Path(value)) if model.modalities[name].is_named_by_path else "")


def parse_lines(model: AutoregressiveModel, path: Path) -> list[Given]:
    """The text prompts of a file, one a line.

    Raises InputError: it cannot be read, has an empty line, or the model has no text.
    """
    name = text_name(model, "--prompts")
    try:
        lines = path.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    except OSError as error:
        raise InputError(f"--prompts {path} cannot be read: {error.strerror or error}; check the path") from error
    lines = [line.removesuffix("\r") for line in (lines[:-1] if not lines[-1] else lines)]
    if not lines:
        raise InputError(f"--prompts {path} is empty; write one prompt a line")
    if "" in lines:
        raise InputError(f"--prompts {path}: line {lines.index('') + 1} is empty; write one prompt a line")
    return [Given(name, line) for line in lines]


def read(model: AutoregressiveModel, prompt: Prompt, option: str, open_end: bool = False) -> Document:
    """The segments of a prompt.

    Args:
        option: that it was given to, for messages.
        open_end: the last one is a beginning, to be continued. One with a mask is whole in any case.

    Raises InputError: a value or a file that its modality cannot read, or a mask that does not fit.
    """
    document: Document = []
    for number, own in enumerate(prompt.given):
        if own.name not in model.modalities:
            raise InputError(f"{option} names {own.name!r}; the modalities are {_list(model)}")
        modality = model.modalities[own.name]
        last = number == len(prompt.given) - 1
        with about_file(own.value if modality.is_named_by_path else f"{option} {own.name}={own.value[:60]}"):
            raw = modality.parse(own.value)
            continues = open_end and last and prompt.mask is None
            segment = modality.encode_prompt(raw) if continues else modality.encode(raw)
        if last and prompt.mask is not None:
            segment = masked(modality, raw, Path(prompt.mask.value))
        document.append(segment)
    return document


def text_name(model: AutoregressiveModel, option: str) -> str:
    """The name of a model's text.

    Raises InputError: it has none, or several.
    """
    names = [name for name, modality in model.modalities.items() if modality.symbol_bytes() is not None]
    if not names:
        raise InputError(f"{option} is for texts, and this model has none; its modalities are {_list(model)}")
    if len(names) > 1:
        raise InputError(f"{option} is for one text, and this model has {', '.join(names)}; leave it out")
    return names[0]


def modality_for(model: AutoregressiveModel, path: Path) -> str:
    """The name of the modality that reads a file.

    Raises InputError: none does.
    """
    readers = {name: m.suffixes for name, m in model.modalities.items() if m.suffixes}
    for name, suffixes in readers.items():
        if path.suffix.lower() in suffixes or len(readers) == 1:
            return name
    wanted = ", ".join(sorted({suffix for suffixes in readers.values() for suffix in suffixes}))
    raise InputError(
        f"{path}: no modality of this model reads {path.suffix or 'such'} files; expected {wanted or 'none'}"
    )


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal digits; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return ""


# ----------------------------------------------------------------------- masks


def masked(modality: Modality, raw: Any, path: Path) -> Segment:
    """A picture whose black pixels in the mask are unknown.

    Raises InputError: the modality is none of pictures, or the mask is unreadable, of another size, or keeps all.
    """
    if not isinstance(modality, Maskable):
        raise InputError(f"--mask is for images, and the last prompt is {modality.name!r}; leave it out")
    keep = read_mask(path)
    if keep.all():
        raise InputError(f"--mask {path} keeps every pixel; paint black what is to be sampled")
    with about_file(f"--mask {path}"):
        return modality.encode_masked(raw, keep)


def read_mask(path: Path) -> np.ndarray:
    """(H, W) bool: the pixels of a picture that are not black.

    Raises InputError: it is no picture.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(f"--mask needs the Pillow package ({error}); pip install armm[image]") from error
    try:
        with Image.open(path) as picture:
            deep = picture.mode.startswith(("I", "F"))
            pixels = np.asarray(picture if deep else picture.convert("RGB"))
    except Exception as error:  # decoders raise anything from SyntaxError to struct.error on damaged data
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"--mask {path} cannot be read as a picture: {reason}; name a PNG") from error
    return pixels != 0 if deep else (pixels != 0).any(axis=-1)


def _list(model: AutoregressiveModel) -> str:
    return ", ".join(model.modalities)

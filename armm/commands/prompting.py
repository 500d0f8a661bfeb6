"""What the commands share: prompts from `--prompt [NAME=]VALUE`, and which modality a file belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from armm.errors import InputError, nearest
from armm.modality import Modality
from armm.model import AutoregressiveModel
from armm.sequence import Document


@contextmanager
def about_file(path: Path | str) -> Iterator[None]:
    """Mistakes found inside are about this file, so their messages begin with it."""
    try:
        yield
    except InputError as error:
        if str(error).startswith(str(path)):
            raise
        raise InputError(f"{path}: {error}") from error


def parse_prompts(
    model: AutoregressiveModel, arguments: Sequence[str], option: str, open_end: bool = False
) -> Document:
    """Segments from command line arguments.

    Args:
        option: that the arguments were given to, for messages.
        open_end: the last one is a beginning, to be continued.

    Raises InputError: an unknown name, a missing one, or a value that the modality cannot read.
    """
    document, known = [], list(model.modalities)
    for number, argument in enumerate(arguments):
        name, separator, value = argument.partition("=")
        if not separator or name not in model.modalities:
            if len(known) > 1:
                raise InputError(
                    f"{option} {argument[:60]!r}: write it as NAME=VALUE, NAME one of {', '.join(known)}"
                    f"{nearest(name, known) if separator else ''}"
                )
            name, value = known[0], argument
        modality = model.modalities[name]
        is_file = type(modality).parse is Modality.parse
        with about_file(value if is_file else f"{option} {argument[:60]}"):
            raw = modality.parse(value)
            continues = open_end and number == len(arguments) - 1
            document.append(modality.encode_prompt(raw) if continues else modality.encode(raw))
    return document


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

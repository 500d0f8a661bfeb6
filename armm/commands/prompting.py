"""What the commands share: prompts from `--prompt [NAME=]VALUE`, and which modality a file belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from armm.errors import InputError, nearest
from armm.model import AutoregressiveModel
from armm.sequence import Document


def parse_prompts(model: AutoregressiveModel, arguments: Sequence[str]) -> Document:
    """Segments from command line arguments, the last of them possibly only a beginning.

    Raises InputError: an unknown name, a missing one, or a value that the modality cannot read.
    """
    document, known = [], list(model.modalities)
    for number, argument in enumerate(arguments):
        name, separator, value = argument.partition("=")
        if not separator or name not in model.modalities:
            if len(known) > 1:
                raise InputError(
                    f"prompt {argument[:60]!r}: write it as NAME=VALUE, NAME one of {', '.join(known)}"
                    f"{nearest(name, known)}"
                )
            name, value = known[0], argument
        modality = model.modalities[name]
        raw = modality.parse(value)
        last = number == len(arguments) - 1
        document.append(modality.encode_prompt(raw) if last else modality.encode(raw))
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

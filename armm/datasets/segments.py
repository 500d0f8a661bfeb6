"""A document as JSON: a list of segments such as `{"text": "a cat"}`, `{"image": "cat.png"}` or `{"audio": "a.wav"}`.

A segment is one object. Its key is a modality of the model, or any word if `"name"` says which; its value is what the
modality encodes, or the path of a file where the modality reads files. `"loss": false` makes it a condition.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from armm.errors import InputError, nearest
from armm.modalities.text import Text
from armm.modality import Modality

EXAMPLE = '[{"text": "a cat"}, {"image": "cat.png"}]'


@dataclass(frozen=True)
class Entry:
    """One segment as it was written.

    Attributes:
        name: of its modality. value: as in JSON. given: it is a condition, not scored.
    """

    name: str
    value: Any
    given: bool = False


def parse_document(line: str | bytes, modalities: Mapping[str, Modality]) -> list[Entry]:
    """The segments of a line of JSON.

    Raises InputError: it is no JSON, or no document of these modalities.
    """
    try:
        content = json.loads(line)
    except UnicodeDecodeError as error:
        raise InputError("is not UTF-8 text; convert the file to UTF-8") from error
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise InputError(f"is not JSON ({reason}); write one document a line, such as {EXAMPLE}") from error
    return entries_of(content, modalities)


def entries_of(content: Any, modalities: Mapping[str, Modality]) -> list[Entry]:
    """The segments of parsed JSON.

    Raises InputError: it is no document of these modalities.
    """
    if not isinstance(content, list):
        raise InputError(f"is {_kind(content)}, expected a list of segments, such as {EXAMPLE}")
    if not content:
        raise InputError(f"is an empty document; give it a segment, such as {EXAMPLE}, or remove it")
    return [_entry(number, segment, modalities) for number, segment in enumerate(content, 1)]


def _entry(number: int, segment: Any, modalities: Mapping[str, Modality]) -> Entry:
    what = f"segment {number}"
    if not isinstance(segment, dict):
        raise InputError(f'{what} is {_kind(segment)}, expected an object such as {{"text": "a cat"}}')
    kinds = [key for key in segment if key not in ("name", "loss")]
    if len(kinds) != 1:
        found = ", ".join(kinds) or "no modality"
        raise InputError(f'{what} has {found}, expected one, such as {{"text": "a cat"}}; write an object for each')
    name, value = segment.get("name", kinds[0]), segment[kinds[0]]
    if name not in modalities:
        raise InputError(
            f"{what} is of {name!r}; the modalities are {', '.join(modalities)}{nearest(str(name), modalities)}"
        )
    if not isinstance(segment.get("loss", True), bool):
        raise InputError(f'{what}: "loss" is {segment["loss"]!r}, expected true or false')
    by_path = modalities[name].is_named_by_path
    if value is None or (not isinstance(value, str) and (by_path or isinstance(modalities[name], Text))):
        wanted = "the path of a file" if by_path else "a value" if value is None else "a text"
        raise InputError(f"{what}: {kinds[0]!r} is {_kind(value)}, expected {wanted}")
    return Entry(name, value, not segment.get("loss", True))


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")

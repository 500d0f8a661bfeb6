"""A class: one symbol, mostly a condition for what follows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral

import torch

from armm.errors import InputError, nearest
from armm.heads import HeadConfig
from armm.modality import Modality
from armm.sequence import Segment

LABELS_FILE = "labels.json"


@dataclass(frozen=True)
class Label(Modality):
    """One of so many classes, by number or by name.

    Attributes:
        n_classes: how many there are; 0 to learn it from the training data.
        names: what they are called, in order; learned, sorted, where the data has names and this is empty.
        head: the head; by default softmax.
        name: its name in a model.
    """

    n_classes: int = 0
    names: tuple[str, ...] = ()
    head: HeadConfig | None = None
    name: str = "label"

    bits_per = "label"
    nats_per = "label"

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))  # JSON and YAML have lists only
        if self.n_classes < 0:
            raise InputError(f"{self.name}.n_classes is {self.n_classes}; expected 1 or more, or 0 to learn it")
        if len(set(self.names)) != len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise InputError(f"{self.name}.names has {twice!r} twice; name each class once")
        if self.names and self.n_classes not in (0, len(self.names)):
            raise InputError(
                f"{self.name}.n_classes is {self.n_classes}, but there are {len(self.names)} names; leave n_classes out"
            )

    @property
    def vocab(self) -> int:
        """Number of classes.

        Raises InputError: it is learned from data, and has not been.
        """
        n_classes = len(self.names) or self.n_classes
        if not n_classes:
            raise InputError(
                f"{self.name}: the number of classes is not known yet; training learns it, or set {self.name}.n_classes"
            )
        return n_classes

    def encode(self, raw: int | str) -> Segment:
        """A class as its number.

        Raises InputError: there is no such class.
        """
        return Segment(self.name, torch.tensor([[self._number(raw)]], dtype=torch.int64))

    def decode(self, segment: Segment) -> int | str | None:
        """The class, by name where it has one; None where the segment ends before it."""
        if not segment.length:
            return None
        number = int(segment.flat()[0])
        return self.names[number] if self.names else number

    def n_units(self, header: tuple[int, ...]) -> int:
        return 1

    def parse(self, text: str) -> int | str:
        """A name or a number, as typed.

        Raises InputError: there is no such class.
        """
        raw = int(text) if text not in self.names and text.isdecimal() else text
        self._number(raw)
        return raw

    def fit(self, raws: Iterable[int | str]) -> Label:
        """With the names, or the number, of the classes in the training data, where the recipe does not say."""
        if self.names:
            return self
        found = set(raws)
        strings = sorted(raw for raw in found if isinstance(raw, str))
        if strings and len(strings) < len(found):
            raise InputError(f"{self.name}: the data has names ({strings[0]!r}) and numbers; label it all in one way")
        if strings:
            return replace(self, names=tuple(strings))
        if self.n_classes:
            return self
        if not found:
            raise InputError(f"{self.name}: the training data has no labels; name another --data.path")
        return replace(self, n_classes=1 + max(int(raw) for raw in found))

    def files(self) -> dict[str, bytes]:
        if not (self.names or self.n_classes):
            return {}
        return {LABELS_FILE: json.dumps({"n_classes": self.vocab, "names": self.names}).encode()}

    def with_files(self, files: Mapping[str, bytes]) -> Label:
        """Raises InputError: the file is missing where it is needed, or not one that `files` returned."""
        if LABELS_FILE not in files:
            assert self.vocab
            return self
        try:
            content = json.loads(files[LABELS_FILE])
            return replace(self, n_classes=int(content["n_classes"]), names=tuple(map(str, content["names"])))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.name}: {LABELS_FILE} is damaged ({error}); fetch it again") from error

    def _number(self, raw: int | str) -> int:
        n_classes = self.vocab
        if isinstance(raw, str):
            if raw in self.names:
                return self.names.index(raw)
            known = f"one of {_listing(self.names)}" if self.names else f"a number from 0 to {n_classes - 1}"
            raise InputError(f"{self.name}: there is no class {raw!r}; expected {known}{nearest(raw, self.names)}")
        if isinstance(raw, bool) or not isinstance(raw, Integral):
            raise InputError(f"{self.name}: {raw!r} is neither a class number nor a class name")
        if not 0 <= raw < n_classes:
            raise InputError(f"{self.name}: there is no class {raw}; expected a number from 0 to {n_classes - 1}")
        return int(raw)


def _listing(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"

"""A split as documents of a model: raw data encoded, and what is only given marked."""

from __future__ import annotations

from collections.abc import Sequence

from armm.datasets.source import Items, Part
from armm.errors import InputError, nearest
from armm.grammar import Grammar
from armm.sequence import Document, Segment

KEPT_SYMBOLS = 1 << 26  # symbols of a split that are kept encoded, half a gigabyte
WORD = 32  # characters
KEPT_WORDS = 4096


class Documents:
    """A split as documents of a model.

    Args:
        conditions: modalities that are given, never scored, beside what the data itself says is given.
        whole: refuse documents that are longer than the context, instead of leaving it to others to cut them.
    """

    def __init__(self, items: Items, grammar: Grammar, conditions: Sequence[str], whole: bool = False) -> None:
        self.items, self.grammar, self.conditions, self.whole = items, grammar, set(conditions), whole
        self._kept: dict[int, Document] | None = None if items.varies or items.encoded else {}
        self._room = KEPT_SYMBOLS
        self._words: dict[Part, Segment] = {}

    def __len__(self) -> int:
        return len(self.items)

    def document(self, index: int, draw: int) -> Document:
        """Document `index`; items that are the same at every draw are encoded once.

        Raises InputError: the data does not fit the model.
        """
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        try:
            document = [self._encode(part) for part in self.items.parts(index, draw, self.grammar.layout)]
            self._check_length(document)
        except InputError as error:
            where = self.items.where(index)
            if not where or str(error).startswith(where):
                raise
            raise InputError(f"{where}: {error}") from error
        n_symbols = sum(segment.length for segment in document)
        if self._kept is not None and n_symbols <= self._room:
            self._kept[index] = document
            self._room -= n_symbols
        return document

    def _encode(self, part: Part) -> Segment:
        """Labels and words come again and again, also with data that is never the same: they are encoded once."""
        is_word = type(part.raw) is int or (type(part.raw) is str and len(part.raw) <= WORD)
        if not is_word:
            return self._encode_anew(part)
        if part not in self._words:
            if len(self._words) == KEPT_WORDS:
                self._words.clear()
            self._words[part] = self._encode_anew(part)
        return self._words[part]

    def _encode_anew(self, part: Part) -> Segment:
        raw, known = part.raw, self.grammar.names
        if part.name not in self.grammar.modalities:
            raise InputError(
                f"the data has {part.name!r}; the modalities are {', '.join(known)}{nearest(part.name, known)}"
            )
        segment = raw if isinstance(raw, Segment) else self.grammar.modalities[part.name].encode(raw)
        return segment.as_condition() if part.given or part.name in self.conditions else segment

    def _check_length(self, document: Document) -> None:
        context = self.grammar.context
        if self.whole and context is not None and self.grammar.n_units(document) > context:
            raise InputError(
                f"the document has {self.grammar.n_units(document)} units, the model's context is {context}; shorten "
                "it, raise model.context, or let it be cut by data.too_long: split"
            )

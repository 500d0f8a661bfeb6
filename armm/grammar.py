"""How documents become streams of symbols: which alphabet comes next is a function of the symbols before it.

A free document is a sequence of control units (what begins: a modality, or `end`), header units (what a decoder must
know) and payload units. A model with a fixed layout (`[image]`, `[label, image]`) needs no control units, and a header
that never changes is not coded, so the classics are exact. A modality of coded length has an *end decision* before
each unit: 0 for "more follow", 1 + j for "the last unit, with j symbols".

Axes: B rows, S segments, U units, K symbols, F header fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from armm.errors import InputError, nearest
from armm.modality import Modality
from armm.sequence import Document, Segment, Shape

END = 0  # the control symbol that ends a document; modalities follow in the order the model lists them
N_SHAPES = 4096  # of documents that are known to be right


class Stage(IntEnum):
    """What the next symbol of a stream is."""

    CONTROL = 0
    HEADER = 1
    DECISION = 2
    PAYLOAD = 3
    DONE = 4


class Slot(NamedTuple):
    """The kind of a symbol: its stage, its modality, and which header field it is."""

    stage: Stage
    modality: str
    field: int


@dataclass
class Cursor:
    """A place in a document's stream, moved on by `Grammar.push`.

    Attributes:
        stage: of the next symbol.
        modality: of the open segment, or "" between segments.
        closed: modality, header and symbols of the segments before the open one.
        coded: the coded header fields so far. header: the header, once complete.
        position: units completed in the document: the position of the open unit.
        start: position of the open segment's first unit.
        payload: the open segment's symbols so far, decisions left out.
        n_total: symbols of the open segment, where the header tells; None where it does not.
        cut: the context was full before the document was complete.
        unit_length: symbols still missing in the open unit. last: a decision made it the last of its segment.
    """

    stage: Stage
    modality: str = ""
    closed: list[tuple[str, tuple[int, ...], list[int]]] = field(default_factory=list)
    coded: tuple[int, ...] = ()
    header: tuple[int, ...] = ()
    position: int = 0
    start: int = 0
    payload: list[int] = field(default_factory=list)
    n_total: int | None = None
    unit_length: int = 0
    last: bool = False
    cut: bool = False

    def slot(self) -> Slot:
        return Slot(self.stage, self.modality, len(self.coded) if self.stage == Stage.HEADER else 0)

    def copy(self) -> Cursor:
        return replace(self, payload=list(self.payload), closed=list(self.closed))


class Grammar:
    """The structure of a model's documents.

    Args:
        modalities: by name, in the order of their control symbols.
        layout: the modalities of every document, in order; None for free documents.
        context: at most so many units in a document; None for no limit.

    Raises InputError: an unknown name in the layout, or a modality whose segments would never end.
    """

    def __init__(
        self, modalities: Mapping[str, Modality], layout: Sequence[str] | None = None, context: int | None = None
    ) -> None:
        self.modalities = dict(modalities)
        self.names = list(self.modalities)
        self.layout = list(layout) if layout is not None else None
        self.context = context
        self._shapes: set[tuple[Shape, ...]] = set()
        if not self.modalities:
            raise InputError("a model needs at least one modality; list it under modalities")
        for name in self.layout or []:
            if name not in self.modalities:
                raise InputError(
                    f"layout names {name!r}; the modalities are {', '.join(self.names)}{nearest(name, self.names)}"
                )
        if self.layout is not None and not self.layout:
            raise InputError("layout is empty; name at least one modality or leave it out for free documents")
        for name in self.names:
            if not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise InputError(f"{name!r} cannot name a modality; use a word of letters, digits and _ such as image")
        inner = self.names if self.layout is None else self.layout[:-1]
        for name in inner:
            modality = self.modalities[name]
            if not modality.ended and not modality.header_sizes and modality.n_units(modality.header(())) is None:
                raise InputError(
                    f"segments of {name!r} never end, so nothing can follow them; set ended: true for {name!r}"
                )
        if context is not None and context < 1:
            raise InputError(f"context is {context}, it must be at least 1 unit")

    # ------------------------------------------------------------ the stream

    def start(self) -> Cursor:
        """The place before a document's first symbol."""
        cursor = Cursor(Stage.CONTROL)
        if self.layout is not None:
            self._begin(cursor, self.layout[0])
        return cursor

    def vocab(self, slot: Slot) -> int:
        """The alphabet size of a kind of symbol."""
        if slot.stage == Stage.CONTROL:
            return 1 + len(self.names)
        modality = self.modalities[slot.modality]
        if slot.stage == Stage.HEADER:
            return modality.header_sizes[slot.field]
        if slot.stage == Stage.DECISION:
            return modality.unit_symbols + 2
        return modality.vocab

    @property
    def largest_alphabet(self) -> int:
        """Of all symbols that documents have, structure included."""
        sizes = [] if self.layout is not None else [1 + len(self.names)]
        for modality in self.modalities.values():
            sizes += [modality.vocab, *modality.header_sizes]
            sizes += [modality.unit_symbols + 2] if modality.ended else []
        return max(sizes)

    def push(self, cursor: Cursor, symbol: int) -> bool:
        """Move a cursor over one symbol; returns whether that completed a unit of the backbone's sequence."""
        stage = cursor.stage
        if stage == Stage.PAYLOAD:
            return self.push_payload(cursor, [symbol])
        if stage == Stage.DECISION:
            cursor.last = symbol > 0
            cursor.unit_length = symbol - 1 if symbol else self.modalities[cursor.modality].unit_symbols
            if cursor.unit_length:
                cursor.stage = Stage.PAYLOAD
                return False
            self._end_unit(cursor)
            return True
        if stage == Stage.HEADER:
            cursor.coded = (*cursor.coded, symbol)
            cursor.position += 1
            if len(cursor.coded) == len(self.modalities[cursor.modality].header_sizes):
                self._begin_payload(cursor)
            self._stop_at_context(cursor)
            return True
        assert stage == Stage.CONTROL, "a document that is done takes no more symbols"
        cursor.position += 1
        if symbol == END:
            cursor.stage = Stage.DONE
        else:
            self._begin(cursor, self.names[symbol - 1])
        self._stop_at_context(cursor)
        return True

    def push_payload(self, cursor: Cursor, symbols: Sequence[int]) -> bool:
        """Move a cursor over payload symbols of its open unit, which has room for them; whether it is complete now."""
        cursor.payload.extend(symbols)
        cursor.unit_length -= len(symbols)
        if cursor.unit_length:
            return False
        self._end_unit(cursor)
        return True

    def _begin(self, cursor: Cursor, name: str) -> None:
        cursor.modality, cursor.coded, cursor.payload = name, (), []
        if self.modalities[name].header_sizes:
            cursor.stage = Stage.HEADER
        else:
            self._begin_payload(cursor)

    def _begin_payload(self, cursor: Cursor) -> None:
        modality = self.modalities[cursor.modality]
        cursor.header = modality.header(cursor.coded)
        n_units = None if modality.ended else modality.n_units(cursor.header)
        cursor.n_total = None if n_units is None else n_units * modality.unit_symbols
        cursor.start, cursor.last = cursor.position, False
        self._begin_unit(cursor)

    def _begin_unit(self, cursor: Cursor) -> None:
        modality = self.modalities[cursor.modality]
        cursor.stage = Stage.DECISION if modality.ended else Stage.PAYLOAD
        cursor.unit_length = modality.unit_symbols

    def _end_unit(self, cursor: Cursor) -> None:
        cursor.position += 1
        if not (cursor.last or cursor.n_total == len(cursor.payload)):
            self._begin_unit(cursor)
        else:
            cursor.closed.append((cursor.modality, cursor.header, cursor.payload))
            cursor.modality = ""
            if self.layout is None:
                cursor.stage = Stage.CONTROL
            elif len(cursor.closed) < len(self.layout):
                self._begin(cursor, self.layout[len(cursor.closed)])
            else:
                cursor.stage = Stage.DONE
        self._stop_at_context(cursor)

    def _stop_at_context(self, cursor: Cursor) -> None:
        if self.context is not None and cursor.position >= self.context and cursor.stage != Stage.DONE:
            cursor.stage, cursor.cut = Stage.DONE, True

    def decision_mask(self, name: str, index: Tensor) -> Tensor:
        """(*) index of units in their segments -> (*, K + 2) bool: which end decisions are possible.

        Only an empty segment's first unit may be empty, and the last unit that fits must be the last.
        """
        modality = self.modalities[name]
        mask = torch.ones(*index.shape, modality.unit_symbols + 2, dtype=torch.bool, device=index.device)
        mask[..., 1] = index == 0
        if modality.max_units is not None:
            mask[..., 0] = index < modality.max_units - 1
        return mask

    # ------------------------------------------------- documents and streams

    def check(self, document: Document) -> None:
        """Raises InputError: a document that this grammar cannot code."""
        self.check_structure(document)
        for segment in document:
            inside = segment.flat()
            if inside.numel():
                given = np.array([segment.n_given >= segment.n_units])
                self.check_symbols(segment.modality, inside[None], given)

    def check_symbols(self, name: str, symbols: Tensor, given: np.ndarray) -> None:
        """(S, T) symbols of some segments, 0 where there is none; (S,) bool: the segment is given, so may be unknown.

        Raises InputError: some are outside the alphabet.
        """
        vocab = self.modalities[name].vocab
        lowest, highest = (extreme.numpy() for extreme in symbols.aminmax(dim=1))
        if ((lowest < 0) | (highest >= vocab + given)).any():
            raise InputError(f"a segment of {name!r} has symbols outside [0, {vocab})")

    def check_structure(self, document: Document) -> None:
        """All that can be said without looking at symbols, and once for documents of the same shape.

        Raises InputError: a document that this grammar cannot code.
        """
        shapes = tuple([segment.shape for segment in document])
        if shapes not in self._shapes:
            self._check_shape(document)
            if len(self._shapes) == N_SHAPES:
                self._shapes.clear()
            self._shapes.add(shapes)

    def _check_shape(self, document: Document) -> None:
        names = [segment.modality for segment in document]
        for name in names:
            if name not in self.modalities:
                raise InputError(
                    f"the document has a segment of {name!r}; this model knows {', '.join(self.names)}"
                    f"{nearest(name, self.names)}"
                )
        if self.layout is not None and names != self.layout:
            raise InputError(f"the document is {names}, this model's layout is {self.layout}")
        for segment in document:
            modality = self.modalities[segment.modality]
            if segment.symbols.shape[1] != modality.unit_symbols:
                raise InputError(
                    f"a segment of {segment.modality!r} has {segment.symbols.shape[1]} symbols per unit, "
                    f"the model wants {modality.unit_symbols}"
                )
            coded = self.coded_header(segment)
            inside_sizes = all(0 <= own < size for own, size in zip(coded, modality.header_sizes, strict=True))
            if not inside_sizes or modality.header(coded) != segment.header:
                raise InputError(
                    f"a segment of {segment.modality!r} has the header {segment.header}, which its modality cannot code"
                )
            if not modality.ended and segment.length < segment.symbols.numel():
                raise InputError(
                    f"a segment of {segment.modality!r} ends after {segment.length} symbols, within a unit of "
                    f"{modality.unit_symbols}; only modalities of coded length can"
                )
            expected = None if modality.ended else modality.n_units(segment.header)
            if expected is not None and segment.n_units != expected:
                raise InputError(
                    f"a segment of {segment.modality!r} has {segment.n_units} units, its header says {expected}"
                )
            if modality.ended and modality.max_units is not None and segment.n_units > modality.max_units:
                raise InputError(
                    f"a segment of {segment.modality!r} has {segment.n_units} units, at most {modality.max_units} fit"
                )
        n_units = self.n_units(document)
        if self.context is not None and n_units > self.context:
            raise InputError(f"the document has {n_units} units, the model's context is {self.context}")

    def without_conditions(self, document: Document, given: int) -> Document:
        """A document whose first `given` segments are not told: left out, or unknown where the layout wants them."""
        if self.layout is None:
            return document[given:]
        return [s.as_unknown(self.modalities[s.modality].vocab) for s in document[:given]] + document[given:]

    def fits(self, document: Document) -> bool:
        """Whether the context has room for a document and something after it."""
        return self.context is None or self.n_units(document) < self.context

    def n_units(self, document: Document) -> int:
        """Positions that a document takes, control and header units included."""
        total = 1 if self.layout is None else 0
        for segment in document:
            modality = self.modalities[segment.modality]
            total += (self.layout is None) + len(modality.header_sizes) + self.payload_units(segment)
        return total

    def coded_header(self, segment: Segment) -> tuple[int, ...]:
        """The symbols by which its header is coded; none where it is known."""
        modality = self.modalities[segment.modality]
        return modality.coded_header(segment.header) if modality.header_sizes else ()

    def payload_units(self, segment: Segment) -> int:
        """An empty segment of coded length still has one (empty) unit, which says so."""
        return segment.n_units or int(self.modalities[segment.modality].ended)

    def flatten(self, document: Document, open_end: bool = False) -> list[int]:
        """A document as a stream of symbols.

        Args:
            open_end: the last segment is a beginning to be continued: its length and the document's end are left open.
        """
        stream: list[int] = []
        for number, segment in enumerate(document):
            modality = self.modalities[segment.modality]
            continues = open_end and number == len(document) - 1
            if self.layout is None:
                stream.append(1 + self.names.index(segment.modality))
            stream.extend(self.coded_header(segment))
            symbols, k = segment.flat().tolist(), modality.unit_symbols
            if not modality.ended:
                stream.extend(symbols)
                continue
            for unit in range(self.payload_units(segment)):
                own = symbols[unit * k : (unit + 1) * k]
                last = unit == self.payload_units(segment) - 1 and not continues
                if own or not continues:
                    stream.append(1 + len(own) if last else 0)
                stream.extend(own)
        if self.layout is None and not open_end:
            stream.append(END)
        return stream

    def parse(self, stream: Sequence[int]) -> Document:
        """The document of a stream, complete or cut short anywhere."""
        cursor = self.start()
        at = 0
        while at < len(stream) and cursor.stage != Stage.DONE:
            if cursor.stage == Stage.PAYLOAD:
                run = stream[at : at + cursor.unit_length]
                self.push_payload(cursor, run)
                at += len(run)
            else:
                self.push(cursor, stream[at])
                at += 1
        runs = list(cursor.closed)
        if cursor.modality and len(cursor.coded) == len(self.modalities[cursor.modality].header_sizes):
            runs.append((cursor.modality, cursor.header, cursor.payload))
        return [self.segment(name, header, payload) for name, header, payload in runs]

    def segment(self, name: str, header: tuple[int, ...], payload: Sequence[int]) -> Segment:
        """A segment of symbols, also of part of a last unit."""
        k = self.modalities[name].unit_symbols
        symbols = torch.zeros(-(-len(payload) // k) * k, dtype=torch.int64)
        symbols[: len(payload)] = torch.tensor(payload, dtype=torch.int64)
        return Segment(name, symbols.view(-1, k), len(payload), header)

"""Documents for the laws: random ones, all of them, and where each symbol of a document stands in a batch.

Axes: S segments of one modality in a batch, U units, K symbols of a unit, F header fields, M control units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from armm.batching import collate
from armm.grammar import END, Cursor, Grammar, Slot, Stage
from armm.model import AutoregressiveModel, LogProbs
from armm.sequence import Batch, Document

BATCH_SYMBOLS = 8192  # symbols evaluated at once


class Place(NamedTuple):
    """Where a symbol of a stream stands in a batch.

    Attributes:
        slot: what kind of symbol it is.
        position: of its unit in the document.
        segment: number of its segment among those of its modality in the batch; of a control unit, its number.
        unit: number of its unit in the segment.
        symbol: its number in the unit.
    """

    slot: Slot
    position: int
    segment: int
    unit: int
    symbol: int

    def __str__(self) -> str:
        kind = {Stage.CONTROL: "the control symbol", Stage.HEADER: "a header field", Stage.DECISION: "an end decision"}
        if self.slot.stage == Stage.PAYLOAD:
            return f"symbol {self.symbol} of unit {self.unit} of {self.slot.modality!r} (position {self.position})"
        of = f" of {self.slot.modality!r}, unit {self.unit}" if self.slot.modality else ""
        return f"{kind[self.slot.stage]}{of} (position {self.position})"


def cursor_after(grammar: Grammar, stream: Sequence[int]) -> Cursor:
    """The place after the symbols of a stream."""
    cursor = grammar.start()
    for symbol in stream:
        grammar.push(cursor, symbol)
    return cursor


def choices(grammar: Grammar, cursor: Cursor) -> list[int]:
    """The symbols that may come next."""
    slot = cursor.slot()
    if slot.stage == Stage.DECISION:
        index = torch.tensor(cursor.position - cursor.start)
        return grammar.decision_mask(slot.modality, index).nonzero()[:, 0].tolist()
    return list(range(grammar.vocab(slot)))


def pick(options: Sequence[int], generator: torch.Generator) -> int:
    """One of several, at random."""
    return options[int(torch.randint(len(options), (), generator=generator))]


def random_stream(
    grammar: Grammar, generator: torch.Generator, prefix: Sequence[int] = (), n_symbols: int = 12
) -> list[int]:
    """A complete document's stream that begins with `prefix`, goes on at random and ends soon after `n_symbols`."""
    stream, cursor = list(prefix), cursor_after(grammar, prefix)
    while cursor.stage != Stage.DONE:
        enough = len(stream) >= n_symbols
        options = choices(grammar, cursor)
        if cursor.stage == Stage.DECISION:
            last = grammar.layout is not None and len(cursor.closed) == len(grammar.layout) - 1
            go_on = not enough and (last or pick(range(10), generator) < 7)
            options = options[:1] if go_on or len(options) == 1 else [o for o in options if o > 0]
        elif cursor.stage == Stage.CONTROL:
            stop = enough or (stream and pick(range(10), generator) < 2)
            options = [END] if stop else options[1:]
        elif cursor.stage == Stage.PAYLOAD and enough and _may_stop(grammar, cursor):
            break
        symbol = pick(options, generator)
        grammar.push(cursor, symbol)
        stream.append(symbol)
    return stream


def _may_stop(grammar: Grammar, cursor: Cursor) -> bool:
    """Whether a segment that nothing ends can be left here."""
    modality = grammar.modalities[cursor.modality]
    at_border = len(cursor.payload) % modality.unit_symbols == 0
    return not modality.ended and cursor.n_total is None and at_border


def random_document(grammar: Grammar, generator: torch.Generator, n_symbols: int = 12) -> Document:
    return grammar.parse(random_stream(grammar, generator, n_symbols=n_symbols))


def other_payload(
    grammar: Grammar, stream: Sequence[int], row: Sequence[Place], t: int, generator: torch.Generator
) -> list[int]:
    """A stream of the same structure whose payload differs at `t`, if it is payload, and is random after it."""
    changed = list(stream)
    for later in range(t, len(stream)):
        vocab = grammar.vocab(row[later].slot)
        least = 1 if later == t else 0
        if row[later].slot.stage == Stage.PAYLOAD and vocab > least:
            changed[later] = (stream[later] + int(torch.randint(least, vocab, (), generator=generator))) % vocab
    return changed


def leaves(grammar: Grammar, limit: int) -> list[list[int]]:
    """Every stream, complete or cut at the greatest length at which there are at most `limit`; at least 1 symbol."""
    level: list[tuple[list[int], Cursor]] = [([], grammar.start())]
    while True:
        options = [[] if cursor.stage == Stage.DONE else choices(grammar, cursor) for _, cursor in level]
        n_next = sum(len(own) or 1 for own in options)
        if not any(options) or (n_next > limit and len(level) > 1):
            return [stream for stream, _ in level]
        grown: list[tuple[list[int], Cursor]] = []
        for (stream, cursor), own in zip(level, options, strict=True):
            if not own:
                grown.append((stream, cursor))
            for symbol in own:
                following = cursor.copy()
                grammar.push(following, symbol)
                grown.append(([*stream, symbol], following))
        level = grown


def places(grammar: Grammar, documents: Sequence[Document]) -> list[list[Place]]:
    """Of every symbol of every document, in a batch of these documents."""
    n_controls, n_segments = 0, dict.fromkeys(grammar.names, 0)
    rows = []
    for document in documents:
        numbers = []
        for segment in document:
            numbers.append(n_segments[segment.modality])
            n_segments[segment.modality] += 1
        cursor, row = grammar.start(), []
        for symbol in grammar.flatten(document):
            slot = cursor.slot()
            if slot.stage == Stage.CONTROL:
                row.append(Place(slot, cursor.position, n_controls, 0, 0))
                n_controls += 1
            else:
                payload = slot.stage in (Stage.PAYLOAD, Stage.DECISION)
                unit = cursor.position - cursor.start if payload else 0
                within = len(cursor.payload) % grammar.modalities[slot.modality].unit_symbols
                row.append(Place(slot, cursor.position, numbers[len(cursor.closed)], unit, within))
            grammar.push(cursor, symbol)
        rows.append(row)
    return rows


def pieces(nats: LogProbs) -> dict[tuple[Stage, str], Tensor]:
    """The parts of log-probabilities by the kind of symbol: (S, U, K), (S, U), (S, F) and (M,)."""
    found = {(Stage.PAYLOAD, name): part for name, part in nats.payload.items()}
    found |= {(Stage.DECISION, name): part for name, part in nats.decisions.items()}
    found |= {(Stage.HEADER, name): part for name, part in nats.headers.items()}
    return {**found, (Stage.CONTROL, ""): nats.control}


def index_of(place: Place) -> tuple[int, ...]:
    """Where in its piece a symbol's log-probability stands."""
    if place.slot.stage == Stage.PAYLOAD:
        return place.segment, place.unit, place.symbol
    if place.slot.stage == Stage.DECISION:
        return place.segment, place.unit
    return (place.segment, place.slot.field) if place.slot.stage == Stage.HEADER else (place.segment,)


def batch_of(model: AutoregressiveModel, documents: Sequence[Document]) -> Batch:
    return collate(documents, model.grammar).to(model.begin.device)


@torch.no_grad()
def log_probs(model: AutoregressiveModel, documents: Sequence[Document]) -> list[list[float]]:
    """Nats of every symbol of every document's stream, by the parallel view, all documents in one batch."""
    parts = {kind: part.tolist() for kind, part in pieces(model.log_prob(batch_of(model, documents))).items()}
    rows = []
    for row in places(model.grammar, documents):
        nats = []
        for place in row:
            value = parts[place.slot[:2]]
            for i in index_of(place):
                value = value[i]
            nats.append(value)
        rows.append(nats)
    return rows


def conditionals(
    model: AutoregressiveModel, streams: Sequence[Sequence[int]]
) -> Mapping[tuple[int, ...], dict[int, float]]:
    """Nats of each symbol that follows a prefix of these streams, by prefix, from the parallel view.

    The streams may be cut anywhere; they are completed at random, which a causal model does not notice.
    """
    generator = torch.Generator().manual_seed(0)
    complete = [random_stream(model.grammar, generator, stream, n_symbols=0) for stream in streams]
    n = max(1, BATCH_SYMBOLS // max(map(len, complete)))
    found: dict[tuple[int, ...], dict[int, float]] = {}
    for first in range(0, len(streams), n):
        documents = [model.grammar.parse(stream) for stream in complete[first : first + n]]
        for stream, nats in zip(streams[first : first + n], log_probs(model, documents), strict=True):
            for t, symbol in enumerate(stream):
                found.setdefault(tuple(stream[:t]), {})[symbol] = nats[t]
    return found

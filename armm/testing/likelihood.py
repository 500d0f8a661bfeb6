"""Laws 2 to 4: the probabilities are a distribution, nobody sees the future, and the two views of a model agree.

Axes: B rows, N positions, D width, S segments, U units, K symbols, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import exp, isfinite
from typing import Any

import torch
from torch import Tensor, nn

from armm.grammar import Stage
from armm.model import AutoregressiveModel
from armm.sequence import Batch, Document
from armm.state import State
from armm.testing.law import LawBroken
from armm.testing.streams import (
    BATCH_SYMBOLS,
    Place,
    batch_of,
    choices,
    conditionals,
    cursor_after,
    index_of,
    leaves,
    log_probs,
    other_payload,
    pick,
    pieces,
    places,
    random_stream,
)

NORMALISED, CAUSAL, VIEWS = "normalised", "causal", "two views agree"


# ---------------------------------------------------------------- normalised


def check_normalised(model: AutoregressiveModel, limit: int = 4096, tolerance: float = 1e-5) -> None:
    """Law 2: the probabilities of all documents sum to 1, and so do those of what may follow any prefix.

    Args:
        limit: look at no more streams than that. Where there are more documents, streams are cut at the greatest length
            that leaves so few; the sum is then over complete documents and all that begin like a cut one.

    Raises LawBroken: they do not.
    """
    streams = leaves(model.grammar, limit)
    follow = conditionals(model, streams)
    for prefix, nats in follow.items():
        total = sum(map(exp, nats.values()))
        if not abs(total - 1) <= tolerance:
            raise LawBroken(NORMALISED, f"what may follow {list(prefix)} ({_slot(model, prefix)}) has mass {total:.7f}")
    total = sum(exp(sum(follow[tuple(stream[:t])][stream[t]] for t in range(len(stream)))) for stream in streams)
    if not abs(total - 1) <= tolerance:
        raise LawBroken(NORMALISED, f"the probabilities of all {len(streams)} streams sum to {total:.7f}")


def _slot(model: AutoregressiveModel, prefix: Sequence[int]) -> str:
    slot = cursor_after(model.grammar, prefix).slot()
    return f"{slot.stage.name.lower()} of {slot.modality!r}" if slot.modality else slot.stage.name.lower()


# -------------------------------------------------------------------- causal


def check_causal(model: AutoregressiveModel, document: Document, seed: int = 0, max_places: int = 48) -> None:
    """Law 3: nothing depends on what comes later.

    Changing a symbol, and all after it, changes bitwise neither the log-probability of any symbol before it, nor the
    context of its own or an earlier unit, nor its own or an earlier logit of the head. The log-probabilities of units
    up to one have no gradient towards what the embedder makes of that unit and of later ones.

    Args:
        document: which one to change.
        seed: of the changes.
        max_places: change at no more places than that, drawn at random.

    Raises LawBroken: something does.
    """
    generator = torch.Generator().manual_seed(seed)
    row = places(model.grammar, [document])[0]
    stream = model.grammar.flatten(document)
    order = torch.randperm(len(row), generator=generator).tolist()
    wanted = sorted(order[: min(max_places, max(2, BATCH_SYMBOLS * 2 // max(len(row), 1)))])
    payload = [t for t in wanted if row[t].slot.stage == Stage.PAYLOAD]
    _check_payload(model, document, stream, row, payload, generator)
    for t in wanted:
        if row[t].slot.stage != Stage.PAYLOAD:
            _check_structure(model, document, stream, t, generator)
    _check_gradients(model, document, row, generator)


def _check_payload(
    model: AutoregressiveModel,
    document: Document,
    stream: list[int],
    row: list[Place],
    wanted: list[int],
    generator: torch.Generator,
) -> None:
    """The same structure with other payload from a symbol on: all changes in one batch of the original's shape."""
    grammar = model.grammar
    changes = [(t, grammar.parse(other_payload(grammar, stream, row, t, generator))) for t in wanted]
    if not changes:
        return
    original = batch_of(model, [document] * len(changes))
    other = batch_of(model, [changed for _, changed in changes])
    rows = places(grammar, [document] * len(changes))
    _compare(model, original, other, [t for t, _ in changes], rows)
    _compare_heads(model, original, other, [t for t, _ in changes], rows)


def _check_structure(
    model: AutoregressiveModel, document: Document, stream: list[int], t: int, generator: torch.Generator
) -> None:
    """Another structure symbol, and a document that goes on from there.

    Shapes must be equal for results to be equal bitwise, so both documents stand in both batches, in either order.
    """
    grammar = model.grammar
    options = [o for o in choices(grammar, cursor_after(grammar, stream[:t])) if o != stream[t]]
    if not options:
        return
    changed = grammar.parse(random_stream(grammar, generator, [*stream[:t], pick(options, generator)], len(stream)))
    forth, back = [document, changed], [changed, document]
    _compare(model, batch_of(model, forth), batch_of(model, back), [t], places(grammar, forth)[:1])


@torch.no_grad()
def _compare(
    model: AutoregressiveModel, original: Batch, other: Batch, changed: list[int], rows: list[list[Place]]
) -> None:
    """Contexts and log-probabilities of the first rows of two batches, up to the symbol where they begin to differ."""
    contexts, other_contexts = model.contexts(original), model.contexts(other)
    parts, other_parts = pieces(model.log_prob(original)), pieces(model.log_prob(other))
    same = {kind: parts[kind] == other_parts[kind] for kind in parts if kind in other_parts}
    for i, t in enumerate(changed):
        position = rows[i][t].position
        equal = (contexts[i, : position + 1] == other_contexts[i, : position + 1]).all(-1)
        if not equal.all():
            first = int(equal.logical_not().nonzero()[0, 0])
            raise LawBroken(CAUSAL, f"the context of unit {first} changes with {rows[i][t]}")
        for place in rows[i][:t]:
            if not same[place.slot[:2]][index_of(place)]:
                raise LawBroken(CAUSAL, f"the log-probability of {place} changes with {rows[i][t]}")


@torch.no_grad()
def _compare_heads(
    model: AutoregressiveModel, original: Batch, other: Batch, changed: list[int], rows: list[list[Place]]
) -> None:
    """The heads' logits up to and with the symbol that changed."""
    logits, other_logits = head_logits(model, original), head_logits(model, other)
    same = {name: (logits[name] == other_logits[name]).all(-1) for name in logits}
    for i, t in enumerate(changed):
        for place in rows[i][: t + 1]:
            if place.slot.stage == Stage.PAYLOAD and not same[place.slot.modality][index_of(place)]:
                raise LawBroken(CAUSAL, f"the logits of {place} change with {rows[i][t]}")


def head_logits(model: AutoregressiveModel, batch: Batch) -> dict[str, Tensor]:
    """(S, U, K, V) logits of each modality's head for all its symbols, by the parallel view."""
    contexts = model.contexts(batch)
    found = {}
    for name, segment in batch.segments.items():
        number = torch.arange(segment.symbols.shape[1], device=contexts.device)
        position = (segment.starts[:, None] + number).clamp(max=contexts.shape[1] - 1)
        context = contexts[segment.rows[:, None], position]
        found[name] = model.head(name).logits(context, segment.symbols, segment.known, segment.header)
    return found


def _check_gradients(
    model: AutoregressiveModel, document: Document, row: list[Place], generator: torch.Generator
) -> None:
    """No gradient from units up to one to the embeddings of that one and of later ones."""
    # where the vectors of each embedder come from: the units of its segments, in order
    positions: dict[str, list[int]] = {name: [] for name in model.grammar.names}
    for segment, batch in batch_of(model, [document]).segments.items():
        for start, n_units in zip(batch.starts.tolist(), batch.n_units.tolist(), strict=True):
            positions[segment] += range(start, start + n_units)
    embedders = {("units", n): m for n, m in model.embedders.items()} | {
        ("values", n): m for n, m in model.values.items()
    }
    with torch.enable_grad(), _embeddings(embedders) as vectors:
        parts = pieces(model.log_prob(batch_of(model, [document])))
        nats = torch.stack([parts[place.slot[:2]][index_of(place)] for place in row])
    units = torch.tensor([place.position for place in row], device=nats.device)
    kinds = list(vectors)
    last = int(units.max())
    for unit in sorted(torch.randperm(last + 1, generator=generator)[:16].tolist()):
        total = nats[units <= unit].sum()
        found = torch.autograd.grad(total, [vectors[k] for k in kinds], retain_graph=True, allow_unused=True)
        for (what, name), gradient in zip(kinds, found, strict=True):
            if gradient is None:
                continue
            for position, own in zip(positions[name], gradient, strict=True):
                if position >= unit and own.count_nonzero():
                    where = f"the embedding ({what}) of unit {position}, of {name!r}"
                    raise LawBroken(
                        CAUSAL, f"the log-probabilities of units up to {unit} have a gradient towards {where}"
                    )


@contextmanager
def _embeddings(embedders: Mapping[tuple[str, str], nn.Module]) -> Iterator[dict[tuple[str, str], Tensor]]:
    """Collect what embedders return, as leaves of the graph."""
    found: dict[tuple[str, str], Tensor] = {}

    def keep(kind: tuple[str, str], output: Any) -> Tensor:
        assert kind not in found, "an embedder embeds all units of a batch at once"
        found[kind] = output.detach().requires_grad_()
        return found[kind]

    handles = [
        embedder.register_forward_hook(lambda module, inputs, output, kind=kind: keep(kind, output))
        for kind, embedder in embedders.items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


# ----------------------------------------------------------- two views agree


def check_views_agree(
    model: AutoregressiveModel,
    documents: Sequence[Document],
    tolerance: float = 1e-4,
    seed: int = 0,
    n_steps: int = 48,
    n_moves: int = 16,
) -> None:
    """Law 4: step by step is the same distribution as in parallel.

    The documents are read as rows of one state, each from a prompt of random length on, a symbol at a time; then by
    random moves, which append to some rows any number of symbols, take some back, and repeat, drop and reorder rows.

    Args:
        documents: what the rows say; a fixed set, so that both views see the same.
        tolerance: in nats, for log-probabilities of magnitude up to 1, relative to that beyond.
        seed: of prompts and moves.
        n_steps: at most so many single symbols. n_moves: so many moves.

    Raises LawBroken: they differ.
    """
    _check_head_views(model, documents, tolerance)
    _Walk(model, documents, tolerance, seed).run(n_steps, n_moves)


@torch.no_grad()
def _check_head_views(model: AutoregressiveModel, documents: Sequence[Document], tolerance: float) -> None:
    """The heads' logits, normalised, are their log-probabilities."""
    batch = batch_of(model, documents)
    parts = model.log_prob(batch).payload
    for name, logits in head_logits(model, batch).items():
        segment = batch.segments[name]
        target = segment.symbols.clamp(max=logits.shape[-1] - 1)
        nats = logits.log_softmax(-1).gather(-1, target[..., None])[..., 0]
        wrong = segment.known & ~((nats - parts[name]).abs() <= tolerance * parts[name].abs().clamp(min=1))
        if wrong.any():
            s, u, k = wrong.nonzero()[0].tolist()
            at = f"symbol {k} of unit {u} of segment {s}"
            raise LawBroken(
                VIEWS, f"{name!r}: {at} has {parts[name][s, u, k]:.6f} nats by log_prob, {nats[s, u, k]:.6f} by logits"
            )


class _Walk:
    """A state whose rows read known documents, and what each row has read.

    Beside each document stands a twin of the same structure whose second half differs, so that a row that has taken
    symbols back can go on in another way.
    """

    def __init__(self, model: AutoregressiveModel, documents: Sequence[Document], tolerance: float, seed: int) -> None:
        self.tolerance, self.generator = tolerance, torch.Generator().manual_seed(seed)
        grammar = model.grammar
        streams = [grammar.flatten(document) for document in documents]
        twins = [
            grammar.parse(other_payload(grammar, stream, row, len(stream) // 2, self.generator))
            for stream, row in zip(streams, places(grammar, documents), strict=True)
        ]
        known = [*documents, *twins]
        self.expected, self.places = log_probs(model, known), places(grammar, known)
        self.streams = [grammar.flatten(document) for document in known]
        self.rows = list(range(len(documents)))  # which document each row reads
        self.read = [0] * len(documents)
        self.state: State = model.state(len(documents))
        self.history = ""

    def run(self, n_steps: int, n_moves: int) -> None:
        self.history = "after prompts"
        self._extend([self._number(len(self.streams[document]) // 2) for document in self.rows])
        for _ in range(n_steps):
            steps = self._single()
            if not any(steps):
                break
            self._extend(steps)
        for _ in range(n_moves):
            before = list(self.read)
            self._truncate()
            # as many symbols as before, but others: what a cache must not take for the same
            again = [self._number(1) for _ in self.rows]
            self._extend(
                [
                    min(max(length - read, 0), self._left(row)) if back else 0
                    for row, (length, read, back) in enumerate(zip(before, self.read, again, strict=True))
                ]
            )
            self._gather()
            self._extend([self._number(min(self._left(row), 12)) for row in range(len(self.rows))])
            self._extend(self._single())
            self._extend(self._single())

    def _number(self, most: int) -> int:
        return int(torch.randint(most + 1, (), generator=self.generator))

    def _left(self, row: int) -> int:
        return len(self.streams[self.rows[row]]) - self.read[row]

    def _single(self) -> list[int]:
        return [min(1, self._left(row)) for row in range(len(self.rows))]

    def _extend(self, counts: list[int]) -> None:
        added = [
            self.streams[document][start : start + count]
            for document, start, count in zip(self.rows, self.read, counts, strict=True)
        ]
        logits = self.state.extend(added)
        self.read = [start + count for start, count in zip(self.read, counts, strict=True)]
        if self.state.lengths != self.read or len(self.state) != max(self.read):
            raise LawBroken(VIEWS, f"{self.history}: the state says lengths {self.state.lengths}, expected {self.read}")
        nats = logits.log_softmax(-1)
        for row, (document, at) in enumerate(zip(self.rows, self.read, strict=True)):
            if at == len(self.streams[document]):
                continue
            expected, found = self.expected[document][at], float(nats[row, self.streams[document][at]])
            if not (isfinite(found) and abs(found - expected) <= self.tolerance * max(1.0, abs(expected))):
                raise LawBroken(
                    VIEWS,
                    f"{self.history}, {counts[row]} symbols on: row {row} at symbol {at}, {self.places[document][at]}, "
                    f"has {found:.6f} nats step by step, {expected:.6f} in parallel",
                )

    def _truncate(self) -> None:
        """Take symbols back; a row may then read any document that begins with what is left of its own."""
        self.read = [self._number(length) if self._number(2) else length for length in self.read]
        self.state.truncate(self.read)
        for row, read in enumerate(self.read):
            left = self.streams[self.rows[row]][:read]
            others = [other for other, stream in enumerate(self.streams) if stream[:read] == left]
            self.rows[row] = pick(others, self.generator)
        self.history = f"after truncate({self.read})"

    def _gather(self) -> None:
        index = [self._number(len(self.rows) - 1) for _ in range(2 + self._number(2))]
        if len(index) == len(self.rows):  # a permutation, so that the rows do not all become copies of one
            index = torch.randperm(len(index), generator=self.generator).tolist()
        self.state.gather_rows(index)
        self.rows, self.read = [self.rows[i] for i in index], [self.read[i] for i in index]
        self.history += f" and gather_rows({index})"

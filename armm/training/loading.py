"""What loaders give: cropped documents to train on, windows to score, and their batches with counts."""

from __future__ import annotations

import signal
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice, takewhile
from typing import Any, overload

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from armm.batching import collate
from armm.datasets.documents import Documents
from armm.datasets.source import spread
from armm.grammar import Grammar
from armm.modality import Modality
from armm.sequence import Batch, Document
from armm.training.ranks import DataRank
from armm.windows import is_open_ended, room, windows

Counts = dict[str, tuple[int, int]]
"""By modality: how many natural units of bits, and of nats, the scored part of a batch has; and of `STRUCTURE`."""

STRUCTURE = "structure"
"""Where the bits of control symbols, headers and end decisions are counted; they are per document."""

SENT_BY_VALUE = 1 << 18
"""Bytes of the largest tensor that a process sends by value: one in shared memory takes 0.3 ms to open."""

TOGETHER = 8
"""Batches that are loaded at a time, where no process loads them beside the training."""

GRACE = 30
"""Seconds that a process which loads data goes on after it was told to end."""


def crop(document: Document, grammar: Grammar, size: int | None, draw: int) -> Document:
    """A random window of every segment that may be cut and has more than `size` units, or more than fit the context.

    Where the context is too short for all of them the longest gives way first. What is given stays given.
    """
    if size is None and (grammar.context is None or grammar.n_units(document) <= grammar.context):
        return document
    cropped = list(document)
    for at in sorted(range(len(document)), key=lambda at: document[at].n_units, reverse=True):
        segment = document[at]
        limit = room(cropped, at, grammar, size)
        if limit is not None and segment.n_units > limit and is_open_ended(segment, grammar):
            first = int(np.random.default_rng([draw, at]).integers(0, segment.n_units - limit + 1))
            cropped[at] = segment.window(first, limit, min(max(segment.n_given - first, 0), limit))
    return cropped


def share(draw: int) -> float:
    """A draw as a number in [0, 1): Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4)."""
    return draw * 0x9E3779B97F4A7C15 % 2**64 / 2**64


def conditions_of(document: Document) -> Document:
    """The segments that a document begins with and that are given."""
    return list(takewhile(lambda segment: segment.n_given >= max(segment.n_units, 1), document))


def count(documents: Sequence[Document], modalities: Mapping[str, Modality]) -> Counts:
    """How much the scored parts of documents are in the natural units of their modalities."""
    counts: Counts = {}
    for document in documents:
        for segment in document:
            modality = modalities[segment.modality]
            bits, nats = counts.get(segment.modality, (0, 0))
            if segment.n_given < segment.n_units:
                scored = segment.window(segment.n_given, segment.n_units) if segment.n_given else segment
                bits, nats = bits + modality.n_bits_per(scored), nats + modality.n_nats_per(scored)
            counts[segment.modality] = (bits, nats)
    # a document in windows is counted with its last
    n_documents = sum(not any(segment.cut for segment in document) for document in documents)
    return {**counts, STRUCTURE: (n_documents, n_documents)}


def leave_signals_to_the_training(worker: int) -> None:
    """In a process that loads data: Ctrl-C and a job's SIGTERM reach all processes, and the training needs this one.

    It ends with the training, or where that hangs (and ends its loaders by SIGTERM too) a while after.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))


class TrainingSet(Dataset[Document]):
    """Documents by (item, draw), cropped at random, some of them without their conditions."""

    def __init__(self, documents: Documents, size: int | None, drop_conditions: float = 0.0) -> None:
        self.documents, self.size, self.drop_conditions = documents, size, drop_conditions

    def __getitem__(self, key: tuple[int, int]) -> Document:
        index, draw = key
        document = self.documents.document(index, draw)
        if share(draw) < self.drop_conditions:
            given = len(conditions_of(document))
            document = self.documents.grammar.without_conditions(document, given)
        return crop(document, self.documents.grammar, self.size, draw)


class TrainingLoader(DataLoader[Any]):
    """Batches; without workers `TOGETHER` are loaded at once, in a third less time than one after each step.

    A step's arithmetic empties the processor's caches of the program that loads, and of what it works on. Workers send
    arrays: `CollateToSend`.
    """

    def __iter__(self) -> Iterator[tuple[Batch, Counts]]:  # type: ignore[override]
        batches = super().__iter__()
        if self.num_workers:
            return ((batch.each(torch.as_tensor), counts) for batch, counts in batches)
        return chain.from_iterable(iter(lambda: list(islice(batches, TOGETHER)), []))


class Windows(Sequence[Document]):
    """The same windows of a split that is too large to keep, cut when they are asked for: 12 bytes each.

    Args:
        ragged: whether documents differ in length, so that they have to be read for it.
    """

    def __init__(self, documents: Documents, size: int | None, at_most: int | None, ragged: bool) -> None:
        self.documents, self.size = documents, size
        found = array("i")
        for index in spread(len(documents), at_most):
            cut = self._cut(index) if ragged else [[]]
            for number, piece in enumerate(cut):
                found.extend((index, number, sum(segment.n_units for segment in piece)))
        where = np.frombuffer(found, dtype=np.intc).reshape(-1, 3)
        if at_most is not None:
            where = where[spread(len(where), at_most)]
        self.where = where[np.argsort(where[:, 2], kind="stable")]
        self._last: tuple[int, list[Document]] | None = None

    def _cut(self, index: int) -> list[Document]:
        return windows(self.documents.document(index, index), self.documents.grammar, self.size)

    def __len__(self) -> int:
        return len(self.where)

    @overload
    def __getitem__(self, at: int) -> Document: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Document]: ...
    def __getitem__(self, at: int | slice) -> Document | Sequence[Document]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        index, number, _ = self.where[at].tolist()
        if self._last is None or self._last[0] != index:
            self._last = index, self._cut(index)
        piece = self._last[1][number]
        self.documents.grammar.check(piece)
        return piece


class DealtBatches(Dataset[tuple[list[Document], bool]]):
    """A process's batches of a split, and of each whether it counts.

    Every process has as many, as they have to compute together: some repeat the last one, which does not count.
    """

    def __init__(self, documents: Sequence[Document], batch_size: int, rank: DataRank) -> None:
        self.documents, self.batch_size, self.rank = documents, batch_size, rank
        self.n_batches = -(-len(documents) // batch_size)

    def __len__(self) -> int:
        return -(-self.n_batches // self.rank.n_ranks)

    def __getitem__(self, at: int) -> tuple[list[Document], bool]:
        if not 0 <= at < len(self):
            raise IndexError(at)
        number = at * self.rank.n_ranks + self.rank.rank
        first = min(number, self.n_batches - 1) * self.batch_size
        return list(self.documents[first : first + self.batch_size]), number < self.n_batches


class Collate:
    """Documents to (batch, counts); picklable for worker processes."""

    def __init__(self, grammar: Grammar, counted: bool = False) -> None:
        self.grammar, self.counted = grammar, counted

    def __call__(self, documents: list[Document]) -> tuple[Batch, Counts]:
        counts = count(documents, self.grammar.modalities) if self.counted else {}
        return collate(documents, self.grammar), counts


class CollateToSend:
    """The same as arrays instead of tensors, but for large ones."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, documents: list[Document]) -> tuple[Batch, Counts]:
        batch, counts = self.collate(documents)
        return batch.each(lambda tensor: tensor.numpy() if tensor.nbytes <= SENT_BY_VALUE else tensor), counts


class CollateDealt:
    """The same for batches of which some do not count: those have no counts."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, dealt: tuple[list[Document], bool]) -> tuple[Batch, Counts]:
        documents, is_new = dealt
        batch, counts = self.collate(documents)
        return batch, counts if is_new else {}

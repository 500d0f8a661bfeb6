"""Long documents as windows, so that a model of limited context can be trained on them and score them."""

from __future__ import annotations

from armm.grammar import Grammar
from armm.sequence import Document, Segment


def is_open_ended(segment: Segment, grammar: Grammar) -> bool:
    """Whether a window of the segment is itself a segment: its header says nothing about its length."""
    modality = grammar.modalities[segment.modality]
    return modality.ended or modality.n_units(segment.header) is None


def room(document: Document, at: int, grammar: Grammar, size: int | None) -> int | None:
    """The most units that a window of segment `at` may have: `size`, or what the context leaves beside the rest.

    None where neither limits it.
    """
    limits = [] if size is None else [size]
    if grammar.context is not None:
        limits.append(max(grammar.context - (grammar.n_units(document) - document[at].n_units), 1))
    return min(limits, default=None)


def windows(document: Document, grammar: Grammar, size: int | None) -> list[Document]:
    """A document as windows of its longest segment, of at most `size` units and none longer than the context.

    Every unit is scored once. Windows start half a window apart and, but for the first, are scored on their second half
    only, so that every unit has at least half a window (or all there is) before it. What comes before the long segment
    is scored with its first window, what comes after it with its last. Control symbols are no units: a free document's
    stand in every window.
    """
    long = []
    for at, segment in enumerate(document):
        limit = room(document, at, grammar, size)
        if limit is not None and segment.n_units > limit and is_open_ended(segment, grammar):
            long.append((segment.n_units, -at, limit))
    if not long:
        return [document]
    _, negative, limit = max(long)
    whole, at = document[-negative], -negative
    step = max(limit // 2, 1)
    pieces = []
    starts = range(0, max(whole.n_units - (limit - step), 1), step)
    for first in starts:
        n_given = max(whole.n_given - first, limit - step if first else 0)
        before = document[:at] if first == 0 else [segment.as_condition() for segment in document[:at]]
        after = document[at + 1 :]
        if first != starts[-1]:
            after = [segment.as_condition() for segment in after]
        pieces.append([*before, whole.window(first, limit, n_given), *after])
    return pieces

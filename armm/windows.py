"""Long documents as windows, so that a model of limited context can score them."""

from __future__ import annotations

from armm.grammar import Grammar
from armm.sequence import Document, Segment


def is_open_ended(segment: Segment, grammar: Grammar) -> bool:
    """Whether a window of the segment is itself a segment: its header says nothing about its length."""
    modality = grammar.modalities[segment.modality]
    return modality.ended or modality.n_units(segment.header) is None


def windows(document: Document, grammar: Grammar, size: int | None) -> list[Document]:
    """A document as windows of at most `size` units, each unit scored once.

    Windows start half a window apart and, but for the first, are scored on their second half only, so that every scored
    unit has at least half a window before it.
    """
    long = [i for i, s in enumerate(document) if size and s.n_units > size and is_open_ended(s, grammar)]
    if not long or size is None:
        return [document]
    at = max(long, key=lambda i: document[i].n_units)
    whole, half = document[at], max(size // 2, 1)
    pieces = []
    for first in range(0, max(whole.n_units - half, 1), half):
        n_given = max(whole.n_given - first, half if first else 0)
        pieces.append([*document[:at], whole.window(first, size, n_given), *document[at + 1 :]])
    return pieces

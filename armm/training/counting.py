"""How much data there is in a batch, in the natural units of its modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from armm.modality import Modality
from armm.sequence import Document

Counts = dict[str, tuple[int, int]]
"""By modality: how many natural units of bits, and of nats, the scored part of a batch has; and of `STRUCTURE`."""

STRUCTURE = "structure"
"""Where the bits of control symbols, headers and end decisions are counted; they are per document."""


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

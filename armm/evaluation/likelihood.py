"""What scores of likelihood share: nats of documents of the test split, every scored unit once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from armm.batching import collate
from armm.model import AutoregressiveModel
from armm.sequence import Document
from armm.windows import windows

BATCH_UNITS = 4096


@torch.no_grad()
def payload_nats(model: AutoregressiveModel, documents: Sequence[Document]) -> dict[str, tuple[float, int]]:
    """By modality, nats of all scored symbols and how many there are; structure is left out.

    Documents longer than the context are scored in windows of it, half a window apart.
    """
    pieces = [piece for document in documents for piece in windows(document, model.grammar, model.grammar.context)]
    found: dict[str, tuple[float, int]] = {}
    for batch in _batches(pieces, model):
        own = collate(batch, model.grammar).to(model.begin.device)
        nats = model.log_prob(own)
        for name, segment in own.segments.items():
            total, n = found.get(name, (0.0, 0))
            scored = -(nats.payload[name] * segment.weights[..., None]).double().sum()
            found[name] = total + float(scored), n + int(segment.scored().sum())
    return found


def _batches(documents: Sequence[Document], model: AutoregressiveModel) -> Iterable[list[Document]]:
    """Documents of like length together, as many as fit."""
    ordered = sorted(documents, key=model.grammar.n_units)
    batch: list[Document] = []
    for document in ordered:
        if batch and (len(batch) + 1) * model.grammar.n_units(document) > BATCH_UNITS:
            yield batch
            batch = []
        batch.append(document)
    if batch:
        yield batch

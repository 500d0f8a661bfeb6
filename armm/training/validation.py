"""What a validation or a test adds up to, over all batches and processes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import distributed

from armm.modality import Modality
from armm.sequence import Batch
from armm.training.loading import STRUCTURE, Counts
from armm.training.ranks import data_rank

Results = dict[str, dict[str, float]]
"""Scores by modality, in its natural units."""


class Scores:
    """Nats of a split, and how many natural units of bits and of nats they are of."""

    def __init__(self, modalities: Mapping[str, Modality]) -> None:
        self.modalities = modalities
        self.sums = {name: [0.0, 0.0, 0.0] for name in (*modalities, STRUCTURE)}

    def add(self, batch: Batch, nats: Any, counts: Counts) -> None:
        """Take in what `model.log_prob` says of a batch; without counts it is left out."""
        if not counts:
            return
        for name, segment in batch.segments.items():
            total = -float((nats.payload[name] * segment.weights[..., None]).double().sum())
            self._add(name, total, *counts.get(name, (0, 0)))
        _, structure = nats.scored(batch)
        if nats.decisions or nats.headers or nats.control.numel():
            self._add(STRUCTURE, float(structure), *counts.get(STRUCTURE, (0, 0)))

    def _add(self, name: str, nats: float, n_bits: int, n_nats: int) -> None:
        for i, value in enumerate((nats, n_bits, n_nats)):
            self.sums[name][i] += value

    def over_all(self, trainer: L.Trainer, device: torch.device) -> None:
        """Add up those of all processes."""
        if trainer.world_size == 1:
            return
        kind = torch.float32 if device.type == "mps" else torch.float64
        sums = torch.tensor(list(self.sums.values()), dtype=kind, device=device)
        distributed.all_reduce(sums)
        sums *= data_rank(trainer).n_ranks / trainer.world_size  # some have scored the same
        self.sums = dict(zip(self.sums, sums.tolist(), strict=True))

    def bits(self) -> float:
        """All of them, structure included."""
        return math.fsum(nats for nats, _, _ in self.sums.values()) / math.log(2)

    def results(self) -> Results:
        results: Results = {}
        for name, (nats, n_bits, n_nats) in self.sums.items():
            if not n_bits:
                continue
            if name == STRUCTURE:
                results[name] = {"bits_per_document": nats / math.log(2) / n_bits}
                continue
            modality = self.modalities[name]
            results[name] = {
                f"bits_per_{modality.bits_per}": nats / math.log(2) / n_bits,
                f"nats_per_{modality.nats_per}": nats / n_nats,
            }
        return results

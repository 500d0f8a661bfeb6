"""What each validation says beside bits: where in a unit they are, and what backbone and conditions are worth.

- `bits_by_slot`: bits per symbol at each place of a unit. Later places are worse where a head forgets (MEGABYTE,
  arXiv:2305.07185, figure 5), the first is worse where a unit's beginning is not told enough.
- `backbone`: bits that are lost when every context is the zero vector: the head is left with what it sees itself.
- `condition`: bits that are lost when what a document begins with and is given is not told: left out of free documents,
  unknown in others. A model learns to do without only where `data.drop_conditions` is above 0.

All but the first are per natural unit of the data, such as bits per sample, of some of the validation documents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from armm.batching import collate
from armm.model import AutoregressiveModel
from armm.sequence import Document
from armm.training.data import DataModule
from armm.training.loading import conditions_of, count
from armm.training.module import GenerativeModule

N_DOCUMENTS = 32
N_ROWS = 8  # documents side by side


@torch.inference_mode()
def diagnose(model: AutoregressiveModel, documents: Sequence[Document]) -> dict[str, dict[str, Any]]:
    """The numbers by modality, of what is scored in the documents."""
    grammar = model.grammar
    slots = {name: torch.zeros(2, m.unit_symbols, dtype=torch.float64) for name, m in model.modalities.items()}
    nats, without_backbone = ({name: 0.0 for name in model.modalities} for _ in range(2))
    told, untold = ({name: 0.0 for name in model.modalities} for _ in range(2))
    for rows in _rows(documents):
        batch = collate(rows, grammar).to(model.begin.device)
        contexts = model.contexts(batch)
        payload = model.log_prob(batch, contexts).payload
        bare = model.log_prob(batch, torch.zeros_like(contexts)).payload
        for name, segment in batch.segments.items():
            slots[name] += torch.stack([_by_slot(payload[name], segment.weights), segment.scored().sum((0, 1))]).cpu()
            nats[name] += float(_by_slot(payload[name], segment.weights).sum())
            without_backbone[name] += float(_by_slot(bare[name], segment.weights).sum())
    conditioned = [(d, len(conditions_of(d))) for d in documents if 0 < len(conditions_of(d)) < len(d)]
    for sums, own in (
        (told, [document for document, _ in conditioned]),
        (untold, [grammar.without_conditions(document, n_given) for document, n_given in conditioned]),
    ):
        for rows in _rows(own):
            batch = collate(rows, grammar).to(model.begin.device)
            for name, log_probs in model.log_prob(batch).payload.items():
                sums[name] += float(_by_slot(log_probs, batch.segments[name].weights).sum())
    counts, conditioned_counts = (count(d, model.modalities) for d in (documents, [d for d, _ in conditioned]))
    found: dict[str, dict[str, Any]] = {}
    for name, modality in model.modalities.items():
        n_bits = counts.get(name, (0, 0))[0]
        if not n_bits:
            continue
        by_slot = slots[name][0] / slots[name][1].clamp(min=1) / math.log(2)
        found[name] = {
            "unit": f"bits_per_{modality.bits_per}",
            "backbone": (without_backbone[name] - nats[name]) / math.log(2) / n_bits,
            "bits_by_slot": [round(bits, 4) for bits in by_slot.tolist()],
        }
        n_conditioned = conditioned_counts.get(name, (0, 0))[0]
        if n_conditioned:
            found[name]["condition"] = (untold[name] - told[name]) / math.log(2) / n_conditioned
    return found


def _rows(documents: Sequence[Document]) -> list[list[Document]]:
    ordered = sorted(documents, key=lambda document: sum(segment.n_units for segment in document))
    return [ordered[i : i + N_ROWS] for i in range(0, len(ordered), N_ROWS)]


def _by_slot(log_probs: Tensor, weights: Tensor) -> Tensor:
    """(S, U, K) log-probabilities and (S, U) weights -> (K,) nats."""
    return -(log_probs * weights[..., None]).double().sum((0, 1))


class Diagnostics(L.Callback):
    """Computes them at the end of every validation of a training, the same on all ranks.

    Args:
        n: validation documents, evenly spread, or windows of them.
    """

    def __init__(self, n: int = N_DOCUMENTS) -> None:
        self.n = n

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, GenerativeModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, DataModule)
        with pl_module.scoring_precision():
            found = diagnose(pl_module.model, data.validation_documents(self.n))
        pl_module.diagnostics = found
        for name, values in found.items():
            for key in ("backbone", "condition"):
                if key in values:
                    pl_module.log(f"val/{name}/{key}_is_worth", values[key])
            by_slot = values["bits_by_slot"]
            if len(by_slot) > 1:
                pl_module.log(f"val/{name}/first_slot", by_slot[0])
                pl_module.log(f"val/{name}/last_slot", by_slot[-1])

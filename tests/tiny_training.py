"""Tiny models and data for tests of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from armm.backbones import Transformer
from armm.datasets import Item, ListOfItems, OnError, Source, Splits
from armm.modality import Modality
from armm.training import GenerativeModule

TINY = Transformer(width=8, n_layers=1, n_heads=2)
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
    "max_epochs": -1,
}


@dataclass(frozen=True)
class Given(Source):
    """The items that a test has made; validation and test are the training items where there are no others."""

    train: Sequence[Item]
    val: Sequence[Item] = ()
    test: Sequence[Item] = field(default=())

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        val, test = ListOfItems(self.val or self.train), ListOfItems(self.test or self.train)
        return Splits(ListOfItems(self.train), val, test)


def module_of(*modalities: Modality, layout: list[str] | None = None, **options: Any) -> GenerativeModule:
    options.setdefault("backbone", TINY)
    return GenerativeModule({m.name: m for m in modalities}, layout=layout, **options)

"""Tiny models and data for tests of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from tiny_modalities import hash_parameters, hash_symbols

from armm.backbones import Transformer
from armm.datasets import Item, ListOfItems, OnError, Source, Splits
from armm.heads import CausalConv
from armm.modality import Modality
from armm.training import DataModule, GenerativeModule

TINY = Transformer(width=8, n_layers=1, n_heads=2)
SMALL = CausalConv(channels=4, skip=4, dilations=(1, 2), hidden_layers=1)
RAGGED = [{"letters": hash_symbols(n, 6, seed=n)} for n in (1, 2, 3, 4, 25, 30, 35, 40)]
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


def module_of(
    *modalities: Modality, layout: list[str] | None = None, cls: Any = GenerativeModule, **options: Any
) -> Any:
    options.setdefault("backbone", TINY)
    return cls({m.name: m for m in modalities}, layout=layout, **options)


def fit(module: GenerativeModule, data: DataModule, **options: Any) -> L.Trainer:
    trainer = L.Trainer(**{**QUIET, "limit_val_batches": 0, **options})
    module.prepare(data)
    hash_parameters(module.model)
    trainer.fit(module, datamodule=data)
    return trainer

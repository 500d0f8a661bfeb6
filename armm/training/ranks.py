"""Which part of the data a process takes. Those that share a model's heads (tensor parallelism) take the same."""

from __future__ import annotations

from typing import NamedTuple

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy


class DataRank(NamedTuple):
    """A process's number among those that take different data, and how many there are."""

    rank: int
    n_ranks: int


def data_rank(trainer: L.Trainer | None) -> DataRank:
    if trainer is None:
        return DataRank(0, 1)
    if isinstance(trainer.strategy, ModelParallelStrategy):
        own = trainer.strategy.distributed_sampler_kwargs
        return DataRank(own["rank"], own["num_replicas"])
    return DataRank(trainer.global_rank, trainer.world_size)

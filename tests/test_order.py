"""The order of training data: a pure function of (seed, epoch, rank, number of ranks)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from armm.training.order import StatelessBatches

Batches = list[list[tuple[int, int]]]


def batches(epoch: int = 0, **options: object) -> Batches:
    order = StatelessBatches(**{"repeats": [1] * 24, "batch_size": 4, "seed": 3, **options})  # type: ignore[arg-type]
    order.set_epoch(epoch)
    return list(order)


def items(found: Batches) -> list[int]:
    return [item for batch in found for item, _ in batch]


@pytest.mark.parametrize("lengths", [None, [1 + i % 7 for i in range(24)]], ids=["alike", "ragged"])
def test_order_is_a_pure_function(lengths: Sequence[int] | None) -> None:
    """A resumed run makes a new sampler and sets its epoch; nothing else may matter, not even what was read before."""
    worn = StatelessBatches([1] * 24, 4, 3, lengths)
    for epoch in (0, 1):
        worn.set_epoch(epoch)
        assert len(list(worn)) == len(worn) == 6
    worn.set_epoch(5)
    assert list(worn) == batches(5, lengths=lengths)


@pytest.mark.parametrize("lengths", [None, [1 + i % 7 for i in range(24)]], ids=["alike", "ragged"])
def test_every_item_once_per_epoch(lengths: Sequence[int] | None) -> None:
    assert sorted(items(batches(2, lengths=lengths))) == list(range(24))


def test_items_that_fill_no_batch_are_left_to_other_epochs() -> None:
    """26 items in batches of 4: two wait, others in every epoch, and none comes twice."""
    left = []
    for epoch in range(20):
        found = items(batches(epoch, repeats=[1] * 26))
        assert len(found) == len(set(found)) == 24
        left += sorted(set(range(26)) - set(found))
    assert len(set(left)) > 10


def test_repeats_draw_an_item_so_many_times_and_differently() -> None:
    """Several crops of a long text per epoch: each of them its own."""
    found = batches(repeats=[5, 1, 2])
    counts = Counter(items(found))
    assert [counts[i] for i in range(3)] == [5, 1, 2]
    draws = [draw for batch in found for _, draw in batch]
    assert len(set(draws)) == len(draws)


def test_epochs_and_seeds_differ() -> None:
    orders = [items(batches(epoch, seed=seed)) for epoch in (0, 1) for seed in (3, 4)]
    assert len({tuple(order) for order in orders}) == 4


def test_draws_differ_from_epoch_to_epoch() -> None:
    """The same crops and the same binarisation in every epoch would be a data set much smaller than it is."""
    first, second = (dict(pair for batch in batches(epoch) for pair in batch) for epoch in (0, 1))
    assert not set(first.values()) & set(second.values())


@pytest.mark.parametrize("lengths", [None, [1 + i % 7 for i in range(26)]], ids=["alike", "ragged"])
def test_ranks_share_the_global_batches(lengths: Sequence[int] | None) -> None:
    """Two ranks with batches of 4 see what one sees with batches of 8: nothing twice, nothing less."""
    options = {"repeats": [1] * 26, "lengths": lengths}
    ranks = [batches(1, rank=rank, n_ranks=2, **options) for rank in (0, 1)]
    assert not set(items(ranks[0])) & set(items(ranks[1]))
    together = [one + other for one, other in zip(*ranks, strict=True)]
    assert together == batches(1, batch_size=8, **options)


def test_items_of_like_length_stand_together() -> None:
    """Padding of ragged batches: little more than in sorted order, a third of what chance would need."""
    lengths = np.random.default_rng(0).integers(1, 100, 160)

    def padding(found: Batches) -> float:
        return float(np.mean([np.ptp([lengths[item] for item, _ in batch]) for batch in found]))

    bucketed = padding(batches(repeats=[1] * 160, batch_size=8, lengths=lengths))
    assert bucketed < padding(batches(repeats=[1] * 160, batch_size=8)) / 3


def test_batches_of_like_length_come_in_no_order() -> None:
    """Short batches first in every bucket would be a curriculum that nobody asked for."""
    lengths = list(range(128))  # one bucket
    first = [batch[0][0] for batch in batches(repeats=[1] * 128, batch_size=8, lengths=lengths)]
    assert first != sorted(first) and first != sorted(first, reverse=True)


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_fewer_items_than_a_batch(n_ranks: int) -> None:
    """Three items for a batch of 4 per rank: one full batch each, every item in it, and no crop twice."""
    ranks = [batches(repeats=[1] * 3, rank=rank, n_ranks=n_ranks) for rank in range(n_ranks)]
    assert [len(found) for found in ranks] == [1] * n_ranks
    pairs = [pair for found in ranks for pair in found[0]]
    assert len(pairs) == 4 * n_ranks == len({draw for _, draw in pairs})
    counts = Counter(item for item, _ in pairs)
    assert set(counts) == {0, 1, 2} and max(counts.values()) - min(counts.values()) <= 1


class Echo(Dataset[tuple[int, int]]):
    """Returns the keys it is asked for, as a loader's batch sampler gives them."""

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
        return key


class Listener(L.LightningModule):
    """Trains nothing and writes down what it is given, by epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[int, list[int]] = {}

    def training_step(self, batch: list[tuple[int, int]], batch_idx: int) -> torch.Tensor:
        self.seen.setdefault(self.current_epoch, []).extend(item for item, _ in batch)
        return self.weight * 0.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_tells_the_sampler_its_epoch() -> None:
    """Lightning sets the epoch on `loader.sampler` and `loader.batch_sampler.sampler` only: a batch sampler without the
    latter is never told, and every epoch has the same order, the same crops and the same binarisation."""
    order = StatelessBatches([1] * 24, 4, 3)
    loader = DataLoader(Echo(), batch_sampler=order, collate_fn=list)
    listener = Listener()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=3, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(listener, loader)
    assert [listener.seen[epoch] for epoch in range(3)] == [items(batches(epoch)) for epoch in range(3)]

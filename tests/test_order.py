"""The order of training data: a pure function of (seed, epoch, rank, number of ranks)."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from armm.training.order import NEAR, ROUNDS, Slots, StatelessBatches, permuted

Batches = list[list[tuple[int, int]]]


def order_of(
    repeats: Sequence[int] = (1,) * 24, batch_size: int = 4, seed: int = 3, lengths: Any = None, **ranks: int
) -> StatelessBatches:
    return StatelessBatches(Slots.of(repeats, lengths), batch_size, seed, **ranks)


def batches(epoch: int = 0, **options: Any) -> Batches:
    order = order_of(**options)
    order.set_epoch(epoch)
    return list(order)


def items(found: Batches) -> list[int]:
    return [item for batch in found for item, _ in batch]


@pytest.mark.parametrize("lengths", [None, [1 + i % 7 for i in range(24)]], ids=["alike", "ragged"])
def test_order_is_a_pure_function(lengths: Sequence[int] | None) -> None:
    """A resumed run makes a new sampler and sets its epoch; nothing else may matter, not even what was read before."""
    worn = order_of(lengths=lengths)
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
    options: dict[str, Any] = {"repeats": [1] * 26, "lengths": lengths}
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


# ------------------------------------------------------------------- without tables, and in the middle


@pytest.mark.parametrize("n", [1, 2, 3, 5, 24, 97, 1000])
def test_a_permutation_without_a_table_is_one(n: int) -> None:
    for seed in range(3):
        keys = np.random.default_rng(seed).integers(0, 1 << 63, ROUNDS, dtype=np.uint64)
        assert sorted(permuted(np.arange(n), n, keys)) == list(range(n))


def test_a_permutation_looks_like_chance() -> None:
    """Over many keys every position goes everywhere alike and neighbours do not stay together (chi-square, 1e-6)."""
    n, n_keys = 12, 6000
    places, steps = np.zeros((n, n)), np.zeros(n)
    for seed in range(n_keys):
        found = permuted(np.arange(n), n, np.random.SeedSequence(seed).generate_state(ROUNDS, np.uint64))
        places[np.arange(n), found] += 1
        steps[(found[1] - found[0]) % n] += 1
    expected = n_keys / n
    assert ((places - expected) ** 2 / expected).sum() < 200  # 121 degrees of freedom
    expected = n_keys / (n - 1)
    assert steps[0] == 0 and ((steps[1:] - expected) ** 2 / expected).sum() < 48  # 10 degrees of freedom


@pytest.mark.parametrize("lengths", [None, [1 + i % 7 for i in range(300)]], ids=["alike", "ragged"])
@pytest.mark.parametrize("rank", [0, 1])
def test_any_batch_is_found_without_those_before_it(lengths: Sequence[int] | None, rank: int) -> None:
    """Exact resume in the middle of an epoch rests on it."""
    options: dict[str, Any] = {"repeats": [1] * 300, "lengths": lengths, "rank": rank, "n_ranks": 2}
    whole = batches(4, **options)
    for k in (36, 0, 17, 5):
        fresh = order_of(**options)
        fresh.set_epoch(4)
        assert fresh.batch(k) == whole[k]
    with pytest.raises(IndexError):
        order_of(**options).batch(len(whole))


def test_an_epoch_goes_on_where_it_was_left() -> None:
    """The Trainer tells a resumed epoch its number once more, then the next; that one begins with its first batch."""
    order = order_of([1] * 80)
    order.begin(epoch=2, batch=13)
    order.set_epoch(2)
    assert list(order) == batches(2, repeats=[1] * 80)[13:] and len(order) == 20
    order.set_epoch(3)
    assert list(order) == batches(3, repeats=[1] * 80)


def blocked(sizes: Sequence[int], repeats: int = 1) -> Slots:
    return Slots(sizes, lambda block: (np.full(sizes[block], repeats), np.arange(sizes[block])))


def test_blocks_are_visited_whole_and_only_some_at_a_time() -> None:
    """A set beyond one disk is read shard by shard: an epoch touches few of them at once, and every item once."""
    sizes = [5 + i % 3 for i in range(5 * NEAR)]
    first = np.concatenate([[0], np.cumsum(sizes)])
    order = StatelessBatches(blocked(sizes), 4, 0)
    found = items(list(order))
    assert len(found) == len(set(found)) == sum(sizes) // 4 * 4
    blocks = np.searchsorted(first, found, "right") - 1
    window = NEAR * 5  # no more slots than any NEAR blocks have
    assert max(len(set(blocks[i : i + window])) for i in range(len(blocks))) <= 2 * NEAR
    assert len(set(blocks[:window])) > NEAR // 2, "several blocks are mixed"
    assert blocks.tolist() != sorted(blocks)


def test_blocks_without_items_are_passed_over() -> None:
    sizes = [0, 3, 0, 0, 4, 1, 0]
    assert sorted(items(list(StatelessBatches(blocked(sizes), 2, 0)))) == list(range(8))


def test_repeats_and_lengths_are_those_of_their_block() -> None:
    slots = Slots(
        [2, 3], lambda block: ((np.array([1, 2]), np.array([7, 8])), (np.array([3, 1, 1]), np.arange(3)))[block]
    )
    found, lengths = slots.items(np.arange(len(slots)))
    assert found.tolist() == [0, 1, 1, 2, 2, 2, 3, 4] and lengths.tolist() == [7, 8, 8, 0, 0, 0, 1, 2]


def test_the_order_of_a_billion_items_takes_no_memory() -> None:
    """Arrays over all items would be 8 GB each."""
    order = StatelessBatches(Slots([1 << 30]), 4, 0, rank=1, n_ranks=2)
    assert len(order) == 1 << 27
    tracemalloc.start()
    found = items([order.batch(k) for k in (0, 1, 123_456_789, len(order) - 1)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(found)) == 16 and max(found) > 1 << 28 and peak < 1 << 20


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
    order = order_of()
    loader = DataLoader(Echo(), batch_sampler=order, collate_fn=list)
    listener = Listener()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=3, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(listener, loader)
    assert [listener.seen[epoch] for epoch in range(3)] == [items(batches(epoch)) for epoch in range(3)]

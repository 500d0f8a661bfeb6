"""The order of training data, a pure function of (seed, epoch, rank, number of ranks): nothing to save or restore."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

BUCKET = 16  # batches whose items are sorted by length together, so that little is padded


class StatelessBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (item, draw): which item, and the number its random crop and augmentation derive from.

    An epoch visits every item once, but for those that would not fill a last batch. The ranks' batches are
    consecutive parts of the global batch, so one rank with a larger batch sees the same.

    Args:
        repeats: how many times each item is drawn per epoch; a long text gives many crops.
        batch_size: items per rank.
        lengths: of the items, to put like with like in a batch; None where they are all alike.
    """

    def __init__(
        self,
        repeats: Sequence[int],
        batch_size: int,
        seed: int,
        lengths: Sequence[int] | None = None,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        self.items = np.repeat(np.arange(len(repeats)), repeats)
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.batch_size, self.seed, self.rank, self.n_ranks = batch_size, seed, rank, n_ranks
        self.epoch = 0

    @property
    def sampler(self) -> StatelessBatches:
        """Itself: the Trainer tells the epoch to `loader.sampler` and to `loader.batch_sampler.sampler` only."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(len(self.items) // (self.batch_size * self.n_ranks), 1)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.items))
        draws = generator.integers(0, 1 << 62, len(self.items))[order]
        size = self.batch_size * self.n_ranks
        if len(order) < size:  # a data set smaller than a batch: every item as often as it takes, each time drawn anew
            order, draws = np.resize(order, size), generator.integers(0, 1 << 62, size)
        n = len(order) // size * size
        slots = np.arange(n)
        if self.lengths is not None:
            lengths = self.lengths[self.items[order]]
            chunks = [slots[i : i + BUCKET * size] for i in range(0, n, BUCKET * size)]
            slots = np.concatenate([chunk[np.argsort(lengths[chunk], kind="stable")] for chunk in chunks])
        batches = slots.reshape(-1, self.n_ranks, self.batch_size)
        if self.lengths is not None:
            batches = batches[generator.permutation(len(batches))]
        for batch in batches[:, self.rank]:
            yield [(int(self.items[order[slot]]), int(draws[slot])) for slot in batch]

"""The order of training data, a pure function of (seed, epoch, rank, number of ranks): nothing to save or restore.

Nothing here is as long as the data, either. Batch k of an epoch is computed from k alone, by a pseudo-random
permutation that needs no table, so a run can begin anywhere in the middle of an epoch. Items that lie in blocks (the
shards of a set that fits no memory, or no disk) are shuffled in two levels: the blocks, then the items of `NEAR` blocks
at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from math import isqrt

import numpy as np
from torch.utils.data import Sampler

BUCKET = 16  # batches whose items are sorted by length together, so that little is padded
NEAR = 8  # blocks whose items are shuffled together
ROUNDS = 8  # of the permutation
N_TABLES = 2 * NEAR  # blocks whose tables are kept

Drawn = tuple[np.ndarray, np.ndarray]
"""Of the n items of a block: (n,) how often each is drawn per epoch, and (n,) their lengths."""


class Slots:
    """What an epoch visits, each slot once: an item has as many slots as it is drawn times.

    Args:
        sizes: how many items each block has; those of a block lie together.
        drawn: repeats and lengths of a block's items, asked for whenever they are needed. None: every item is drawn
            once, and all are alike.
        ragged: whether the lengths differ, so that like should be put with like.
    """

    def __init__(self, sizes: Sequence[int], drawn: Callable[[int], Drawn] | None = None, ragged: bool = False) -> None:
        self._drawn, self.ragged = drawn, ragged
        self.first_items = _starts(sizes)
        self.first_slots = _starts(sizes if drawn is None else [int(drawn(b)[0].sum()) for b in range(len(sizes))])
        self._tables: OrderedDict[int, Drawn] = OrderedDict()

    @classmethod
    def of(cls, repeats: Sequence[int] | np.ndarray, lengths: Sequence[int] | np.ndarray | None = None) -> Slots:
        """Those of items that are all in memory.

        Args:
            repeats: how many times each item is drawn per epoch; a long text gives many crops.
            lengths: of the items, to put like with like in a batch; None where they are all alike.
        """
        both = np.asarray(repeats), np.asarray(repeats if lengths is None else lengths)
        return cls([len(repeats)], lambda block: both, ragged=lengths is not None)

    def __len__(self) -> int:
        return int(self.first_slots[-1])

    def items(self, slots: np.ndarray) -> Drawn:
        """The items of slots, and their lengths."""
        blocks = np.searchsorted(self.first_slots, slots, "right") - 1
        offsets = slots - self.first_slots[blocks]
        lengths = np.zeros(len(slots), dtype=np.int64)
        if self._drawn is not None:
            for block in np.unique(blocks):
                at = blocks == block
                ends, lengths_there = self._table(int(block))
                offsets[at] = np.searchsorted(ends, offsets[at], "right")
                lengths[at] = lengths_there[offsets[at]]
        return self.first_items[blocks] + offsets, lengths

    def _table(self, block: int) -> Drawn:
        """(n,) the slot after each item's last, counted in the block, and (n,) the lengths."""
        assert self._drawn is not None
        if block not in self._tables:
            repeats, lengths = self._drawn(block)
            self._tables[block] = np.cumsum(repeats), lengths
            if len(self._tables) > N_TABLES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(block)
        return self._tables[block]


class StatelessBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (item, draw): which item, and the number its random crop and augmentation derive from.

    An epoch visits every slot once, but for those that would not fill a last batch. The ranks' batches are
    consecutive parts of the global batch, so one rank with a larger batch sees the same.

    Args:
        slots: what an epoch visits.
        batch_size: items per rank.
    """

    def __init__(self, slots: Slots, batch_size: int, seed: int, rank: int = 0, n_ranks: int = 1) -> None:
        self.slots = slots
        self.batch_size, self.seed, self.rank, self.n_ranks = batch_size, seed, rank, n_ranks
        self.epoch, self.start = 0, 0
        self._blocks: tuple[int, np.ndarray, np.ndarray] | None = None
        self._bucket: tuple[tuple[int, int], np.ndarray, np.ndarray] | None = None

    @property
    def sampler(self) -> StatelessBatches:
        """Itself: the Trainer tells the epoch to `loader.sampler` and to `loader.batch_sampler.sampler` only."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch. Another epoch than the present one begins with its first batch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def begin(self, epoch: int, batch: int) -> None:
        """Go on in the middle of an epoch: the next iteration of that epoch begins with this batch."""
        self.epoch, self.start = epoch, batch

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return max(len(self.slots) // (self.batch_size * self.n_ranks), 1)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        for number in range(self.start, len(self)):
            yield self._batch(epoch, number)

    def batch(self, number: int) -> list[tuple[int, int]]:
        """One batch of the epoch, found without those before it."""
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of an epoch of {len(self)}")
        return self._batch(self.epoch, number)

    def _batch(self, epoch: int, number: int) -> list[tuple[int, int]]:
        bucket = number // BUCKET
        if self._bucket is None or self._bucket[0] != (epoch, bucket):
            self._bucket = (epoch, bucket), *self._sorted(epoch, bucket)
        _, items, draws = self._bucket
        at = number % BUCKET, self.rank
        return list(zip(items[at].tolist(), draws[at].tolist(), strict=True))

    def _sorted(self, epoch: int, bucket: int) -> Drawn:
        """(batches, ranks, batch_size) items and draws of some batches that follow each other."""
        size = self.batch_size * self.n_ranks
        first, last = bucket * BUCKET, min((bucket + 1) * BUCKET, len(self))
        positions = np.arange(first * size, last * size)
        # a data set smaller than a batch: every item as often as it takes, each time drawn anew
        items, lengths = self.slots.items(self._shuffled(epoch, positions % max(len(self.slots), 1)))
        draws = _mixed(positions.astype(np.uint64) + self._keys(epoch, 0, 1)) >> np.uint64(2)
        if self.slots.ragged:
            rows = np.argsort(lengths, kind="stable").reshape(-1, size)
            rows = rows[permuted(np.arange(len(rows)), len(rows), self._keys(epoch, 1, bucket))].reshape(-1)
            items, draws = items[rows], draws[rows]
        shape = (-1, self.n_ranks, self.batch_size)
        return items.reshape(shape), draws.reshape(shape)

    def _shuffled(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The slots at positions of the epoch."""
        if self._blocks is None or self._blocks[0] != epoch:
            n = len(self.slots.first_slots) - 1
            blocks = permuted(np.arange(n), n, self._keys(epoch, 2, 0))
            self._blocks = epoch, blocks, _starts(np.diff(self.slots.first_slots)[blocks])
        _, blocks, starts = self._blocks
        groups = np.append(starts[:-1:NEAR], starts[-1])  # where each group of blocks begins
        group = np.searchsorted(groups, positions, "right") - 1
        slots = np.empty_like(positions)
        for g in np.unique(group):
            at, begin, n = group == g, groups[g], int(groups[g + 1] - groups[g])
            found = begin + permuted(positions[at] - begin, n, self._keys(epoch, 3, int(g)))
            block = np.searchsorted(starts, found, "right") - 1
            slots[at] = self.slots.first_slots[blocks[block]] + found - starts[block]
        return slots

    def _keys(self, epoch: int, purpose: int, number: int) -> np.ndarray:
        """(ROUNDS,) the keys of one permutation."""
        n = 1 if purpose == 0 else ROUNDS
        return np.random.SeedSequence([self.seed, epoch, purpose, number]).generate_state(n, np.uint64)


def permuted(positions: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """Where a pseudo-random permutation of 0 .. n - 1 takes some of them, without a table.

    A generalised Feistel network on pairs (left, right), walked until it comes back below n (Black & Rogaway, "Ciphers
    with arbitrary finite domains", CT-RSA 2002). The pairs are hardly more than n, so that is mostly at once.

    Args:
        positions: (m,) integers in [0, n).
        keys: (ROUNDS,) uint64; other keys are another permutation.
    """
    if n <= 1:
        return positions
    width = isqrt(n - 1) + 1
    sizes = np.uint64(width), np.uint64(-(-n // width))
    found = positions.astype(np.uint64)
    walking = np.arange(len(found))
    while walking.size:
        left, right = found[walking] % sizes[0], found[walking] // sizes[0]
        for i, key in enumerate(keys):
            if i % 2:
                right = (right + _mixed(left + key) % sizes[1]) % sizes[1]
            else:
                left = (left + _mixed(right + key) % sizes[0]) % sizes[0]
        found[walking] = right * sizes[0] + left
        walking = walking[found[walking] >= n]
    return found.astype(np.int64)


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit integers that looks like chance: SplitMix64's finaliser (Steele et al., OOPSLA 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _starts(sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """(n + 1,) where each of n runs begins, and where the last ends."""
    return np.concatenate([[0], np.cumsum(np.asarray(sizes, dtype=np.int64))])

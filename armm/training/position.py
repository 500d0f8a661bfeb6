"""Where a run stands in its data, so that it can go on in the middle of an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from torch.utils.data import Sampler

from armm.training.order import StatelessBatches


class Position(NamedTuple):
    """The batch that comes next: its epoch, and its number there; from 0."""

    epoch: int
    batch: int


class FromPosition(Sampler[list[tuple[int, int]]]):
    """An order whose first pass begins at a position; what comes before it there is not loaded.

    Its length is that of a whole epoch, by which the Trainer counts.
    """

    def __init__(self, order: StatelessBatches, position: Position) -> None:
        self.order, self._first = order, position
        order.set_epoch(position.epoch)  # a loader with workers asks for batches before the Trainer tells the epoch

    @property
    def sampler(self) -> FromPosition:
        """Itself: the Trainer tells the epoch to `loader.sampler` and to `loader.batch_sampler.sampler` only."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        assert epoch >= self._first.epoch, f"epoch {epoch} was to begin with {self._first}"
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        skipped = self._first.batch if self.order.epoch == self._first.epoch else 0
        return islice(iter(self.order), skipped, None)


def settle(loop: dict[str, Any], n_per_epoch: float, global_step: int) -> None:
    """Have the Trainer's counts, wherever in a batch or a validation they stand, say that all of it is done.

    So there is one way to go on, whatever it was that a checkpoint was written at: with the batch that comes next.
    """
    if not math.isfinite(n_per_epoch):
        return
    n_batches = loop["epoch_loop.batch_progress"]["total"]["ready"]
    n_epochs, n_here = divmod(n_batches, int(n_per_epoch))
    begun = n_epochs + (n_here > 0)
    for part in ("total", "current"):
        epochs, batches = loop["epoch_progress"][part], loop["epoch_loop.batch_progress"][part]
        epochs |= {"ready": begun, "started": begun, "processed": n_epochs, "completed": n_epochs}
        batches |= dict.fromkeys(batches, n_batches if part == "total" else n_here)
        validated = loop["epoch_loop.val_loop.batch_progress"][part]
        validated |= dict.fromkeys(validated, 0)
    loop["epoch_loop.batch_progress"]["is_last_batch"] = False
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = global_step

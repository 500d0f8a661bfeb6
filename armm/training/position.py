"""Where a run stands in its data, so that it can go on in the middle of an epoch."""

from __future__ import annotations

import math
from typing import Any, NamedTuple


class Position(NamedTuple):
    """The batch that comes next: its epoch, and its number there; from 0."""

    epoch: int
    batch: int


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

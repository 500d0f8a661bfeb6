"""The learning rate as a function of how much of the run is done, by steps or by the clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import lightning as L
from lightning.pytorch.callbacks import Timer

from armm.errors import InputError

Shape = Literal["wsd", "cosine"]


def factor(progress: float, step: float, shape: Shape, warmup: float, decay: float, final: float) -> float:
    """The learning rate as a fraction of its peak.

    Args:
        progress: share of the run that is done, in [0, 1].
        step: share of the run that one step takes, so that the first one learns something.
        shape: `wsd` warms up, stays and falls linearly; `cosine` warms up and falls along half a cosine.
        warmup, decay: shares of the run. final: what is fallen to.
    """
    if shape == "wsd" and warmup + decay > 1:
        raise ValueError(f"warmup {warmup} and decay {decay} are more than the whole run")
    rise = (progress + step) / max(warmup, step) if step or warmup else 1.0
    if shape == "cosine":
        fallen = min(max((progress - warmup) / (1 - warmup), 0.0), 1.0) if warmup < 1 else 0.0
        fall = 0.5 * (1.0 + math.cos(math.pi * fallen))
    else:
        fall = (1.0 - progress) / decay if decay else 1.0
    fall = final + (1.0 - final) * max(0.0, min(1.0, fall))
    return max(0.0, min(1.0, rise, fall))


def progress_of(trainer: L.Trainer) -> Callable[[int], tuple[float, float]]:
    """By the number of steps done: the share of the run that is done, and the share of it that a step takes.

    A run ends with its steps (`max_steps`, `max_epochs`) or with its time (`max_time`), whichever comes first, so the
    greater share counts. Lightning's Timer keeps the time used so far in checkpoints: a run that was stopped and
    resumed decays as one that was not. Between processes the clock of the first one counts.

    Raises InputError: the run has no end.
    """
    n_steps = trainer.estimated_stepping_batches
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    timers = [timer for timer in timers if timer.time_remaining() is not None]
    if n_steps == float("inf") and not timers:
        raise InputError(
            "the run has no end to plan the learning rate for; set trainer.max_steps, trainer.max_epochs or max_time"
        )

    def at(step: int) -> tuple[float, float]:
        by_steps = (step / n_steps, 1 / n_steps) if 0 < n_steps < float("inf") else (0.0, 0.0)
        if n_steps == 0:
            by_steps = (0.0, 1.0)
        shares = [by_steps]
        for timer in timers:
            used, left = timer.time_elapsed(), timer.time_remaining()
            assert left is not None
            if trainer.world_size > 1:
                used, left = trainer.strategy.broadcast((used, left))
            done = used / max(used + left, 1e-9)
            shares.append((done, done / step if step and done else 1e-4))  # how long a step takes is not known at first
        return max(min(done, 1.0) for done, _ in shares), max(own for _, own in shares)

    return at

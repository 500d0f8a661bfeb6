"""When checkpoints are written: every few minutes, where validation was best, at the end, and when the run is stopped.

Always between two optimiser steps: a signal waits for the end of its step; an error that comes before a step has
touched the weights is saved as of the end of the step before.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Checkpoint

from armm.errors import InputError
from armm.training.checkpoints import MANIFEST, Saved, place_for, remove, seal, sync_folder, tidy
from armm.training.module import GenerativeModule


@dataclass(frozen=True)
class Checkpointing:
    """When checkpoints are written, into `checkpoints/` of the run.

    Attributes:
        minutes: between two; also at the end, on Ctrl-C and SIGTERM, and where validation was best.
        keep: how many of the newest stay; the best stays too.
    """

    minutes: float = 5.0
    keep: int = 2

    def __post_init__(self) -> None:
        if not self.minutes >= 0 or self.keep < 1:
            raise InputError(f"checkpoints: minutes is {self.minutes}, keep {self.keep}; at least 0 and 1 are possible")


class Checkpoints(Checkpoint):
    """Writes checkpoints; on a signal it writes one after the step, then ends the run.

    Args:
        run: the run's folder.
        first: the checkpoint that the run goes on with.
    """

    def __init__(self, run: Path, config: Checkpointing, first: Saved | None = None) -> None:
        self.run, self.config, self.first = run, config, first
        self._damaged = set(first.damaged if first else ())  # until a new one is whole
        self.signal: int | None = None
        """The signal that ends the run, once one has come."""
        self.least_bits = math.inf
        self._saved_step = -1
        self._step = -1  # optimiser steps at the end of the latest batch that ended with one
        self._n_batches = (0, 0)  # in all and in this epoch, until then
        self._at = time.monotonic()
        self._is_due = False
        self._asks_requeue = False
        self._requeue: Callable[[], None] | None = None

    # --------------------------------------------------------------- when

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raises InputError: the processes would go on with different checkpoints; only the first reads all of them."""
        own = self.first.path.name if self.first else "none"
        self.run, first = trainer.strategy.broadcast((self.run, own))
        if first != own:
            raise InputError(
                f"checkpoint to go on with: the first process takes {first}, this one {own}; remove what is damaged"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._handle_signals(trainer)
        self._saved_step, self._at = trainer.global_step, time.monotonic()
        self._mark(trainer, pl_module)
        if trainer.is_global_zero:
            tidy(self.run, self.config.keep, self._damaged)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, GenerativeModule)
        is_late = time.monotonic() - self._at >= 60 * self.config.minutes
        asked = is_late and trainer.is_global_zero, self.signal is not None, self._asks_requeue
        pl_module.requests = [float(request) for request in asked]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # gradients are being accumulated
        assert isinstance(pl_module, GenerativeModule)
        self._mark(trainer, pl_module)
        wants_save, wants_stop, wants_requeue = pl_module.granted
        if trainer.world_size == 1:  # no need to wait for what all ranks say
            wants_stop, wants_requeue = self.signal is not None, self._asks_requeue
        if wants_requeue and self._requeue:
            requeue, self._requeue, self._asks_requeue = self._requeue, None, False
            requeue()
        gives_up = pl_module.step_guard.gives_up(trainer.global_step)
        is_last = trainer.should_stop or trainer.global_step == trainer.max_steps
        self._is_due = bool(wants_save or is_last)
        if wants_stop or gives_up or (self._is_due and not validation_follows(trainer)):
            self.save(trainer)
        if wants_stop:
            raise KeyboardInterrupt

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._handle_signals(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._stop_scoring(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, GenerativeModule)
        bits = pl_module.validation_bits
        is_best, self.least_bits = bits < self.least_bits, min(bits, self.least_bits)
        if is_best or self._is_due:
            self.save(trainer, is_best)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._handle_signals(trainer)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._stop_scoring(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self.save(trainer, must=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Data that cannot be read, a loader that died, no memory: go back to the end of the latest step."""
        assert isinstance(pl_module, GenerativeModule)
        was_asked = isinstance(exception, KeyboardInterrupt) and self.signal is not None
        if trainer.state.fn != "fit" or was_asked or trainer.world_size > 1 or not pl_module.is_between_steps:
            return
        if self._step < 0 or trainer.global_step == self._saved_step:
            return
        progress = trainer.fit_loop.epoch_loop.batch_progress
        progress.total.ready, progress.current.ready = self._n_batches
        optimizer = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer
        optimizer.step.total.ready = optimizer.step.total.completed
        pl_module.forget_unfinished_step()
        for is_last in (False, True):
            try:
                return self.save(trainer)
            except Exception as error:  # torch tells of a loader process that died wherever it comes to know of it
                if is_last:  # the device may be gone; what ended the run is what has to be told
                    print(f"\nno checkpoint could be written: {error!r}", file=sys.stderr)

    def _mark(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the end of a step."""
        assert isinstance(pl_module, GenerativeModule)
        progress = trainer.fit_loop.epoch_loop.batch_progress
        self._step, self._n_batches = trainer.global_step, (progress.total.ready, progress.current.ready)
        pl_module.end_step()

    def _stop_scoring(self, trainer: L.Trainer) -> None:
        """End the run in the middle of scoring; on a single rank, since others may be elsewhere."""
        if self.signal is None or trainer.world_size > 1:
            return
        if trainer.state.fn == "fit" and trainer.global_step != self._saved_step:
            self.save(trainer)
        raise KeyboardInterrupt

    # ---------------------------------------------------------------- how

    def save(self, trainer: L.Trainer, is_best: bool = False, must: bool = False) -> None:
        """Write a checkpoint, on all ranks; where that fails, say so and go on with the older ones.

        Raises InputError: it failed, and it `must` be.
        """
        path = place_for(self.run, trainer.global_step, is_best)
        beside = path.with_name(f".{path.name}")
        try:
            try:
                trainer.save_checkpoint(beside)
            except OSError:
                trainer.strategy.barrier("Trainer.save_checkpoint")  # where the other ranks wait
                raise
            if trainer.is_global_zero:
                if beside.is_dir():
                    if not (beside / MANIFEST).exists():
                        seal(beside, trainer.global_step, trainer.current_epoch)
                    remove(path)
                beside.replace(path)
                sync_folder(path.parent)
                for logger in trainer.loggers:
                    logger.save()
                for damaged in self._damaged - {path}:
                    remove(damaged)
                self._damaged.clear()
                tidy(self.run, self.config.keep)
        except OSError as error:
            remove(beside)
            said = f"{path} could not be written: {error.strerror or error}; check the place and its space"
            if must:
                raise InputError(said) from error
            print(f"\n{said}; the checkpoints before it stay", file=sys.stderr)
        else:
            self._saved_step = trainer.global_step
        self._at, self._is_due = time.monotonic(), False

    def state_dict(self) -> dict[str, Any]:
        return {"least_bits": self.least_bits}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.least_bits = state_dict["least_bits"]

    # ------------------------------------------------------------ signals

    def _handle_signals(self, trainer: L.Trainer) -> None:
        """From now on, and until the Trainer puts back what was there before, have signals wait for the step to end."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            number = environment.requeue_signal or signal.SIGUSR1
            handler = signal.getsignal(number)  # Lightning's: saves, and has SLURM start the job again
            if callable(handler):
                self._requeue = lambda: handler(number, None)
                signal.signal(number, self._on_requeue_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # twice: at once
        self.signal = number

    def _on_requeue_signal(self, number: int, frame: FrameType | None) -> None:
        self._asks_requeue = True


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether the Trainer validates after this batch."""
    loop = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]

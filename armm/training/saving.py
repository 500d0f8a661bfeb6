"""When checkpoints are written: every few minutes, where validation was best, at the end, and before a signal ends it.

Between two optimiser steps, always: what happens in the middle of one is not saved but waited for.
"""

from __future__ import annotations

import copy
import math
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment

from armm.errors import InputError
from armm.training.checkpoints import place_for, remove, seal, sync_folder, tidy
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
            raise InputError(
                f"checkpoints: minutes is {self.minutes}, keep {self.keep}; they must be at least 0 and 1"
            )


class Checkpoints(Checkpoint):
    """Writes checkpoints; on a signal it writes one after the step, then ends the run.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path, config: Checkpointing) -> None:
        self.run, self.config = run, config
        self.signal: int | None = None
        """The signal that ends the run, once one has come."""
        self.least_bits = math.inf
        self._saved_step = -1
        self._step = -1  # the optimiser step at the end of the latest batch
        self._at = time.monotonic()
        self._is_due = False
        self._is_clean = False  # between two steps
        self._before_validation: dict[str, Any] | None = None
        self._deferred: list[tuple[int, Any]] = []  # signals whose own handlers wait for the end of a step

    # --------------------------------------------------------------- when

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.run = Path(trainer.strategy.broadcast(str(self.run)))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._handle_signals(trainer)
        self._step = self._saved_step = trainer.global_step
        self._at, self._is_clean = time.monotonic(), True
        if trainer.is_global_zero:
            tidy(self.run, self.config.keep)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._is_clean = False
        assert isinstance(pl_module, GenerativeModule)
        is_late = time.monotonic() - self._at >= 60 * self.config.minutes
        pl_module.requests = [float(is_late and trainer.is_global_zero), float(self.signal is not None)]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # gradients are being accumulated
        self._step, self._is_clean = trainer.global_step, True
        assert isinstance(pl_module, GenerativeModule)
        wants_save, wants_stop = pl_module.granted
        if trainer.world_size == 1:  # no need to wait for what all ranks say
            wants_stop = float(self.signal is not None)
        for number, handler in self._deferred:
            handler(number, None)
        self._deferred = []
        is_last = trainer.should_stop or trainer.global_step == trainer.max_steps
        gives_up = pl_module.step_guard.gives_up(trainer.global_step)
        self._is_due = bool(wants_save or wants_stop or is_last or gives_up)
        follows = validation_follows(trainer)
        self._before_validation = copy.deepcopy(loops_of(trainer)) if follows else None
        if wants_stop or gives_up or (self._is_due and not follows):
            self.save(trainer, pl_module)
        if wants_stop:
            raise KeyboardInterrupt

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._stop_here(trainer, pl_module)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._stop_here(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._handle_signals(trainer)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._handle_signals(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, GenerativeModule)
        self._before_validation = None
        bits = pl_module.validation_bits
        is_best, self.least_bits = bits < self.least_bits, min(bits, self.least_bits)
        if is_best or self._is_due:
            self.save(trainer, pl_module, is_best)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self.save(trainer, pl_module, must=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        is_between = self._is_clean and trainer.state.fn == "fit" and self._step == trainer.global_step
        if is_between and trainer.world_size == 1 and trainer.global_step != self._saved_step:
            self.save(trainer, pl_module)  # such as when data could not be read

    def _stop_here(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the run in the middle of scoring; on a single rank, since others may be further."""
        if self.signal is None or trainer.world_size > 1:
            return
        if trainer.state.fn == "fit" and trainer.global_step != self._saved_step:
            self.save(trainer, pl_module)
        raise KeyboardInterrupt

    # ---------------------------------------------------------------- how

    def save(
        self, trainer: L.Trainer, pl_module: L.LightningModule, is_best: bool = False, must: bool = False
    ) -> None:
        """Write a checkpoint, on all ranks; when that fails, say so and go on with the older ones.

        Raises InputError: that failed, and it `must` be.
        """
        path = place_for(self.run, trainer.global_step, is_best)
        beside = path.with_name(f".{path.name}")
        try:
            try:
                trainer.save_checkpoint(beside)
            except OSError:
                trainer.strategy.barrier("Trainer.save_checkpoint")  # where the other ranks are
                raise
            if trainer.is_global_zero:
                if beside.is_dir():
                    seal(beside, trainer.global_step, trainer.current_epoch)
                    remove(path)
                beside.replace(path)
                sync_folder(path.parent)
                tidy(self.run, self.config.keep)
                for logger in trainer.loggers:
                    logger.save()
        except OSError as error:
            remove(beside)
            said = f"{path} could not be written: {error.strerror or error}; check the place and its space"
            if must:
                raise InputError(said) from error
            print(f"\n{said}; training goes on", file=sys.stderr)
        else:
            self._saved_step = trainer.global_step
        self._at, self._is_due = time.monotonic(), False

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._before_validation is not None and trainer.validating:
            # a validation that was broken off would be taken for one to go on with
            checkpoint["loops"]["fit_loop"] = self._before_validation

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
                signal.signal(number, lambda number, _: self._deferred.append((number, handler)))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # twice: at once
        self.signal = number


def loops_of(trainer: L.Trainer) -> dict[str, Any]:
    """The Trainer's counts of epochs, batches and steps."""
    return trainer.fit_loop.state_dict()


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether the Trainer validates after this batch."""
    loop = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]

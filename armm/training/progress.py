"""One progress bar over all steps of a run, with the loss and the latest validation."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class StepProgress(ProgressBar):
    """`training 300/1200 [00:12<00:37] nats 0.87, val bits_per_dim 1.92`, and a bar each for validation and test."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Any] | None = None
        self._enabled = True
        self._notes: dict[str, str] = {}

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def _open(self, what: str, total: float) -> tqdm[Any]:
        n = int(total) if total not in (float("inf"), -1) else None
        return tqdm(
            total=n,
            desc=what,
            file=sys.stderr,
            disable=not self._enabled,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 15,
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bar = self._open("training", trainer.estimated_stepping_batches)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        bar = self._bar
        if bar is None:
            return
        bar.n = trainer.global_step
        if "train/nats" in trainer.callback_metrics and (trainer.global_step % 10 == 0 or bar.n == bar.total):
            self._notes["nats"] = f"{float(trainer.callback_metrics['train/nats']):.3f}"
            bar.set_postfix(self._notes, refresh=False)
        bar.update(0)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for key, value in trainer.callback_metrics.items():
            split, _, rest = key.partition("/")
            if split == "val" and "bits" in rest and not rest.startswith("structure"):
                self._notes[f"val {rest.rpartition('/')[2]}"] = f"{float(value):.4f}"

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bar = self._open("test", sum(trainer.num_test_batches))

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._bar is not None:
            self._bar.update(1)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
            self._bar = None

"""One of two processes that train together: `two_ranks.py FOLDER`, started by test_resume.py."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from laws.tiny_runs import Watched, train

TWO: dict[str, Any] = {"devices": 2, "strategy": "ddp"}


class Killed(BaseException):
    """The end of a process."""


class KillBefore(L.Callback):
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 4:
            raise Killed


def resume(folder: Path) -> None:
    """Whole, stopped and resumed, and with another seed; batches of one document, so one rank may lack a modality."""
    options: dict[str, Any] = {**TWO, "batch_size": 1, "accumulate": 2, "n_steps": 7}
    print("whole", train("mixed", folder / "whole", **options).digest())
    with contextlib.suppress(Killed):
        train("mixed", folder / "stopped", callbacks=[KillBefore()], workers=2, **options)
    resumed = train("mixed", folder / "stopped", seed=3, workers=2, **options)
    assert min(resumed.losses) > 4, resumed.losses
    print("resumed", resumed.digest())
    print("other", train("mixed", folder / "other", seed=3, **options).digest())


def gradients(folder: Path) -> None:
    """Those of the first step, for who started this to look at."""
    options: dict[str, Any] = {**TWO, "batch_size": 1, "accumulate": 2, "n_steps": 1, "dropout": 0.0}
    train("mixed", folder / "two", module_class=Watched, **options)
    (folder / f"noise{os.environ['LOCAL_RANK']}").write_text(str(torch.initial_seed()))
    torch.save(Watched.gradients, folder / f"gradients{os.environ['LOCAL_RANK']}.pt")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    resume(Path(sys.argv[1]))
    gradients(Path(sys.argv[1]))

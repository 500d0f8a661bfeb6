"""One of several processes that train one model: `many_ranks.py FOLDER`, started by test_many_ranks.py."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from laws.tiny_runs import Curve, train

from armm.backbones import Transformer
from armm.training import Optimization, Sharded

ADAMW = Optimization(warmup=0.2, weight_decay=0.1, muon_lr=0.0, lr=1e-2, ema=0.7)
MUON = replace(ADAMW, muon_lr=0.02)
# everything that is cut in its own way: grouped heads, gates, biases, value embeddings and their scale, a number
BACKBONE = Transformer(
    width=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    mlp="swiglu",
    mlp_width=24,
    bias=True,
    value_embeddings=True,
    residual_scalars=True,
)
N_STEPS, STOP = 4, 2  # of two batches, one and two: an epoch has three
N_DOCUMENTS = 4  # of a step, over all processes and accumulated batches


class Killed(BaseException):
    """The end of a process."""


class KillAt(L.Callback):
    """Ends everything after STOP steps."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == STOP:
            raise Killed


def curve(folder: Path, optimization: Optimization, n_data: int, **options: Any) -> dict[str, Any]:
    """What a run, or the rest of one, comes to.

    n_data: processes that take different data.
    """
    result = train(
        "mixed",
        folder,
        batch_size=N_DOCUMENTS // 2 // n_data,
        accumulate=2,
        n_steps=N_STEPS,
        dropout=0.0,
        module_class=Curve,
        optimization=optimization,
        backbone=BACKBONE,
        val_check_interval=6,
        **options,
    )
    return {
        "steps": Curve.steps,
        "weights": Curve.weights,
        "validations": result.validations,
        "digest": result.digest().split()[0],
    }


def all_runs(folder: Path) -> dict[str, Any]:
    """Every way to train with all processes; what one process left in `one` is gone on with."""
    n = int(os.environ["WORLD_SIZE"])
    ways: dict[str, tuple[int, Callable[[], Any]]] = {
        "ddp": (n, lambda: "ddp"),
        "fsdp": (n, Sharded),
        "tensor": (n // 2, lambda: Sharded(tensor=2)),
    }
    found: dict[str, Any] = {}
    for name, (n_data, strategy) in ways.items():
        for rule, optimization in (("adamw", ADAMW), ("muon", MUON)):
            found[f"{name} {rule}"] = curve(folder / name / rule, optimization, n_data, devices=n, strategy=strategy())
    with contextlib.suppress(Killed):
        curve(folder / "stopped", MUON, n, callbacks=[KillAt()], devices=n, strategy=Sharded())
    if not int(os.environ["LOCAL_RANK"]):
        shutil.copytree(folder / "stopped", folder / "left")  # for one process to go on with
    torch.distributed.barrier()
    found["resumed"] = curve(folder / "stopped", MUON, n, devices=n, strategy=Sharded())
    for name in ("fsdp", "tensor"):
        n_data, strategy = ways[name]
        found[f"one, then {name}"] = curve(folder / "one" / name, MUON, n_data, devices=n, strategy=strategy())
    return found


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    place = Path(sys.argv[1])
    torch.save(all_runs(place), place / f"found{os.environ['LOCAL_RANK']}.pt")

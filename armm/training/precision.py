"""Which precision to train in: measured, since it depends on the processor and on how large the matrices are.

bfloat16 products are up to twice as fast (AVX-512) or seven times (AMX), but inputs have to be rounded first, and a
small model is bound by other things. Reported bits are always those of float32.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Literal, Union

import torch
from jsonargparse import ArgumentParser

from armm.errors import InputError
from armm.sequence import Batch
from armm.training.data import DataModule
from armm.training.module import GenerativeModule

Precision = Literal["32-true", "bf16-mixed"]
AUTO = "auto"

REPETITIONS = 3
MARGIN = 1.15  # so much faster bfloat16 must be: what is nearly as fast should not depend on the weather
WIDE = 256  # of a backbone, from where on bfloat16 is taken unmeasured


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why, in words."""

    precision: Precision
    reason: str


def choose(module: GenerativeModule, data: DataModule, accelerator: str, alone: bool = True) -> Choice:
    """The faster precision for a module's training steps on its data.

    Args:
        accelerator: as the Trainer takes it. alone: there is one process; several must not choose differently, so
            they go by the backbone's width.
    """
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if not on_gpu and accelerator not in ("auto", "cpu"):
        return Choice("32-true", f"the accelerator {accelerator} was not measured")
    if not multiplies_bfloat16(on_gpu):
        return Choice("32-true", "the device does not multiply bfloat16")
    width = module.backbone_config.width
    if not alone:
        wide = width >= WIDE
        return Choice("bf16-mixed" if wide else "32-true", f"several processes, width {width}")
    seconds = measure(module, data, "cuda" if on_gpu else "cpu")
    faster = seconds["32-true"] > MARGIN * seconds["bf16-mixed"]
    told = ", ".join(f"{name} {1000 * own:.1f} ms" for name, own in seconds.items())
    return Choice("bf16-mixed" if faster else "32-true", f"forward and backward of a batch: {told}")


def multiplies_bfloat16(on_gpu: bool) -> bool:
    """Whether the device has instructions for it."""
    return torch.cuda.is_bf16_supported(False) if on_gpu else torch.ops.mkldnn._is_mkldnn_bf16_supported()


def measure(module: GenerativeModule, data: DataModule, device: str) -> dict[Precision, float]:
    """Seconds of a batch's loss and gradient in each precision; the weights stay as they are."""
    module.prepare(data)
    model = module.model
    where = model.begin.device
    model.to(device).train()
    times: dict[Precision, list[float]] = {"32-true": [], "bf16-mixed": []}
    try:
        with torch.random.fork_rng():  # dropout draws, and so does a loader
            batch = one_batch(data).to(device)
            for repetition in range(1 + REPETITIONS):  # the first warms up
                for name, own in times.items():
                    begin = perf_counter()
                    with torch.autocast(device, torch.bfloat16, enabled=name == "bf16-mixed"):
                        total, _ = module.loss_sum(batch, model.log_prob(batch))
                    if total.requires_grad:
                        total.backward()
                    if device == "cuda":
                        torch.cuda.synchronize()
                    if repetition:
                        own.append(perf_counter() - begin)
                    model.zero_grad(set_to_none=True)
    except torch.OutOfMemoryError:
        raise InputError(
            "a batch does not fit into the device's memory; lower data.batch_size or data.crop, or set "
            "trainer.precision: bf16-mixed"
        ) from None
    finally:
        model.zero_grad(set_to_none=True)
        model.to(where)
    return {name: median(own) for name, own in times.items()}


def one_batch(data: DataModule) -> Batch:
    """Loaded here: it is not worth starting processes for."""
    workers, data.num_workers = data.num_workers, 0
    try:
        return next(iter(data.train_dataloader()))[0]
    finally:
        data.num_workers = workers


def several_processes(trainer: dict[str, Any]) -> bool:
    """Whether the Trainer's options, or whoever started this process, ask for more than one."""
    devices, nodes = trainer.get("devices"), trainer.get("num_nodes") or 1
    n_devices = len(devices) if isinstance(devices, list) else devices
    many = n_devices not in (None, 1, "1", "auto") or (n_devices in (None, "auto") and torch.cuda.device_count() > 1)
    return many or nodes > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1


def allow_auto(parser: ArgumentParser) -> None:
    """Let `trainer.precision` be `auto`, which Lightning does not know, in recipes and on the command line."""
    (action,) = (action for action in parser._actions if action.dest == "trainer.precision")
    action._typehint = Union[Literal["auto"], action._typehint]  # type: ignore[attr-defined]  # noqa: UP007

"""How fast a run is: throughput, share of peak arithmetic, waiting for data, memory; and bits against time.

Nothing here makes a step wait for a GPU: clocks are read at every step, devices only where something is logged.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from armm.sequence import Batch
from armm.training.module import GenerativeModule
from armm.training.ranks import data_rank

MOST_WAITING = 0.02  # of the time, for data
ENOUGH_STEPS = 100
FETCH = "train_dataloader_next"  # how Lightning names the fetching of a batch
BACKWARD = 3  # a step's arithmetic as a multiple of the forward pass's: gradients of inputs and of weights


class FetchTimer(PassThroughProfiler):
    """Seconds that the training loop waited for its next batch; Lightning's own measurements are not made."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._began: float | None = None

    def start(self, action_name: str) -> None:
        if action_name.endswith(FETCH):
            self._began = perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith(FETCH) and self._began is not None:
            self.seconds += perf_counter() - self._began
            self._began = None


@dataclass
class Counts:
    """What passed since some moment; of this process.

    Attributes:
        seconds: in training steps and between them, validation left out.
        waiting: of those, for data.
    """

    steps: int = 0
    symbols: int = 0
    units: int = 0
    seconds: float = 0.0
    waiting: float = 0.0

    def since(self, before: Counts) -> Counts:
        now, then = asdict(self), asdict(before)
        return Counts(**{key: now[key] - then[key] for key in now})


class SpeedMonitor(L.Callback):
    """Logs how fast training is, every `log_every_n_steps` steps, and keeps the figures for `metrics.json`.

    Attributes:
        history: at each validation: step, seconds so far, and the scores.
    """

    def __init__(self) -> None:
        self.total = Counts()
        self.history: list[dict[str, Any]] = []
        self.flops_per_unit = 0.0
        self.peak_flops = 0.0
        self._first: Counts | None = None  # the first step is left out: it allocates, and compiles
        self._logged = Counts()
        self._clock: float | None = None
        self._waited = 0.0
        self._seen: Tensor | None = None  # symbols and units since `total` was brought up to date, on the device

    # ------------------------------------------------------------------- time

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, GenerativeModule)
        if not self.peak_flops:
            half = "bf16" in str(trainer.precision) or "16" in str(trainer.precision)
            self.peak_flops = peak_flops(pl_module.device, torch.bfloat16 if half else torch.float32)
        self._waited = waited(trainer)
        self._clock = perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.flops_per_unit:
            assert isinstance(pl_module, GenerativeModule)
            n_sharing = trainer.world_size // data_rank(trainer).n_ranks  # a batch's work
            self.flops_per_unit = flops_per_unit(pl_module, batch[0]) / n_sharing
            self._clock = perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for segment in batch[0].segments.values():
            seen = torch.stack([segment.known.sum(), segment.n_units.sum()])
            self._seen = seen if self._seen is None else self._seen + seen
        first = self._first is None
        stepped = trainer.global_step != self.total.steps
        if first or (stepped and trainer.global_step % trainer.log_every_n_steps == 0):  # type: ignore[attr-defined]
            self._bring_up_to_date(trainer)
            if self._first is None:
                self._first = self._logged = replace(self.total)
            else:
                self._log(trainer, self.total.since(self._logged))
                self._logged = replace(self.total)

    def _bring_up_to_date(self, trainer: L.Trainer) -> None:
        if self._seen is not None:
            n_symbols, n_units = self._seen.tolist()  # a GPU is waited for here
            self.total.symbols, self.total.units = self.total.symbols + n_symbols, self.total.units + n_units
            self._seen = None
        self.total.steps = trainer.global_step
        self._tick(trainer)

    def _tick(self, trainer: L.Trainer) -> None:
        now, waiting = perf_counter(), waited(trainer)
        if self._clock is not None:
            self.total.seconds += now - self._clock
            self.total.waiting += waiting - self._waited
        self._clock, self._waited = now, waiting

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._clock is not None:
            self._bring_up_to_date(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._clock is not None:
            self._clock, self._waited = perf_counter(), waited(trainer)
        if trainer.sanity_checking or not isinstance(pl_module, GenerativeModule) or trainer.state.fn != "fit":
            return
        scores = pl_module.metrics["val"]
        self.history.append({"step": trainer.global_step, "seconds": round(self.total.seconds, 3), "val": scores})
        for board in boards(trainer):
            by_second = {f"val_by_second/{name}/{key}": v for name, own in scores.items() for key, v in own.items()}
            board.log_metrics(by_second, round(self.total.seconds))  # TensorBoard's steps are whole numbers

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._clock is not None:
            self._bring_up_to_date(trainer)
        self._clock = None

    # ---------------------------------------------------------------- figures

    def figures(self, counts: Counts) -> dict[str, float]:
        """Throughput of a stretch of training; of this process."""
        seconds = max(counts.seconds, 1e-9)
        told = {
            "steps_per_second": counts.steps / seconds,
            "symbols_per_second": counts.symbols / seconds,
            "units_per_second": counts.units / seconds,
            "waiting_for_data": counts.waiting / seconds,
        }
        if self.flops_per_unit and self.peak_flops:
            flops = self.flops_per_unit * told["units_per_second"]
            told |= {"tflops": flops / 1e12, "share_of_peak": flops / self.peak_flops}
        return told

    def summary(self) -> dict[str, Any]:
        """For `metrics.json`: of all steps but the first."""
        counts = self.total.since(self._first or self.total)
        if counts.steps <= 0 or counts.seconds <= 0:
            return {}
        told = self.figures(counts) | {
            "peak_tflops": self.peak_flops / 1e12,
            "flops_per_unit": self.flops_per_unit,
            "peak_memory_bytes": float(peak_memory()),
        }
        return {key: float(f"{value:.5g}") for key, value in told.items()}

    def complaint(self) -> str | None:
        """What to say of a run that waits for its data; nothing of one that hardly does, or is too short to tell."""
        counts = self.total.since(self._first or self.total)
        share = counts.waiting / max(counts.seconds, 1e-9)
        if counts.steps < ENOUGH_STEPS or share <= MOST_WAITING:
            return None
        return (
            f"{share:.1%} of the time was spent waiting for data; where a core is free, data.num_workers: 1 loads it "
            "beside the training"
        )

    def _log(self, trainer: L.Trainer, counts: Counts) -> None:
        figures = self.figures(counts) | {"seconds": self.total.seconds, "peak_memory_gb": peak_memory() / 1e9}
        for logger in trainer.loggers:
            logger.log_metrics({f"speed/{key}": value for key, value in figures.items()}, trainer.global_step)

    # ------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {"total": asdict(self.total), "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total = Counts(**state_dict["total"])
        self._logged = Counts(**state_dict["total"])
        self.history = list(state_dict["history"])


def boards(trainer: L.Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def waited(trainer: L.Trainer) -> float:
    """Seconds waited for data so far; 0 where another profiler was asked for."""
    profiler = trainer.profiler  # type: ignore[attr-defined]
    return profiler.seconds if isinstance(profiler, FetchTimer) else 0.0


def flops_per_unit(module: GenerativeModule, batch: Batch) -> float:
    """Arithmetic of a training step for each unit of a batch, counted in one more forward pass.

    Products and convolutions, as the model needs them: what activation checkpoints compute anew does not count.
    """
    with unchanged_training_mode(module), torch.no_grad(), torch.random.fork_rng():
        counter = FlopCounterMode(display=False, custom_mapping={FLASH_ON_CPU: flash_flops})
        with counter:
            module.score(batch)
    n_units = sum(int(segment.n_units.sum()) for segment in batch.segments.values())
    return BACKWARD * counter.get_total_flops() / max(n_units, 1)


@contextmanager
def unchanged_training_mode(module: torch.nn.Module) -> Iterator[None]:
    was = module.training
    module.eval()  # no dropout: the same arithmetic
    try:
        yield
    finally:
        module.train(was)


FLASH_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def flash_flops(
    query: tuple[int, ...],
    key: tuple[int, ...],
    value: tuple[int, ...],
    *rest: Any,
    out_shape: Any = None,
    **named: Any,
) -> int:
    """Of (B, H, N, E) queries and (B, H, S, E) keys and values: two products, counted whole as torch does."""
    b, h, n, e = query
    return 2 * b * h * n * key[-2] * (e + value[-1])


def peak_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Arithmetic per second of the largest product we can hope for: measured, the best of several."""
    size = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, begin = 0.0, perf_counter()
    with torch.autocast(device.type, enabled=False):
        (a @ b)[0, 0].item()  # warm
        while perf_counter() - begin < seconds or not best:
            start = perf_counter()
            (a @ b)[0, 0].item()
            best = max(best, 2 * size**3 / (perf_counter() - start))
    return best


def peak_memory() -> int:
    """Bytes: of the GPU's memory where there is one in use, else resident."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

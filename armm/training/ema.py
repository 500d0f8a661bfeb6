"""An exponential moving average of the weights: evaluated and kept, while training goes on from the weights themselves.

Polyak and Juditsky 1992. Lightning's own callback puts the training weights back before anyone can write a bundle.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from armm.errors import InputError
from armm.training.guard import StepGuard


class EMA(L.Callback):
    """Averages a module's parameters after each optimiser step, and lends the average to evaluation.

    Args:
        decay: of the average. The first steps count more: the n-th has at most the decay (1 + n) / (10 + n), so that
            a short run is not an average of its beginning.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.n_updates = torch.zeros((), dtype=torch.int64)
        self.average: dict[str, Tensor] = {}
        self.lent = False  # whether the module holds the average, and `average` the weights
        self._step = -1  # of the latest update

    # ---------------------------------------------------------------- averaging

    def start(self, module: nn.Module) -> None:
        """Begin with the weights as they are; an average that was loaded goes on.

        Raises InputError: the parameters are sharded.
        """
        if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
            raise InputError(
                "model.optimization.ema averages whole weights, those of a sharded model are not; set it to null"
            )
        current = {name: p.detach() for name, p in module.named_parameters()}
        if not self.average:
            self.average = {name: p.clone() for name, p in current.items()}
        self.average = {name: own.to(current[name]) for name, own in self.average.items()}

    def update(self, module: nn.Module, good: Tensor) -> None:
        """Take one step's weights in, unless the step was skipped.

        Args:
            good: () bool, on the module's device, which is not waited for.
        """
        if good.device.type == "cpu" and not good:
            return
        n = self.n_updates = self.n_updates.to(good.device) + good
        weight = torch.where(good, 1 - torch.clamp((1 + n) / (10 + n), max=self.decay), 0.0)
        current = dict(module.named_parameters())
        with torch.no_grad():
            pairs = list(self.average.values()), [current[name] for name in self.average]
            torch._foreach_lerp_(*pairs, weight)  # type: ignore[attr-defined]

    def swap(self, module: nn.Module) -> None:
        """Exchange the module's weights and the average."""
        self.lent = not self.lent
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                kept = parameter.clone()
                parameter.copy_(self.average[name])
                self.average[name].copy_(kept)

    @contextmanager
    def lending(self, module: nn.Module) -> Iterator[None]:
        """The module holds the average inside."""
        swaps = bool(self.average) and not self.lent
        if swaps:
            self.swap(module)
        try:
            yield
        finally:
            if swaps:
                self.swap(module)

    # -------------------------------------------------------------------- hooks

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start(pl_module)
        self._give_back(pl_module)  # a checkpoint may have been written during a validation
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._step:  # batches may be accumulated
            self._step = trainer.global_step
            guard: StepGuard = pl_module.step_guard  # type: ignore[assignment]
            self.update(pl_module, guard.good)

    def _lend(self, module: L.LightningModule) -> None:
        if self.average and not self.lent:
            self.swap(module)

    def _give_back(self, module: L.LightningModule) -> None:
        if self.lent:
            self.swap(module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._lend(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._give_back(pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._lend(pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._give_back(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._give_back(pl_module)

    # -------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {"n_updates": int(self.n_updates), "average": dict(self.average), "lent": self.lent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.n_updates, self.lent = torch.tensor(state_dict["n_updates"]), state_dict["lent"]
        self.average = {name: own.clone() for name, own in state_dict["average"].items()}

"""Muon for the backbone's matrices, AdamW for everything else, and one schedule for both.

Muon: Jordan et al. 2024, torch's own. Schedule: warm-up, constant, linear decay to zero (WSD, arXiv:2404.06395), as
fractions of the run, so that a run of any length is warmed up and decayed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from armm.errors import InputError
from armm.model import AutoregressiveModel


@dataclass(frozen=True)
class Optimization:
    """How a model is optimised.

    Attributes:
        lr: AdamW's peak learning rate.
        muon_lr: Muon's peak learning rate, for the two-dimensional weights of the backbone; 0 gives them to AdamW.
        momentum: of Muon.
        betas: of AdamW.
        weight_decay: of all matrices, by either optimiser.
        warmup: fraction of the run in which the rates rise linearly from zero.
        decay: fraction of the run, its last, in which they fall linearly to zero.
    """

    lr: float = 3e-3
    muon_lr: float = 0.02
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup: float = 0.03
    decay: float = 0.5

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.muon_lr < 0 or self.weight_decay < 0:
            raise InputError("optimization: lr must be greater than 0, muon_lr and weight_decay at least 0")
        if not (self.warmup >= 0 and self.decay >= 0 and self.warmup + self.decay <= 1):
            raise InputError(
                f"optimization: warmup {self.warmup} and decay {self.decay} are fractions of the run "
                "and must add up to at most 1"
            )

    def factor(self, n_steps: int) -> Callable[[int], float]:
        """The learning rate at a step, as a fraction of its peak."""
        warmup, decay = max(self.warmup * n_steps, 1), self.decay * n_steps

        def at(step: int) -> float:
            rise = (step + 1) / warmup
            fall = (n_steps - step) / decay if decay else 1.0
            return max(0.0, min(1.0, rise, fall))

        return at


class MuonAdamW(Optimizer):
    """Two optimisers as one, so that a Trainer clips, accumulates, schedules and saves them together."""

    def __init__(self, matrices: list[nn.Parameter], others: list[dict[str, Any]], config: Optimization) -> None:
        adamw = AdamW(others, lr=config.lr, betas=config.betas, weight_decay=0.0, fused=False)
        self.parts: list[Optimizer] = [adamw]
        if matrices:
            self.parts.append(
                Muon(matrices, lr=config.muon_lr, momentum=config.momentum, weight_decay=config.weight_decay)
            )
        groups = [group for part in self.parts for group in part.param_groups]
        super().__init__(groups, {})
        # one list of groups, whose dictionaries the parts share: a scheduler's change reaches both
        self.param_groups = groups

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def build(model: AutoregressiveModel, config: Optimization) -> Optimizer:
    """The optimiser of a model."""
    in_backbone = {id(p) for p in model.backbone.parameters() if p.dim() == 2}
    muon, decayed, plain = [], [], []
    for name, parameter in model.named_parameters():
        if id(parameter) in in_backbone and config.muon_lr and not name.endswith("positions"):
            muon.append(parameter)
        else:
            (decayed if parameter.dim() >= 2 else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return MuonAdamW(muon, [group for group in groups if group["params"]], config)

"""Muon for the backbone's matrices, AdamW for everything else, and one schedule for both.

Muon: Jordan et al. 2024. Every kind of parameter has a rate of its own where one is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from armm.errors import InputError
from armm.model import AutoregressiveModel
from armm.training.layout import local
from armm.training.muon import BatchedMuon
from armm.training.schedule import Shape, factor

Kind = Literal["matrices", "heads", "embeddings", "scalars"]


@dataclass(frozen=True)
class Optimization:
    """How a model is optimised.

    Attributes:
        lr: AdamW's peak learning rate.
        muon_lr: Muon's peak learning rate, for the two-dimensional weights of the backbone; 0 gives them to AdamW.
        embedding_lr: AdamW's for embedding tables and learned positions; `lr` by default.
        head_lr: AdamW's for the matrices of the heads; `lr` by default.
        scalar_lr: AdamW's for gains, biases, residual scalars and other vectors; `lr` by default.
        muon_head_lr: Muon's, for the maps between hidden features of the heads; 0 gives them to AdamW.
        momentum: of Muon.
        betas: of AdamW.
        weight_decay: of all matrices and tables, by either optimiser.
        schedule: `wsd` stays at the peak, then falls linearly (arXiv:2404.06395); `cosine` falls from the warm-up on
            (arXiv:1608.03983).
        warmup: fraction of the run in which the rates rise linearly from zero.
        decay: fraction of the run, its last, in which they fall; of `wsd` only.
        final: fraction of the peak that they fall to.
        ema: evaluate and keep an exponential moving average of the weights with this decay; none by default.
        z_loss: weight of the squared log-normaliser of every symbol (PaLM, arXiv:2204.02311, 5); 0 for none.
    """

    lr: float = 3e-3
    muon_lr: float = 0.02
    embedding_lr: float | None = None
    head_lr: float | None = None
    scalar_lr: float | None = None
    muon_head_lr: float = 0.0
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    schedule: Shape = "wsd"
    warmup: float = 0.03
    decay: float = 0.5
    final: float = 0.0
    ema: float | None = None
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise InputError(f"optimization: lr must be greater than 0, and finite; it is {self.lr}")
        for key in ("muon_lr", "embedding_lr", "head_lr", "scalar_lr", "muon_head_lr", "weight_decay", "z_loss"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"optimization: {key} is {value}, it must be a number of at least 0")
        for key, share in (("momentum", self.momentum), *(("betas", beta) for beta in self.betas)):
            if not 0 <= share < 1:
                raise InputError(f"optimization: {key} has {share}, it must be at least 0 and less than 1")
        decay = self.decay if self.schedule == "wsd" else 0.0
        if not (self.warmup >= 0 and decay >= 0 and self.warmup + decay <= 1):
            raise InputError(
                f"optimization: warmup {self.warmup} and decay {self.decay} are fractions of the run "
                "and must add up to at most 1"
            )
        if not 0 <= self.final <= 1:
            raise InputError(f"optimization: final is {self.final}, a fraction of the peak between 0 and 1")
        if self.ema is not None and not 0 < self.ema < 1:
            raise InputError(f"optimization: ema is {self.ema}, a decay between 0 and 1 such as 0.999; null for none")

    def factor(self, progress: float, step: float) -> float:
        """The learning rate as a fraction of its peak; see `schedule.factor`."""
        return factor(progress, step, self.schedule, self.warmup, self.decay, self.final)

    def rate(self, kind: Kind) -> float:
        """AdamW's peak rate of a kind of parameters."""
        own = {"embeddings": self.embedding_lr, "heads": self.head_lr, "scalars": self.scalar_lr}.get(kind)
        return self.lr if own is None else own


class MuonAdamW(Optimizer):
    """Two optimisers as one, so that a Trainer clips, accumulates, schedules and saves them together.

    Of parameters that are dealt out over processes (DTensor) both see this process's parts, which are ordinary tensors.

    Attributes:
        parameters: of each part, in the order of its state.
    """

    def __init__(
        self,
        matrices: list[dict[str, Any]],
        others: list[dict[str, Any]],
        config: Optimization,
        product: torch.dtype,
    ) -> None:
        self.parameters = [[p for group in groups for p in group["params"]] for groups in (others, matrices)]
        self._dealt = {p: nn.Parameter(local(p.detach())) for own in self.parameters for p in own if is_dealt(p)}
        fused = all(p.device.type in ("cpu", "cuda") for own in self.parameters for p in own)
        adamw = AdamW(self._own(others), lr=config.lr, betas=config.betas, weight_decay=0.0, fused=fused or None)
        self.parts: list[Optimizer] = [adamw]
        if matrices:
            layouts = {own: p for p, own in self._dealt.items() if isinstance(p, DTensor)}
            rates = config.muon_lr, config.momentum, config.weight_decay
            self.parts.append(BatchedMuon(self._own(matrices), *rates, layouts, product))
        groups = [group for part in self.parts for group in part.param_groups]
        super().__init__(groups, {})
        # one list of groups, whose dictionaries the parts share: a scheduler's change reaches both
        self.param_groups = groups

    def _own(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**group, "params": [self._dealt.get(p, p) for p in group["params"]]} for group in groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for parameter, own in self._dealt.items():
            own.grad = None if parameter.grad is None else local(parameter.grad)
        for part in self.parts:
            part.step()
        for own in self._dealt.values():
            own.grad = None
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for parameter in self._dealt:
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                local(parameter.grad).zero_()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def is_dealt(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, DTensor)


def kind_of(name: str, parameter: nn.Parameter) -> Kind:
    """What a parameter of a model is, from its name in the model."""
    if parameter.dim() < 2:
        return "scalars"
    if name.startswith(("heads.", "decisions.", "header_logits.")):
        return "heads"
    if name.startswith("backbone.") and not name.endswith("positions"):
        return "matrices"
    return "embeddings"


def build(model: AutoregressiveModel, config: Optimization, product: torch.dtype = torch.float32) -> MuonAdamW:
    """The optimiser of a model; Muon's products are made in `product`."""
    hidden = {id(p) for name in model.heads for p in model.head(name).hidden_matrices()}
    muon: dict[float, list[nn.Parameter]] = {}
    adamw: dict[Kind, list[nn.Parameter]] = {"heads": [], "embeddings": [], "matrices": [], "scalars": []}
    for name, parameter in model.named_parameters():
        kind = kind_of(name, parameter)
        rate = config.muon_lr if kind == "matrices" else config.muon_head_lr if id(parameter) in hidden else 0.0
        (muon.setdefault(rate, []) if rate else adamw[kind]).append(parameter)
    groups = [
        {
            "params": params,
            "lr": config.rate(kind),
            "weight_decay": 0.0 if kind == "scalars" else config.weight_decay,
        }
        for kind, params in adamw.items()
        if params
    ]
    matrices = [{"params": params, "lr": rate} for rate, params in muon.items()]
    return MuonAdamW(matrices, groups, config, product)

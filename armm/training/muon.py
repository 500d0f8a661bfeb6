"""torch's Muon with the matrices of one shape orthogonalised together, and dealt out where several processes train.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon). Small matrices cost torch's loop, one at a time, more than the
model's own step: the products are the same, the calls are a tenth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Muon, Optimizer
from torch.optim.optimizer import ParamsT

from armm.training.exchange import Exchange
from armm.training.layout import part_of, spread, whole


class BatchedMuon(Muon):
    """The same update and the same state as torch's, for two-dimensional parameters and stacks of them.

    A parameter of more dimensions is a stack of matrices, or one matrix by its first dimension against the others, as
    `matrices_of` says.

    Args:
        layouts: of the parameters that are parts of matrices, the whole ones. An update needs all of a matrix: where
            rows are dealt out, each process is sent the rows of some matrices, and sends back their updates.
        product: what the products are made in; torch's own makes them in bfloat16 everywhere.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float,
        weight_decay: float,
        layouts: Mapping[nn.Parameter, DTensor] | None = None,
        product: torch.dtype = torch.float32,
    ) -> None:
        like = Muon([nn.Parameter(torch.zeros(1, 1))], lr=lr, momentum=momentum, weight_decay=weight_decay)
        Optimizer.__init__(self, params, like.defaults)  # its own refuses more than two dimensions
        self.layouts, self.product = layouts or {}, product

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        grads = [p.grad for p in params]
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])  # type: ignore[attr-defined]
        # Nesterov's look ahead
        wanted = list(torch._foreach_lerp(grads, momenta, group["momentum"]))  # type: ignore[attr-defined]
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])  # type: ignore[attr-defined]
        for p, update in zip(params, self._updates(params, wanted, group), strict=True):
            rows, columns = matrix_shape(self.layouts[p].shape if p in self.layouts else p.shape)
            p.add_(update, alpha=-group["lr"] * sqrt(max(1.0, rows / columns)))

    def _updates(self, params: list[nn.Parameter], wanted: Sequence[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Of the parameters that this process holds, or of its parts of them; then all processes take part."""
        wanted = [update.to(self.product) for update in wanted]
        if not self.layouts:
            return updates_of(wanted, group)
        layouts = [self.layouts.get(p) for p in params]
        by_rows = [i for i, own in enumerate(layouts) if own is not None and Exchange.applies(own)]
        updates = dict.fromkeys(range(len(params)), wanted[0])
        if by_rows:
            exchange = Exchange([own for i in by_rows if (own := layouts[i]) is not None])
            parts = [wanted[i] for i in by_rows]
            done = exchange.give_back(updates_of(exchange.bring_together(parts), group), parts[0])
            updates |= zip(by_rows, done, strict=True)
        others = [i for i in range(len(params)) if i not in by_rows]
        wholes = [whole(spread(wanted[i], layouts[i])) for i in others]
        for i, update in zip(others, updates_of(wholes, group), strict=True):
            updates[i] = part_of(update, layouts[i])
        return list(updates.values())


def updates_of(wanted: Sequence[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """The parameters' momenta with every matrix orthogonalised, those of one shape together."""
    updates: list[Tensor] = [torch.empty(0)] * len(wanted)
    alike: dict[tuple[int, int], list[int]] = {}
    stacks = [matrices_of(update) for update in wanted]
    for i, stack in enumerate(stacks):
        rows, columns = stack.shape[1:]
        alike.setdefault((min(rows, columns), max(rows, columns)), []).append(i)
    for members in alike.values():
        upright = [stacks[i] if stacks[i].shape[1] <= stacks[i].shape[2] else stacks[i].mT for i in members]
        done = orthogonalised(torch.cat(upright), group["ns_coefficients"], group["ns_steps"], group["eps"])
        for i, own, part in zip(members, upright, done.split([len(stack) for stack in upright]), strict=True):
            updates[i] = (part if own is stacks[i] else part.mT).reshape(wanted[i].shape)
    return updates


def matrices_of(x: Tensor) -> Tensor:
    """A parameter as a stack (M, rows, columns): three dimensions are one already, four a convolution's."""
    return x if x.dim() == 3 else x.reshape(1, len(x), -1)


def matrix_shape(shape: torch.Size) -> tuple[int, int]:
    """Rows and columns of the matrices of a parameter of this shape."""
    return (shape[1], shape[2]) if len(shape) == 3 else (shape[0], shape[1:].numel())


def orthogonalised(x: Tensor, coefficients: tuple[float, float, float], n_steps: int, eps: float) -> Tensor:
    """(M, R, C) with R <= C -> the same shape with all singular values near 1, by Newton-Schulz iteration."""
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    if x.dtype == torch.float32 and x.shape[2] >= 2 * x.shape[1]:
        return factor(x @ x.mT, coefficients, n_steps) @ x
    a, b, c = coefficients
    for _ in range(n_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def factor(gram: Tensor, coefficients: tuple[float, float, float], n_steps: int) -> Tensor:
    """(M, R, R), X Xᵀ -> (M, R, R), by which the same iteration multiplies X: all of it in the small matrices.

    Every iterate is a polynomial of the Gram matrix times X (Gram Newton-Schulz: Dao et al. 2026,
    tridao.me/blog/2026/gram-newton-schulz). Squared singular values want float32.
    """
    a, b, c = coefficients
    whole = None
    for step in range(n_steps):
        own = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        own.diagonal(dim1=-2, dim2=-1).add_(a)
        whole = own if whole is None else own @ whole
        if step < n_steps - 1:
            gram = own @ gram @ own
    assert whole is not None
    return whole

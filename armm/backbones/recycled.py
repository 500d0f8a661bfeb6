"""A backbone applied several times with the same weights, its input given anew each time.

Recurrent depth (Universal Transformer, arXiv:1807.03819; Huginn, arXiv:2502.05171) and AlphaFold's recycling (Jumper et
al. 2021): more computation for the same parameters. What is recycled at a position is the position's own output, so
nothing is seen that comes later. The first pass starts from nothing but its input and the number of passes is fixed, so
that p(x) is one number; Huginn's random start would make it many.
Axes: B rows, N positions, D width, R rows of one call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from armm.backbones.backbone import Backbone, BackboneState
from armm.errors import InputError


@dataclass(frozen=True)
class Recycle:
    """How often a backbone is applied.

    Attributes:
        passes: how often.
        gradient_passes: gradients flow through so many of the last passes only; the others cost no memory and half
            the time.
    """

    passes: int = 3
    gradient_passes: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.gradient_passes <= self.passes:
            raise InputError(
                f"recycle: gradient_passes is {self.gradient_passes}, it must be at least 1 and at most passes, which "
                f"is {self.passes}"
            )


class RecycledBackbone(Backbone):
    """core(x), then core(x + scale * what came out), again and again."""

    def __init__(self, core: Backbone, width: int, config: Recycle) -> None:
        super().__init__()
        self.core, self.config = core, config
        self.scale = nn.Parameter(torch.ones(width))

    def again(self, x: Tensor, out: Tensor) -> Tensor:
        """The input of the next pass."""
        return x + self.scale * out

    def forward(self, x: Tensor, values: Tensor | None) -> Tensor:
        n_without = self.config.passes - self.config.gradient_passes
        given, out = x, x
        for number in range(self.config.passes):
            with torch.set_grad_enabled(torch.is_grad_enabled() and number >= n_without):
                out = self.core(given, values)
            given = self.again(x, out)
        return out

    def state(self, n_rows: int, min_rows: int = 1) -> BackboneState:
        return RecycledState(self, [self.core.state(n_rows, min_rows) for _ in range(self.config.passes)])


class RecycledState(BackboneState):
    """A state of the core for each pass: what a pass attends to is what the same pass made of earlier positions."""

    def __init__(self, backbone: RecycledBackbone, passes: list[BackboneState]) -> None:
        self.backbone, self.passes = backbone, passes

    def extend(
        self, rows: Tensor, x: Tensor, values: Tensor | None, counts: list[int], stepwise: bool = False
    ) -> Tensor:
        given, out = x, x
        for state in self.passes:
            out = state.extend(rows, given, values, counts, stepwise)
            given = self.backbone.again(x, out)
        return out

    def compile(self) -> None:
        for state in self.passes:
            state.compile()

    def truncate(self, lengths: list[int]) -> None:
        for state in self.passes:
            state.truncate(lengths)

    def gather_rows(self, index: Tensor) -> None:
        for state in self.passes:
            state.gather_rows(index)

    def copy_row(self, row: int, source: BackboneState, source_row: int) -> None:
        assert isinstance(source, RecycledState)
        for state, own in zip(self.passes, source.passes, strict=True):
            state.copy_row(row, own, source_row)

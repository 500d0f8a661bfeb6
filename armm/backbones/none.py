"""No backbone: the head alone, as in the original PixelCNN and WaveNet, told at most what a document begins with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from armm.backbones.backbone import Backbone, BackboneConfig, BackboneState
from armm.errors import InputError


@dataclass(frozen=True)
class NoBackbone(BackboneConfig):
    """Contexts are zero, and a modality's head sees its own segment only; or they say what the first units are.

    Attributes:
        width: of the context.
        conditions: the embeddings of so many units, the first of a document, add up to the context of all that follow:
            the global condition of WaveNet (arXiv:1609.03499, 2.5), a speaker or a class.
    """

    width: int = 1
    conditions: int = 0

    def __post_init__(self) -> None:
        if self.width < 1 or self.conditions < 0:
            raise InputError(f"width {self.width} must be at least 1, conditions {self.conditions} at least 0")

    def build(self) -> Backbone:
        return NoBackboneModule(self.conditions)


class NoBackboneModule(Backbone):
    """Zero, or the sum of the first units so far. Position 0 is what every document begins with and says nothing."""

    def __init__(self, conditions: int) -> None:
        super().__init__()
        self.conditions = conditions

    def forward(self, x: Tensor, values: Tensor | None) -> Tensor:
        if not self.conditions:
            return torch.zeros_like(x)
        told = F.pad(x[:, 1 : self.conditions + 1].cumsum(1), (0, 0, 1, 0))
        return torch.cat([told, told[:, -1:].expand(-1, x.shape[1] - told.shape[1], -1)], dim=1)

    def state(self, n_rows: int, min_rows: int = 1) -> BackboneState:
        return NoBackboneState(self.conditions, n_rows)


class NoBackboneState(BackboneState):
    """The sums after each of the first units."""

    def __init__(self, conditions: int, n_rows: int) -> None:
        self.conditions = conditions
        self.sums: list[list[Tensor]] = [[] for _ in range(n_rows)]  # by row, of positions 0 to `conditions`

    def extend(
        self, rows: Tensor, x: Tensor, values: Tensor | None, counts: list[int], stepwise: bool = False
    ) -> Tensor:
        contexts = torch.zeros_like(x)
        if not self.conditions:
            return contexts
        for i, (row, count) in enumerate(zip(rows.tolist(), counts, strict=True)):
            sums = self.sums[row]
            for j in range(count):
                if len(sums) <= self.conditions:
                    sums.append(sums[-1] + x[i, j] if sums else torch.zeros_like(x[i, j]))
                contexts[i, j] = sums[-1]
        return contexts

    def truncate(self, lengths: list[int]) -> None:
        self.sums = [sums[:length] for sums, length in zip(self.sums, lengths, strict=True)]

    def gather_rows(self, index: Tensor) -> None:
        self.sums = [list(self.sums[i]) for i in index.tolist()]

    def copy_row(self, row: int, source: BackboneState, source_row: int) -> None:
        assert isinstance(source, NoBackboneState)
        self.sums[row] = list(source.sums[source_row])

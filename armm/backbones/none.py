"""No backbone: the head alone, as in the original PixelCNN and WaveNet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from armm.backbones.backbone import Backbone, BackboneConfig, BackboneState


@dataclass(frozen=True)
class NoBackbone(BackboneConfig):
    """Contexts are zero; a modality's head sees its own segment only.

    Attributes:
        width: of the zero context.
    """

    width: int = 1

    def build(self) -> Backbone:
        return NoBackboneModule()


class NoBackboneModule(Backbone):
    """Zero everywhere."""

    def forward(self, x: Tensor, values: Tensor | None) -> Tensor:
        return torch.zeros_like(x)

    def state(self, n_rows: int, min_rows: int = 1) -> BackboneState:
        return NoBackboneState()


class NoBackboneState(BackboneState):
    """Nothing to remember."""

    def extend(
        self, rows: Tensor, x: Tensor, values: Tensor | None, counts: list[int], stepwise: bool = False
    ) -> Tensor:
        return torch.zeros_like(x)

    def truncate(self, lengths: list[int]) -> None:
        pass

    def gather_rows(self, index: Tensor) -> None:
        pass

    def copy_row(self, row: int, source: BackboneState, source_row: int) -> None:
        pass

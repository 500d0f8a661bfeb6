"""Where a matrix lies in memory, for products with one row.

With the outputs side by side for each input, a product with one row adds up long runs of memory; with the inputs side
by side, as torch keeps a linear layer, it takes many short sums. On the CPUs we measured the former reads memory 1.4
times as fast (docs/experiments.md). Only the strides change: the shape, and every number, stay what they were.
"""

from __future__ import annotations

import torch
from torch import nn

from armm.heads import CategoricalHead
from armm.model import AutoregressiveModel

SMALLEST = 1 << 18  # weights; what fits in a cache is fast either way


@torch.no_grad()
def lay_out(model: AutoregressiveModel) -> None:
    """Put the large float32 matrices of a model on a CPU output by output, in place."""
    matrices = [module.weight for module in model.backbone.modules() if isinstance(module, nn.Linear)]
    for head in model.heads.values():
        if isinstance(head, CategoricalHead) and not head.config.tied:  # a tied table is looked up by rows
            matrices.append(head.weight)
    for matrix in matrices:
        wanted = matrix.device.type == "cpu" and matrix.dtype == torch.float32 and matrix.numel() >= SMALLEST
        if wanted and matrix.is_contiguous():
            matrix.data = matrix.data.T.contiguous().T

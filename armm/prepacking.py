"""Large float32 matrices as oneDNN lays them out, for generation on CPUs.

A product with one row is bound by reading its matrix. Packed once, oneDNN reads it at 24 of 27 GB/s where torch's
linear layer reaches 13, and a row's result is the same, bit for bit, for every number of rows from two up, so that an
exact state costs next to nothing (docs/experiments.md). The operators are torch's own but private: they stand behind
one class, are checked when a matrix is packed, and the layer stays as it is where they are missing or wrong.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import torch
from torch import Tensor, nn

from armm.heads import CategoricalHead
from armm.model import AutoregressiveModel

SMALLEST = 1 << 19  # weights; what fits in a cache is faster as it is
ROWS = 16  # that the layout is chosen for
TOLERANCE = 1e-5  # of a sum, relative to the sum of its terms' magnitudes


class PrepackedLinear(nn.Module):
    """A linear layer for generation, (*, K) -> (*, N), without gradients.

    Raises RuntimeError: this torch or this processor has no such product, or it is not that of the matrix.
    """

    rows_needed = 2  # see `armm.exactness`

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        weight = weight.detach().contiguous()
        self.out_features, self.in_features = weight.shape
        self.packed_bytes = weight.nbytes
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        self.bias = None if bias is None else bias.detach().clone()
        x = (torch.arange(3 * weight.shape[1]) * 7919 % 17 - 8).view(3, -1).float()
        for own, part in zip(self._product(x).split(1024, dim=1), weight.split(1024), strict=True):
            error = (own.double() - x.double() @ part.double().T).abs()
            if not (error <= TOLERANCE * (x.abs() @ part.abs().T)).all():
                raise RuntimeError("the packed product is not that of the matrix")

    def _product(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")

    def forward(self, x: Tensor) -> Tensor:
        y = self._product(x)
        return y if self.bias is None else y + self.bias


@torch.no_grad()
def prepack(model: AutoregressiveModel) -> AutoregressiveModel:
    """Pack the large float32 matrices of a model on a CPU, where that works; the model itself is returned.

    It can be scored and sampled afterwards, not trained, saved or moved.
    """
    for name, linear in list(model.backbone.named_modules()):
        if isinstance(linear, nn.Linear) and (own := packed(linear.weight, linear.bias)):
            model.backbone.set_submodule(name, own)
    for head in model.heads.values():
        if not isinstance(head, CategoricalHead) or head.config.tied or head.output is not None:
            continue
        if own := packed(head.weight[: head.vocab], None):
            head.replace_output(own)
    return model.requires_grad_(False)


def packed(weight: Tensor, bias: Tensor | None) -> PrepackedLinear | None:
    """The packed layer for an (N, K) matrix; None where it is small, not float32 on a CPU, or cannot be packed."""
    if weight.numel() < SMALLEST or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return None
    try:
        return PrepackedLinear(weight, bias)
    except (AttributeError, RuntimeError):
        return None

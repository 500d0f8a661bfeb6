"""Large float32 and bfloat16 matrices as oneDNN lays them out, for generation on CPUs.

A product with one row is bound by reading its matrix. Packed once, oneDNN reads it at 24 of 27 GB/s where torch's
linear layer reaches 13, and a row's result is the same, bit for bit, for every number of rows from two up, so that an
exact state costs next to nothing (docs/experiments.md). The operators are torch's own but private: they stand behind
one class, are checked when a matrix is packed, and the layer stays as it is where they are missing or wrong.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from armm.heads import CategoricalHead
from armm.model import AutoregressiveModel
from armm.quantization import HalfLinear

SMALLEST = 1 << 19  # weights; what fits in a cache is faster as it is
ROWS = 16  # that the layout is chosen for
TOLERANCE = 1e-5  # of a sum, relative to the sum of its terms' magnitudes
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-8}  # of a result


class PrepackedLinear(nn.Module):
    """A linear layer for generation, (*, K) -> (*, N) of the same dtype, without gradients.

    Args:
        weight: (N, K) float32, or bfloat16 for a product of bfloat16 rows.

    Raises RuntimeError: this torch or this processor has no such product, or it is not that of the matrix.
    """

    rows_needed = 2  # see `armm.exactness`

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        weight = weight.detach().contiguous()
        self.out_features, self.in_features = weight.shape
        self.packed_bytes, self.dtype = weight.nbytes, weight.dtype
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        self.bias = None if bias is None else bias.detach().clone()
        x = (torch.arange(3 * weight.shape[1]) * 7919 % 17 - 8).view(3, -1).float()
        got = self._product(x.to(self.dtype))
        for own, part in zip(got.double().split(1024, dim=1), weight.split(1024), strict=True):
            part = part.double()
            right = x.double() @ part.T
            allowed = ROUNDING[self.dtype] * right.abs() + TOLERANCE * (x.double().abs() @ part.abs().T)
            if not ((own - right).abs() <= allowed).all():
                raise RuntimeError("the packed product is not that of the matrix")

    def _product(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")

    @property
    def in_half(self) -> Callable[[Tensor], Tensor] | None:
        """The layer on (M, K) bfloat16 rows, as bfloat16; None if it is not that."""
        return self._product if self.dtype == torch.bfloat16 and self.bias is None else None

    def forward(self, x: Tensor) -> Tensor:
        y = self._product(x.to(self.dtype)).to(x.dtype)
        return y if self.bias is None else y + self.bias


@torch.no_grad()
def prepack(model: AutoregressiveModel) -> AutoregressiveModel:
    """Pack the large float32 and bfloat16 matrices of a model on a CPU, where that works; the model itself is returned.

    It can be scored and sampled afterwards, not trained, saved or moved.
    """
    for name, linear in list(model.backbone.named_modules()):
        if isinstance(linear, nn.Linear | HalfLinear) and (own := packed(matrix_of(linear), linear.bias)):
            model.backbone.set_submodule(name, own)
    for head in model.heads.values():
        if not isinstance(head, CategoricalHead) or not isinstance(head.output, HalfLinear | None):
            continue
        if head.output is None and head.config.tied:
            continue
        if own := packed(head.weight[: head.vocab] if head.output is None else head.output.matrix, None):
            head.replace_output(own)
    return model.requires_grad_(False)


def matrix_of(linear: nn.Linear | HalfLinear) -> Tensor:
    return linear.matrix if isinstance(linear, HalfLinear) else linear.weight


def packed(weight: Tensor, bias: Tensor | None) -> PrepackedLinear | None:
    """The packed layer for an (N, K) matrix; None where it is small, not on a CPU, or cannot be packed."""
    if weight.numel() < SMALLEST or weight.device.type != "cpu" or weight.dtype not in ROUNDING:
        return None
    try:
        return PrepackedLinear(weight, bias)
    except (AttributeError, RuntimeError):
        return None

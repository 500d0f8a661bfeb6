"""Matrices of int8 and int4 weights: their numbers, how these lie in memory, and the products with them.

int8 has a scale per output, int4 a scale and an offset per group of inputs (as in GPTQ, arXiv:2210.17323). Most
products are torch's own, made for gpt-fast. They are private, so each stands behind one function here, and is checked
against the numbers it stands for when a matrix is packed. On a CPU a row's result is the same, bit for bit, whatever
rows stand beside it.
Axes: M rows, K inputs, N outputs, G groups of inputs.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Literal["bf16", "int8", "int4"]
GROUPS = (32, 64, 128, 256)  # what the int4 products take
STEP = 16  # what int8 takes of inputs at a time (it reads past the end of less), and int4 of outputs
ALIGNMENT = 64  # bytes; the int8 product ends the process where activations begin at no multiple of 32
BASE, LARGEST_PAIR, ZERO_DIGIT = 128, 127 * 128 - 1, 128  # of activations as two digits each
ONE, NO_OFFSET = torch.ones(1), torch.zeros(1, dtype=torch.int64)  # of weights that are integers
REFITS = 3  # of the scales and offsets of int4
BLOCK = 1 << 18  # weights that are worked on at a time, so that they stay in the cache


# ------------------------------------------------------------------ the numbers


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric, one scale per output: weight = code * scale, wrong by half a scale at most.

    (N, K) -> codes (N, K) int8 in [-127, 127], scales (N,) bfloat16.
    """
    weight = weight.float()
    largest = weight.abs().amax(dim=1)
    scales = torch.where(largest > 0, largest / 127, 1.0).bfloat16()
    return (weight / scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8), scales


def to_int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """A scale and an offset per group of inputs: weight = (code - 8) * scale + offset.

    A group's range is divided in 15 steps; then scales and offsets, and codes, are fitted to each other in turn by
    least squares (Lloyd's algorithm). On Gaussian weights that takes 13 % off the squared error, because the few
    largest weights are clipped and all others finer.

    (N, K) -> codes (N, K / 2) uint8, the even input in the high half of a byte; (G, N, 2) bfloat16 scales and offsets.
    """
    blocks = [_fit_int4(block, group) for block in weight.float().split(max(BLOCK // weight.shape[1], 1))]
    codes, scales = zip(*blocks, strict=True)
    return torch.cat(codes), torch.cat(scales, dim=1)


def _fit_int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    groups = weight.unflatten(1, (-1, group))  # (N, G, group)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = _rounded(torch.where(high > low, (high - low) / 15, 1.0))
    offset = _rounded((high + low + scale) / 2)
    mean = groups.mean(-1)
    around = groups - mean[..., None]
    for _ in range(REFITS):
        digits = _digits(groups, scale, offset)
        centre = digits.mean(-1)
        digits -= centre[..., None]
        spread = digits.square().sum(-1)
        fitted = (digits * around).sum(-1) / spread
        scale = torch.where(spread > 0, _rounded(fitted), scale)
        offset = _rounded(mean - scale * (centre - 8))
    return _join(_digits(groups, scale, offset).flatten(1)), torch.stack([scale.T, offset.T], dim=-1).bfloat16()


def _rounded(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def _digits(groups: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """(N, G, group) weights, (N, G) scales and offsets -> (N, G, group) nearest codes in [0, 15], as floats."""
    return groups.sub(offset[..., None]).div_(scale[..., None]).round_().add_(8).clamp_(0, 15)


def _join(digits: Tensor) -> Tensor:
    """(N, K) numbers in [0, 15] -> (N, K / 2) uint8, the even one in the high half."""
    digits = digits.to(torch.uint8)
    return digits[:, ::2] << 4 | digits[:, 1::2]


def _split(codes: Tensor) -> Tensor:
    """(N, K / 2) uint8 -> (N, K) uint8 in [0, 15]."""
    return torch.stack([codes >> 4, codes & 15], dim=-1).flatten(1)


def dequantise(codes: Tensor, scales: Tensor) -> Tensor:
    """(N, K) float32 of what `to_int8` or `to_int4` gave."""
    if codes.dtype == torch.int8:
        return codes.float() * scales.float()[:, None]
    groups = _split(codes).unflatten(1, (len(scales), -1)).float()  # (N, G, group)
    scale, offset = scales.float().transpose(0, 1)[..., None].unbind(-2)  # (N, G, 1)
    return ((groups - 8) * scale + offset).flatten(1)


# ----------------------------------------------------------------- the products


@dataclass(frozen=True)
class Kernel:
    """A product with a quantised matrix, and how the matrix lies in memory for it.

    Attributes:
        name: what stands in a report.
        pack: codes and scales, as `to_int8` or `to_int4` gives them -> the matrix as `product` wants it.
        unpack: that matrix, scales, group -> codes.
        product: (M, K) rows, that matrix, scales, group -> (M, N) float32.
        in_half: the same of bfloat16 rows, to bfloat16; None if there is none.
        of_digits: the same of (M, K) uint8 rows that mean `ZERO_DIGIT` less, without the scales; None if there is none.
        in_panels: the matrix lies as `armm.panels` has it.
        tolerance: of a sum, relative to the sum of its terms' magnitudes; the result may be rounded to bfloat16 too.
    """

    name: str
    pack: Callable[[Tensor, Tensor], Tensor]
    unpack: Callable[[Tensor, Tensor, int], Tensor]
    product: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    tolerance: float = 1e-5
    in_half: Callable[[Tensor, Tensor, Tensor, int], Tensor] | None = None
    of_digits: Callable[[Tensor, Tensor], Tensor] | None = None
    in_panels: bool = False

    def agrees(self, codes: Tensor, packed: Tensor, scales: Tensor, group: int) -> bool:
        """Whether the product of a packed matrix is that of its numbers."""
        weight = dequantise(codes, scales)
        # 5 rows, one more than are multiplied at a time, of integers that bfloat16 holds
        x = (torch.arange(5 * weight.shape[1], device=weight.device) * 7919 % 17 - 8).view(5, -1).double()
        got = self.product(x.float(), packed, scales, group)
        for own, part in zip(got.split(1024, dim=1), weight.split(1024), strict=True):
            part = part.double()
            allowed = 2**-8 * (x @ part.T).abs() + self.tolerance * (x.abs() @ part.abs().T)
            if not ((own - x @ part.T).abs() <= allowed).all():
                return False
        return True


def _int8_pack(codes: Tensor, scales: Tensor) -> Tensor:
    return codes.clone() if codes.data_ptr() % ALIGNMENT else codes


def _int8_unpack(matrix: Tensor, scales: Tensor, group: int) -> Tensor:
    return matrix


def _int8_product(x: Tensor, matrix: Tensor, scales: Tensor, group: int) -> Tensor:
    return _int8_in_half(x.bfloat16(), matrix, scales, group).float()  # float32 is accepted, and 6 to 20 times slower


def _int8_in_half(x: Tensor, matrix: Tensor, scales: Tensor, group: int) -> Tensor:
    return torch._weight_int8pack_mm(x.clone() if x.data_ptr() % ALIGNMENT else x, matrix, scales)


def _digits_pack(codes: Tensor, scales: Tensor) -> Tensor:
    if not torch.cpu._is_vnni_supported():
        raise RuntimeError("without these instructions the product is a hundred times slower, or overflows")
    return torch.ops.onednn.qlinear_prepack(codes, [2, codes.shape[1]])


def _digits_unpack(matrix: Tensor, scales: Tensor, group: int) -> Tensor:
    """How the codes lie is oneDNN's own affair, so the product itself reads them, with rows of the identity."""
    identity = torch.eye(matrix.shape[0], dtype=torch.uint8) + ZERO_DIGIT
    return _of_digits(identity, matrix).T.to(torch.int8).contiguous()


def _digits_product(x: Tensor, matrix: Tensor, scales: Tensor, group: int) -> Tensor:
    """Every number of a row as an integer times the row's step, the integer as two digits of base 128."""
    x = x.float()
    largest = x.abs().amax(dim=1, keepdim=True)
    step = torch.where(largest > 0, largest / LARGEST_PAIR, 1.0)
    whole = (x / step).round_()
    high = (whole / BASE).round_()
    both = _of_digits((torch.cat([high, whole - BASE * high]) + ZERO_DIGIT).to(torch.uint8), matrix)
    return (BASE * both[: len(x)] + both[len(x) :]) * step * scales.float()


def _of_digits(digits: Tensor, matrix: Tensor) -> Tensor:
    """(M, K) uint8, `ZERO_DIGIT` more than they mean: for signed ones there is no fast product. Exact sums."""
    return torch.ops.onednn.qlinear_pointwise(
        digits, 1.0, ZERO_DIGIT, matrix, ONE, NO_OFFSET, None, 1.0, 0, torch.float32, "none", [], ""
    )


def _panels_pack(codes: Tensor, scales: Tensor) -> Tensor:
    if find_spec("numba") is None:
        raise RuntimeError("compiled by numba")
    from armm import panels

    if not panels.multiplies_digits():
        raise RuntimeError("without its instruction there is no such product")
    return panels.pack_codes(codes)


def _panels_unpack(matrix: Tensor, scales: Tensor, group: int) -> Tensor:
    from armm import panels

    return panels.unpack_codes(matrix, len(scales), 4 * (matrix.shape[1] - 1))


def _panels_product(x: Tensor, matrix: Tensor, scales: Tensor, group: int) -> Tensor:
    from armm import panels

    return panels.multiply(x.float(), matrix, scales.float())


def _int8_on_the_fly(x: Tensor, matrix: Tensor, scales: Tensor, group: int) -> Tensor:
    return F.linear(x, matrix.to(x.dtype)).float() * scales


def _int8_product_cuda(x: Tensor, matrix: Tensor, scales: Tensor, group: int) -> Tensor:
    if len(x) > 16:  # made for few rows: every one reads the matrix anew
        return _int8_on_the_fly(x, matrix, scales, group)
    return torch._weight_int8pack_mm(x.float(), matrix, scales.float())


def _int4_pack(codes: Tensor, scales: Tensor) -> Tensor:
    return torch._convert_weight_to_int4pack_for_cpu(_split(codes).int(), 1)


def _int4_product(x: Tensor, matrix: Tensor, scales: Tensor, group: int) -> Tensor:
    return _int4_in_half(x.bfloat16(), matrix, scales, group).float()  # float32 is accepted, and 25 times slower


def _int4_in_half(x: Tensor, matrix: Tensor, scales: Tensor, group: int) -> Tensor:
    return torch._weight_int4pack_mm_for_cpu(x, matrix, group, scales)


def _int4_pack_cuda(codes: Tensor, scales: Tensor) -> Tensor:
    inner_tiles = next(tiles for tiles in (8, 4, 2) if codes.shape[1] % (8 * tiles) == 0)
    return torch._convert_weight_to_int4pack(codes, inner_tiles)


def _int4_product_cuda(x: Tensor, matrix: Tensor, scales: Tensor, group: int) -> Tensor:
    return torch._weight_int4pack_mm(x.bfloat16(), matrix, group, scales).float()


def _int4_unpack(matrix: Tensor, scales: Tensor, group: int) -> Tensor:
    """How the codes lie depends on the processor, so the product itself reads them, with rows of the identity."""
    product = _int4_product_cuda if matrix.is_cuda else _int4_product
    identity = torch.eye(len(scales) * group, device=matrix.device)
    bare = torch.tensor([1, 0], device=matrix.device, dtype=scales.dtype).expand_as(scales).contiguous()
    return _join((product(identity, matrix, bare, group) + 8).T)


def _float_pack(codes: Tensor, scales: Tensor) -> Tensor:
    return dequantise(codes, scales)


def _float_unpack(matrix: Tensor, scales: Tensor, group: int) -> Tensor:
    if scales.dim() == 1:
        return (matrix / scales.float()[:, None]).round().to(torch.int8)
    scale, offset = scales.float().unbind(-1)  # (G, N)
    return _join(_digits(matrix.unflatten(1, (-1, group)), scale.T, offset.T).flatten(1))


def _float_product(x: Tensor, matrix: Tensor, scales: Tensor, group: int) -> Tensor:
    return F.linear(x.float(), matrix)


DIGITS = Kernel("onednn.qlinear", _digits_pack, _digits_unpack, _digits_product, tolerance=1e-4, of_digits=_of_digits)
PANELS = Kernel("panels", _panels_pack, _panels_unpack, _panels_product, in_panels=True)
FLOAT = Kernel("float", _float_pack, _float_unpack, _float_product)
ON_THE_FLY = Kernel("int8 on the fly", _int8_pack, _int8_unpack, _int8_on_the_fly)
INT8 = Kernel("_weight_int8pack_mm", _int8_pack, _int8_unpack, _int8_product, in_half=_int8_in_half)
INT8_CUDA = Kernel("_weight_int8pack_mm", _int8_pack, _int8_unpack, _int8_product_cuda)
INT4 = Kernel("_weight_int4pack_mm_for_cpu", _int4_pack, _int4_unpack, _int4_product, in_half=_int4_in_half)
INT4_CUDA = Kernel("_weight_int4pack_mm", _int4_pack_cuda, _int4_unpack, _int4_product_cuda, tolerance=1e-3)


def kernels(weights: Weights, device: torch.device) -> tuple[Kernel, ...]:
    """The kernels for a device, in the order in which they are tried."""
    if weights == "int8":
        return {"cpu": (PANELS, DIGITS, INT8, FLOAT), "cuda": (INT8_CUDA, ON_THE_FLY)}.get(device.type, (ON_THE_FLY,))
    return {"cpu": (INT4, FLOAT), "cuda": (INT4_CUDA,)}.get(device.type, ())

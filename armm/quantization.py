"""Smaller weights: the large matrices in bfloat16, int8 or int4, activations stay float. For generation only.

A product with one row takes as long as reading its matrix. int8 reads a quarter of what float32 does, int4 a sixth. The
products (`armm.kernels`) have substitutes; some round activations and results to bfloat16, whose error is far below
that of the codes.
Axes: M rows, K inputs, N outputs.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from armm.errors import InputError, nearest
from armm.exactness import MIN_ROWS
from armm.heads import CategoricalHead
from armm.kernels import GROUPS, STEP, Weights, kernels, to_int4, to_int8
from armm.model import AutoregressiveModel

# ------------------------------------------------------------------- the layer


class PackedLinear(nn.Module):
    """A linear layer with a quantised matrix: (*, K) -> (*, N) of the same dtype. It has no gradients.

    Args:
        weight: (N, K). bias: (N,) or None.
        weights: int8 or int4.
        group: inputs that share a scale and an offset, for int4.

    Raises InputError: int4 on a device that has no product for it.
    """

    codes: Tensor  # as the kernel wants them; in a state_dict as `to_int8` and `to_int4` give them, for any machine
    scales: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, weights: Weights, group: int = 32) -> None:
        super().__init__()
        self.weights: Weights = weights
        self.group = group
        self.out_features, self.in_features = weight.shape
        # zeros that the product wants behind the inputs, and behind the outputs
        self.n_missing = -self.in_features % (STEP if weights == "int8" else group)
        padded = F.pad(weight.detach(), (0, self.n_missing, 0, 0 if weights == "int8" else -len(weight) % STEP))
        codes, scales = to_int8(padded) if weights == "int8" else to_int4(padded, group)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self._pack()

    @property
    def kernel(self) -> str:
        """How it multiplies. `float` is the substitute on a CPU: a float32 matrix of the quantised numbers."""
        return self._kernel.name

    @property
    def rows_needed(self) -> int:
        """See `armm.exactness`: packed products have the same rows whatever their number."""
        return MIN_ROWS if self.kernel == "float" else 1

    @property
    def bits(self) -> float:
        """Memory per weight, scales included."""
        return 8 * (self.codes.nbytes + self.scales.nbytes) / (self.in_features * self.out_features)

    @property
    def in_half(self) -> Callable[[Tensor], Tensor] | None:
        """The layer on (M, K) bfloat16 rows, as bfloat16; None where more is to be done than to multiply."""
        own, codes, scales, group = self._kernel.in_half, self.codes, self.scales, self.group
        if own is None or self.bias is not None or self.n_missing or self.out_features % STEP:
            return None
        return lambda x: own(x, codes, scales, group)

    @property
    def of_digits(self) -> Callable[[Tensor], Tensor] | None:
        """The product of (M, K) rows of digits without the scales; None where there is none, or more to be done."""
        own, codes = self._kernel.of_digits, self.codes
        return None if own is None or self.bias is not None or self.n_missing else lambda digits: own(digits, codes)

    @property
    def in_panels(self) -> bool:
        """`codes` lie as `armm.panels` has them."""
        return self._kernel.in_panels

    def forward(self, x: Tensor) -> Tensor:
        rows = x if x.dim() == 2 else x.reshape(-1, self.in_features)
        if self.n_missing:
            rows = F.pad(rows, (0, self.n_missing))
        codes, scales, bias = self._buffers.values()  # as attributes of a module each takes half a microsecond
        assert codes is not None and scales is not None
        y = self._kernel.product(rows.contiguous(), codes, scales, self.group)
        if y.shape[1] != self.out_features:
            y = y[:, : self.out_features]
        if bias is not None:
            y += bias
        if x.dtype != y.dtype:
            y = y.to(x.dtype)
        return y if x.dim() == 2 else y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.weights}, kernel={self.kernel}"

    def _pack(self) -> None:
        """Choose the kernel for plain codes, and lay them out for it."""
        for kernel in kernels(self.weights, self.codes.device):
            try:
                packed = kernel.pack(self.codes, self.scales)
                if not kernel.agrees(self.codes, packed, self.scales, self.group):
                    continue
            except (AttributeError, RuntimeError):  # this torch has no such product, or not for this device
                continue
            self._kernel, self.codes = kernel, packed
            return
        raise InputError(f"{self.weights} does not work on device {self.codes.device.type} here; choose int8")

    def _unpack(self) -> None:
        self.codes = self._kernel.unpack(self.codes, self.scales, self.group)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        """Scales keep their dtype, and another device may have another kernel."""
        scales = self.scales
        other_device = fn(self.scales[:0]).device.type != self.scales.device.type
        moves = other_device or self.codes.is_mkldnn or self.codes.is_floating_point()
        if moves:
            self._unpack()
        super()._apply(fn, recurse)
        self.scales = scales.to(self.codes.device)
        if moves:
            self._pack()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For copies: the codes as `to_int8` and `to_int4` give them."""
        codes = self._kernel.unpack(self.codes, self.scales, self.group)
        return {**self.__dict__, "_buffers": {**self._buffers, "codes": codes}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pack()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}codes"] = self._kernel.unpack(self.codes, self.scales, self.group)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self._unpack()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._pack()


class HalfLinear(nn.Module):
    """A linear layer with a bfloat16 matrix: (*, K) -> (*, N) of the same dtype. The fastest for many rows: prompts.

    Which of its rows are the same for every number of rows depends on the processor; the self-test of exact mode tells.
    """

    weights, kernel, bits, rows_needed = "bf16", "linear", 16.0, MIN_ROWS
    matrix: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("matrix", weight.detach().bfloat16())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x.to(self.matrix.dtype), self.matrix).to(x.dtype)
        return y if self.bias is None else y + self.bias


def packed(weight: Tensor, bias: Tensor | None, weights: Weights, group: int) -> PackedLinear | HalfLinear:
    """The layer for an (N, K) matrix."""
    return HalfLinear(weight, bias) if weights == "bf16" else PackedLinear(weight, bias, weights, group)


# ------------------------------------------------------------------- the model


def quantise(model: AutoregressiveModel, weights: Weights, group: int = 32) -> AutoregressiveModel:
    """Replace the linear layers of the backbone, and the output matrices of categorical heads, by quantised ones.

    Embeddings (a table that is also the output matrix too), norms and the small layers stay float. The model can be
    scored and sampled afterwards, not trained.

    Args:
        weights: bf16 for the fastest reading of prompts and for large batches, int8 for nearly the float model's
            probabilities at a quarter of the bytes, int4 for the fewest.
        group: inputs that share a scale, for int4: 32, 64, 128 or 256.

    Returns: the model itself.

    Raises InputError: an unknown name or group; a model without such matrices, or quantised before; int4 on a device
        that has no kernel for it.
    """
    if weights not in get_args(Weights):
        expected = ", ".join(get_args(Weights))
        raise InputError(f"weights is {weights!r}, expected {expected}{nearest(str(weights), get_args(Weights))}")
    if group not in GROUPS:
        raise InputError(f"group is {group}, it must be one of {', '.join(map(str, GROUPS))}")
    if any(isinstance(module, PackedLinear | HalfLinear) for module in model.modules()):
        raise InputError("the model is quantised already; load it again to quantise it otherwise")
    names = [name for name, module in model.backbone.named_modules() if isinstance(module, nn.Linear)]
    heads = [head for head in model.heads.values() if isinstance(head, CategoricalHead)]
    if not names and not heads:
        raise InputError(f"this model has no large matrices to store in {weights}; leave weights as they are")
    for name in names:
        linear = model.backbone.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.backbone.set_submodule(name, packed(linear.weight, linear.bias, weights, group))
    for head in heads:
        head.replace_output(packed(head.weight[: head.vocab], None, weights, group))
    return model.requires_grad_(False)


def describe(model: AutoregressiveModel) -> str:
    """One line: what is quantised and how it multiplies, what is float, and the bytes of it all."""
    small = [module for module in model.modules() if isinstance(module, PackedLinear | HalfLinear)]
    pieces = []
    for kind in sorted({(layer.weights, layer.kernel) for layer in small}):
        layers = [layer for layer in small if (layer.weights, layer.kernel) == kind]
        n = sum(layer.in_features * layer.out_features for layer in layers)
        bits = sum(layer.bits * layer.in_features * layer.out_features for layer in layers) / n
        pieces.append(f"{kind[0]} by {kind[1]}: {len(layers)} matrices of {n / 1e6:.2f} M weights at {bits:.2f} bits")
    pieces.append(f"float: {model.n_parameters / 1e6:.2f} M parameters")
    n_bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return f"{'; '.join(pieces)}; {n_bytes / 1e6:.1f} MB in all"

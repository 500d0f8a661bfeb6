"""Why a sample is the same alone and in a batch: products whose rows do not depend on how many rows there are.

Measured on x86 CPUs: a row of a float32 product is the same to the last bit for every number of rows from 16 up (and
another one below), one of int8 or int4 weights always, one of bfloat16 not. Attention of one query is the same for
every cache cut at a multiple of 128. So an exact state pads its products to 16 rows and attends query by query; whether
that holds on a machine is tested before it is promised (`armm.generation.exact`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MIN_ROWS = 16


def rows_needed(module: nn.Module) -> int:
    """How many rows a module's products must have for their results not to depend on that number.

    A module says so by `rows_needed`, as packed matrices do; any other one with parameters needs `MIN_ROWS`.
    """
    own = getattr(module, "rows_needed", None)
    if own is not None:
        return own
    matrices = any(parameter.dim() > 1 and parameter.numel() for parameter in module.parameters(recurse=False))
    return max([MIN_ROWS if matrices else 1, *(rows_needed(child) for child in module.children())])


def at_least(x: Tensor, n: int) -> Tensor:
    """(R, *) -> (max(R, n), *), zeros below."""
    missing = n - len(x)
    return x if missing <= 0 else torch.cat([x, x.new_zeros(missing, *x.shape[1:])])

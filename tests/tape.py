"""A recorder for the CPU: the operators that a body called, called again on the tensors they were called on.

As a CUDA graph does, it repeats Python's numbers as they were, reads and writes the same tensors, and leaves results
where they were; what could not be captured on a GPU (waiting for a number, a constant from the host) fails here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from armm.graphs import Body, Recording

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::lift_fresh", "aten::masked_select", "aten::equal"}


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func._schema.name not in WAITS, f"{func} cannot be captured"
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self, results: tuple[Tensor, ...]) -> None:
        made: dict[int, Any] = {}

        def current(x: Any) -> Any:
            return made.get(id(x), x) if isinstance(x, Tensor) else x

        for func, args, kwargs, out in self.calls:
            again = func(*tree_map(current, args), **tree_map(current, kwargs))
            made.update(zip(map(id, tree_leaves(out)), tree_leaves(again), strict=True))
        for result in results:
            if id(result) in made:
                result.copy_(made[id(result)])


def record_on_tape(body: Body) -> Recording:
    with Tape() as tape:
        results = body()
    for result in results:  # what the first run left is not what a replay leaves
        if any(result is out for *_, out in tape.calls) and not result._is_view():
            result.fill_(torch.nan if result.is_floating_point() else -1)
    return Recording(lambda: tape.replay(results), results)

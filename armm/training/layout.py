"""Tensors of which every process holds a part (DTensor): the part, the whole, and the way between them.

Optimisers, moving averages and the guard of steps work on the parts, which are ordinary tensors: what is done element
by element needs nothing else, and costs nothing more.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_again(module: nn.Module) -> None:
    """Have each process hold its parts of a module's parameters: evaluation may have left it the whole."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def spread(part: Tensor, like: Tensor | None) -> Tensor:
    """What a process holds as the part of a whole, which is laid out like another tensor of that shape."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in every process. All of them take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor, like: Tensor | None) -> Tensor:
    """The part of a whole tensor that this process would hold if it were laid out like another; nothing is sent."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.detach(), like.device_mesh, like.placements, src_data_rank=None).to_local()


def n_copies(tensor: Tensor, n_ranks: int) -> int:
    """How many of all processes hold each element of a tensor."""
    if not isinstance(tensor, DTensor):
        return n_ranks
    sizes = [tensor.device_mesh.size(i) for i, own in enumerate(tensor.placements) if own.is_shard()]
    return n_ranks // prod(sizes)


def squares(tensors: list[Tensor], n_ranks: int) -> Tensor:
    """() this process's share of a sum of squares: added up over all processes, it is that of the whole tensors."""
    by_copies: dict[int, list[Tensor]] = {}
    for tensor in tensors:
        if local(tensor).numel():
            by_copies.setdefault(n_copies(tensor, n_ranks), []).append(local(tensor))
    total = torch.zeros((), device=tensors[0].device if tensors else None)
    for n, parts in by_copies.items():
        norms = torch.stack(torch._foreach_norm(parts))  # type: ignore[attr-defined]
        total = total + norms.square().sum() / n
    return total

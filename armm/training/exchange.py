"""Matrices whose rows are dealt out over processes, brought together in one process each, and dealt out again.

So work that needs whole matrices is shared: each process is sent as many rows as it sends, whatever their number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor, Shard


class Exchange:
    """Brings matrix i together in process i modulo their number.

    Args:
        layouts: how the matrices are dealt out, by rows over one dimension of processes.
    """

    def __init__(self, layouts: Sequence[DTensor]) -> None:
        mesh = layouts[0].device_mesh
        self.group, self.n, self.rank = mesh.get_group(), mesh.size(), mesh.get_local_rank()
        # by size, so that every process has as much to do
        order = sorted(range(len(layouts)), key=lambda i: (-layouts[i].numel(), i))
        self.members = [order[rank :: self.n] for rank in range(self.n)]  # of each process
        self.shapes = [layout.shape for layout in layouts]

    @staticmethod
    def applies(layout: DTensor) -> bool:
        """Whether a tensor is dealt out as this needs it."""
        return layout.device_mesh.ndim == 1 and layout.placements == (Shard(0),)

    def shape(self, i: int, rank: int) -> torch.Size:
        """Of a process's part of matrix i."""
        rows, *rest = self.shapes[i]
        most = -(-rows // self.n)
        return torch.Size([max(0, min(most, rows - rank * most)), *rest])

    def bring_together(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """This process's parts of all matrices -> the matrices that it is to have, whole."""
        mine, like = self.members[self.rank], parts[0].new_empty(0)
        sent = [[parts[i] for i in members] for members in self.members]
        received = self._exchange(sent, [[self.shape(i, rank) for i in mine] for rank in range(self.n)], like)
        return [torch.cat([pieces[at] for pieces in received]) for at in range(len(mine))]

    def give_back(self, wholes: Sequence[Tensor], like: Tensor) -> list[Tensor]:
        """The matrices that this process has, whole -> its parts of all matrices, of the type of another tensor."""
        mine = self.members[self.rank]
        cut = [whole.split([self.shape(i, r)[0] for r in range(self.n)]) for i, whole in zip(mine, wholes, strict=True)]
        sent = [[pieces[rank] for pieces in cut] for rank in range(self.n)]
        shapes = [[self.shape(i, self.rank) for i in members] for members in self.members]
        parts = [like] * len(self.shapes)
        for members, pieces in zip(self.members, self._exchange(sent, shapes, like), strict=True):
            for i, piece in zip(members, pieces, strict=True):
                parts[i] = piece
        return parts

    def _exchange(self, sent: list[list[Tensor]], shapes: list[list[torch.Size]], like: Tensor) -> list[list[Tensor]]:
        """Send tensors to each process, and receive those of known shapes from each."""
        flat = torch.cat([like[:0].flatten(), *(piece.flatten() for pieces in sent for piece in pieces)])
        n_sent = [sum(piece.numel() for piece in pieces) for pieces in sent]
        n_received = [sum(shape.numel() for shape in own) for own in shapes]
        received = flat.new_empty(sum(n_received))
        distributed.all_to_all_single(received, flat, n_received, n_sent, group=self.group)
        return [
            [piece.view(shape) for piece, shape in zip(own.split([s.numel() for s in wanted]), wanted, strict=True)]
            for own, wanted in zip(received.split(n_received), shapes, strict=True)
        ]

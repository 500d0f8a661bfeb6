"""A transformer's steps as one compiled function for several threads: small float32 matrices, or int8 ones.

Axes: M queries, D width, L layers, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from armm.backbones.fast import KINDS, NO_ROWS, NOTHING, SMALL, norm_kind
from armm.backbones.fast_loop import Heads
from armm.backbones.positions import Rotations
from armm.backbones.team_loop import Blocks, Matrices, Norms, Room, Taken, step
from armm.panels import PANEL, pack_floats
from armm.team import team_size

if TYPE_CHECKING:
    from armm.backbones.transformer import Block, TransformerBackbone


class TeamSteps:
    """All blocks of a backbone, for steps of any number of rows."""

    for_short = True  # of prompts

    def __init__(self, backbone: TransformerBackbone) -> None:
        config = backbone.config
        self.config, self.rotations = config, Rotations(backbone)
        self.kept: list[Tensor] = []  # matrices whose addresses are told
        blocks: list[Block] = list(backbone.blocks)  # type: ignore[arg-type]
        takes = list(config.value_layers)
        self.blocks = Blocks(
            heads=Heads(
                config.n_heads,
                config.window or 0,
                config.attention_softcap or 0.0,
                config.norm_eps if config.qk_norm else -1.0,
            ),
            activation=KINDS[config.mlp],
            n_hidden=config.hidden,
            scale=_rows([block.scale if block.has_scale else None for block in blocks]),
            value_layer=np.array([takes.index(n) if n in takes else -1 for n in range(config.n_layers)]),
            value_scale=np.array([float(getattr(block.attention, "value_scale", 0.0)) for block in blocks]),
            attention_norm=_norms([block.attention_norm for block in blocks]),
            qkv=self._matrices([block.attention.qkv for block in blocks]),
            out=self._matrices([block.attention.out for block in blocks]),
            mlp_norm=_norms([block.mlp_norm for block in blocks]),
            mlp_enter=self._matrices([block.mlp.enter for block in blocks]),
            mlp_out=self._matrices([block.mlp.out for block in blocks]),
            norm=_norms([backbone.norm]),
        )
        self._room = self._room_for(0)

    def __call__(
        self, x: Tensor, values: Tensor | None, cache: Tensor, row: np.ndarray, position: np.ndarray
    ) -> Tensor:
        """(M, D) embeddings -> (M, D) contexts; keys and values are written into the cache.

        values: (M, value_width) or None. row, position: (M,) int64.
        """
        m = len(x)
        if len(self._room.first) != m:
            self._room = self._room_for(m)
        own = np.zeros((0, 0, 0), np.float32)
        if values is not None and self.config.value_layers:
            own = values.unflatten(1, (len(self.config.value_layers), -1)).transpose(0, 1).contiguous().numpy()
        stream, rotation = x.numpy().copy(), self.rotations.up_to(int(position.max()) + 1).numpy()
        step(self.blocks, self._room, stream, own, rotation, cache.numpy(), row, position, team_size())
        return torch.from_numpy(stream)

    def _matrices(self, linears: Sequence[nn.Module]) -> Matrices:
        """A linear layer of every block."""
        scales: list[Tensor | None] = []
        biases: list[Tensor | None] = []
        panels = []
        for linear in linears:
            if isinstance(linear, nn.Linear):
                panels.append(pack_floats(linear.weight, linear.bias))
            else:
                panels.append(linear.codes)
                scales.append(linear.scales.float())  # type: ignore[operator,union-attr]
                biases.append(linear.bias)  # type: ignore[arg-type]
        self.kept += panels
        addresses = np.array([own.data_ptr() for own in panels], np.int64)
        return Matrices(addresses, len(panels[0]), _rows(scales), _rows(biases))

    def _room_for(self, m: int) -> Room:
        config, of_digits = self.config, len(self.blocks.qkv.scales) > 0
        width, e = config.width, config.head_width

        def taken(size: int) -> Taken:
            if not of_digits:
                return Taken(np.zeros((m, size), np.float32), np.zeros((0, 0), np.uint8), NOTHING)
            return Taken(NO_ROWS, np.zeros((2 * m, size + -size % PANEL), np.uint8), np.ones(m, np.float32))

        def results(matrices: Matrices) -> np.ndarray:
            return np.zeros((m, PANEL * matrices.n_panels), np.float32)

        return Room(
            first=np.zeros((m, width), np.float32),
            delta=results(self.blocks.out),
            qkv=results(self.blocks.qkv),
            queries=np.zeros((m, config.n_heads, e), np.float32),
            mixed=np.zeros((m, width), np.float32),
            hidden=results(self.blocks.mlp_enter),
            entered=taken(width),
            attended=taken(width),
            activated=taken(config.hidden),
        )


def _rows(tensors: Sequence[Tensor | None]) -> np.ndarray:
    """(L, *), or (0, 0) where there is none."""
    found = [tensor.detach() for tensor in tensors if tensor is not None]
    return torch.stack(found).numpy() if found else NO_ROWS


def _norms(norms: Sequence[nn.Module]) -> Norms:
    gains, biases = ([getattr(norm, name, None) for norm in norms] for name in ("weight", "bias"))
    return Norms(norm_kind(norms[0]), float(norms[0].eps or 0.0), _rows(gains), _rows(biases))  # type: ignore[arg-type]


def team_steps(backbone: TransformerBackbone) -> TeamSteps | None:
    """The steps of a backbone; None where a matrix is neither small float32 nor panels of int8."""
    linears = [m for m in backbone.blocks.modules() if isinstance(m, nn.Linear) or hasattr(m, "in_panels")]
    small = all(isinstance(linear, nn.Linear) and linear.weight.numel() < SMALL for linear in linears)
    packed = all(getattr(linear, "in_panels", False) for linear in linears)
    n_products = 4 * len(backbone.blocks)
    return TeamSteps(backbone) if len(linears) == n_products and (small or packed) else None

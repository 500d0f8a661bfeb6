"""A transformer's steps with everything between the matrix products in compiled code (`pip install "armm[fast]"`).

Small float32 matrices are multiplied in compiled code as well, whose rows do not depend on their number; large and
packed ones by their own layers.

Axes: M queries of one call, D width, E head width, F hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from armm.backbones.fast_loop import (
    GELU,
    LAYER,
    RELU2,
    RMS,
    SWIGLU,
    Heads,
    Norm,
    activate,
    attend,
    enter,
    multiply,
    put,
    remember,
)
from armm.backbones.positions import Rotations
from armm.exactness import rows_needed
from armm.team import team_size

if TYPE_CHECKING:
    from armm.backbones.team_steps import TeamSteps
    from armm.backbones.transformer import Block, TransformerBackbone

SMALL = 1 << 19  # weights; what fits in a cache is multiplied here
KINDS = {"relu2": RELU2, "gelu": GELU, "swiglu": SWIGLU}
MANY = 8  # rows from which threads pay
NOTHING, NO_ROWS = np.zeros(0, np.float32), np.zeros((0, 0), np.float32)


class Buffer(NamedTuple):
    """What a product takes, as the product and as the compiled functions see it."""

    tensor: Tensor
    form: Any  # see `armm.backbones.fast_loop`


class Product(NamedTuple):
    """A linear layer.

    Attributes:
        run: what it takes -> what it gives, in a form of the compiled functions.
        buffer: (M, K) -> room for what it takes.
        rows: that it needs at least for exact results.
    """

    run: Callable[[Buffer], Any]
    buffer: Callable[[int, int], Buffer]
    rows: int


class CompiledBlock(NamedTuple):
    """A block's parts as the compiled functions take them."""

    scale: np.ndarray  # (2,), empty for none
    value_scale: float
    attention_norm: Norm
    qkv: Product
    out: Product
    mlp_norm: Norm
    mlp_enter: Product
    mlp_out: Product


class Room(NamedTuple):
    """What a block's products take."""

    qkv: Buffer
    out: Buffer
    mlp_enter: Buffer
    mlp_out: Buffer


class CompiledSteps:
    """All blocks of a backbone; `exact` for products whose rows do not depend on their number."""

    for_short = False  # prompts have `read`, whatever their length

    def __init__(self, backbone: TransformerBackbone, exact: bool) -> None:
        config = backbone.config
        self.config, self.exact = config, exact
        self.blocks = [_block(block) for block in backbone.blocks]  # type: ignore[arg-type]
        self.norm = _norm(backbone.norm)
        self.rotations, self.split_values = Rotations(backbone), backbone.split_values
        self.heads = Heads(
            config.n_heads,
            config.window or 0,
            config.attention_softcap or 0.0,
            config.norm_eps if config.qk_norm else -1.0,
        )
        products = [p for block in self.blocks for p in block if isinstance(p, Product)]
        self._kept_rooms: list[Room] = []
        self._room_rows = -1
        self.rows = max(product.rows for product in products) if exact else 1

    def __call__(
        self, x: Tensor, values: Tensor | None, cache: Tensor, row: np.ndarray, position: np.ndarray
    ) -> Tensor:
        """(M, D) embeddings -> (M, D) contexts; keys and values are written into the cache.

        values: (M, value_width) or None. row, position: (M,) int64.
        """
        rotation, caches = self.rotations.up_to(int(position.max()) + 1).numpy(), cache.numpy()
        threads = threads_for(len(row))

        def attended(layer: int, qkv: Any, own: np.ndarray, value_scale: float, out: Any) -> None:
            attend(qkv, own, value_scale, rotation, caches[layer], row, position, self.heads, out, threads)

        return self._blocks(x, values, attended)

    def read(
        self,
        x: Tensor,
        values: Tensor | None,
        cache: Tensor,
        row: np.ndarray,
        position: np.ndarray,
        attends: Callable[[int, Tensor], Tensor],
    ) -> Tensor:
        """The same of prompts.

        attends: what (M, H, E) queries of a layer find among keys and values that are in the cache -> (M, H, E).
        """
        rotation, caches = self.rotations.up_to(int(position.max()) + 1).numpy(), cache.numpy()
        queries = np.empty((len(row), self.config.n_heads, self.config.head_width), np.float32)
        threads = threads_for(len(row))

        def attended(layer: int, qkv: Any, own: np.ndarray, value_scale: float, out: Any) -> None:
            remember(qkv, own, value_scale, rotation, caches[layer], row, position, self.heads, queries, threads)
            put(attends(layer, torch.from_numpy(queries)).flatten(1).contiguous().numpy(), out, threads)

        return self._blocks(x, values, attended)

    def _blocks(
        self, x: Tensor, values: Tensor | None, attended: Callable[[int, Any, np.ndarray, float, Any], None]
    ) -> Tensor:
        """attended: layer, (M, (H + 2G) E), value embeddings and how much of them; fills in (M, H E)."""
        m, config = len(x), self.config
        n = max(m, self.rows)
        threads = threads_for(n)
        stream = np.zeros((n, config.width), np.float32)
        stream[:m] = x.numpy()
        first = stream.copy() if config.residual_scalars else stream
        values_of = self.split_values(values)

        def entered(delta: Any, scale: np.ndarray, norm: Norm, out: Any) -> None:
            enter(stream, delta, scale, first, norm, out, threads)

        def activated(hidden: Any, out: Any) -> None:
            activate(hidden, KINDS[config.mlp], n, config.hidden, out, threads)

        delta: Any = np.zeros((n, config.width), np.float32)
        for layer, (block, room) in enumerate(zip(self.blocks, self._rooms(n), strict=True)):
            own = values_of[layer]
            entered(delta, block.scale, block.attention_norm, room.qkv.form)
            given = NO_ROWS if own is None else own.contiguous().numpy()
            attended(layer, block.qkv.run(room.qkv), given, block.value_scale, room.out.form)
            entered(block.out.run(room.out), NOTHING, block.mlp_norm, room.mlp_enter.form)
            activated(block.mlp_enter.run(room.mlp_enter), room.mlp_out.form)
            delta = block.mlp_out.run(room.mlp_out)
        contexts = torch.empty(n, config.width)
        entered(delta, NOTHING, self.norm, contexts.numpy())
        return contexts[:m]

    def _rooms(self, n: int) -> list[Room]:
        """What the products of every block take, for n rows; kept for the next call of as many."""
        if n != self._room_rows:
            width, hidden = self.config.width, self.config.hidden
            known: dict[tuple[Any, int], Buffer] = {}

            def room(product: Product, size: int) -> Buffer:
                return known.setdefault((product.buffer, size), product.buffer(n, size))

            self._kept_rooms = [
                Room(room(b.qkv, width), room(b.out, width), room(b.mlp_enter, width), room(b.mlp_out, hidden))
                for b in self.blocks
            ]
            self._room_rows = n
        return self._kept_rooms


def threads_for(n_rows: int) -> int:
    """So many threads share rows out to each other."""
    return team_size() if n_rows >= MANY else 1


def _block(block: Block) -> CompiledBlock:
    return CompiledBlock(
        scale=_array(block.scale) if block.has_scale else NOTHING,
        value_scale=float(getattr(block.attention, "value_scale", 0.0)),
        attention_norm=_norm(block.attention_norm),
        qkv=_product(block.attention.qkv),
        out=_product(block.attention.out),
        mlp_norm=_norm(block.mlp_norm),
        mlp_enter=_product(block.mlp.enter),
        mlp_out=_product(block.mlp.out),
    )


def norm_kind(norm: nn.Module) -> int:
    return RMS if isinstance(norm, nn.RMSNorm) else LAYER


def _norm(norm: nn.Module) -> Norm:
    gain, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    return Norm(norm_kind(norm), float(norm.eps or 0.0), _array(gain), _array(bias))  # type: ignore[arg-type]


def _product(linear: nn.Module) -> Product:
    needed = rows_needed(linear)
    if (of_digits := getattr(linear, "of_digits", None)) is not None:
        return _digits_product(of_digits, _array(linear.scales.float()))  # type: ignore[union-attr]
    if (in_half := getattr(linear, "in_half", None)) is not None:
        return Product(lambda x: in_half(x.tensor).view(torch.uint16).numpy(), _halves, needed)
    if not isinstance(linear, nn.Linear) or linear.weight.numel() >= SMALL:
        return Product(lambda x: linear(x.tensor).numpy(), _floats, needed)
    weights, bias = _array(linear.weight.T), _array(linear.bias)

    def run(x: Buffer) -> np.ndarray:
        out = np.empty((len(x.form), weights.shape[1]), np.float32)
        multiply(x.form, weights, bias, out)
        return out

    return Product(run, _floats, 1)


def _digits_product(of_digits: Callable[[Tensor], Tensor], scales: np.ndarray) -> Product:
    def run(x: Buffer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return of_digits(x.tensor).numpy().reshape(-1, 2, len(scales)), x.form[1], scales

    return Product(run, _digits, 1)


def _floats(n: int, width: int) -> Buffer:
    tensor = torch.zeros(n, width)
    return Buffer(tensor, tensor.numpy())


def _halves(n: int, width: int) -> Buffer:
    tensor = torch.zeros(n, width, dtype=torch.bfloat16)
    return Buffer(tensor, tensor.view(torch.uint16).numpy())


def _digits(n: int, width: int) -> Buffer:
    tensor = torch.zeros(2 * n, width, dtype=torch.uint8)
    return Buffer(tensor, (tensor.numpy().reshape(n, 2, width), np.ones(n, np.float32)))


def _array(x: Tensor | None) -> np.ndarray:
    return NOTHING if x is None else x.detach().contiguous().numpy()


def compiled_steps(backbone: TransformerBackbone, exact: bool) -> CompiledSteps | TeamSteps | None:
    """The steps of a backbone; None where its device or precision has none."""
    if any(p.dtype != torch.float32 for p in backbone.parameters()) or backbone.like.device.type != "cpu":
        return None
    from armm.backbones.team_steps import team_steps

    return team_steps(backbone) or CompiledSteps(backbone, exact)

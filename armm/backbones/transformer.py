"""The causal transformer: GPT-2's block, LLaMA's block, and the small-model block in between, by configuration.

Sources: GPT-2 (Radford et al. 2019), LLaMA (arXiv:2302.13971), RoPE (arXiv:2104.09864), grouped-query attention
(arXiv:2305.13245), QK-norm (arXiv:2010.04245), ReLU² (arXiv:2109.08668), value embeddings and residual scalars
(modded-nanogpt, nanochat).
Axes: B rows, N positions, S keys, D width, H heads, G key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from armm.backbones import fused
from armm.backbones.backbone import Backbone, BackboneConfig, BackboneState
from armm.backbones.recycled import Recycle, RecycledBackbone
from armm.backbones.transformer_state import TransformerState, attend
from armm.dropout import Dropout
from armm.errors import InputError
from armm.exactness import rows_needed


@dataclass(frozen=True)
class Transformer(BackboneConfig):
    """A causal transformer.

    The defaults are the small-model block. `position: learned, norm: layer, norm_gain: true, mlp: gelu, bias: true,
    qk_norm: false` is GPT-2's; `norm_gain: true, mlp: swiglu, qk_norm: false` is LLaMA's.

    Attributes:
        width: D, of the residual stream.
        n_layers: number of blocks.
        n_heads: number of attention heads.
        n_kv_heads: key/value heads, shared by groups of heads; `n_heads` by default.
        position: rotary, or a learned table of `max_positions`.
        max_positions: of the learned table.
        rope_base: wavelength base of the rotation.
        norm: RMS or layer normalisation.
        norm_gain: give the norms a learned gain (and layer norm its bias).
        norm_eps: added to the variance.
        mlp: activation: ReLU squared, GELU (tanh approximation), or a gated SiLU.
        mlp_width: hidden width; 4 x width, or 8/3 x width for swiglu, by default.
        bias: linear layers have biases.
        qk_norm: normalise queries and keys.
        window: a position sees itself and the `window - 1` before it; everything by default. With rotary positions
            a model with a window reads and writes documents of any length.
        attention_softcap: bound attention scores softly; none by default.
        value_embeddings: every second layer adds its own embedding of the input unit to its values.
        residual_scalars: every block scales the stream and adds a learned multiple of its first input.
        dropout: of embeddings, attention weights and block outputs, in training.
        attention_dropout: of attention weights instead. On a CPU any takes several times as long as none, the more so
            the longer the documents.
        recycle: apply all blocks several times, their input given anew each time; once by default.
    """

    width: int = 128
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int | None = None
    position: Literal["rope", "learned"] = "rope"
    max_positions: int = 1024
    rope_base: float = 10000.0
    norm: Literal["rms", "layer"] = "rms"
    norm_gain: bool = False
    norm_eps: float = 1e-5
    mlp: Literal["relu2", "gelu", "swiglu"] = "relu2"
    mlp_width: int | None = None
    bias: bool = False
    qk_norm: bool = True
    window: int | None = None
    attention_softcap: float | None = None
    value_embeddings: bool = False
    residual_scalars: bool = False
    dropout: float = 0.0
    attention_dropout: float | None = None
    recycle: Recycle | None = None

    def __post_init__(self) -> None:
        if self.width % self.n_heads or (self.width // self.n_heads) % 2:
            raise InputError(f"width {self.width} must be an even multiple of n_heads {self.n_heads}")
        if self.n_heads % self.kv_heads:
            raise InputError(f"n_heads {self.n_heads} must be a multiple of n_kv_heads {self.kv_heads}")
        if self.window is not None and self.window < 1:
            raise InputError(f"window is {self.window}, it must be at least 1; leave it out to see everything")
        for name, share in (("dropout", self.dropout), ("attention_dropout", self.attention_dropout or 0.0)):
            if not 0 <= share < 1:
                raise InputError(f"{name} is {share}, it must be at least 0 and less than 1")

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def head_width(self) -> int:
        return self.width // self.n_heads

    @property
    def hidden(self) -> int:
        return self.mlp_width or (4 * self.width if self.mlp != "swiglu" else -(-8 * self.width // 24) * 8)

    @property
    def value_layers(self) -> tuple[int, ...]:
        """The layers with value embeddings."""
        return tuple(range(self.n_layers - 1, -1, -2))[::-1] if self.value_embeddings else ()

    @property
    def value_width(self) -> int:
        return len(self.value_layers) * self.kv_heads * self.head_width

    def check_context(self, context: int | None) -> None:
        if self.position == "learned" and (context is None or context > self.max_positions):
            raise InputError(
                f"the model's context is {context or 'unlimited'}, its learned positions are {self.max_positions}; "
                "raise max_positions, lower context, or set position: rope"
            )

    def build(self) -> Backbone:
        blocks = TransformerBackbone(self)
        return RecycledBackbone(blocks, self.width, self.recycle) if self.recycle else blocks


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions, halves paired as in LLaMA's Hugging Face code.

    (B, H, N, E), cosines and sines (B or 1, 1, N, E / 2) -> (B, H, N, E).
    """
    cos, sin = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def heads_of(values: Tensor, head_width: int) -> Tensor:
    return rearrange(values, "b n (h e) -> b h n e", e=head_width)


class RMSNorm(nn.RMSNorm):
    """torch's own, with a cheaper gradient where there is no gain."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None and fused.applies(x):
            return fused.RMSNorm.apply(x, self.eps, fused.product_type(x))
        return super().forward(x)


def build_norm(width: int, config: Transformer) -> nn.Module:
    if config.norm == "layer":
        return nn.LayerNorm(width, eps=config.norm_eps, elementwise_affine=config.norm_gain)
    return RMSNorm(width, eps=config.norm_eps, elementwise_affine=config.norm_gain)


class Attention(nn.Module):
    """Causal self-attention with grouped keys and values, optionally reading a cache.

    Attributes:
        n_heads, n_kv_heads: those of this process; the others are elsewhere where heads are dealt out (tensor
            parallelism).
        share: where they are, what takes this process's part of value embeddings, and their scale.
    """

    def __init__(self, config: Transformer, has_values: bool) -> None:
        super().__init__()
        self.config = config
        self.n_heads, self.n_kv_heads = config.n_heads, config.kv_heads
        self.share: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
        size = config.kv_heads * config.head_width
        self.qkv = nn.Linear(config.width, config.width + 2 * size, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)
        self.norm = nn.RMSNorm(config.head_width, eps=config.norm_eps, elementwise_affine=False)
        if has_values:
            self.value_scale = nn.Parameter(torch.tensor(0.5))

    def project(
        self,
        x: Tensor,
        values: Tensor | None,
        rotation: tuple[Tensor, Tensor] | None,
        turns: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> queries (B, H, N, E), keys and values (B, G, N, E).

        turns: the rotation as `fused.turns_of` gives it, where that applies.
        """
        c, n_heads, n_qk = self.config, self.n_heads, self.n_heads + self.n_kv_heads
        qkv = self.qkv(x)
        if n_heads == self.n_kv_heads and fused.applies(qkv) and (rotation is None or turns is not None):
            eps = c.norm_eps if c.qk_norm else None
            turns = turns and (turns[0].to(qkv.dtype), turns[1].to(qkv.dtype))
            q, k, v = fused.Heads.apply(qkv, n_heads, eps, turns)
            return q, k, v if values is None else v + self.added(values)
        whole = qkv.unflatten(-1, (-1, c.head_width)).transpose(1, 2)  # (B, H + 2G, N, E)
        qk, v = whole[:, :n_qk], whole[:, n_qk:]
        if values is not None:
            v = v + self.added(values)
        if c.qk_norm:
            qk = self.norm(qk)
        if rotation is not None:
            qk = rotate(qk, rotation)
        return qk[:, :n_heads], qk[:, n_heads:], v

    def added(self, values: Tensor) -> Tensor:
        """What value embeddings add to the values, (B, G, N, E)."""
        scale = self.value_scale
        if self.share is not None:
            values, scale = self.share(values, scale)
        return scale * heads_of(values, self.config.head_width)

    def finish(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Causal where there is no mask. Returns (B, N, D)."""
        config = self.config
        dropout = config.dropout if config.attention_dropout is None else config.attention_dropout
        dropout = dropout if self.training else 0.0
        window, n = config.window, q.shape[2]
        plain = not dropout and config.attention_softcap is None and q.shape == k.shape
        if plain and q.dtype == torch.bfloat16 and min(window or n, n) <= fused.LONGEST and fused.applies(q):
            out = fused.attend_causally(q, k, v.to(q.dtype), window)
        else:
            out = attend(q, k, v, mask, mask is None, config.attention_softcap, dropout)
        return self.out(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: Transformer) -> None:
        super().__init__()
        self.activation = config.mlp
        wide = 2 * config.hidden if config.mlp == "swiglu" else config.hidden
        self.enter = nn.Linear(config.width, wide, bias=config.bias)
        self.out = nn.Linear(config.hidden, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.enter(x)
        if self.activation == "swiglu":
            gate, up = hidden.chunk(2, dim=-1)
            return self.out(F.silu(gate) * up)
        if self.activation == "gelu":
            return self.out(F.gelu(hidden, approximate="tanh"))
        return self.out(fused.SquaredReLU.apply(hidden) if fused.applies(hidden) else F.relu(hidden).square())


class Block(nn.Module):
    """Pre-norm attention and MLP.

    Attributes:
        recompute: keep nothing of a training step but the input, and compute the rest anew for the gradient (activation
            checkpointing, arXiv:1604.06174).
    """

    def __init__(self, config: Transformer, has_values: bool) -> None:
        super().__init__()
        self.attention = Attention(config, has_values)
        self.mlp = MLP(config)
        self.attention_norm, self.mlp_norm = build_norm(config.width, config), build_norm(config.width, config)
        self.dropout = Dropout(config.dropout)
        if config.residual_scalars:
            self.scale = nn.Parameter(torch.tensor([1.0, 0.1]))
        self.has_scale = config.residual_scalars
        self.recompute = False

    def forward(
        self,
        x: Tensor,
        first: Tensor,
        values: Tensor | None,
        rotation: tuple[Tensor, Tensor] | None,
        turns: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
    ) -> Tensor:
        """(B, N, D) of the stream, as it is and as it was at first -> (B, N, D). Causal where there is no mask."""
        if self.recompute and torch.is_grad_enabled():
            out = checkpoint(self.whole, x, first, values, rotation, turns, mask, use_reentrant=False)
            assert isinstance(out, Tensor)
            return out
        return self.whole(x, first, values, rotation, turns, mask)

    def whole(
        self,
        x: Tensor,
        first: Tensor,
        values: Tensor | None,
        rotation: tuple[Tensor, Tensor] | None,
        turns: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
    ) -> Tensor:
        """See `forward`."""
        x = self.enter(x, first)
        q, k, v = self.attention.project(self.attention_norm(x), values, rotation, turns)
        return self.finish(x, self.attention.finish(q, k, v, mask))

    def enter(self, x: Tensor, first: Tensor) -> Tensor:
        return self.scale[0] * x + self.scale[1] * first if self.has_scale else x

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.dropout(attended)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class TransformerBackbone(Backbone):
    """Blocks and a final norm; embeddings come in, contexts go out."""

    like: Tensor

    def __init__(self, config: Transformer) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config, layer in config.value_layers) for layer in range(config.n_layers))
        self.norm = build_norm(config.width, config)
        self.dropout = Dropout(config.dropout)
        # tells device and precision where the matrices are packed and nothing else is left
        self.register_buffer("like", torch.empty(0), persistent=False)
        if config.position == "learned":
            self.positions = nn.Parameter(torch.randn(config.max_positions, config.width) * 0.02)
        for name, parameter in self.named_parameters():
            if name.endswith("out.weight"):
                nn.init.zeros_(parameter)  # blocks start as the identity
            elif parameter.dim() == 2 and name != "positions":
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 * 0.8)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def rows_needed(self) -> int:
        """See `armm.exactness`: learned positions are looked up, so the blocks' products are all there are."""
        return max(rows_needed(block) for block in self.blocks)

    def angles(self, positions: Tensor) -> Tensor | None:
        """(*) positions -> (*, E / 2) rotation angles."""
        if self.config.position != "rope":
            return None
        e = self.config.head_width
        # in this order of operations, so that LLaMA's own angles come out bit for bit
        powers = torch.arange(0, e, 2, device=positions.device, dtype=torch.float32) / e
        frequency = 1.0 / self.config.rope_base**powers
        return positions[..., None].float() * frequency

    def rotation(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        """(B or 1, 1, N, E / 2) cosines and sines, once for all layers."""
        angles = self.angles(positions)
        return None if angles is None else (angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype))

    def start(self, x: Tensor, positions: Tensor) -> Tensor:
        """Add learned positions, if any, to (B, N, D); (B or 1, N) positions."""
        if self.config.position == "learned":
            x = x + self.positions[positions.clamp(max=self.config.max_positions - 1)]
        return x

    @property
    def n_heads(self) -> int:
        """Those of this process."""
        first = self.blocks[0]
        assert isinstance(first, Block)
        return first.attention.n_heads

    def split_values(self, values: Tensor | None) -> list[Tensor | None]:
        """One piece of the value embeddings for each layer that takes them, None for the others."""
        pieces: list[Tensor | None] = [None] * self.config.n_layers
        if values is not None and self.config.value_layers:
            parts = values.chunk(len(self.config.value_layers), dim=-1)
            for layer, part in zip(self.config.value_layers, parts, strict=True):
                pieces[layer] = part
        return pieces

    def forward(self, x: Tensor, values: Tensor | None) -> Tensor:
        n = x.shape[1]
        positions = torch.arange(n, device=x.device)[None]
        rotation, window = self.rotation(x, positions), self.config.window
        turns = None
        if rotation is not None and fused.applies(x):
            turns = fused.turns_of(rotation, self.n_heads, fused.product_type(x))
        mask = None
        if window is not None and window < n:
            mask = torch.ones(n, n, dtype=torch.bool, device=x.device).tril().triu(1 - window)[None, None]
        first = x = self.dropout(self.start(x, positions))
        for block, own in zip(self.blocks, self.split_values(values), strict=True):
            x = block(x, first, own, rotation, turns, mask)
        return self.norm(x)

    def state(self, n_rows: int, min_rows: int = 1) -> BackboneState:
        return TransformerState(self, n_rows, min_rows)

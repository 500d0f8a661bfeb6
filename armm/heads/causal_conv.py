"""The causal convolution head: WaveNet over a frame of samples, a gated PixelCNN over a row or patch of pixels.

A stack of gated causal 1-D convolutions over the raw symbols (tanh · sigmoid, residual and skip connections; WaveNet,
arXiv:1609.03499), biased by the context of the unit and, for images, by the halo: a 2-D convolution over the pixels
already known around it (the vertical stack of arXiv:1606.05328). Along time the history runs on across units; in an
image it starts anew with each unit.

Axes: S segments, U units, K symbols, P places, C channels of a place, T places in a row of the convolution, B its rows,
R residual channels, Z conditioning channels, L layers, H features, V vocabulary, D width, F header fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from armm.dropout import Dropout
from armm.errors import InputError
from armm.heads.conv_state import ConvState
from armm.heads.distributions import DistributionConfig, Softmax
from armm.heads.halo import BlockHalo, RowHalo
from armm.heads.head import Head, HeadConfig, HeadState, Unit


@dataclass(frozen=True)
class CausalConv(HeadConfig):
    """Gated causal convolutions over the raw symbols: WaveNet for audio, PixelCNN for images.

    Attributes:
        channels: residual channels.
        skip: channels of the merged skip connections; twice `channels` by default.
        kernel: taps of every convolution.
        dilations: one layer each; kernel 4 with 1, 4, 16, 64 sees 256 places back in four layers.
        condition: channels through which context and halo reach the gates; `channels` by default.
        hidden_layers: layers between the skip connections and the output, 1 (PixelCNN) or 2 (WaveNet).
        halo: pixels of known surroundings that an image head reads directly; 0 for none.
        halo_layers: residual convolutions on top of the halo's first.
        condition_layers: residual convolutions over a unit's places that context and halo pass together.
        dropout: of the gated outputs and of the halo, in training.
        distribution: of a place's symbols.
    """

    channels: int = 32
    skip: int | None = None
    kernel: int = 3
    dilations: tuple[int, ...] = (1, 2, 4, 8)
    condition: int | None = None
    hidden_layers: int = 1
    halo: int = 3
    halo_layers: int = 2
    condition_layers: int = 0
    dropout: float = 0.0
    distribution: DistributionConfig = field(default_factory=Softmax)

    def __post_init__(self) -> None:
        if self.kernel < 2 or not self.dilations or min(self.dilations) < 1:
            raise InputError(
                f"kernel {self.kernel} with dilations {list(self.dilations)}: "
                "a causal convolution needs a kernel of at least 2 and dilations of at least 1"
            )
        if self.channels < 1 or self.hidden_layers not in (1, 2):
            raise InputError("channels must be at least 1, hidden_layers 1 or 2")
        if min(self.halo, self.halo_layers, self.condition_layers) < 0:
            raise InputError("halo, halo_layers and condition_layers must be at least 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}, it must be at least 0 and less than 1")

    @property
    def receptive_field(self) -> int:
        """Places back that the head itself can see."""
        return 1 + (self.kernel - 1) * sum(self.dilations)

    def build(self, width: int, unit: Unit) -> Head:
        return CausalConvHead(width, unit, self)


LAYERS = (nn.Linear, nn.Conv2d)


class Gate(Function):
    """(*, 2R) sums -> (*, R) tanh(a) · sigmoid(2b) of their halves a and b; sigmoid(2b) is (1 + tanh(b)) / 2.

    One tanh for both, and no more of it is kept for the backward pass than what it gave.
    """

    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:
        out = torch.tanh(sums)
        ctx.save_for_backward(out)
        signal, opening = out.chunk(2, dim=-1)
        return torch.addcmul(signal, signal, opening).div_(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        (signal, opening), grad = out.chunk(2, dim=-1), grad / 2
        inside = torch.cat([torch.addcmul(grad, grad, opening), grad * signal], dim=-1)
        return torch.ops.aten.tanh_backward(inside, out)


def gate(sums: Tensor) -> Tensor:
    """(*, 2R) sums -> (*, R), as `Gate` has it."""
    if torch.compiler.is_compiling():  # one loop each way; of `Gate` it makes three
        signal, opening = sums.unflatten(-1, (2, -1)).unbind(-2)
        return torch.tanh(signal) * torch.sigmoid(2 * opening)
    return Gate.apply(sums)


class CausalConvHead(Head):
    """The parallel view; `ConvState` is the same network one place at a time."""

    values: Tensor

    def __init__(self, width: int, unit: Unit, config: CausalConv) -> None:
        super().__init__()
        self.unit, self.config = unit, config
        n_layers, k, r = len(config.dilations), config.kernel, config.channels
        z, skip = config.condition or r, config.skip or 2 * r
        values = torch.zeros(unit.vocab, 0) if unit.values is None else unit.values
        self.register_buffer("values", F.pad(values, (0, 0, 0, 1)), persistent=False)
        self.symbol = nn.Parameter(torch.randn(unit.channels, unit.vocab + 1, r) * 0.3)
        self.value = nn.Parameter(torch.randn(unit.channels, values.shape[1], r) * 0.3)
        self.upsample = nn.Linear(width, unit.places * z)
        self.halo: RowHalo | BlockHalo | None = None
        if unit.block and config.halo and not unit.continuous:
            halo = RowHalo if unit.whole_rows else BlockHalo
            self.halo = halo(unit, z, config.halo, config.halo_layers)
        self.block = unit.block or (1, unit.places)
        kernel = (3 if self.block[0] > 1 else 1, 5 if self.block[1] > 1 else 1)
        convolutions = (nn.Conv2d(z, z, kernel, padding="same") for _ in range(config.condition_layers))
        self.condition_layers = nn.ModuleList(convolutions)
        # rows: the taps, oldest first, then the conditioning channels, zero so that it starts unconditional
        self.gates = nn.Parameter(torch.randn(n_layers, k * r + z, 2 * r) * (k * r) ** -0.5)
        nn.init.zeros_(self.gates[:, k * r :])
        self.gate_bias = nn.Parameter(torch.zeros(n_layers, 2 * r))
        self.residual = nn.Parameter(torch.randn(n_layers, r, r) * r**-0.5 * 0.5)
        sizes = [n_layers * r, *[skip] * config.hidden_layers]
        self.n_features = skip
        self.skip = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.dropout = Dropout(config.dropout)
        self.distribution = config.distribution.build(skip, unit.vocab, unit.channels)
        if self.distribution.neighbours:
            raise InputError(
                f"the CausalConv head does not tell {type(config.distribution).__name__} about neighbours; use "
                "armm.heads.GatedPixelCNN, or another distribution"
            )

    # ------------------------------------------------------- pieces of both views

    def table(self) -> Tensor:
        """(C, V + 1, R) what each value of each channel adds to the input of the next place."""
        return self.symbol + self.values @ self.value

    def halved(self) -> tuple[Tensor, Tensor]:
        """(L, kR + Z, 2R) gates and (L, 2R) biases, those of the openings halved, as `Gate` takes them; exact."""
        r = self.config.channels
        halves = torch.cat([self.gates.new_ones(r), self.gates.new_full((r,), 0.5)])
        return self.gates * halves, self.gate_bias * halves

    def conditioning(self, context: Tensor, halo: Tensor | None) -> Tensor:
        """(*, D) context and (*, P, Z) halo -> (*, P, Z), what the gates see beside the symbols."""
        condition = self.upsample(context).unflatten(-1, (self.unit.places, -1))
        condition = condition if halo is None else condition + halo
        if self.condition_layers:
            x = rearrange(condition, "... (h w) z -> (...) z h w", h=self.block[0])
            for layer in self.condition_layers:
                x = x + layer(F.silu(x))
            condition = rearrange(x, "n z h w -> n (h w) z").reshape(condition.shape)
        return self.dropout(condition)

    def stack(self, x: Tensor, condition: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, T, R) inputs, (B, T, Z) conditioning -> (B, T, H) features and each layer's (B, T, R) input."""
        inputs, gated = [], []
        k, r = self.config.kernel, self.config.channels
        gates, biases = self.halved()
        taps = rearrange(gates[:, : k * r], "l (k r) o -> l o r 1 k", k=k)
        conditioning = gates[:, k * r :].transpose(1, 2)
        for layer, dilation in enumerate(self.config.dilations):
            inputs.append(x)
            padded = F.pad(x, (0, 0, (k - 1) * dilation, 0))  # left padding alone keeps it causal
            maps = F.conv2d(rearrange(padded, "b t r -> b r 1 t"), taps[layer], dilation=(1, dilation))
            sums = rearrange(maps, "b o 1 t -> b t o") + F.linear(condition, conditioning[layer], biases[layer])
            z = self.dropout(gate(sums))
            gated.append(z)
            x = x + z @ self.residual[layer]
        return self.features(torch.cat(gated, dim=-1)), inputs

    def features(self, gated: Tensor) -> Tensor:
        """(*, L * R) gated outputs of all layers -> (*, H)."""
        for layer in self.skip:
            gated = F.silu(layer(gated))
        return gated

    def convolve(
        self, context: Tensor, symbols: Tensor, header: Tensor, halo: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """(S, U, D), (S, U, K), (S, U, P, Z) -> (S, U, P, H) features, and layer inputs (S, U, P, R)."""
        places = rearrange(symbols, "s u (p c) -> s u p c", c=self.unit.channels)
        table, n_values = self.table(), self.unit.vocab + 1
        offsets = n_values * torch.arange(self.unit.channels, device=places.device)
        embedded = F.embedding(places + offsets, table.flatten(0, 1)).sum(-2)
        condition = self.conditioning(context, halo)
        merge = "s u p r -> s (u p) r" if self.unit.continuous else "s u p r -> (s u) p r"
        x, condition = rearrange(embedded, merge), rearrange(condition, merge)
        begin = table[:, -1].sum(0).expand(x.shape[0], 1, -1)  # the symbol outside the alphabet, never a data value
        features, inputs = self.stack(torch.cat([begin, x[:, :-1]], dim=1), condition)
        n_units = symbols.shape[1]
        split = "s (u p) h -> s u p h" if self.unit.continuous else "(s u) p h -> s u p h"
        return rearrange(features, split, u=n_units), [rearrange(i, split, u=n_units) for i in inputs]

    def parallel(self, context: Tensor, symbols: Tensor, header: Tensor) -> Tensor:
        """(S, U, P, H) features of every place from the symbols before it."""
        halo = self.halo(symbols, header) if self.halo else None
        return self.convolve(context, symbols, header, halo)[0]

    # ------------------------------------------------------------- the contract

    def logits(self, context: Tensor, symbols: Tensor, known: Tensor, header: Tensor) -> Tensor:
        features = self.parallel(context, symbols, header)
        inside = symbols.clamp(max=self.unit.vocab - 1).unflatten(-1, (-1, self.unit.channels))
        channels = [self.distribution.logits(features, inside[..., :c]) for c in range(self.unit.channels)]
        return torch.stack(channels, dim=-2).flatten(-3, -2)

    def log_prob(
        self, context: Tensor, symbols: Tensor, known: Tensor, header: Tensor, read: Tensor | None = None
    ) -> Tensor:
        features = self.parallel(context, symbols if read is None else read, header)
        inside = symbols.clamp(max=self.unit.vocab - 1).unflatten(-1, (-1, self.unit.channels))
        nats = self.distribution.log_prob(features, inside).flatten(-2)
        return torch.where(known, nats, 0.0)

    def state(self, n_rows: int, min_rows: int = 1) -> HeadState:
        return ConvState(self, n_rows, min_rows)

    def hidden_matrices(self) -> list[nn.Parameter]:
        parts = self.skip, self.halo, self.condition_layers
        maps = [m.weight for part in parts if part for m in part.modules() if isinstance(m, LAYERS)]
        return [self.gates, self.residual, self.upsample.weight, *maps]  # type: ignore[list-item]

    def set_unigram(self, log_unigram: Tensor) -> None:
        self.distribution.set_unigram(log_unigram)

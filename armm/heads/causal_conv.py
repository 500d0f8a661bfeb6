"""The causal convolution head: WaveNet over a frame of samples, a gated PixelCNN over a row or patch of pixels.

A stack of gated causal 1-D convolutions over the raw symbols (tanh · sigmoid, residual and skip connections; WaveNet,
arXiv:1609.03499), biased by the context of the unit and, for images, by the halo: a 2-D convolution over the pixels
already known around it (the vertical stack of arXiv:1606.05328). Along time the history runs on across units; in an
image it starts anew with each unit.

Axes: S segments, U units, K symbols, P places, C channels of a place, T places in a row of the convolution, R residual
channels, Z conditioning channels, L layers, H features, V vocabulary, D width, F header fields, B rows of a state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from armm.errors import InputError
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
    dropout: float = 0.0
    distribution: DistributionConfig = field(default_factory=Softmax)

    def __post_init__(self) -> None:
        if self.kernel < 2 or not self.dilations or min(self.dilations) < 1:
            raise InputError(
                f"kernel {self.kernel} with dilations {list(self.dilations)}: "
                "a causal convolution needs a kernel of at least 2 and dilations of at least 1"
            )
        if self.channels < 1 or self.hidden_layers not in (1, 2) or self.halo < 0 or self.halo_layers < 0:
            raise InputError("channels must be at least 1, hidden_layers 1 or 2, halo and halo_layers at least 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}, it must be at least 0 and less than 1")

    @property
    def receptive_field(self) -> int:
        """Places back that the head itself can see."""
        return 1 + (self.kernel - 1) * sum(self.dilations)

    def build(self, width: int, unit: Unit) -> Head:
        return CausalConvHead(width, unit, self)


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
        # rows: the taps, oldest first, then the conditioning channels, zero so that it starts unconditional
        self.gates = nn.Parameter(torch.randn(n_layers, k * r + z, 2 * r) * (k * r) ** -0.5)
        nn.init.zeros_(self.gates[:, k * r :])
        self.gate_bias = nn.Parameter(torch.zeros(n_layers, 2 * r))
        self.residual = nn.Parameter(torch.randn(n_layers, r, r) * r**-0.5 * 0.5)
        sizes = [n_layers * r, *[skip] * config.hidden_layers]
        self.n_features = skip
        self.skip = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.dropout = nn.Dropout(config.dropout)
        self.distribution = config.distribution.build(skip, unit.vocab, unit.channels)

    # ------------------------------------------------------- pieces of both views

    def table(self) -> Tensor:
        """(C, V + 1, R) what each value of each channel adds to the input of the next place."""
        return self.symbol + self.values @ self.value

    def conditioning(self, context: Tensor, halo: Tensor | None) -> Tensor:
        """(*, D) context and (*, P, Z) halo -> (*, P, Z), what the gates see beside the symbols."""
        condition = self.upsample(context).unflatten(-1, (self.unit.places, -1))
        return self.dropout(condition if halo is None else condition + halo)

    def stack(self, x: Tensor, condition: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, T, R) inputs, (B, T, Z) conditioning -> (B, T, H) features and each layer's (B, T, R) input."""
        inputs, gated = [], []
        k = self.config.kernel
        for layer, dilation in enumerate(self.config.dilations):
            inputs.append(x)
            padded = F.pad(x, (0, 0, (k - 1) * dilation, 0))  # left padding alone keeps it causal
            taps = [padded[:, i * dilation : i * dilation + x.shape[1]] for i in range(k)]
            joined = torch.cat([*taps, condition], dim=-1)  # one product for all taps and the conditioning
            signal, gate = F.linear(joined, self.gates[layer].T, self.gate_bias[layer]).chunk(2, dim=-1)
            z = self.dropout(torch.tanh(signal) * torch.sigmoid(gate))
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
        table = self.table()
        embedded = torch.stack([table[c][places[..., c]] for c in range(self.unit.channels)]).sum(0)
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

    def log_prob(self, context: Tensor, symbols: Tensor, known: Tensor, header: Tensor) -> Tensor:
        features = self.parallel(context, symbols, header)
        inside = symbols.clamp(max=self.unit.vocab - 1).unflatten(-1, (-1, self.unit.channels))
        nats = self.distribution.log_prob(features, inside).flatten(-2)
        return torch.where(known, nats, 0.0)

    def state(self, n_rows: int) -> HeadState:
        return ConvState(self, n_rows)

    def set_unigram(self, log_unigram: Tensor) -> None:
        self.distribution.set_unigram(log_unigram)


class ConvState(HeadState):
    """One place at a time, written for few operations: all old taps of all layers are gathered at once and multiplied
    in one `baddbmm`, so that only the newest tap, the gate and the residual are left to do layer by layer

    """

    def __init__(self, head: CausalConvHead, n_rows: int) -> None:
        self.head, self.unit = head, head.unit
        self.n_layers = len(head.config.dilations)
        device, dtype = head.gates.device, head.gates.dtype
        k, r = head.config.kernel, head.config.channels
        lags = [[(k - 1 - i) * d for i in range(k - 1)] for d in head.config.dilations]
        self.lags = torch.tensor(lags, device=device)[:, :, None]  # (L, k-1, 1)
        self.size = 1 << int(self.lags.max()).bit_length()  # ring slots, a power of two above the longest lag
        self.table = head.table().flatten(0, 1)  # (C * (V+1), R)
        self.channel_offset = torch.arange(self.unit.channels, device=device) * (self.unit.vocab + 1)
        self.old_taps, self.new_tap = head.gates[:, : (k - 1) * r], head.gates[:, (k - 1) * r : k * r].contiguous()
        self.conditioning = head.gates[:, k * r :]  # (L, Z, 2R)
        self.layers = torch.arange(self.n_layers, device=device)[:, None, None]
        self.begin = head.table()[:, -1].sum(0)
        slots = (torch.arange(self.size)[:, None, None] - self.lags[None, :, :, 0].cpu()) % self.size
        self.ring = (slots + torch.arange(self.n_layers)[None, :, None] * self.size).flatten(1).to(device)
        # what the rows remember
        self.history = torch.zeros(self.n_layers, self.size, n_rows, r, device=device, dtype=dtype)
        self.bias = torch.zeros(self.n_layers, self.unit.places, n_rows, 2 * r, device=device, dtype=dtype)
        self.features = torch.zeros(n_rows, head.n_features, device=device, dtype=dtype)
        self.symbols = torch.full((n_rows, 8, self.unit.symbols), self.unit.vocab, device=device)
        self.header = torch.zeros(n_rows, 0, dtype=torch.int64, device=device)
        self.length = [0] * n_rows  # symbols known
        self.fresh = [False] * n_rows  # `features` are those of the open place

    def load(self, rows: Tensor, context: Tensor, symbols: Tensor, lengths: Tensor, header: Tensor) -> None:
        self._reserve(symbols.shape[1])
        if self.header.shape[1] != header.shape[1]:
            self.header = header.new_zeros(len(self.length), header.shape[1])
        self.symbols[rows] = self.unit.vocab
        self.symbols[rows, : symbols.shape[1]] = symbols
        self.header[rows] = header
        each = torch.arange(len(rows), device=rows.device)
        open_unit = torch.div(lengths, self.unit.symbols, rounding_mode="floor")
        own = context[each, open_unit]
        halo = self.head.halo.at(symbols, open_unit, header) if self.head.halo else None
        self._set_bias(rows, own, halo)
        place = torch.div(lengths, self.unit.channels, rounding_mode="floor")
        if self.unit.continuous:  # as many units back as the layers can see
            reach = -(-self.head.config.receptive_field // self.unit.places) + 1
            first = max(int(open_unit.min()) - reach, 0)
            _, inputs = self.head.convolve(context[:, first:], symbols[:, first:], header, None)
            origin = torch.full_like(place, first * self.unit.places)
        else:  # the open unit's own row
            halo = None if halo is None else halo[:, None]
            _, inputs = self.head.convolve(own[:, None], symbols[each, open_unit][:, None], header, halo)
            origin = open_unit * self.unit.places
        layers = torch.stack([x.flatten(1, 2) for x in inputs])  # (L, rows, places from origin on, R)
        back = torch.arange(self.size, device=rows.device)[:, None] - self.size + (place - origin)  # (M, rows)
        past = layers[:, each, back.clamp(min=0)] * (back >= 0)[None, :, :, None]
        slots = (back + (origin if self.unit.continuous else 0)) % self.size
        self.history[:, slots, rows] = past
        for row, length in zip(rows.tolist(), lengths.tolist(), strict=True):
            self.length[row], self.fresh[row] = length, False

    def open(self, rows: Tensor, context: Tensor) -> None:
        if not self.unit.continuous:
            self.history[:, :, rows] = 0
        halo = None
        if self.head.halo:
            index = torch.tensor([self.length[row] // self.unit.symbols for row in rows.tolist()], device=rows.device)
            halo = self.head.halo.at(self.symbols[rows], index, self.header[rows])
        self._set_bias(rows, context, halo)

    def _set_bias(self, rows: Tensor, context: Tensor, halo: Tensor | None) -> None:
        condition = rearrange(self.head.conditioning(context.to(self.bias.dtype), halo), "b p z -> (p b) z")
        bias = torch.matmul(condition, self.conditioning) + self.head.gate_bias[:, None]  # (L, P * rows, 2R)
        self.bias[:, :, rows] = rearrange(bias, "l (p b) r -> l p b r", p=self.unit.places)

    def _reserve(self, n_units: int) -> None:
        missing = n_units - self.symbols.shape[1]
        if missing > 0:
            self.symbols = F.pad(self.symbols, (0, 0, 0, max(missing, self.symbols.shape[1])), value=self.unit.vocab)

    def extend(self, rows: Tensor, symbols: Tensor) -> None:
        listed = rows.tolist()
        lengths = [self.length[row] for row in listed]
        self._reserve(max(lengths) // self.unit.symbols + 1)
        if self._aligned(listed):
            u, at = divmod(lengths[0], self.unit.symbols)
            self.symbols[:, u, at] = symbols
            self.length = [lengths[0] + 1] * len(listed)
            if (lengths[0] + 1) % self.unit.channels == 0:
                self.fresh = [False] * len(listed)
            return
        at = torch.tensor(lengths, device=rows.device)
        unit = torch.div(at, self.unit.symbols, rounding_mode="floor")
        self.symbols[rows, unit, at % self.unit.symbols] = symbols
        for row, length in zip(listed, lengths, strict=True):
            self.length[row] = length + 1
            if (length + 1) % self.unit.channels == 0:
                self.fresh[row] = False

    def logits(self, rows: Tensor) -> Tensor:
        listed = rows.tolist()
        stale = [row for row in listed if not self.fresh[row]]
        if stale:
            self._step(rows if len(stale) == len(listed) else torch.tensor(stale, device=rows.device), stale)
        if self._aligned(listed):
            u, at = divmod(self.length[0], self.unit.symbols)
            c = at % self.unit.channels
            earlier = self.symbols[:, u, at - c : at] if c else self.symbols[:, 0, :0]
            return self.head.distribution.logits(self.features, earlier)
        channels = [self.length[row] % self.unit.channels for row in listed]
        out = torch.empty(len(listed), self.unit.vocab, device=rows.device)
        for channel in set(channels):
            group = torch.tensor([i for i, c in enumerate(channels) if c == channel], device=rows.device)
            chosen = rows[group]
            length = torch.tensor([self.length[listed[i]] for i in group.tolist()], device=rows.device)
            at = (length % self.unit.symbols - channel)[:, None] + torch.arange(channel, device=rows.device)
            open_unit = torch.div(length, self.unit.symbols, rounding_mode="floor")
            earlier = self.symbols[chosen[:, None], open_unit[:, None], at]
            out[group] = self.head.distribution.logits(self.features[chosen], earlier)
        return out

    def _aligned(self, listed: list[int]) -> bool:
        """Whether these are all rows, all at the same place: the common case, which needs no index tensors."""
        return listed == list(range(len(self.length))) and min(self.length) == max(self.length)

    def _step(self, rows: Tensor, listed: list[int]) -> None:
        """Compute the features of the open place of rows and remember its layer inputs."""
        if self._aligned(listed):
            return self._step_aligned()
        k, channels = self.unit.symbols, self.unit.channels
        lengths = torch.tensor([self.length[row] for row in listed], device=rows.device)
        in_unit = torch.div(lengths % k, channels, rounding_mode="floor")
        place = torch.div(lengths, channels, rounding_mode="floor") if self.unit.continuous else in_unit
        before = (lengths - lengths % channels)[:, None] - channels + torch.arange(channels, device=rows.device)
        begins = (place == 0)[:, None]
        before = before.clamp(min=0)
        previous = self.symbols[rows[:, None], torch.div(before, k, rounding_mode="floor"), before % k]
        previous = torch.where(begins, self.unit.vocab, previous)
        x = self.table[previous + self.channel_offset].sum(1)  # (B, R)
        taps = self.history[self.layers, (place - self.lags) % self.size, rows]  # (L, k-1, B, R)
        old = torch.baddbmm(self.bias[:, in_unit, rows], rearrange(taps, "l k b r -> l b (k r)"), self.old_taps)
        inputs, gated = [], []
        for layer in range(self.n_layers):
            inputs.append(x)
            signal, gate = torch.addmm(old[layer], x, self.new_tap[layer]).chunk(2, dim=-1)
            z = torch.tanh(signal) * torch.sigmoid(gate)
            gated.append(z)
            x = torch.addmm(x, z, self.head.residual[layer])
        self.history[:, place % self.size, rows] = torch.stack(inputs)
        self.features[rows] = self.head.features(torch.cat(gated, dim=-1))
        for row in listed:
            self.fresh[row] = True

    def _step_aligned(self) -> None:
        k, channels, n = self.unit.symbols, self.unit.channels, len(self.length)
        length = self.length[0]
        in_unit = length % k // channels
        place = length // channels if self.unit.continuous else in_unit
        if place:
            u, at = divmod(length - length % channels - channels, k)
            x = self.table[self.symbols[:, u, at : at + channels] + self.channel_offset].sum(1)
        else:
            x = self.begin.expand(n, -1)
        slot = place % self.size
        taps = self.history.flatten(0, 1).index_select(0, self.ring[slot])  # (L * (k-1), B, R)
        taps = taps.view(self.n_layers, -1, n, x.shape[1]).transpose(1, 2).flatten(2)
        old = torch.baddbmm(self.bias[:, in_unit], taps, self.old_taps)
        inputs, gated = [], []
        for layer in range(self.n_layers):
            inputs.append(x)
            signal, gate = torch.addmm(old[layer], x, self.new_tap[layer]).chunk(2, dim=-1)
            z = torch.tanh(signal) * torch.sigmoid(gate)
            gated.append(z)
            if layer < self.n_layers - 1:
                x = torch.addmm(x, z, self.head.residual[layer])
        self.history[:, slot] = torch.stack(inputs)
        self.features = self.head.features(torch.cat(gated, dim=-1))
        self.fresh = [True] * n

    def gather_rows(self, index: Tensor) -> None:
        self.history, self.bias = self.history[:, :, index], self.bias[:, :, index]
        self.features, self.symbols, self.header = self.features[index], self.symbols[index], self.header[index]
        listed = index.tolist()
        self.length, self.fresh = [self.length[i] for i in listed], [self.fresh[i] for i in listed]

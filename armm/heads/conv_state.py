"""The causal convolution head, one place at a time, written for few operations: a step is bound by their number.

All taps of all layers are gathered at once, the newest for its room alone, so that a layer is one product for all its
taps, the gate and the residual, in buffers that are made once. Of an opening only its half is computed, since
sigmoid(x) = (1 + tanh(x / 2)) / 2: one tanh serves both halves of a gate, and what reads the gate is halved instead.
Halves are exact.

Axes: n stored rows, R rows of one call, L layers, M ring slots, k taps, W residual channels, P places of a unit, K its
symbols, C channels of a place, Z conditioning channels, H features, V vocabulary, D width of the backbone.
"""

from __future__ import annotations

from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from armm.graphs import records
from armm.heads.head import Choose, HeadState
from armm.heads.recorded_fill import RecordedFill

if TYPE_CHECKING:
    from armm.heads.causal_conv import CausalConvHead
    from armm.heads.fast import CompiledConditioning, CompiledFill


class ConvState(HeadState):
    """Layer inputs of the last places in a ring, and the open unit's symbols, bias and features.

    A row's ring is addressed by its clock, not by its place in the document: rows that step together share a clock, so
    a batch whose rows began at different times still needs no index tensors.
    """

    looks_ahead = True

    def __init__(self, head: CausalConvHead, n_rows: int, min_rows: int = 1) -> None:
        self.head, self.unit, self.n_rows, self.min_rows = head, head.unit, n_rows, min_rows
        config, (k, w) = head.config, (head.config.kernel, head.config.channels)
        self.n_layers, n = len(config.dilations), max(n_rows, min_rows)
        device, dtype = head.gates.device, head.gates.dtype
        lags = torch.tensor([[(k - 1 - i) * d for i in range(k)] for d in config.dilations])  # (L, k)
        self.lags = lags[:, :-1].to(device)
        # a power of two above the longest lag, with room for a unit that is looked ahead into and taken back
        self.size = 1 << (int(lags.max()) + self.unit.places).bit_length()
        slots = (torch.arange(self.size)[:, None, None] - lags) % self.size
        ring = (slots * self.n_layers + torch.arange(self.n_layers)[:, None]).flatten(1)
        self.ring = ring.to(device)  # (M, L * k)
        self.ring_of = self.ring.unbind(0)
        self.table = head.table().flatten(0, 1)  # (C * (V+1), W)
        self.channel_offset = torch.arange(self.unit.channels, device=device) * (self.unit.vocab + 1)
        gates, biases = head.halved()
        self.weights = gates[:, : k * w].contiguous().unbind(0)  # (kW, 2W) of each layer, the newest tap last
        self.conditioning = gates[:, k * w :]  # (L, Z, 2W)
        self.gate_bias = biases[:, None]  # (L, 1, 2W)
        self.residual = (head.residual / 2).unbind(0)
        skip = [(layer.bias, layer.weight.T.contiguous()) for layer in head.skip if isinstance(layer, nn.Linear)]
        self.skip = [(skip[0][0], skip[0][1] / 2), *skip[1:]]
        self.read = head.distribution.reader()
        self.compiled_conditioning: CompiledConditioning | None = None
        self.recorded_fill: RecordedFill | None = None
        # what the rows remember
        self.history = torch.zeros(self.size, self.n_layers, n, w, device=device, dtype=dtype)
        self.bias = torch.zeros(self.n_layers, self.unit.places, n, 2 * w, device=device, dtype=dtype)
        self.features = torch.zeros(n, head.n_features, device=device, dtype=dtype)
        self.open_unit = torch.full((n, self.unit.symbols), self.unit.vocab, device=device)
        self.before = torch.full((n, self.unit.channels), self.unit.vocab, device=device)  # the place before the unit
        self.past = self.open_unit.new_full((n, 8 if head.halo else 0, self.unit.symbols), self.unit.vocab)
        self.header = torch.zeros(n, 0, dtype=torch.int64, device=device)
        self.length = [0] * n_rows  # symbols known of the segment
        self.clock = [0] * n_rows  # ring time of the open place
        self.fresh = [False] * n_rows  # `features` are those of the open place
        self._make_buffers()

    def _make_buffers(self) -> None:
        (n, w), k = self.history.shape[2:], self.head.config.kernel
        self.open_unit[self.n_rows :] = 0  # rows that only keep products wide: any symbols inside the alphabet
        self.past_inputs, self.history_of = self.history.flatten(0, 1), self.history.unbind(0)  # (M * L, n, W)
        self.taps = self.history.new_empty(self.n_layers, n, k, w)
        self.gathered = self.history.new_empty(self.n_layers * k, n, w) if n > 1 else self.taps.view(-1, n, w)
        self.new = self.taps[:, :, -1]
        self.taps_of, self.input_of = self.taps.flatten(2).unbind(0), self.new.unbind(0)
        self.bias_of = [place.unbind(0) for place in self.bias.unbind(1)]  # of each place and layer
        self.symbols_of, self.drawn_of = self.open_unit.unbind(1), self.open_unit[: self.n_rows].unbind(1)
        self.nothing = self.open_unit[:, :0]
        self.sums = [self.history.new_empty(n, 2 * w) for _ in range(self.n_layers)]
        self.signals = [sums[:, :w] for sums in self.sums]
        self.openings = [sums[:, w:] for sums in self.sums]
        self.gated = self.history.new_empty(n, self.n_layers * w)
        self.gated_of = self.gated.split(w, dim=1)
        if self.recorded_fill is not None:
            self.recorded_fill.recordings.clear()

    def compile(self) -> None:
        if records(self.history.device):
            self.recorded_fill = RecordedFill(self.history.device)
        elif find_spec("numba") is not None:
            from armm.heads.fast import compiled_conditioning

            self.compiled_conditioning = compiled_conditioning(self)

    # ------------------------------------------------------------- where the rows are

    def load(self, rows: Tensor, context: Tensor, symbols: Tensor, lengths: Tensor, header: Tensor) -> None:
        rows, context, symbols = self._widen(rows), self._widen(context), self._widen(symbols)
        lengths, header = self._widen(lengths), self._widen(header)
        if self.header.shape[1] != header.shape[1]:
            self.header = header.new_zeros(len(self.open_unit), header.shape[1])
        self.header[rows] = header
        each, k, channels = torch.arange(len(rows), device=rows.device), self.unit.symbols, self.unit.channels
        open_unit = torch.div(lengths, k, rounding_mode="floor")
        own = context[each, open_unit]
        halo = self.head.halo.at(symbols, open_unit, header) if self.head.halo else None
        self._set_bias(rows, own, halo)
        self.open_unit[rows] = symbols[each, open_unit]
        if self.head.halo:
            self._reserve(symbols.shape[1])
            self.past[rows, : symbols.shape[1]] = symbols
        place = torch.div(lengths, channels, rounding_mode="floor")
        self.before[rows] = self.unit.vocab
        if self.unit.continuous:  # as many units back as the layers can see
            reach = -(-self.head.config.receptive_field // self.unit.places) + 1
            first = max(int(open_unit.min()) - reach, 0)
            _, inputs = self.head.convolve(context[:, first:], symbols[:, first:], header, None)
            back_to = place - first * self.unit.places
            started = open_unit > 0
            last = symbols[each, (open_unit - 1).clamp(min=0), -channels:]
            self.before[rows] = torch.where(started[:, None], last, self.unit.vocab)
        else:  # the open unit's own row
            halo = None if halo is None else halo[:, None]
            _, inputs = self.head.convolve(own[:, None], symbols[each, open_unit][:, None], header, halo)
            back_to = place - open_unit * self.unit.places
        layers = torch.stack([x.flatten(1, 2) for x in inputs])  # (L, R, places, W)
        listed = rows.tolist()
        others = set(range(self.n_rows)) - set(listed)
        clock = max((self.clock[row] for row in others), default=0)  # in step with the others, if they are here too
        age = torch.arange(1, self.size + 1, device=rows.device)[:, None]  # (M, 1)
        back = back_to - age
        past = layers[:, each, back.clamp(min=0)] * (back >= 0)[None, :, :, None]  # (L, M, R, W)
        self.history[(clock - age) % self.size, :, rows] = rearrange(past, "l m r w -> m r l w")
        for row, length in zip(listed, lengths.tolist(), strict=True):
            self.length[row], self.clock[row], self.fresh[row] = length, clock, False

    def open(self, rows: Tensor, context: Tensor) -> None:
        rows, context = self._widen(rows), self._widen(context)
        listed = rows.tolist()
        units = [self.length[row] // self.unit.symbols for row in listed]
        if self.head.halo:
            self._reserve(max(units) + 1)
            self.past[rows, torch.tensor(units, device=rows.device) - 1] = self.open_unit[rows]
        if self.unit.continuous:
            self.before[rows] = self.open_unit[rows, -self.unit.channels :]
        else:
            self.before[rows] = self.unit.vocab
            self.history[:, :, rows] = 0
        self.open_unit[rows] = self.unit.vocab
        halo = None
        if self.head.halo:
            index = torch.tensor(units, device=rows.device)
            halo = self.head.halo.at(self.past[rows], index, self.header[rows])
        self._set_bias(rows, context, halo)

    def _set_bias(self, rows: Tensor, context: Tensor, halo: Tensor | None) -> None:
        if self.compiled_conditioning is not None:
            self.compiled_conditioning(rows, context, halo, self.bias)
            return
        condition = self.head.conditioning(context.to(self.bias.dtype), halo).transpose(0, 1)  # (P, R, Z)
        condition = condition.reshape(1, -1, condition.shape[-1]).expand(self.n_layers, -1, -1)
        bias = torch.baddbmm(self.gate_bias, condition, self.conditioning)  # (L, P * R, 2W)
        bias = bias.unflatten(1, (self.unit.places, -1))
        if len(rows) == 1:  # a place is cheaper to find than places
            self.bias[:, :, int(rows)] = bias[:, :, 0]
        else:
            self.bias[:, :, rows] = bias

    def _reserve(self, n_units: int) -> None:
        missing = n_units - self.past.shape[1]
        if missing > 0:
            self.past = F.pad(self.past, (0, 0, 0, max(missing, self.past.shape[1])), value=self.unit.vocab)

    def extend(self, rows: Tensor, symbols: Tensor) -> None:
        stale = [row for row in rows.tolist() if not self.fresh[row]]
        if stale:  # nobody asked for logits; the ring needs the layers' inputs all the same
            self._step_apart(stale)
        self.accept(rows, symbols[:, None])

    def accept(self, rows: Tensor, symbols: Tensor) -> None:
        listed = rows.tolist()
        channels, n = self.unit.channels, symbols.shape[1]
        at = torch.tensor([self.length[row] % self.unit.symbols for row in listed], device=rows.device)
        self.open_unit[rows[:, None], at[:, None] + torch.arange(n, device=rows.device)] = symbols
        for row in listed:
            places = (self.length[row] + n) // channels - self.length[row] // channels
            self.length[row] += n
            if places:
                self.clock[row], self.fresh[row] = self.clock[row] + places, False

    def gather_rows(self, index: Tensor) -> None:
        listed = index.tolist()
        self.n_rows = len(listed)
        stored = F.pad(index, (0, max(self.min_rows - len(listed), 0)))
        self.history, self.bias = self.history[:, :, stored].contiguous(), self.bias[:, :, stored].contiguous()
        self.features, self.open_unit, self.header = self.features[stored], self.open_unit[stored], self.header[stored]
        self.before, self.past = self.before[stored], self.past[stored]
        self.length, self.clock = [self.length[i] for i in listed], [self.clock[i] for i in listed]
        self.fresh = [self.fresh[i] for i in listed]
        self._make_buffers()

    # ------------------------------------------------------------------- one place

    def logits(self, rows: Tensor) -> Tensor:
        listed = rows.tolist()
        if self._together(listed):
            at = self.length[0] % self.unit.symbols
            if not all(self.fresh):
                self.step(at - at % self.unit.channels, self.clock[0])
                self.fresh = [True] * self.n_rows
            return self.logits_at(at)
        stale = [row for row in listed if not self.fresh[row]]
        if stale:
            self._step_apart(stale)
        channels = [self.length[row] % self.unit.channels for row in listed]
        out = torch.empty(len(listed), self.unit.vocab, device=rows.device)
        for channel in set(channels):
            group = torch.tensor([i for i, c in enumerate(channels) if c == channel], device=rows.device)
            chosen = self._widen(rows[group])
            at = torch.tensor([self.length[row] % self.unit.symbols for row in chosen.tolist()], device=rows.device)
            earlier = self.open_unit[chosen[:, None], at[:, None] - channel + torch.arange(channel, device=rows.device)]
            out[group] = self.read(self.features[chosen], earlier)[: len(group)]
        return out

    def fill(self, rows: Tensor, n: int, choose: Choose) -> Tensor:
        if not self._together(rows.tolist()):
            return super().fill(rows, n, choose)
        first, channels = self.length[0], self.unit.channels
        start = first % self.unit.symbols
        clock = self.clock[0] - start // channels
        fresh = all(self.fresh)
        for i in range(n):
            at = start + i
            if at % channels == 0 and not (i == 0 and fresh):
                self.step(at, clock + at // channels)
            elif i == 0 and not fresh:
                self.step(at - at % channels, clock + at // channels)
            self.drawn_of[at].copy_(choose(self.logits_at(at), i))
        self.length = [length + n for length in self.length]
        self.clock = [clock + (start + n) // channels] * self.n_rows
        self.fresh = [(start + n) % channels != 0] * self.n_rows
        return self.open_unit[: self.n_rows, start : start + n].clone()

    def fill_plain(
        self, rows: Tensor, n: int, noise: Tensor | None, temperature: float
    ) -> tuple[Tensor, Tensor] | None:
        listed, channels = rows.tolist(), self.unit.channels
        if self.recorded_fill is not None:
            begins = n == self.unit.symbols and not any(self.fresh) and all(own % n == 0 for own in self.length)
            found = self.recorded_fill(self, n, noise, temperature) if begins and self._together(listed) else None
        else:
            found = self._compiled_fill and self._compiled_fill(self, listed, n, noise, temperature)
        if found is None:
            return None
        drawn, logits = found
        for row in listed:
            self.clock[row] += (self.length[row] + n) // channels - self.length[row] // channels
            self.length[row] += n
            self.fresh[row] = self.length[row] % channels != 0
        return drawn, logits

    @cached_property
    def _compiled_fill(self) -> CompiledFill | None:
        """The loop over symbols in compiled code; None without numba, and for heads that it does not know."""
        if find_spec("numba") is None:
            return None
        from armm.heads.fast import compiled_fill

        return compiled_fill(self)

    def _together(self, listed: list[int]) -> bool:
        """Whether these are all rows, all at the same place of their units and rings: no index tensors are needed."""
        if len(listed) != self.n_rows or listed != list(range(self.n_rows)):
            return False
        k, (length, clock) = self.unit.symbols, (self.length[0], self.clock[0])
        return all(c == clock for c in self.clock) and all((other - length) % k == 0 for other in self.length)

    def _widen(self, x: Tensor) -> Tensor:
        """(R, *) rows or what belongs to them, the last one repeated until there are at least `min_rows`."""
        missing = self.min_rows - len(x)
        return x if missing <= 0 else torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])

    def logits_at(self, at: int) -> Tensor:
        """(R, V) logits of the symbol at a place of all rows' open units, whose features are fresh."""
        channels = self.unit.channels
        earlier = self.nothing if channels == 1 else self.open_unit[:, at - at % channels : at]
        logits = self.read(self.features, earlier)
        return logits if len(logits) == self.n_rows else logits[: self.n_rows]

    def step(self, at: int, clock: int | Tensor) -> None:
        """Compute the features of the open place, which begins at symbol `at`, of all rows at once.

        clock: that of all rows, a number or a (1,) tensor.
        """
        channels, slot = self.unit.channels, clock % self.size
        ring = self.ring_of[slot] if isinstance(slot, int) else self.ring[slot][0]
        torch.index_select(self.past_inputs, 0, ring, out=self.gathered)
        if len(self.features) > 1:
            self.taps.copy_(self.gathered.unflatten(0, (self.n_layers, -1)).transpose(1, 2))
        if channels == 1:
            previous = self.symbols_of[at - 1] if at else self.before[:, 0]
            torch.index_select(self.table, 0, previous, out=self.input_of[0])
        else:
            previous = self.open_unit[:, at - channels : at] if at else self.before
            torch.sum(self.table[previous + self.channel_offset], 1, out=self.input_of[0])
        bias = self.bias_of[at // channels]
        for layer, weight in enumerate(self.weights):
            torch.addmm(bias[layer], self.taps_of[layer], weight, out=self.sums[layer]).tanh_()
            signal = self.signals[layer]
            torch.addcmul(signal, signal, self.openings[layer], out=self.gated_of[layer])
            if layer < self.n_layers - 1:
                inputs = self.input_of[layer]
                torch.addmm(inputs, self.gated_of[layer], self.residual[layer], out=self.input_of[layer + 1])
        if isinstance(slot, int):
            self.history_of[slot].copy_(self.new)
        else:
            self.history[slot] = self.new
        self.features = self._features(self.gated)

    def _features(self, gated: Tensor) -> Tensor:
        """(M, L * W) twice the gated outputs of all layers -> (M, H)."""
        for bias, weight in self.skip:
            gated = F.silu(torch.addmm(bias, gated, weight), inplace=True)
        return gated

    def _step_apart(self, listed: list[int]) -> None:
        """The same for some rows, each at its own place."""
        rows = self._widen(torch.tensor(listed, device=self.history.device))
        spread, channels = rows.tolist(), self.unit.channels
        at = torch.tensor([self.length[row] % self.unit.symbols for row in spread], device=rows.device)
        at = at - at % channels
        clock = torch.tensor([self.clock[row] for row in spread], device=rows.device)
        channel = torch.arange(channels, device=rows.device)
        previous = self.open_unit[rows[:, None], (at[:, None] - channels + channel).clamp(min=0)]
        previous = torch.where((at > 0)[:, None], previous, self.before[rows])
        bias = self.bias[:, torch.div(at, channels, rounding_mode="floor"), rows][:, None]  # (L, 1, R, 2W)
        self.features[rows] = self._places(previous[:, None], clock[None], rows, bias)[0]
        for row in listed:
            self.fresh[row] = True

    def _places(self, previous: Tensor, times: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
        """Features of p places of rows, each row at its own clock; the layers' inputs go into the ring.

        (R, p, C) symbols before each place, (p, R) ring times, (R,) rows, (L, p, R, 2W) -> (p, R, H).
        """
        inputs = self.table[previous + self.channel_offset].sum(2)  # (R, p, W)
        x = rearrange(inputs, "r p w -> (p r) w")
        gated = []
        for layer, weight in enumerate(self.weights):
            self.history[times % self.size, layer, rows] = x.view(*times.shape, -1)
            slots = (times[:, None] - self.lags[layer][:, None]) % self.size  # (p, k-1, R)
            old = rearrange(self.history[slots, layer, rows], "p k r w -> (p r) (k w)")
            sums = torch.addmm(bias[layer].flatten(0, 1), torch.cat([old, x], dim=1), weight).tanh_()
            signal, opening = sums.chunk(2, dim=-1)
            gated.append(torch.addcmul(signal, signal, opening))
            if layer < self.n_layers - 1:
                x = torch.addmm(x, gated[-1], self.residual[layer])
        return self._features(torch.cat(gated, dim=-1)).view(*times.shape, -1)

    # ------------------------------------------------------------------ many places

    def ahead(self, rows: Tensor, guesses: Tensor, choose: Choose | None = None) -> Tensor:
        listed, channels = rows.tolist(), self.unit.channels
        at, n_places = self.length[listed[0]] % self.unit.symbols, guesses.shape[1] // channels
        assert at % channels == 0 and guesses.shape[1] % channels == 0, "looking ahead begins and ends between places"
        assert all(self.length[row] % self.unit.symbols == at for row in listed), "at the same place of their units"
        wide, guessed = self._widen(rows), self._widen(guesses)
        clock = torch.tensor([self.clock[row] for row in wide.tolist()], device=rows.device)
        previous = self.open_unit[wide, at - channels : at] if at else self.before[wide]
        previous = torch.cat([previous, guessed[:, :-channels]], dim=1).unflatten(1, (-1, channels))
        times = clock + torch.arange(n_places, device=rows.device)[:, None]  # (p, R)
        bias = self.bias[:, at // channels : at // channels + n_places, wide]
        features = self._places(previous, times, wide, bias).transpose(0, 1)
        flat, known = features.flatten(0, 1), guessed.unflatten(1, (-1, channels)).clone()
        found = []
        for channel in range(channels):
            logits = self.read(flat, known[:, :, :channel].flatten(0, 1)).unflatten(0, (len(wide), n_places))
            if choose is not None:
                known[:, :, channel] = self._widen(choose(logits[: len(rows)], channel))
            found.append(logits[: len(rows)])
        for row in listed:
            self.fresh[row] = False
        return torch.stack(found, dim=2).flatten(1, 2)

"""The causal convolution head in compiled code: its weights as the loop reads them, and rows shared out to threads.

A step of a small head is bound by the number of its operators; compiled, by reading the weights. Rows take their steps
side by side, a few weights for all of them at a time, so that more rows read the weights no more often.

Axes: R rows, n symbols of a call, V vocabulary, W residual channels, I inputs and O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from armm.heads.distributions import (
    Distribution,
    JointSoftmaxDistribution,
    LogisticMixtureDistribution,
    SoftmaxDistribution,
)
from armm.heads.fast_conditioning import Maps, condition
from armm.heads.fast_loop import Lanes, Memory, Network, Readout, fill
from armm.panels import pack_floats
from armm.team import team_size

if TYPE_CHECKING:
    from armm.heads.conv_state import ConvState

SIDE_BY_SIDE = 8  # rows; what they sum up stays in the fastest cache
KNOWN = {nn.Linear, nn.ModuleList, SoftmaxDistribution, JointSoftmaxDistribution, LogisticMixtureDistribution}


class CompiledFill:
    """The loop for one head: its weights as the loop reads them."""

    def __init__(self, network: Network, readout: Readout) -> None:
        self.network, self.readout = network, readout

    def __call__(
        self, state: ConvState, rows: list[int], n: int, noise: Tensor | None, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Draw the next n symbols of rows, as `HeadState.fill_plain` has it, into all of the state but its clocks."""
        remembered = (state.history, state.bias, state.features, state.open_unit, state.before)
        assert all(x.is_contiguous() for x in remembered), "written in place"
        memory = Memory(*(_array(x) for x in remembered))
        drawn = np.empty((len(rows), n), dtype=np.int64)
        logits = np.empty((len(rows), n, state.unit.vocab), dtype=np.float32)
        added = logits[:0] if noise is None else _array(noise)
        lanes, parts = _side_by_side(state, rows)
        n_threads = min(team_size(), len(parts) - 1)
        fill(self.network, self.readout, memory, lanes, parts, added, float(temperature), drawn, logits, n_threads)
        return torch.from_numpy(drawn), torch.from_numpy(logits)


class CompiledConditioning:
    """Contexts as biases, for one head."""

    def __init__(self, state: ConvState) -> None:
        head = state.head
        self.maps = Maps(
            upsample=_array(pack_floats(head.upsample.weight, head.upsample.bias)),
            gates=_panels([gates.T for gates in state.conditioning]),
            gate_bias=_array(state.gate_bias[:, 0]),
        )

    def __call__(self, rows: Tensor, context: Tensor, halo: Tensor | None, bias: Tensor) -> None:
        """(R,) rows, (R, D) contexts, (R, P, Z) halo -> rows of the (L, P, N, 2W) bias."""
        assert bias.is_contiguous(), "written in place"
        given = np.zeros((0, 0, 0), np.float32) if halo is None else _array(halo)
        condition(self.maps, _array(context), given, rows.numpy(), bias.numpy(), team_size())


def _side_by_side(state: ConvState, rows: list[int]) -> tuple[Lanes, np.ndarray]:
    """Rows, and where each part of them begins that takes its steps together. Less than two parts need no threads."""
    alike: dict[int, list[tuple[int, int, int, int]]] = {}
    for which, row in enumerate(rows):
        start = state.length[row] % state.unit.symbols
        alike.setdefault(start % state.unit.channels, []).append((which, row, state.clock[row], start))
    parts = [0]
    for own in alike.values():
        n_parts = -(-len(own) // SIDE_BY_SIDE)
        parts += [parts[-1] + len(own) * (part + 1) // n_parts for part in range(n_parts)]
    return Lanes(*np.array(list(chain.from_iterable(alike.values()))).T.copy()), np.array(parts)


def compiled_conditioning(state: ConvState) -> CompiledConditioning | None:
    """Contexts as biases in compiled code; None where there is none for a head's device, precision or layers."""
    known = all(x.dtype == torch.float32 and x.device.type == "cpu" for x in (state.bias, *state.head.parameters()))
    return CompiledConditioning(state) if known and not state.head.condition_layers else None


def compiled_fill(state: ConvState) -> CompiledFill | None:
    """The loop for a state's head; None where there is none for its device, its precision or its distribution."""
    head, distribution = state.head, state.head.distribution
    floats = [state.history, state.table, *head.parameters()]
    if any(x.dtype != torch.float32 or x.device.type != "cpu" for x in floats):
        return None
    if any(type(module) not in KNOWN for module in distribution.modules()):
        return None
    w = head.config.channels
    network = Network(
        table=_array(state.table),
        lags=_array(state.lags),
        taps=_panels([weights.T for weights in state.weights]),
        residual=_panels([residual.T for residual in state.residual]),
        skip=_panels([skip.T for skip in state.skip[0][1].split(w)]),
        hidden=_weights(head.skip[1:]),
        skip_bias=_biases(head.skip),
    )
    return CompiledFill(network, _readout(distribution))


def _readout(distribution: Distribution) -> Readout:
    out, enter, earlier, softcap, n_components = [], [], torch.zeros(0, 0, 0, 0), None, 0
    if isinstance(distribution, LogisticMixtureDistribution):
        out, n_components = [distribution.out], distribution.n_components
    elif isinstance(distribution, JointSoftmaxDistribution):
        out = [distribution.out]
    elif isinstance(distribution, SoftmaxDistribution):
        out, softcap = list(distribution.out), distribution.softcap
        if len(out) > 1:
            enter, earlier = list(distribution.enter), distribution.earlier
    return Readout(
        enter=_weights(enter),
        enter_bias=_biases(enter),
        earlier=_array(earlier),
        out=_weights(out),
        out_bias=_biases(out),
        softcap=softcap or 0.0,
        n_components=n_components,
        is_joint=isinstance(distribution, JointSoftmaxDistribution),
    )


def _weights(layers: Iterable[nn.Module]) -> np.ndarray:
    return _panels([layer.weight for layer in layers if isinstance(layer, nn.Linear)])


def _panels(weights: Sequence[Tensor]) -> np.ndarray:
    """Matrices (outputs, inputs) -> (matrices, panels of (inputs, outputs)), see `armm.panels`."""
    return _array(torch.stack([pack_floats(own, None) for own in weights]) if weights else torch.zeros(0, 0, 0, 0))


def _biases(layers: Iterable[nn.Module]) -> np.ndarray:
    """(layers, O)."""
    biases: list[Tensor] = [layer.bias for layer in layers if isinstance(layer, nn.Linear)]
    return _array(torch.stack(biases) if biases else torch.zeros(0, 0))


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()

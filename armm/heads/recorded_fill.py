"""All steps of a unit as one recording, the drawing of symbols included: `ConvState.fill` for devices that record.

Axes: R rows, n symbols of a call, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from armm.graphs import Recordings

if TYPE_CHECKING:
    from armm.heads.conv_state import ConvState


class RecordedFill:
    """Fills whole units of all rows. The place in the ring is a tensor, so that one recording serves every unit."""

    def __init__(self, device: torch.device) -> None:
        self.recordings = Recordings(device)
        self.clock = torch.zeros(1, dtype=torch.int64, device=device)
        self.noise = torch.empty(0, 0, 0, device=device)

    def __call__(self, state: ConvState, n: int, noise: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
        """Draw a unit, as `HeadState.fill_plain` has it, into all of the state but its clocks."""
        self.clock.fill_(state.clock[0] % state.size)
        if noise is not None and noise.shape != self.noise.shape:
            self.noise = torch.empty_like(noise)
            self.recordings.clear()
        if noise is not None:
            self.noise.copy_(noise)
        columns = None if noise is None else self.noise.unbind(1)

        def body() -> tuple[Tensor, Tensor, Tensor]:
            seen = []
            for at in range(n):
                if at % state.unit.channels == 0:
                    state.step(at, self.clock + at // state.unit.channels)
                logits = state.logits_at(at)
                kept = logits if columns is None else logits / temperature + columns[at]
                state.drawn_of[at].copy_(kept.argmax(dim=-1))
                seen.append(logits)
            return state.open_unit[: state.n_rows, :n], torch.stack(seen, dim=1), state.features

        drawn, logits, state.features = self.recordings.run((n, temperature, noise is None), body)
        return drawn.clone(), logits.clone()

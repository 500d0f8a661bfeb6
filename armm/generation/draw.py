"""Drawing symbols: `argmax(filtered logits + noise)`, the noise a pure function of (seed, sample, place, value).

Axes: R rows, V the largest alphabet among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from armm.generation.filter import Filter, Row
from armm.generation.filters import Temperature
from armm.generation.noise import gumbel

NOISE_BLOCK = 1 << 16  # noise values computed at once, so that hashing costs little per symbol
FEW = 8  # a block is not worth it where fewer than V / FEW symbols survive the filters


class Place(NamedTuple):
    """Which symbol is drawn: of which sample, at which place of its stream; and the symbol, where it is given."""

    sample: int
    position: int
    given: int = -1


class Drawer:
    """Draws symbols with one seed and one list of filters.

    compiled: the noise is computed in compiled code, where there is such.
    """

    def __init__(self, seed: int, filters: Sequence[Filter], device: torch.device, compiled: bool = False) -> None:
        self.seed, self.filters, self.device = seed, list(filters), device
        self.compiled = compiled and find_spec("numba") is not None
        self.reads_rows = any(keep.reads_rows for keep in filters)
        self.greedy = any(isinstance(keep, Temperature) and not keep.modality and keep.t == 0 for keep in filters)
        self._samples: list[int] = []
        self._first: list[int] = []
        self._block = torch.empty(0, 0, 0)

    def noise(self, places: Sequence[Place], n: int, vocab: int) -> Tensor | None:
        """(R, n, V) noise of n places of every row, from the given ones on; none where everything is greedy.

        Usually they follow those asked for before: the longer that goes on, the more is computed at once. Fewer values
        are the first of more.
        """
        if self.greedy:
            return None
        samples, positions = [place.sample for place in places], [place.position for place in places]
        length, widest = self._block.shape[1:]
        at = positions[0] - self._first[0] if samples == self._samples else -1
        follows = at >= 0 and all(p - first == at for p, first in zip(positions, self._first, strict=True))
        if not follows or at + n > length or vocab > widest:
            ahead = min(2 * length, NOISE_BLOCK // (max(vocab, widest) * len(places))) if follows else 0
            # a block that has no room for two like it saves nothing
            length, widest = (ahead, max(vocab, widest)) if ahead >= n + length // 2 else (n, vocab)
            first = torch.tensor(positions, device=self.device)
            block = first[:, None] + torch.arange(length, device=self.device)
            numbers = torch.tensor(samples, device=self.device)[:, None].expand_as(block)
            self._block, self._samples, self._first, at = (
                gumbel(self.seed, numbers, block, widest, self.compiled),
                samples,
                positions,
                0,
            )
        return self._block[:, at : at + n, :vocab]

    def temperature(self, modality: str) -> float | None:
        """What the filters come down to at payload symbols of a modality, where that is dividing by a temperature."""
        own = [keep for keep in self.filters if keep.modality in ("", modality)]
        if not own:
            return 1.0
        if len(own) > 1 or not isinstance(own[0], Temperature) or (own[0].t == 0 and not self.greedy):
            return None
        return own[0].t or 1.0

    def filtered(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        for keep in self.filters:
            logits = keep(logits, rows)
        return logits

    def guess(self, logits: Tensor, place: Place) -> int:
        """What would be drawn from another model's (1, V) logits, as far as filters go by logits alone."""
        for keep in self.filters:
            logits = logits if keep.reads_rows else keep(logits, [])
        noise = self.noise([place], 1, logits.shape[-1])
        return int((logits if noise is None else logits + noise[:, 0]).argmax())

    def draw(self, logits: Tensor, rows: Sequence[Row], places: Sequence[Place]) -> Tensor:
        """(R, V) logits -> (R,) symbols."""
        kept = self.filtered(logits, rows)
        given = [place.given for place in places]
        if self.greedy:
            return keep_given(kept.argmax(dim=-1), given)
        if self.filters and logits.shape[-1] > NOISE_BLOCK // FEW:
            n = int((kept > float("-inf")).sum(-1).max())
            if n < logits.shape[-1] // FEW:  # hash the survivors alone
                values, symbols = kept.topk(n, dim=-1)
                samples = torch.tensor([place.sample for place in places], device=self.device)
                positions = torch.tensor([place.position for place in places], device=self.device)
                chosen = (values + gumbel(self.seed, samples, positions, symbols)).argmax(dim=-1, keepdim=True)
                return keep_given(symbols.gather(-1, chosen)[:, 0], given)
        noise = self.noise(places, 1, logits.shape[-1])
        return keep_given((kept if noise is None else kept + noise[:, 0]).argmax(dim=-1), given)


def keep_given(symbols: Tensor, given: Sequence[int]) -> Tensor:
    """(R,) symbols as drawn, or as given where that is not negative."""
    if max(given, default=-1) < 0:
        return symbols
    kept = torch.tensor(given, device=symbols.device)
    return torch.where(kept < 0, symbols, kept)


def guided(logits: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (arXiv:2207.12598): away from what the unconditional twins say.

    (2R, V) logits, the twins in the second half -> (R, V): u + scale · (c - u) of the log-probabilities; 1 is no
    guidance.
    """
    conditional, unconditional = logits.log_softmax(-1).chunk(2)
    mixed = unconditional + scale * (conditional - unconditional)
    impossible = (conditional == float("-inf")) | (unconditional == float("-inf"))  # outside the alphabet
    return mixed.masked_fill(impossible, float("-inf"))

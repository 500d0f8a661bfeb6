"""Sampling without any cache: the whole network over the whole image for every symbol, as sampling code often is.

On the model's own parallel view. Of the output only the wanted symbol's distribution is computed.
Axes: B images, U units, K symbols of a unit, P places, C channels of a place, V levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from armm.batching import collate
from armm.heads.causal_conv import CausalConvHead
from armm.model import AutoregressiveModel
from armm.sequence import Segment


class NaiveSampler:
    """B images of a single-modality model of one size, drawn symbol by symbol into a canvas of zeros."""

    def __init__(self, model: AutoregressiveModel, n_images: int) -> None:
        assert model.grammar.layout and len(model.grammar.layout) == 1, "a model of images alone"
        self.name = model.grammar.layout[0]
        self.model, modality, head = model, model.modalities[self.name], model.head(self.name)
        assert isinstance(head, CausalConvHead)
        self.head = head
        header = modality.header(())
        n_units = modality.n_units(header)
        assert n_units is not None
        blank = Segment(self.name, torch.zeros(n_units, modality.unit_symbols, dtype=torch.int64), header=header)
        self.batch = collate([[blank]] * n_images, model.grammar).to(model.begin.device)
        self.canvas = self.batch.segments[self.name].symbols  # (B, U, K), shared with the batch

    def logits(self, t: int) -> Tensor:
        """(B, V) of symbol t of every image, from the symbols before it on the canvas."""
        segment = self.batch.segments[self.name]
        unit, at = divmod(t, self.canvas.shape[2])
        place, channel = divmod(at, self.head.unit.channels)
        contexts = self.model.contexts(self.batch)  # a unit is a position: these models have no structure
        features = self.head.parallel(contexts, self.canvas, segment.header)[:, unit, place]
        return self.head.distribution.logits(features, self.canvas[:, unit, at - channel : at])

    @torch.inference_mode()
    def draw(self, first: int, n: int, generator: torch.Generator) -> None:
        """Draw n symbols of every image, from symbol `first` on."""
        flat = self.canvas.view(len(self.canvas), -1)
        for t in range(first, first + n):
            probabilities = self.logits(t).softmax(-1)
            flat[:, t] = torch.multinomial(probabilities, 1, generator=generator)[:, 0]

    @torch.inference_mode()
    def largest_difference(self, symbols: Tensor, nats: Tensor, n: int) -> float:
        """Between log-probabilities, in nats, of symbols and those that the engine gave them.

        Args:
            symbols: (B, T) the first T symbols of the images. nats: (B, T). n: look at the last n of them.

        Raises RuntimeError: more than 1e-3, so that a comparison of speeds would compare different models.
        """
        self.canvas.view(len(self.canvas), -1)[:, : symbols.shape[1]] = symbols
        largest = 0.0
        for t in range(symbols.shape[1] - n, symbols.shape[1]):
            own = self.logits(t).log_softmax(-1).gather(-1, symbols[:, t : t + 1])[:, 0]
            largest = max(largest, float((own - nats[:, t]).abs().max()))
        if not largest < 1e-3:
            raise RuntimeError(f"our nats and those of the whole image differ by {largest:.2g}: not the same model")
        return largest

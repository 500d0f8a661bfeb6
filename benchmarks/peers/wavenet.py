"""WaveNet one sample at a time as it is usually written: a ring of past inputs per layer, layer after layer.

The cached generation of Fast WaveNet (arXiv:1611.09482) in plain PyTorch, on the weights of our causal convolution head
without a backbone. One stream, kernel 2.
Axes: R residual channels, L layers, P places of a unit, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armm.heads.causal_conv import CausalConvHead


class WaveNet:
    """The next sample's logits from the last sample; `drawn` are the samples so far."""

    def __init__(self, head: CausalConvHead) -> None:
        config, r = head.config, head.config.channels
        assert config.kernel == 2 and head.unit.channels == 1 and head.unit.continuous, "a plain WaveNet"
        with torch.no_grad():
            self.embedding = head.table()[0]  # (V + 1, R), the last row for the time before the first sample
            self.taps = head.gates[:, : 2 * r].detach().contiguous()  # (L, 2R, 2R), of the older input first
            # there is no context, but each place of a frame has a bias of its own
            condition = head.upsample.bias.view(head.unit.places, -1)
            self.bias = (condition @ head.gates[:, 2 * r :] + head.gate_bias[:, None]).unsqueeze(2)  # (L, P, 1, 2R)
            enter = head.skip[0]
            assert isinstance(enter, nn.Linear)
            self.skips = enter.weight.view(-1, len(config.dilations), r).permute(1, 2, 0).contiguous()  # (L, R, skip)
        self.head, self.skip_bias, self.dilations = head, enter.bias, config.dilations
        self.rings = [self.embedding.new_zeros(d, 1, r) for d in self.dilations]
        self.drawn: list[int] = []

    def logits(self) -> Tensor:
        """(V,) of the next sample. Call it once for each."""
        t = len(self.drawn)
        x = self.embedding[self.drawn[-1] if t else -1][None]  # (1, R)
        place = t % self.head.unit.places
        skip = self.skip_bias
        for layer, (ring, dilation) in enumerate(zip(self.rings, self.dilations, strict=True)):
            slot = t % dilation
            both = torch.cat([ring[slot], x], dim=1)
            ring[slot] = x
            signal, gate = torch.addmm(self.bias[layer, place], both, self.taps[layer]).chunk(2, dim=1)
            z = torch.tanh(signal) * torch.sigmoid(gate)
            skip = skip + z @ self.skips[layer]
            x = torch.addmm(x, z, self.head.residual[layer])
        features = F.silu(skip)
        for hidden in self.head.skip[1:]:
            features = F.silu(hidden(features))
        return self.head.distribution.logits(features, features.new_zeros(1, 0, dtype=torch.int64))[0]


@torch.inference_mode()
def generate(head: CausalConvHead, n: int, generator: torch.Generator) -> list[int]:
    """n samples of a new stream."""
    stream = WaveNet(head)
    for _ in range(n):
        probabilities = stream.logits().softmax(-1)
        stream.drawn.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    return stream.drawn


@torch.inference_mode()
def largest_difference(head: CausalConvHead, samples: Tensor) -> float:
    """Between this and the head's parallel view, over a stream of (U, K) samples.

    Raises RuntimeError: more than 1e-3, so that a comparison of speeds would compare different models.
    """
    context = samples.new_zeros(1, len(samples), head.upsample.in_features, dtype=head.gates.dtype)
    known, header = torch.ones_like(samples, dtype=torch.bool)[None], samples.new_zeros(1, 0)
    expected = head.logits(context, samples[None], known, header)[0].flatten(0, 1)
    stream, largest = WaveNet(head), 0.0
    for sample, logits in zip(samples.flatten().tolist(), expected, strict=True):
        largest = max(largest, float((stream.logits() - logits).abs().max()))
        stream.drawn.append(sample)
    if not largest < 1e-3:
        raise RuntimeError(f"our logits and the ring buffers' differ by {largest:.2g}: not the same network")
    return largest

"""Distributions over integer levels from a feature vector: softmaxes, or a mixture of discretised logistics.

Every distribution factorises over the C channels of a place (R, then G given R, then B given both) and offers V-way
logits for the next channel, so that filters, noise and range coding need to know nothing about its form.
Axes: * any leading axes, H features, C channels, V vocabulary, M mixture components.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armm.errors import InputError
from armm.heads.cross_entropy import nats_of

MOST_TOGETHER = 4096  # values of a joint softmax


class Distribution(nn.Module, ABC):
    """p(symbols of a place | features), channel by channel.

    Attributes:
        neighbours: (rows up, columns to the left) of known pixels whose symbols, side by side, it is told behind its
            features; a head that does not tell them refuses such a distribution.
    """

    neighbours: tuple[tuple[int, int], ...] = ()

    @abstractmethod
    def logits(self, features: Tensor, earlier: Tensor) -> Tensor:
        """(*, H) features and (*, c) earlier channels -> (*, V) float32 logits of channel c."""

    def reader(self) -> Callable[[Tensor, Tensor], Tensor]:
        """`logits` of (M, H) features for stepping, with whatever can be prepared once."""
        return self.logits

    @abstractmethod
    def log_prob(self, features: Tensor, symbols: Tensor) -> Tensor:
        """(*, H) features and (*, C) symbols, all inside the alphabet -> (*, C) float32 nats."""

    @abstractmethod
    def set_unigram(self, log_unigram: Tensor) -> None:
        """Make (V,) log-frequencies the distribution at zero features."""


class DistributionConfig(ABC):
    """Which distribution, as a recipe names it."""

    @abstractmethod
    def build(self, width: int, vocab: int, channels: int) -> Distribution:
        """The distribution over `channels` symbols of `vocab` levels from `width` features."""


@dataclass(frozen=True)
class Softmax(DistributionConfig):
    """A softmax over the levels; the right choice for few levels and for spiky data.

    Attributes:
        softcap: bound the logits softly to ±softcap (Gemma 2, arXiv:2408.00118); none by default.
    """

    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.softcap is not None and self.softcap <= 0:
            raise InputError(f"softcap is {self.softcap}, it must be greater than 0; leave it out for none")

    def build(self, width: int, vocab: int, channels: int) -> Distribution:
        return SoftmaxDistribution(width, vocab, channels, self.softcap)


@dataclass(frozen=True)
class JointSoftmax(DistributionConfig):
    """One softmax over what all channels of a place are together, for few levels and channels: pixels in pairs."""

    def build(self, width: int, vocab: int, channels: int) -> Distribution:
        if vocab**channels > MOST_TOGETHER:
            raise InputError(
                f"JointSoftmax: {channels} channels of {vocab} levels have {vocab**channels} values together, expected "
                f"at most {MOST_TOGETHER}; use Softmax, or places of fewer pixels"
            )
        return JointSoftmaxDistribution(width, vocab, channels)


@dataclass(frozen=True)
class LogisticMixture(DistributionConfig):
    """A mixture of discretised logistics with linear channel coupling (PixelCNN++, arXiv:1701.05517).

    For natural images with many levels: neighbouring levels share what is learned.

    Attributes:
        n_components: number of logistics.
    """

    n_components: int = 10

    def __post_init__(self) -> None:
        if self.n_components < 1:
            raise InputError(f"n_components is {self.n_components}, a mixture needs at least 1")

    def build(self, width: int, vocab: int, channels: int) -> Distribution:
        return LogisticMixtureDistribution(width, vocab, channels, self.n_components)


def bounded(logits: Tensor, softcap: float | None) -> Tensor:
    """Logits, softly bounded to ±softcap in float32; as they are where there is no bound."""
    return logits if softcap is None else softcap * torch.tanh(logits.float() / softcap)


def cap(logits: Tensor, softcap: float | None) -> Tensor:
    """The same, in float32 always."""
    return bounded(logits, softcap).float()


class SoftmaxDistribution(Distribution):
    """One linear layer; for several channels, a hidden layer each that also reads the channels before it."""

    def __init__(self, width: int, vocab: int, channels: int, softcap: float | None) -> None:
        super().__init__()
        self.softcap = softcap
        layers = [nn.Linear(width, vocab) for _ in range(channels)]
        self.out = nn.ModuleList(layers)
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        if channels > 1:
            self.enter = nn.ModuleList(nn.Linear(width, width) for _ in range(channels))
            self.earlier = nn.Parameter(torch.randn(channels, channels, vocab, width) * 0.1)

    def logits(self, features: Tensor, earlier: Tensor) -> Tensor:
        return cap(self._sums(features, earlier), self.softcap)

    def _sums(self, features: Tensor, earlier: Tensor) -> Tensor:
        """(*, V) logits without their cap, in the precision of a product."""
        channel = earlier.shape[-1]
        if len(self.out) > 1:
            features = self.enter[channel](features)
            for j in range(channel):
                features = features + self.earlier[channel, j][earlier[..., j]]
            features = F.relu(features)
        return self.out[channel](features)

    def reader(self) -> Callable[[Tensor, Tensor], Tensor]:
        if len(self.out) > 1:
            return self.logits
        (layer,) = self.out
        assert isinstance(layer, nn.Linear)
        bias, weight = layer.bias, layer.weight.T.contiguous()
        return lambda features, earlier: cap(torch.addmm(bias, features, weight), self.softcap)

    def log_prob(self, features: Tensor, symbols: Tensor) -> Tensor:
        channels = []
        for c in range(len(self.out)):
            logits = bounded(self._sums(features, symbols[..., :c]), self.softcap)
            nats = nats_of(logits.flatten(0, -2), symbols[..., c].flatten())
            channels.append(-nats.view(symbols.shape[:-1]))
        return torch.stack(channels, dim=-1)

    def set_unigram(self, log_unigram: Tensor) -> None:
        for layer in self.out:
            assert isinstance(layer, nn.Linear)
            with torch.no_grad():
                layer.bias.copy_(log_unigram)


class JointSoftmaxDistribution(Distribution):
    """One linear layer of V ** C logits, those of the first channel's first level first."""

    def __init__(self, width: int, vocab: int, channels: int) -> None:
        super().__init__()
        self.vocab = vocab
        self.out = nn.Linear(width, vocab**channels)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)

    def _with(self, joint: Tensor, symbols: Tensor) -> Tensor:
        """(*, n) logits and (*,) symbols of the first channel -> (*, n / V) logits of the others."""
        joint = joint.unflatten(-1, (self.vocab, -1))
        index = symbols[..., None, None].expand(*joint.shape[:-2], 1, joint.shape[-1])
        return joint.gather(-2, index).squeeze(-2)

    def logits(self, features: Tensor, earlier: Tensor) -> Tensor:
        joint = self.out(features).float()
        for symbols in earlier.unbind(-1):
            joint = self._with(joint, symbols)
        return joint.unflatten(-1, (self.vocab, -1)).logsumexp(-1)

    def log_prob(self, features: Tensor, symbols: Tensor) -> Tensor:
        joint = self.out(features).float()
        totals = [joint.logsumexp(-1)]
        for own in symbols.unbind(-1):
            joint = self._with(joint, own)
            totals.append(joint.logsumexp(-1))
        return torch.stack(totals, dim=-1).diff(dim=-1)

    def set_unigram(self, log_unigram: Tensor) -> None:
        joint = log_unigram.new_zeros(1)
        while len(joint) < len(self.out.bias):
            joint = (joint[:, None] + log_unigram).flatten()
        with torch.no_grad():
            self.out.bias.copy_(joint)


class LogisticMixtureDistribution(Distribution):
    """Levels are bins of [-1, 1]; the outer two bins reach to infinity, so the bins sum to one exactly.

    The mass of a bin between edges b < a is computed as σ(a) - σ(b) = σ(a) σ(-b) (1 - exp(b - a)), whose logarithm is
    finite everywhere, so no case distinction is needed. All in float32, autocast or not.
    """

    def __init__(self, width: int, vocab: int, channels: int, n_components: int) -> None:
        super().__init__()
        self.vocab, self.channels, self.n_components = vocab, channels, n_components
        self.n_couplings = channels * (channels - 1) // 2
        self.out = nn.Linear(width, n_components * (1 + 2 * channels + self.n_couplings))
        nn.init.normal_(self.out.weight, std=0.02)
        self.set_unigram(torch.zeros(vocab))

    def _parameters_of(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-weights (*, M), means and log-scales (*, C, M), couplings (*, C(C-1)/2, M)."""
        # the weights may be bfloat16, the arithmetic is not
        out = F.linear(features.float(), self.out.weight.float(), self.out.bias.float())
        out = out.unflatten(-1, (-1, self.n_components))
        weights, means, scales, couplings = out.split([1, self.channels, self.channels, self.n_couplings], dim=-2)
        return weights.squeeze(-2).log_softmax(-1), means, scales, couplings.tanh()

    def _centre(self, level: Tensor) -> Tensor:
        """float32 values of levels; no buffer, which a model in bfloat16 would round to where bins overlap."""
        return level.float() * (2 / (self.vocab - 1)) - 1

    def _location(self, c: int, means: Tensor, couplings: Tensor, values: Tensor) -> Tensor:
        """(*, M) mean of channel c, shifted linearly by the earlier channels' values (*, c)."""
        first = c * (c - 1) // 2
        mean = means[..., c, :] + (couplings[..., first : first + c, :] * values[..., None]).sum(-2)
        return mean.clamp(-10, 10)

    def _log_mass(self, mean: Tensor, log_scale: Tensor, level: Tensor) -> Tensor:
        """Log of the probability of levels; all arguments broadcast."""
        half = 1 / (self.vocab - 1)
        precision = torch.exp(-log_scale.clamp(-7, 7))
        distance = self._centre(level) - mean
        upper, lower = (distance + half) * precision, (distance - half) * precision
        log_above = torch.where(level == 0, 0.0, F.logsigmoid(-lower))
        log_below = torch.where(level == self.vocab - 1, 0.0, F.logsigmoid(upper))
        inner = (level > 0) & (level < self.vocab - 1)
        log_width = torch.where(inner, torch.log(-torch.expm1(-2 * half * precision)), 0.0)
        return log_above + log_below + log_width

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def logits(self, features: Tensor, earlier: Tensor) -> Tensor:
        weights, means, scales, couplings = self._parameters_of(features)
        values = self._centre(earlier)
        channel = earlier.shape[-1]
        for c in range(channel):
            mean = self._location(c, means, couplings, values[..., :c])
            weights = weights + self._log_mass(mean, scales[..., c, :], earlier[..., c, None])
        mean = self._location(channel, means, couplings, values)
        levels = torch.arange(self.vocab, device=features.device)
        log_mass = self._log_mass(mean[..., None], scales[..., channel, :, None], levels)  # (*, M, V)
        return torch.logsumexp(weights[..., None] + log_mass, dim=-2)

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def log_prob(self, features: Tensor, symbols: Tensor) -> Tensor:
        weights, means, scales, couplings = self._parameters_of(features)
        values = self._centre(symbols)
        joint, before = weights, torch.zeros_like(weights[..., 0])
        channels = []
        for c in range(self.channels):
            mean = self._location(c, means, couplings, values[..., :c])
            joint = joint + self._log_mass(mean, scales[..., c, :], symbols[..., c, None])
            total = torch.logsumexp(joint, dim=-1)
            channels.append(total - before)
            before = total
        return torch.stack(channels, dim=-1)

    def set_unigram(self, log_unigram: Tensor) -> None:
        """Equal weights, means at the quantiles of the given distribution, scales about their distance."""
        cumulative = log_unigram.double().softmax(0).cumsum(0)
        quantiles = (torch.arange(self.n_components, dtype=torch.float64) + 0.5) / self.n_components
        level = torch.searchsorted(cumulative, quantiles).clamp(max=self.vocab - 1)
        with torch.no_grad():
            bias = self.out.bias.view(-1, self.n_components)
            bias.zero_()
            bias[1 : 1 + self.channels] = self._centre(level).to(bias)
            bias[1 + self.channels : 1 + 2 * self.channels] = -2.0

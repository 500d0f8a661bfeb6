"""Distributions over levels: normalised, the same by `logits` and by `log_prob`, and finite wherever training may lead.

The mixture is compared with PixelCNN++'s own definition, differences of the logistic CDF, in float64 and, where float64
underflows, in arbitrary precision.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf
from tiny_modalities import hash_parameters, hash_symbols
from torch import Tensor

from armm.errors import InputError
from armm.heads.distributions import (
    Distribution,
    DistributionConfig,
    JointSoftmax,
    JointSoftmaxDistribution,
    LogisticMixture,
    LogisticMixtureDistribution,
    Softmax,
    cap,
)

CONFIGS = [Softmax(), Softmax(softcap=2.0), JointSoftmax(), LogisticMixture(n_components=3)]


def build(config: DistributionConfig, vocab: int, channels: int, width: int = 6) -> Distribution:
    distribution = config.build(width, vocab, channels)
    hash_parameters(distribution, scale=2.0)
    return distribution


def raw_mixture(vocab: int, channels: int, n_components: int) -> LogisticMixtureDistribution:
    """A mixture whose features are its raw parameters: `n_components` each of weights, means, log-scales, couplings."""
    n_rows = 1 + 2 * channels + channels * (channels - 1) // 2
    distribution = LogisticMixture(n_components).build(n_rows * n_components, vocab, channels)
    assert isinstance(distribution, LogisticMixtureDistribution)
    with torch.no_grad():
        distribution.out.weight.copy_(torch.eye(n_rows * n_components))
        distribution.out.bias.zero_()
    return distribution


def features(n: int, width: int, scale: float = 1.0) -> Tensor:
    """(n, width) fixed numbers about as large as `scale`."""
    return torch.tensor(hash_symbols(n * width, 2001), dtype=torch.float32).view(n, width).sub(1000).mul(scale / 500)


# ---------------------------------------------------------------- normalisation


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_bins_sum_to_one_for_every_number_of_levels(config: DistributionConfig) -> None:
    """The mass of a mixture's outer bins reaches to infinity; a bin too wide or too narrow shows in the sum."""
    for vocab in range(2, 257):
        distribution = build(config, vocab, 1, width=3)
        x = features(2, 3)
        every = torch.arange(vocab)[:, None, None].expand(vocab, 2, 1)
        with torch.no_grad():
            total = distribution.log_prob(x.expand(vocab, 2, 3), every).double().exp().sum(0)
        torch.testing.assert_close(total, torch.ones_like(total), atol=2e-5, rtol=0)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_joint_of_three_channels_sums_to_one(config: DistributionConfig) -> None:
    distribution = build(config, 4, 3)
    every = torch.tensor(list(product(range(4), repeat=3)))
    with torch.no_grad():
        nats = distribution.log_prob(features(1, 6).expand(len(every), -1), every).sum(-1)
    torch.testing.assert_close(nats.double().exp().sum().item(), 1.0, atol=1e-5, rtol=0)


@given(st.integers(2, 256), st.sampled_from([-6.0, -3.0, 0.0, 3.0, 6.0]), st.sampled_from([-9.0, -1.1, 0.0, 0.7, 9.0]))
def test_mixture_masses_need_no_normalisation(vocab: int, log_scale: float, mean: float) -> None:
    """The range coder divides by nothing: the masses themselves sum to one, at any scale and mean."""
    distribution = raw_mixture(vocab, 1, 2)
    x = torch.tensor([0.3, -0.2, mean, -mean, log_scale, -log_scale])
    total = distribution.logits(x, torch.zeros(0, dtype=torch.int64)).double().exp().sum()
    torch.testing.assert_close(total.item(), 1.0, atol=1e-4, rtol=0)


# -------------------------------------------------------------------- two views


@pytest.mark.parametrize(
    ("config", "vocab", "channels"),
    [
        (config, vocab, channels)
        for config, vocab, channels in product(CONFIGS, [2, 3, 17, 256], [1, 2, 3])
        if not (isinstance(config, JointSoftmax) and vocab**channels > 4096)
    ],
    ids=str,
)
def test_log_prob_is_the_gathered_log_softmax_of_logits(config: DistributionConfig, vocab: int, channels: int) -> None:
    """Training uses `log_prob`, sampling and compression `logits`: they must be one distribution."""
    distribution = build(config, vocab, channels)
    x = features(20, 6)
    symbols = torch.tensor(hash_symbols(20 * channels, vocab)).view(20, channels)
    nats = distribution.log_prob(x, symbols)
    assert (nats.shape, nats.dtype) == ((20, channels), torch.float32)
    for c in range(channels):
        logits = distribution.logits(x, symbols[:, :c])
        assert (logits.shape, logits.dtype) == ((20, vocab), torch.float32)
        gathered = logits.log_softmax(-1).gather(-1, symbols[:, c, None])[:, 0]
        torch.testing.assert_close(nats[:, c], gathered, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_later_channels_read_earlier_ones_only(config: DistributionConfig) -> None:
    """G depends on R and B on both; R on neither. Without the dependence colours would be independent noise."""
    distribution = build(config, 5, 3)
    x, symbols = features(1, 6), torch.tensor([[1, 2, 3]])
    before = distribution.log_prob(x, symbols)[0]
    for changed in range(3):
        other = symbols.clone()
        other[0, changed] = 4
        same = distribution.log_prob(x, other)[0] == before
        assert same.tolist() == [c < changed for c in range(3)]


@pytest.mark.parametrize("leading", [(), (2,), (2, 3, 1)])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_leading_axes_are_kept(config: DistributionConfig, leading: tuple[int, ...]) -> None:
    distribution = build(config, 4, 2)
    n = int(torch.tensor(leading).prod()) if leading else 1
    x, symbols = features(n, 6), torch.tensor(hash_symbols(2 * n, 4)).view(n, 2)
    flat = distribution.logits(x, symbols[:, :1])
    shaped = distribution.logits(x.view(*leading, 6), symbols[:, :1].view(*leading, 1))
    torch.testing.assert_close(shaped, flat.view(*leading, 4))
    if leading:
        nats = distribution.log_prob(x.view(*leading, 6), symbols.view(*leading, 2))
        torch.testing.assert_close(nats, distribution.log_prob(x, symbols).view(*leading, 2))


# ------------------------------------------------------------ the mixture itself


def reference(raw: Tensor, symbols: Tensor, vocab: int, n_components: int) -> Tensor:
    """PixelCNN++'s conditional log-probabilities of (B, C) symbols by CDF differences, in float64."""
    channels = symbols.shape[1]
    raw = raw.double().unflatten(-1, (-1, n_components))
    weights, means = raw[:, 0].softmax(-1), raw[:, 1 : 1 + channels]
    scales = raw[:, 1 + channels : 1 + 2 * channels].clamp(-7, 7).exp()
    couplings = raw[:, 1 + 2 * channels :].tanh()
    x = 2 * symbols.double() / (vocab - 1) - 1
    nats, before, row = [], torch.ones(len(raw), dtype=torch.float64), 0
    for c in range(channels):
        mean = means[:, c].clone()
        for j in range(c):
            mean += couplings[:, row] * x[:, j, None]
            row += 1
        mean = mean.clamp(-10, 10)
        below = torch.sigmoid((x[:, c, None] - 1 / (vocab - 1) - mean) / scales[:, c])
        above = torch.sigmoid((x[:, c, None] + 1 / (vocab - 1) - mean) / scales[:, c])
        below = torch.where(symbols[:, c, None] == 0, 0.0, below)
        above = torch.where(symbols[:, c, None] == vocab - 1, 1.0, above)
        weights = weights * (above - below)
        joint = weights.sum(-1)
        nats.append((joint / before).log())
        before = joint
    return torch.stack(nats, dim=-1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("vocab", [2, 5, 256])
def test_mixture_is_pixelcnn_plus_plus(vocab: int, channels: int) -> None:
    distribution = raw_mixture(vocab, channels, 4)
    x = features(200, distribution.out.in_features, scale=1.5)
    symbols = torch.tensor(hash_symbols(200 * channels, vocab)).view(200, channels)
    with torch.no_grad():
        nats = distribution.log_prob(x, symbols).double()
    expected = reference(x, symbols, vocab, 4)
    assert expected.isfinite().all()
    torch.testing.assert_close(nats, expected, atol=1e-4, rtol=1e-4)


def log_mass(mean: float, log_scale: float, level: int, vocab: int) -> float:
    """Of one bin of one logistic, by the CDF, in arbitrary precision: where float64 has nothing but 0 left."""
    with mp.workdps(30):
        scale, centre, half = mp.exp(mpf(log_scale)), mpf(2 * level) / (vocab - 1) - 1, mpf(1) / (vocab - 1)
        lower, upper = (centre - half - mpf(mean)) / scale, (centre + half - mpf(mean)) / scale
        if lower + upper > 0:  # the other tail, where the difference does not cancel
            lower, upper = -upper, -lower
            first, last = level == vocab - 1, level == 0
        else:
            first, last = level == 0, level == vocab - 1
        above = 1 if last else 1 / (1 + mp.exp(-upper))
        below = 0 if first else 1 / (1 + mp.exp(-lower))
        return float(mp.log(above - below))


EXTREME_MEANS = (-50.0, -10.0, -1.5, -1.0, 0.0, 0.3, 1.0, 10.0, 50.0)  # means beyond 10 count as 10
EXTREME_SCALES = (-7.0, -5.0, 0.0, 7.0)


@pytest.mark.parametrize("vocab", [2, 3, 256])
def test_mixture_far_out_in_the_tails(vocab: int) -> None:
    """PixelCNN++ switches to an approximation where its difference underflows; one formula must hold everywhere."""
    levels = sorted({0, 1, vocab // 2, vocab - 2, vocab - 1})
    distribution = raw_mixture(vocab, 1, 1)
    for mean, log_scale, level in product(EXTREME_MEANS, EXTREME_SCALES, levels):
        raw, symbols = torch.tensor([[0.0, mean, log_scale]]), torch.tensor([[level]])
        nats = distribution.log_prob(raw, symbols).item()
        expected = log_mass(float(raw[0, 1].clamp(-10, 10)), log_scale, level, vocab)
        # a float32 position, 1e-6 at most at 10, in units of the scale
        tolerance = 1e-5 * abs(expected) + 1e-5 + 2e-7 * (1 + abs(mean)) * torch.tensor(-log_scale).exp().item()
        assert abs(nats - expected) <= tolerance, (mean, log_scale, level, nats, expected)


def test_approximation_of_the_tails_would_be_seen() -> None:
    """The test above can fail: PixelCNN++'s own mid-bin approximation, off in wide bins, is further away."""
    mean, log_scale, level, vocab = 0.3, -5.0, 1, 3
    expected = log_mass(mean, log_scale, level, vocab)
    middle = (0.0 - mean) * 148.413159
    log_density = middle + 5.0 - 2 * torch.nn.functional.softplus(torch.tensor(middle)).item()
    assert abs(log_density + torch.tensor(2 / (vocab - 1)).log().item() - expected) > 1.0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("vocab", [2, 3, 256])
def test_values_and_gradients_are_finite_everywhere(vocab: int, channels: int) -> None:
    """One NaN in a batch ends a training run: huge and tiny means, scales, weights and couplings, extreme levels."""
    distribution = raw_mixture(vocab, channels, 3)
    extremes = torch.tensor([-1e30, -1e4, -30.0, -1.0, 0.0, 1e-30, 1.0, 30.0, 1e4, 1e30])
    n = 2000
    choice = torch.tensor(hash_symbols(n * distribution.out.in_features, len(extremes)))
    x = extremes[choice].view(n, -1).requires_grad_()
    levels = torch.tensor(sorted({0, 1, vocab // 2, vocab - 2, vocab - 1}))
    symbols = levels[torch.tensor(hash_symbols(n * channels, len(levels), seed=1))].view(n, channels)
    nats = distribution.log_prob(x, symbols)
    assert nats.isfinite().all()
    assert (nats < 1e-3).all()
    (gradient,) = torch.autograd.grad(nats.sum(), x)
    assert gradient.isfinite().all()
    for c in range(channels):
        logits = distribution.logits(x[:200], symbols[:200, :c])
        assert logits.isfinite().all()
        (gradient,) = torch.autograd.grad(logits.log_softmax(-1)[:, 0].sum(), x)
        assert gradient.isfinite().all()


def test_gradients_agree_with_differences() -> None:
    """Finite is not enough: in float64 the gradient is that of the values."""
    distribution = raw_mixture(5, 3, 2)

    def nats(x: Tensor, symbols: Tensor) -> Tensor:
        weights, means, scales, couplings = x.unflatten(-1, (-1, 2)).split([1, 3, 3, 3], dim=-2)
        weights, couplings, values = weights.squeeze(-2).log_softmax(-1), couplings.tanh(), symbols.double() / 2 - 1
        for c in range(3):
            mean = distribution._location(c, means, couplings, values[..., :c])
            weights = weights + distribution._log_mass(mean, scales[..., c, :], symbols[..., c, None])
        return weights.logsumexp(-1)

    for symbols in (torch.tensor([0, 2, 4]), torch.tensor([4, 4, 0]), torch.tensor([1, 3, 2])):
        x = features(1, 20)[0].double().requires_grad_()
        assert torch.autograd.gradcheck(nats, (x, symbols))


# ---------------------------------------------------------------- the numbers' type


def test_mixture_stays_in_float32_under_autocast() -> None:
    """In bfloat16 neighbouring levels of 256 are one number."""
    distribution = build(LogisticMixture(3), 256, 3)
    x, symbols = features(10, 6), torch.tensor(hash_symbols(30, 256)).view(10, 3)
    expected = distribution.log_prob(x, symbols), distribution.logits(x, symbols[:, :2])
    with torch.autocast("cpu", torch.bfloat16):
        found = distribution.log_prob(x, symbols), distribution.logits(x, symbols[:, :2])
    for own, wanted in zip(found, expected, strict=True):
        assert own.dtype == torch.float32
        assert torch.equal(own, wanted)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_weights_in_bfloat16_still_sum_to_one(config: DistributionConfig) -> None:
    """The levels' values were once a buffer, rounded with the weights: its bins overlapped, and bits were wrong."""
    distribution = build(config, 256, 1).bfloat16()
    x = features(3, 6).bfloat16()
    every = torch.arange(256)[:, None, None].expand(256, 3, 1)
    with torch.no_grad():
        total = distribution.log_prob(x.expand(256, 3, 6), every).double().exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), atol=2e-5, rtol=0)


def test_softmax_normalises_in_float32_under_autocast() -> None:
    """The matrix product may be bfloat16; the normalisation may not, or the bits do not add up."""
    distribution = build(Softmax(), 256, 1)
    x = features(4, 6)
    every = torch.arange(256)[:, None, None].expand(256, 4, 1)
    with torch.autocast("cpu", torch.bfloat16):
        nats = distribution.log_prob(x.expand(256, 4, 6), every)
        logits = distribution.logits(x, every[0, :, :0])
    assert nats.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(nats.double().exp().sum(0), torch.ones(4, 1, dtype=torch.float64), atol=1e-5, rtol=0)


# -------------------------------------------------------------- starts and limits


@pytest.mark.parametrize(("config", "channels"), [(Softmax(), 1), (JointSoftmax(), 1), (JointSoftmax(), 3)], ids=str)
def test_softmax_starts_at_the_unigram(config: DistributionConfig, channels: int) -> None:
    """Every channel's, whatever the ones before it."""
    distribution = config.build(4, 5, channels)
    log_unigram = torch.tensor([0.5, 0.2, 0.2, 0.05, 0.05]).log()
    distribution.set_unigram(log_unigram)
    for c in range(channels):
        earlier = torch.tensor([3, 1])[:c]
        torch.testing.assert_close(distribution.logits(torch.zeros(4), earlier).log_softmax(-1), log_unigram)


def test_a_joint_softmax_can_say_that_channels_are_alike() -> None:
    """Which no product of independent ones can: two pixels that are equal, and each black or white evenly."""
    distribution = JointSoftmax().build(1, 2, 2)
    assert isinstance(distribution, JointSoftmaxDistribution)
    with torch.no_grad():
        distribution.out.weight.zero_()
        distribution.out.bias.copy_(torch.tensor([0.5, 1e-6, 1e-6, 0.5]).log())
    every = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    nats = distribution.log_prob(torch.zeros(4, 1), every)
    torch.testing.assert_close(nats[:, 0].exp(), torch.full((4,), 0.5))
    torch.testing.assert_close(nats[:, 1].exp(), torch.tensor([1.0, 0.0, 0.0, 1.0]), atol=1e-5, rtol=0)


def test_a_joint_softmax_of_too_many_values_is_refused() -> None:
    with pytest.raises(InputError, match=r"3 channels of 17 levels have 4913 values.*4096.*use Softmax"):
        JointSoftmax().build(4, 17, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_mixture_starts_near_the_unigram(channels: int) -> None:
    """Training starts below log V, as it would from a marginal, not above it."""
    distribution = LogisticMixture(10).build(4, 64, channels)
    unigram = (-(((torch.arange(64.0) - 20) / 6) ** 2)).softmax(0)
    distribution.set_unigram(unigram.log())
    every = torch.arange(64)[:, None].expand(64, channels)
    nats = distribution.log_prob(torch.zeros(64, 4), every)[:, 0]
    cross_entropy = -(unigram * nats).sum()
    entropy = -(unigram * unigram.log()).sum()
    assert entropy < cross_entropy < entropy + 0.25 * (torch.tensor(64.0).log() - entropy)


def test_softcap_bounds_and_leaves_small_logits_alone() -> None:
    logits = torch.tensor([-1e6, -0.01, 0.0, 0.01, 1e6])
    torch.testing.assert_close(cap(logits, 5.0), torch.tensor([-5.0, -0.01, 0.0, 0.01, 5.0]), atol=1e-6, rtol=0)
    assert torch.equal(cap(logits, None), logits)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_softcap_must_be_positive(value: float) -> None:
    with pytest.raises(InputError, match=f"softcap is {value}"):
        Softmax(softcap=value)


def test_mixture_needs_a_component() -> None:
    with pytest.raises(InputError, match="n_components is 0"):
        LogisticMixture(n_components=0)

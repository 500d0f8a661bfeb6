"""Noise: a pure function, uniform behind its Gumbel shape, of nothing but seed, sample, position and value."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from armm.generation import noise
from armm.generation.noise import gumbel


def grid(seed: int = 0, n_samples: int = 64, n_positions: int = 64, vocab: int = 64) -> Tensor:
    """(n_samples, n_positions, vocab) uniform values behind the noise."""
    samples = torch.arange(n_samples)[:, None].expand(n_samples, n_positions)
    positions = torch.arange(n_positions).expand(n_samples, n_positions)
    return torch.exp(-torch.exp(-gumbel(seed, samples, positions, vocab).double()))


def test_noise_is_what_it_was() -> None:
    """A sample belongs to its seed for good: another value here would change every sample ever made."""
    values = gumbel(0, torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), 4)
    expected = [
        [-0.7526282072067261, 1.1769095659255981, 2.7631402015686035, 0.5536748170852661],
        [-0.9324259161949158, -0.7089055776596069, -0.40486928820610046, -0.4549872577190399],
        [3.289226770401001, -1.286908507347107, -0.833004355430603, -0.14058513939380646],
    ]
    torch.testing.assert_close(values, torch.tensor(expected), rtol=1e-6, atol=1e-6)
    far = gumbel(-1, torch.tensor([7]), torch.tensor([100_000]), 3)
    expected = [[-0.3356494605541229, 0.4264221489429474, 0.20537011325359344]]
    torch.testing.assert_close(far, torch.tensor(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("word", [0, -1, 1 << 62, -(1 << 63)])
def test_noise_is_finite_whatever_the_hash(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A uniform value of exactly 0 or 1 would be noise of -inf or inf: a symbol that always or never wins."""
    monkeypatch.setattr(noise, "mix", lambda x: torch.full_like(x, word))
    assert gumbel(0, torch.tensor([0]), torch.tensor([0]), 3).isfinite().all()


def test_noise_is_uniform() -> None:
    """Chi-square of 256 cells over 262,144 values: 255 degrees of freedom, mean 255, deviation 22.6."""
    counts = torch.histc(grid(), bins=256, min=0, max=1)
    expected = counts.sum() / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 255 - 4 * 22.6 < chi_square < 255 + 4 * 22.6


@pytest.mark.parametrize("axis", ["sample", "position", "value", "seed"])
@pytest.mark.parametrize("step", [1, 2, 16])
def test_neighbours_are_not_correlated(axis: str, step: int) -> None:
    """Of neighbouring seeds, samples, positions and values; 4 deviations of the correlation of so many pairs."""
    if axis == "seed":
        one, other = grid(seed=5), grid(seed=5 + step)
    else:
        where = ["sample", "position", "value"].index(axis)
        whole = grid()
        one, other = whole.narrow(where, 0, 64 - step), whole.narrow(where, step, 64 - step)
    correlation = float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])
    assert abs(correlation) < 4 / one.numel() ** 0.5


def test_samples_and_positions_do_not_swap() -> None:
    """Sample 3 at position 5 is not sample 5 at position 3."""
    whole = grid(vocab=1)[..., 0]
    assert not torch.equal(whole, whole.T)
    assert len(torch.unique(whole)) == whole.numel()


def test_noise_of_a_value_does_not_depend_on_the_alphabet_or_the_batch() -> None:
    """Keyed by the symbol's value: a larger alphabet, or other rows beside it, change nothing, bitwise."""
    samples, positions = torch.arange(10), torch.arange(10) * 3
    whole = gumbel(4, samples, positions, 300)
    assert torch.equal(whole[:, :7], gumbel(4, samples, positions, 7))
    for row in range(10):
        assert torch.equal(whole[row : row + 1], gumbel(4, samples[row : row + 1], positions[row : row + 1], 300))
    order = torch.tensor([3, 1, 2])
    assert torch.equal(whole[order], gumbel(4, samples[order], positions[order], 300))


def test_noise_of_some_values_is_that_of_all() -> None:
    """What filters leave over is hashed alone."""
    samples, positions = torch.arange(6), torch.arange(6) * 5
    values = torch.tensor([[7, 0, 299]]).expand(6, -1)
    assert torch.equal(gumbel(2, samples, positions, values), gumbel(2, samples, positions, 300)[:, [7, 0, 299]])


@pytest.mark.parametrize("seed", [0, 5, -1, (1 << 63) + 7])
def test_compiled_noise_is_the_same_bit_for_bit(seed: int) -> None:
    pytest.importorskip("numba", reason="numba is not installed: pip install armm[fast]")
    samples, positions = torch.arange(12).view(3, 4), (torch.arange(12) * 1001).view(3, 4).flip(0)
    for vocab in (1, 34, 257):
        assert torch.equal(
            gumbel(seed, samples, positions, vocab, compiled=True), gumbel(seed, samples, positions, vocab)
        )

"""The causal convolution head in compiled code: the same symbols, logits and memory as its steps leave."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from tiny_modalities import hash_parameters, hash_symbols
from torch import Tensor

from armm.heads import (
    Categorical,
    CausalConv,
    CausalConvHead,
    JointSoftmax,
    LogisticMixture,
    Softmax,
    Unit,
    conv_state,
)
from armm.heads.conv_state import ConvState

WIDTH = 4
needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed: pip install armm[fast]")


def unit(places: int, vocab: int, channels: int = 1, wide: int = 0) -> Unit:
    """Along time, or a row of an image of that width."""
    block = (1, wide) if wide else None
    return Unit(vocab, places * channels, channels, not wide, block, bool(wide), torch.linspace(-1, 1, vocab)[:, None])


# widths that are no multiple of four, kernels of one and of several old taps, rings that wrap around
CASES: dict[str, tuple[Unit, CausalConv]] = {
    "time": (unit(3, 5), CausalConv(channels=5, kernel=3, dilations=(1, 3), hidden_layers=2)),
    "wide": (unit(4, 40), CausalConv(channels=24, skip=50, kernel=4, dilations=(1, 2))),
    "capped": (unit(3, 6), CausalConv(channels=4, kernel=2, dilations=(1, 5), distribution=Softmax(softcap=1.5))),
    "one symbol": (unit(1, 4), CausalConv(channels=4, kernel=2, dilations=(1, 2))),
    "stereo": (unit(2, 6, channels=2), CausalConv(channels=4, kernel=2, dilations=(2, 1))),
    "rows": (unit(5, 3, wide=5), CausalConv(channels=6, halo=2, halo_layers=1)),
    "conditioned by layers": (unit(3, 5), CausalConv(channels=4, kernel=2, dilations=(1, 2), condition_layers=1)),
    "rgb rows": (unit(3, 7, channels=3, wide=3), CausalConv(channels=4, skip=9, halo=1)),
    "pairs": (unit(3, 5, channels=2, wide=3), CausalConv(4, halo=1, distribution=JointSoftmax())),
    "fours": (unit(2, 2, channels=4, wide=2), CausalConv(4, halo=1, distribution=JointSoftmax())),
    "mixture": (unit(3, 19, channels=3, wide=3), CausalConv(4, halo=1, distribution=LogisticMixture(3))),
}


def build(name: str) -> CausalConvHead:
    of, config = CASES[name]
    head = config.build(WIDTH, of)
    assert isinstance(head, CausalConvHead)
    hash_parameters(head, scale=1.5)
    return head.eval()


def loaded(head: CausalConvHead, lengths: list[int]) -> ConvState:
    """A state whose rows know so many symbols."""
    k, vocab, n = head.unit.symbols, head.unit.vocab, len(lengths)
    n_units = max(lengths) // k + 1
    known = torch.arange(n_units * k).view(1, n_units, k) < torch.tensor(lengths)[:, None, None]
    symbols = torch.tensor(hash_symbols(n * n_units * k, vocab, 0)).view(n, n_units, k)
    state = head.state(n)
    assert isinstance(state, ConvState)
    context = torch.stack([contexts(row, n_units) for row in range(n)])
    state.load(torch.arange(n), context, torch.where(known, symbols, vocab), torch.tensor(lengths), header(n))
    return state


def contexts(row: int, n_units: int) -> Tensor:
    """(U, D)."""
    values = [hash_symbols(WIDTH, 1001, 100 * row + number) for number in range(n_units)]
    return torch.tensor(values).float() / 500 - 1


def header(n: int) -> Tensor:
    return torch.tensor([[8, 1]]).expand(n, 2)


def noise(rows: list[int], n: int, vocab: int, seed: int = 0) -> Tensor:
    """(R, n, V), of each row its own."""
    values = torch.tensor([hash_symbols(n * vocab, 9973, 1000 * seed + row) for row in rows])
    return -torch.log(-torch.log((values + 0.5) / 9973)).view(len(rows), n, vocab)


def step_by_step(state: ConvState, rows: list[int], n: int, added: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """What `fill_plain` says it is."""
    seen: list[Tensor] = []

    def choose(logits: Tensor, i: int) -> Tensor:
        seen.append(logits.clone())
        return (logits / temperature + added[:, i]).argmax(-1)

    drawn = state.fill(torch.tensor(rows), n, choose)
    return drawn, torch.stack(seen, dim=1)


def compiled(
    state: ConvState, rows: list[int], n: int, added: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    filled = state.fill_plain(torch.tensor(rows), n, added, temperature)
    assert filled is not None
    return filled


def check_same(found: ConvState, expected: ConvState) -> None:
    """Nothing that either state remembers differs by more than rounding."""
    assert (found.length, found.clock, found.fresh) == (expected.length, expected.clock, expected.fresh)
    assert torch.equal(found.open_unit, expected.open_unit)
    assert torch.equal(found.before, expected.before)
    torch.testing.assert_close(found.history, expected.history, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.features, expected.features, atol=1e-5, rtol=1e-5)


def open_full(states: list[ConvState], rows: list[int]) -> None:
    for state in states:
        for row in rows:
            if state.length[row] % state.unit.symbols == 0:
                n_units = state.length[row] // state.unit.symbols + 1
                state.open(torch.tensor([row]), contexts(row, n_units)[-1:])


# ------------------------------------------------------------------- the same as steps


@needs_numba
@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_draws_and_remembers_what_steps_do(case: str) -> None:
    """Any rows, each at its own place, in turns with steps, from the middle of units and places, after a look."""
    head = build(case)
    k, vocab = head.unit.symbols, head.unit.vocab
    steps, mixed = loaded(head, [0, k + 1, 2 * k - 1]), loaded(head, [0, k + 1, 2 * k - 1])
    for turn in range(10):
        rows = [[0, 1, 2], [2, 0], [1]][turn % 3]
        n = max(min(k - steps.length[row] % k for row in rows) - turn % 2, 1)
        if turn % 4 == 1:  # the features of the open places are there already
            steps.logits(torch.tensor(rows))
            mixed.logits(torch.tensor(rows))
        added, temperature = noise(rows, n, vocab, turn), [1.0, 0.7, 1.9][turn % 3]
        drawn, logits = step_by_step(steps, rows, n, added, temperature)
        draw = step_by_step if turn % 4 == 2 else compiled
        found, own = draw(mixed, rows, n, added, temperature)
        assert torch.equal(found, drawn)
        torch.testing.assert_close(own, logits, atol=1e-5, rtol=1e-5)
        check_same(mixed, steps)
        open_full([steps, mixed], rows)


@needs_numba
@torch.inference_mode()
def test_goes_on_after_rows_were_gathered() -> None:
    """However the gathered tensors are laid out, what is drawn is remembered in them and not in a copy."""
    states = [loaded(build("stereo"), [0, 1, 6]) for _ in range(2)]
    states[1].history = states[1].history.transpose(0, 2).contiguous().transpose(0, 2)
    states[1].bias = states[1].bias.transpose(0, 2).contiguous().transpose(0, 2)
    for state in states:
        state.gather_rows(torch.tensor([2, 0, 2]))
    for turn in range(2):
        added = noise([0, 1, 2], 2, 6, turn)
        drawn, logits = step_by_step(states[0], [0, 1, 2], 2, added, 1.0)
        found, own = compiled(states[1], [0, 1, 2], 2, added, 1.0)
        assert torch.equal(found, drawn)
        torch.testing.assert_close(own, logits, atol=1e-5, rtol=1e-5)
        check_same(states[1], states[0])
        open_full(states, [0, 1, 2])


@needs_numba
@torch.inference_mode()
def test_no_noise_takes_the_most_probable_symbol() -> None:
    """Whatever the temperature, 0 included."""
    head = build("wide")
    for temperature in (0.0, 2.0):
        found, logits = compiled(loaded(head, [0, 4]), [0, 1], 4, None, temperature)
        assert torch.equal(found, logits.argmax(-1))
        assert len(found.unique()) > 1


@needs_numba
@torch.inference_mode()
def test_impossible_and_forced_symbols() -> None:
    """Infinite noise rules a symbol out, or draws it."""
    added = torch.zeros(1, 3, 5)
    added[0, 0, :4], added[0, 1, 2], added[0, 2, 1:] = -math.inf, math.inf, -math.inf
    found, _ = compiled(loaded(build("time"), [0]), [0], 3, added, 1.0)
    assert found.tolist() == [[4, 2, 0]]


@needs_numba
@pytest.mark.parametrize("case", [name for name, (_, config) in CASES.items() if not config.condition_layers])
@torch.inference_mode()
def test_contexts_are_the_same_biases(case: str) -> None:
    """As operators make them; and those of a row to the last bit whatever rows stand beside it."""
    head = build(case)
    n_units, k = 3, head.unit.symbols
    symbols = torch.tensor(hash_symbols(3 * n_units * k, head.unit.vocab, 0)).view(3, n_units, k)
    context, lengths = torch.stack([contexts(row, n_units) for row in range(3)]), torch.tensor([0, k, 2 * k])

    def bias_of(rows: list[int], compiled: bool) -> Tensor:
        state = head.state(len(rows))
        assert isinstance(state, ConvState)
        if compiled:
            state.compile()
            assert state.compiled_conditioning is not None
        state.load(torch.arange(len(rows)), context[rows], symbols[rows], lengths[rows], header(len(rows)))
        return state.bias

    together = bias_of([0, 1, 2], compiled=True)
    torch.testing.assert_close(together, bias_of([0, 1, 2], compiled=False), atol=1e-5, rtol=1e-5)
    if head.halo is None:  # which is torch's affair
        for row in range(3):
            assert torch.equal(bias_of([row], compiled=True)[:, :, 0], together[:, :, row])


# --------------------------------------------------------------- alone and in a batch


@needs_numba
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("case", ["wide", "time", "stereo", "mixture"])
@torch.inference_mode()
def test_rows_are_the_same_to_the_last_bit_alone_and_among_others(
    case: str, n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest symbol of a sample must not depend on the batch: more rows than one group, several threads."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    head = build(case)
    k, vocab = head.unit.symbols, head.unit.vocab
    lengths = [(5 * row) % (3 * k) // k * k + row % 2 for row in range(19)]
    together, rows = loaded(head, lengths), list(range(19))
    found, logits = compiled(together, rows, k - 1, noise(rows, k - 1, vocab), 0.9)
    for row in range(19):
        alone = loaded(head, lengths)
        own, its_logits = compiled(alone, [row], k - 1, noise([row], k - 1, vocab), 0.9)
        assert torch.equal(own[0], found[row])
        assert torch.equal(its_logits[0], logits[row])
        assert torch.equal(alone.history[:, :, row], together.history[:, :, row])
        assert torch.equal(alone.features[row], together.features[row])


# ----------------------------------------------------------------------- where it is not


def fill_one(state: ConvState) -> object:
    return state.fill_plain(torch.tensor([0]), 1, None, 1.0)


def test_there_is_none_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_state, "find_spec", lambda name: None)
    assert fill_one(loaded(build("time"), [0])) is None


def rescale(head: CausalConvHead) -> None:
    class Halved(type(head.distribution)):  # pyright: ignore
        def logits(self, features: Tensor, earlier: Tensor) -> Tensor:
            return super().logits(features, earlier) / 2

    head.distribution.__class__ = Halved


@needs_numba
@pytest.mark.parametrize("change", [CausalConvHead.double, rescale], ids=lambda change: change.__name__)
def test_there_is_none_for_what_it_does_not_know(change: Callable[[CausalConvHead], object]) -> None:
    """Other precisions and distributions take their steps, and are not taken for what they are derived from."""
    head = build("time")
    change(head)
    state = head.state(1)
    assert isinstance(state, ConvState)
    assert fill_one(state) is None
    assert (state.length, state.clock) == ([0], [0])


def test_other_heads_have_none() -> None:
    state = Categorical().build(WIDTH, unit(1, 4)).state(1)
    assert state.fill_plain(torch.tensor([0]), 1, None, 1.0) is None


# ------------------------------------------------------------------------------ the code


@needs_numba
@torch.inference_mode()
def test_is_compiled_once() -> None:
    """Arguments of other types or layouts would each take seconds to compile."""
    from armm.heads.fast_loop import fill

    for case in ("wide", "stereo", "mixture"):
        state = loaded(build(case), [0, 0, 0])
        state.gather_rows(torch.tensor([2, 1]))
        compiled(state, [0], 1, None, 1)
        compiled(state, [1, 0], 1, noise([1, 0], 1, state.unit.vocab).expand(2, 1, -1), 1.0)
    assert len(fill.signatures) == 1


@needs_numba
def test_arithmetic_is_accurate_and_does_not_overflow() -> None:
    """A gate that is shut at -100 must not become infinite; small numbers keep their digits where it matters."""
    from armm import compiled
    from armm.heads import fast_loop

    x = np.concatenate([np.linspace(-86, 86, 1733), [-1e30, -1e4, -100, 100, 1e4, 1e30]]).astype(np.float32)
    exact = x.astype(np.float64)
    inside = np.abs(x) < 87
    found = np.array([compiled.exp(one) for one in x])
    np.testing.assert_allclose(found[inside], np.exp(exact[inside]), rtol=2e-7)
    assert np.isfinite(found).all()
    sigmoid = np.array([compiled.sigmoid(one) for one in x])
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-exact.clip(-700, 700))), rtol=3e-7, atol=1e-37)
    np.testing.assert_allclose(np.array([compiled.tanh(one) for one in x]), np.tanh(exact), atol=2e-7)
    softplus = np.array([fast_loop.softplus(one) for one in x])
    np.testing.assert_allclose(softplus, np.logaddexp(0, exact), rtol=3e-7, atol=1e-37)

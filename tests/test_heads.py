"""Heads: what each symbol can see, exactly, and the same network in parallel and step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_modalities import hash_parameters, hash_symbols
from torch import Tensor

from armm.errors import InputError
from armm.heads import Categorical, CausalConv, CausalConvHead, Head, HeadState, LogisticMixture, Unit
from armm.heads.causal_conv import ConvState, Gate, gate
from armm.heads.cross_entropy import nats_of
from armm.heads.distributions import DistributionConfig, Softmax

WIDTH = 4
VOCAB = 4


def unit(
    places: int,
    channels: int = 1,
    block: tuple[int, int] | None = None,
    whole_rows: bool = False,
    continuous: bool = False,
    vocab: int = VOCAB,
) -> Unit:
    values = torch.linspace(-1, 1, vocab)[:, None]
    return Unit(vocab, places * channels, channels, continuous, block, whole_rows, values)


def build(config: CausalConv, of: Unit) -> CausalConvHead:
    head = config.build(WIDTH, of)
    assert isinstance(head, CausalConvHead)
    hash_parameters(head, scale=1.5)
    return head.eval()


def inputs(of: Unit, n_units: int, seed: int = 0, rows: int = 1) -> tuple[Tensor, Tensor]:
    """(rows, U, D) contexts and (rows, U, K) symbols."""
    context = (
        torch.tensor(hash_symbols(rows * n_units * WIDTH, 1001, seed)).float().view(rows, n_units, WIDTH) / 250 - 2
    )
    symbols = torch.tensor(hash_symbols(rows * n_units * of.symbols, of.vocab, seed)).view(rows, n_units, of.symbols)
    return context, symbols


def influences(head: CausalConvHead, of: Unit, n_units: int, header: tuple[int, int] = (1, 1)) -> Tensor:
    """(n, n) bool: [i, j] where symbol j changes the distribution of symbol i, all symbols in coding order.

    In float64, where no influence is lost in rounding, and each change alone: the last bits of a product's rows depend
    on where in the batch they stand.
    """
    head = head.double()
    context, symbols = inputs(of, n_units)

    def outputs(symbols: Tensor) -> Tensor:
        """(n, V + H) logits, and the features behind them."""
        known, sizes = torch.ones_like(symbols, dtype=torch.bool), torch.tensor([header])
        with torch.no_grad():
            logits = head.logits(context.double(), symbols, known, sizes).flatten(0, 2)
            features = head.parallel(context.double(), symbols, sizes).flatten(0, 2)
        return torch.cat([logits.double(), features.repeat_interleave(of.channels, 0)], dim=1)

    before, columns = outputs(symbols), []
    for j in range(symbols.numel()):
        changed = symbols.clone()
        changed.view(-1)[j] = (changed.view(-1)[j] + 1) % of.vocab
        columns.append((outputs(changed) != before).any(-1))
    return torch.stack(columns, dim=1)


# --------------------------------------------------------------- receptive fields


@pytest.mark.parametrize(("kernel", "dilations"), [(2, (1,)), (2, (1, 2, 4)), (3, (1, 3)), (4, (1, 4)), (2, (2, 1, 1))])
def test_receptive_field_is_exact(kernel: int, dilations: tuple[int, ...]) -> None:
    """Along time every symbol within `receptive_field` back has influence, and none beyond: no gap, no leak."""
    config = CausalConv(channels=6, kernel=kernel, dilations=dilations)
    field = config.receptive_field
    of = unit(4, continuous=True)
    n_units = -(-(field + 3) // 4)
    seen = influences(build(config, of), of, n_units)
    i, j = torch.meshgrid(torch.arange(n_units * 4), torch.arange(n_units * 4), indexing="ij")
    assert torch.equal(seen, (i - j >= 1) & (i - j <= field))


def test_default_wavenet_sees_256_places() -> None:
    assert CausalConv(kernel=4, dilations=(1, 4, 16, 64)).receptive_field == 256


def test_rows_start_anew() -> None:
    """Without a halo an image's unit knows other units through its context only."""
    of = unit(5, block=(1, 5), whole_rows=True)
    seen = influences(build(CausalConv(channels=4, kernel=3, dilations=(1, 2), halo=0), of), of, 3)
    i, j = torch.meshgrid(torch.arange(15), torch.arange(15), indexing="ij")
    assert torch.equal(seen, (j < i) & (i // 5 == j // 5))


@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("distribution", [Softmax(), LogisticMixture(2)], ids=str)
def test_channels_of_a_place(continuous: bool, distribution: DistributionConfig) -> None:
    """G sees its pixel's R, B both, and all three see every channel of the places before."""
    of = unit(3, channels=3, continuous=continuous)
    config = CausalConv(channels=4, kernel=2, dilations=(1, 1), distribution=distribution)
    seen = influences(build(config, of), of, 1)
    assert torch.equal(seen, torch.ones(9, 9, dtype=torch.bool).tril(-1))


# ------------------------------------------------------------------------- halo


def places(of: Unit, rows: int, columns: int) -> Tensor:
    """(rows * columns * P, 2) y and x of every pixel in coding order."""
    assert of.block is not None
    height, width = of.block
    number = torch.arange(rows * columns * of.places)
    u, p = number // of.places, number % of.places
    return torch.stack([u // columns * height + p // width, u % columns * width + p % width], dim=1)


@pytest.mark.parametrize(
    ("halo", "halo_layers", "condition_layers"), [(1, 0, 0), (2, 0, 0), (1, 2, 0), (3, 1, 0), (1, 0, 1), (2, 1, 2)]
)
def test_row_halo_sees_all_pixels_of_its_reach(halo: int, halo_layers: int, condition_layers: int) -> None:
    """No blind spot: a masked convolution alone never sees some of the pixels right above and to the right."""
    of = unit(9, block=(1, 9), whole_rows=True)
    config = CausalConv(4, None, 2, (1,), halo=halo, halo_layers=halo_layers, condition_layers=condition_layers)
    seen = influences(build(config, of), of, 7, (7, 1))
    yx = places(of, 7, 1)
    dy, dx = (yx[:, None] - yx[None]).unbind(-1)
    above = (dy >= 1) & (dy <= halo + halo_layers) & (dx.abs() <= 2 + halo_layers + 2 * condition_layers)
    own_row = (dy == 0) & (dx >= 1) & (dx <= config.receptive_field)
    assert torch.equal(seen, above | own_row)


@pytest.mark.parametrize(("block", "grid"), [((2, 2), (3, 3)), ((1, 3), (4, 2)), ((2, 3), (2, 3)), ((1, 1), (3, 4))])
@pytest.mark.parametrize("halo", [1, 2, 3])
def test_block_halo_sees_known_pixels_and_no_others(block: tuple[int, int], grid: tuple[int, int], halo: int) -> None:
    """Each pixel sees every known pixel within `halo` of it, of whatever unit, and no unknown one at any distance."""
    of = unit(block[0] * block[1], block=block)
    # one layer only: a second would hand on what its neighbours in the unit see
    config = CausalConv(channels=4, kernel=6, dilations=(1,), halo=halo, halo_layers=halo - 1)
    seen = influences(build(config, of), of, grid[0] * grid[1], grid)
    n = len(seen)
    i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    assert not seen[j >= i].any(), "a pixel sees itself or what is coded after it"
    yx = places(of, *grid)
    distance = (yx[:, None] - yx[None]).abs().amax(-1)
    earlier_unit = j // of.places < i // of.places
    assert seen[earlier_unit & (distance <= halo)].all(), "a blind spot"
    assert not seen[earlier_unit & (distance > halo)].any(), "more than the halo says"
    same_unit = (i // of.places == j // of.places) & (j < i)
    assert seen[same_unit].all()


def test_a_leaking_halo_would_be_seen() -> None:
    """The checks above can fail: a halo that looks at its own row leaks the pixels to the right."""
    of = unit(5, block=(1, 5), whole_rows=True)
    head = build(CausalConv(channels=4, halo=2), of)
    assert head.halo is not None
    whole = head.halo.forward
    head.halo.forward = lambda symbols, header: whole(symbols, header).roll(-1, 1)  # pyright: ignore
    seen = influences(head, of, 4, (4, 1))
    assert seen[torch.ones_like(seen).triu()].any()


def test_halo_tells_the_border_from_a_level() -> None:
    """By a flag of its own: even a level whose embedding is zero does not look like the outside."""
    of = unit(4, block=(1, 4), whole_rows=True)
    head = build(CausalConv(channels=4, halo=2, halo_layers=0), of)
    assert head.halo is not None
    with torch.no_grad():
        head.halo.embed.symbol.zero_()
        head.halo.embed.values.zero_()
    symbols = torch.zeros(1, 5, 4, dtype=torch.int64)
    halo = head.halo(symbols, torch.tensor([[5, 1]]))[0]
    assert not torch.equal(halo[0], halo[1])
    assert not torch.equal(halo[1], halo[2])
    torch.testing.assert_close(halo[2:], halo[2:3].expand(3, -1, -1))
    assert not torch.equal(halo[3, 0], halo[3, 2]), "the left border"


# --------------------------------------------------------------- step by step


CASES: dict[str, tuple[Unit, CausalConv, tuple[int, int]]] = {
    "time": (unit(3, continuous=True), CausalConv(channels=4, kernel=3, dilations=(1, 3), hidden_layers=2), (1, 1)),
    "stereo": (unit(2, 2, continuous=True), CausalConv(channels=4, kernel=2, dilations=(2, 1)), (1, 1)),
    "rows": (unit(4, block=(1, 4), whole_rows=True), CausalConv(channels=4, halo=2, halo_layers=1), (6, 1)),
    "rows, conditioned by layers": (
        unit(4, block=(1, 4), whole_rows=True),
        CausalConv(channels=4, halo=1, condition_layers=2),
        (6, 1),
    ),
    "rgb rows": (
        unit(3, 3, block=(1, 3), whole_rows=True),
        CausalConv(channels=4, halo=1, distribution=LogisticMixture(2)),
        (6, 1),
    ),
    "patches": (unit(4, block=(2, 2)), CausalConv(channels=4, halo=2), (3, 2)),
    "patches, conditioned by layers": (unit(4, block=(2, 2)), CausalConv(channels=4, condition_layers=1), (3, 2)),
    "rgb pixels": (unit(1, 3, block=(1, 1)), CausalConv(channels=4, halo=2), (2, 3)),
    # longer than the ring of 8 places, which one row must not leave to the next
    "long rows": (unit(9, block=(1, 9), whole_rows=True), CausalConv(4, kernel=2, dilations=(1, 5), halo=1), (6, 1)),
    "blind rows": (unit(4, block=(1, 4), whole_rows=True), CausalConv(channels=4, halo=0), (6, 1)),
    "one symbol": (unit(1, continuous=True), CausalConv(channels=4, kernel=2, dilations=(1, 2)), (1, 1)),
}
N_UNITS = 6


def parallel_logits(head: Head, context: Tensor, symbols: Tensor, header: Tensor) -> Tensor:
    """(R, U * K, V)."""
    with torch.no_grad():
        return head.logits(context, symbols, torch.ones_like(symbols, dtype=torch.bool), header).flatten(1, 2)


def load(
    state: HeadState, rows: list[int], context: Tensor, symbols: Tensor, lengths: list[int], header: Tensor
) -> None:
    """Put rows of a state at `lengths`, with everything after that unknown and later contexts withheld."""
    k = symbols.shape[2]
    n_units = max(lengths) // k + 1
    listed = torch.tensor(lengths)
    known = torch.arange(symbols.shape[1] * k).view(1, -1, k) < listed[:, None, None]
    hidden = torch.where(known, symbols, VOCAB)[:, :n_units]
    past = torch.where(torch.arange(n_units)[:, None] <= (listed // k)[:, None, None], context[:, :n_units], torch.nan)
    past = past.nan_to_num(9.0)  # must not matter
    with torch.no_grad():
        state.load(torch.tensor(rows), past, hidden, listed, header)


def step_through(state: HeadState, row: int, context: Tensor, symbols: Tensor, start: int, stop: int) -> Tensor:
    """(stop - start, V) logits of one row's symbols, each from a state that was given all before it one by one."""
    k, flat, rows, out = symbols.shape[1], symbols.flatten(), torch.tensor([row]), []
    with torch.no_grad():
        for t in range(start, stop):
            if t % k == 0 and t > start:
                state.open(rows, context[t // k][None])
            out.append(state.logits(rows)[0])
            state.extend(rows, flat[t : t + 1])
    return torch.stack(out)


@pytest.mark.parametrize("case", CASES)
@given(data=st.data())
@settings(max_examples=12)
def test_loaded_anywhere_and_stepped_on_equals_parallel(case: str, data: st.DataObject) -> None:
    """A prompt of any length, read at once or symbol by symbol, leads to the same distributions."""
    of, config, header = CASES[case]
    head = build(config, of)
    context, symbols = inputs(of, N_UNITS, rows=3)
    headers = torch.tensor(header).expand(3, 2)
    expected = parallel_logits(head, context, symbols, headers)
    n = N_UNITS * of.symbols
    starts = [data.draw(st.integers(0, n - 1)) for _ in range(3)]
    state = head.state(3)
    load(state, [0, 1, 2], context, symbols, starts, headers)
    for row, start in enumerate(starts):
        found = step_through(state, row, context[row], symbols[row], start, n)
        torch.testing.assert_close(found, expected[row, start:], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_loading_again_forgets_what_was_after(case: str) -> None:
    """After a truncation the history holds positions that never were: loading must leave none of them."""
    of, config, header = CASES[case]
    head = build(config, of)
    (context, symbols), (other_context, other) = inputs(of, N_UNITS), inputs(of, N_UNITS, seed=1)
    headers = torch.tensor([header])
    expected = parallel_logits(head, context, symbols, headers)[0]
    n = N_UNITS * of.symbols
    state = head.state(1)
    load(state, [0], other_context, other, [0], headers)
    step_through(state, 0, other_context[0], other[0], 0, n)
    for start in (0, 1, n // 3, n - 1):
        load(state, [0], other_context, other, [n // 2], headers)
        with torch.no_grad():
            state.logits(torch.tensor([0]))
        load(state, [0], context, symbols, [start], headers)
        found = step_through(state, 0, context[0], symbols[0], start, n)
        torch.testing.assert_close(found, expected[start:], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_gathered_rows_go_on_where_their_source_was(case: str) -> None:
    """Beams and best-of-n copy rows in the middle of a unit."""
    of, config, header = CASES[case]
    head = build(config, of)
    context, symbols = inputs(of, N_UNITS, rows=2)
    headers = torch.tensor(header).expand(2, 2)
    expected = parallel_logits(head, context, symbols, headers)
    n, cut = N_UNITS * of.symbols, N_UNITS * of.symbols // 2
    if cut % of.symbols == 0 and of.symbols > 1:
        cut += 1
    state = head.state(2)
    load(state, [0, 1], context, symbols, [0, 0], headers)
    for row in range(2):
        step_through(state, row, context[row], symbols[row], 0, cut)
    if cut % of.symbols == 0:
        for row in range(2):
            state.open(torch.tensor([row]), context[row, cut // of.symbols][None])
    state.gather_rows(torch.tensor([1, 0, 1]))
    for row, source in enumerate([1, 0, 1]):
        found = step_through(state, row, context[source], symbols[source], cut, n)
        torch.testing.assert_close(found, expected[source, cut:], atol=2e-5, rtol=1e-5)


def test_history_longer_than_its_ring() -> None:
    """The ring holds 8 places; after many times that, slots that wrapped around still hold the right ones."""
    of = unit(2, continuous=True)
    head = build(CausalConv(channels=4, kernel=2, dilations=(1, 5)), of)
    context, symbols = inputs(of, 40)
    state = head.state(1)
    assert isinstance(state, ConvState)
    assert state.size == 8
    expected = parallel_logits(head, context, symbols, torch.ones(1, 2))[0]
    for start in (0, 37):
        load(state, [0], context, symbols, [start], torch.ones(1, 2, dtype=torch.int64))
        found = step_through(state, 0, context[0], symbols[0], start, 80)
        torch.testing.assert_close(found, expected[start:], atol=2e-5, rtol=1e-5)


# ------------------------------------------------------------------- both heads


@pytest.mark.parametrize(
    "config", [Categorical(), CausalConv(channels=4, kernel=2, dilations=(1, 2))], ids=["softmax", "conv"]
)
def test_log_prob_is_the_gathered_logits_and_zero_where_unknown(config: Any) -> None:
    of = unit(1, continuous=True)
    head = config.build(WIDTH, of)
    hash_parameters(head)
    context, symbols = inputs(of, 5, rows=2)
    known = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])[..., None]
    symbols = torch.where(known, symbols, of.vocab)
    header = torch.zeros(2, 0, dtype=torch.int64)
    nats = head.log_prob(context, symbols, known, header)
    logits = head.logits(context, symbols, known, header)
    assert (nats.shape, nats.dtype) == ((2, 5, 1), torch.float32)
    assert (logits.shape, logits.dtype) == ((2, 5, 1, VOCAB), torch.float32)
    gathered = logits.log_softmax(-1).gather(-1, symbols.clamp(max=VOCAB - 1)[..., None])[..., 0]
    torch.testing.assert_close(nats, torch.where(known, gathered, 0.0))
    (nats.sum()).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in head.parameters())


@pytest.mark.parametrize(
    "head_of", [lambda: Categorical().build(WIDTH, unit(1)), lambda: CausalConv().build(WIDTH, unit(1))]
)
def test_unigram_is_the_start(head_of: Callable[[], Head]) -> None:
    """With nothing learned yet the model says the frequency of each symbol, whatever came before."""
    head = head_of()
    log_unigram = torch.tensor([0.7, 0.1, 0.1, 0.1]).log()
    head.set_unigram(log_unigram)
    symbols = torch.tensor([[[1], [2]]])
    with torch.no_grad():
        logits = head.logits(torch.zeros(1, 2, WIDTH), symbols, torch.ones_like(symbols).bool(), torch.zeros(1, 0))
    torch.testing.assert_close(logits.log_softmax(-1)[0, :, 0], log_unigram.expand(2, -1), atol=0.35, rtol=0)


def test_conv_starts_without_its_context() -> None:
    """The condition matrix is zero at first, so a new backbone adds no noise to the head's first steps."""
    of = unit(2, continuous=True)
    head = CausalConv(channels=4).build(WIDTH, of)
    context, symbols = inputs(of, 3)
    header = torch.zeros(1, 0)
    assert torch.equal(
        parallel_logits(head, context, symbols, header), parallel_logits(head, context * 0 + 1, symbols, header)
    )


def test_context_of_a_unit_reaches_all_its_symbols_and_no_other_unit_before() -> None:
    of = unit(3, block=(1, 3), whole_rows=True)
    head = build(CausalConv(channels=4, halo=0), of)
    context, symbols = inputs(of, 3)
    changed = context.clone()
    changed[0, 1] += 1
    header = torch.tensor([[3, 1]])
    first, second = (parallel_logits(head, c, symbols, header)[0] for c in (context, changed))
    assert (first != second).any(-1).tolist() == [False] * 3 + [True] * 3 + [False] * 3


def test_dropout_only_in_training() -> None:
    """Bits and samples come from the whole network."""
    of = unit(4, block=(1, 4), whole_rows=True)
    plain, dropped = (build(CausalConv(channels=8, dropout=rate), of) for rate in (0.0, 0.5))
    context, symbols = inputs(of, 3)
    header = torch.tensor([[3, 1]])
    expected = parallel_logits(plain, context, symbols, header)
    assert torch.equal(parallel_logits(dropped, context, symbols, header), expected)
    dropped.train()
    assert not torch.equal(parallel_logits(dropped, context, symbols, header), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CausalConv(kernel=1), "kernel 1"),
        (lambda: CausalConv(dilations=()), r"dilations \[\]"),
        (lambda: CausalConv(dilations=(1, 0)), r"dilations \[1, 0\]"),
        (lambda: CausalConv(hidden_layers=3), "hidden_layers 1 or 2"),
        (lambda: CausalConv(channels=0), "channels must be at least 1"),
        (lambda: CausalConv(halo=-1), "halo, halo_layers and condition_layers must be at least 0"),
        (lambda: CausalConv(condition_layers=-1), "condition_layers must be at least 0"),
        (lambda: CausalConv(dropout=1.0), "dropout is 1.0"),
        (lambda: Categorical(softcap=0.0), "softcap is 0.0"),
        (lambda: Categorical().build(4, unit(2)), "units have 2; use armm.heads.CausalConv"),
    ],
)
def test_heads_that_cannot_be_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_gate_and_its_gradient_are_those_of_tanh_and_sigmoid() -> None:
    sums = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    signal, opening = sums.chunk(2, dim=-1)
    torch.testing.assert_close(Gate.apply(sums), torch.tanh(signal) * torch.sigmoid(2 * opening))
    assert torch.autograd.gradcheck(Gate.apply, (sums,))


def test_the_gate_is_the_same_compiled() -> None:
    """What torch.compile is given is another formula, with another gradient."""
    sums = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    signal, opening = sums.detach().chunk(2, dim=-1)
    compiled = torch.compile(gate, backend="eager", fullgraph=True)
    (expected,) = torch.autograd.grad(gate(sums).square().sum(), sums)
    (found,) = torch.autograd.grad(compiled(sums).square().sum(), sums)
    torch.testing.assert_close(gate(sums), torch.tanh(signal) * torch.sigmoid(2 * opening))
    torch.testing.assert_close(compiled(sums), gate(sums))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("n", "vocab"), [(1, 1), (7, 5), (300, 1000)])
def test_nats_and_their_gradient_are_those_of_cross_entropy(n: int, vocab: int) -> None:
    """In several parts, too: 300 rows of 1,000 are more than are worked on at a time."""
    generator = torch.Generator().manual_seed(n)
    logits = (torch.randn(n, vocab, generator=generator) * 5).requires_grad_()
    symbols, weights = torch.randint(vocab, (n,), generator=generator), torch.rand(n, generator=generator)
    expected = F.cross_entropy(logits, symbols, reduction="none")
    found = nats_of(logits, symbols)
    torch.testing.assert_close(found, expected)
    (grad,) = torch.autograd.grad((expected * weights).sum(), logits)
    torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), logits)[0], grad)
    half = logits.detach().bfloat16().requires_grad_()
    torch.testing.assert_close(nats_of(half, symbols), F.cross_entropy(half.float(), symbols, reduction="none"))
    nats_of(half, symbols).sum().backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16

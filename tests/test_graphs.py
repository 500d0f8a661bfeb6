"""Recorded steps: replayed, they are the steps taken one by one, bit for bit; the tape stands for a CUDA graph."""

from __future__ import annotations

import pytest
import torch
from tape import record_on_tape
from test_fast import CASES, check_same, loaded, noise, open_full, step_by_step
from test_fast import build as build_head
from test_transformer import VARIANTS, build, units, values_for
from tiny_modalities import Clip, Picture, hash_parameters

from armm import graphs
from armm.backbones import Transformer
from armm.backbones import fast as fast_steps
from armm.generation import Temperature, generate
from armm.generation.exact import is_exact
from armm.graphs import Body, Recording, Recordings
from armm.model import AutoregressiveModel

CPU = torch.device("cpu")


class Counter:
    """The tape, counting."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, body: Body) -> Recording:
        self.recorded += 1
        replay, results = record_on_tape(body)

        def counted() -> None:
            self.replayed += 1
            replay()

        return Recording(counted, results)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """The CPU records, and has no compiled steps, as a GPU."""
    counter = Counter()
    monkeypatch.setitem(graphs.RECORDERS, "cpu", counter)
    monkeypatch.setattr(fast_steps, "compiled_steps", lambda backbone, exact: None)
    return counter


# ------------------------------------------------------------------- recordings


def test_a_replay_reads_what_its_tensors_hold_now(counter: Counter) -> None:
    recordings, x = Recordings(CPU), torch.zeros(3)
    for value in range(4):
        x.fill_(value)
        (y,) = recordings.run("key", lambda: (x * 2 + 1,))
        assert y.tolist() == [2 * value + 1] * 3
    assert (counter.recorded, counter.replayed) == (1, 3)


def test_what_python_decides_is_another_recording(counter: Counter) -> None:
    recordings, x = Recordings(CPU), torch.ones(1)
    for _ in range(3):
        assert recordings.run(2, lambda: (x * 2,))[0] == 2
        assert recordings.run(3, lambda: (x * 3,))[0] == 3
    assert counter.recorded == 2


def test_tensors_that_are_others_now_are_recorded_anew(counter: Counter) -> None:
    recordings = Recordings(CPU)
    for value in range(3):
        x = torch.full((2,), float(value))
        for _ in range(3):
            assert recordings.run("key", lambda x=x: (x + 1,))[0].tolist() == [value + 1] * 2
        recordings.clear()
    assert counter.recorded == 3


def test_where_recording_fails_steps_are_taken_and_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(body: Body) -> Recording:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setitem(graphs.RECORDERS, "cpu", fail)
    recordings, x = Recordings(CPU), torch.ones(1)
    assert recordings.run("key", lambda: (x + 1,))[0] == 2
    with pytest.warns(UserWarning, match="not permitted when stream is capturing"):
        assert recordings.run("key", lambda: (x + 1,))[0] == 2
    for key in ("key", "other", "other"):
        assert recordings.run(key, lambda: (x + 1,))[0] == 2


def test_the_tape_refuses_what_a_gpu_would(counter: Counter) -> None:
    """Else the tests below would pass for bodies that no GPU captures."""
    x = torch.ones(3)
    with pytest.raises(AssertionError, match="_local_scalar_dense"):
        record_on_tape(lambda: (x[: int(x.sum())],))
    with pytest.raises(AssertionError, match="lift_fresh"):
        record_on_tape(lambda: (x + torch.tensor([1.0, 2.0, 3.0]),))


# -------------------------------------------------------------------- the backbone


@pytest.mark.parametrize("min_rows", [1, 16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_recorded_steps_of_a_transformer(counter: Counter, variant: str, min_rows: int) -> None:
    """Rows at places of their own, some of them alone in between, taken back and reordered."""
    config, n = VARIANTS[variant], 12
    backbone = build(config)
    x, values = units(n, config.width, 3), values_for(config, n, 3)
    with torch.inference_mode():
        plain, recorded = backbone.state(3, min_rows), backbone.state(3, min_rows)
        recorded.compile()
        begin = [5, 1, 3]
        for t in range(n):
            rows = torch.arange(3) if t != 5 else torch.tensor([1])
            count = begin if t == 0 else [1] * len(rows)
            new, own = x[rows, : max(count)] + t, None if values is None else values[rows, : max(count)] - t
            a, b = (state.extend(rows, new, own, count).clone() for state in (plain, recorded))
            assert all(torch.equal(own[:c], other[:c]) for own, other, c in zip(a, b, count, strict=True))
            if t == 7:
                for state in (plain, recorded):
                    state.truncate([6, 2, 4])
            if t == 9:
                for state in (plain, recorded):
                    state.gather_rows(torch.tensor([2, 0, 1]))
    assert counter.replayed >= 4


def test_a_longer_cache_is_recorded_anew(counter: Counter) -> None:
    """Growing moves the cache: an old recording would go on reading the old one."""
    backbone = build(VARIANTS["default"])
    with torch.inference_mode():
        plain, recorded = backbone.state(2), backbone.state(2)
        recorded.compile()
        x = units(300, VARIANTS["default"].width, 2)
        for t in range(300):
            a, b = (s.extend(torch.arange(2), x[:, t : t + 1], None, [1, 1]) for s in (plain, recorded))
            assert torch.equal(a, b)
    assert counter.recorded == 3


# ------------------------------------------------------------------------- the head


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_recorded_units_are_those_of_steps(counter: Counter, case: str, temperature: float) -> None:
    """Past the end of the ring, between units of single steps, and after rows moved."""
    head = build_head(case)
    k, vocab, rows = head.unit.symbols, head.unit.vocab, [0, 1]
    steps, mixed = loaded(head, [0, 0]), loaded(head, [0, 0])
    mixed.compile()
    n_units = max(2 * steps.size // head.unit.places, 10) + 4
    for number in range(n_units):
        added = noise(rows, k, vocab, number)
        drawn, logits = step_by_step(steps, rows, k, added, temperature)
        if number == 5:
            found, own = step_by_step(mixed, rows, k, added, temperature)
        else:
            filled = mixed.fill_plain(torch.tensor(rows), k, added, temperature)
            assert filled is not None
            found, own = filled
        assert torch.equal(found, drawn)
        assert torch.equal(own, logits)
        check_same(mixed, steps)
        if number == 7:
            for state in (steps, mixed):
                state.gather_rows(torch.tensor([1, 0]))
        open_full([steps, mixed], rows)
    assert counter.replayed == n_units - 3  # but for the first of each state of rows, and the one by steps


@torch.inference_mode()
def test_part_of_a_unit_is_not_recorded(counter: Counter) -> None:
    """Rows in the middle of a unit, at places of their own, or only some of them: nothing is written."""
    head = build_head("time")
    for lengths, rows, n in (([1, 1], [0, 1], 2), ([0, 1], [0, 1], 2), ([0, 0], [0], 3), ([0, 0], [0, 1], 2)):
        state, untouched = loaded(head, lengths), loaded(head, lengths)
        state.compile()
        assert state.fill_plain(torch.tensor(rows), n, None, 1.0) is None
        check_same(state, untouched)
    state = loaded(head, [0, 0])
    state.compile()
    state.logits(torch.tensor([0, 1]))  # somebody looked
    assert state.fill_plain(torch.tensor([0, 1]), 3, None, 1.0) is None


@torch.inference_mode()
def test_greedy_units(counter: Counter) -> None:
    head = build_head("rows")
    steps, recorded = loaded(head, [0, 0, 0]), loaded(head, [0, 0, 0])
    recorded.compile()
    rows, k = [0, 1, 2], head.unit.symbols
    for _ in range(4):
        drawn, _ = step_by_step(steps, rows, k, torch.zeros(3, k, head.unit.vocab), 1.0)
        filled = recorded.fill_plain(torch.tensor(rows), k, None, 0.0)
        assert filled is not None and torch.equal(filled[0], drawn)
        open_full([steps, recorded], rows)


# ---------------------------------------------------------------------------- samples


@pytest.mark.parametrize("modality", [Clip(ended=False), Picture(size=(8, 4))], ids=["audio", "image"])
@pytest.mark.parametrize("exact", [True, False])
def test_samples_are_those_of_single_steps(counter: Counter, modality: Clip | Picture, exact: bool) -> None:
    """`generate` records by itself where a device can, and fast=False takes single steps: the same samples."""
    model = AutoregressiveModel({"own": modality}, Transformer(width=16, n_layers=2, n_heads=2), ["own"], context=24)
    hash_parameters(model)
    filters = [Temperature(0.8)]
    plain = list(generate(model, n=5, filters=filters, exact=exact, fast=False, batch_size=3, max_symbols=90))
    assert counter.recorded == 0
    is_exact(model, compiled=True)  # its states are not counted
    counter.replayed = 0
    recorded = list(generate(model, n=5, filters=filters, exact=exact, batch_size=3, max_symbols=90))
    assert counter.replayed > 10
    by_index = {sample.index: sample for sample in recorded}
    for sample in plain:
        assert by_index[sample.index].symbols == sample.symbols
        assert by_index[sample.index].log_probs == sample.log_probs

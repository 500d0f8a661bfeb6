"""State: documents written symbol by symbol, taken back, copied, each row at its own place, nothing computed twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_modalities import Clip, Letters, Picture, hash_parameters, hash_symbols, segment_of
from torch import Tensor

from armm.backbones import NoBackbone, Transformer
from armm.errors import InputError
from armm.grammar import Stage
from armm.heads import CausalConv, CausalConvHead, LogisticMixture
from armm.modality import Modality
from armm.model import AutoregressiveModel
from armm.sequence import Document, Segment
from armm.state import State

INF = float("inf")
BACKBONE = Transformer(width=8, n_layers=2, n_heads=2)
FREE: dict[str, Modality] = {
    "letters": Letters(max_units=3),
    "picture": Picture(size=(2, 4)),
    "clip": Clip(),
    "sketch": Picture(size=(4, 4), block=(2, 2), sizes_differ=True),
}


def build(modalities: dict[str, Modality], layout: list[str] | None = None, **keys: Any) -> AutoregressiveModel:
    model = AutoregressiveModel(modalities, keys.pop("backbone", BACKBONE), layout, **keys)
    hash_parameters(model)
    return model.eval()


@pytest.fixture(scope="module")
def free() -> AutoregressiveModel:
    """A model of free documents."""
    return build(FREE)


@pytest.fixture(scope="module")
def corpus() -> AutoregressiveModel:
    """A model of endless text, its alphabet 6 symbols."""
    return build({"letters": Letters(ended=False)}, ["letters"])


def document() -> Document:
    """One segment of each modality."""
    return [
        segment_of("letters", [5, 3], 1),
        segment_of("sketch", hash_symbols(8, 5), 4, (2, 1)),
        segment_of("clip", [4, 0, 1, 2], 3),
        segment_of("picture", hash_symbols(8, 5, seed=1), 4, (2, 1)),
    ]


def logits_after(model: AutoregressiveModel, stream: list[int]) -> Tensor:
    """(V,) of a new state that read everything at once."""
    return model.state().extend([stream])[0]


def check_row(found: Tensor, expected: Tensor) -> None:
    """The row's own logits, and -inf beyond them where another row's alphabet is larger."""
    assert (found[len(expected) :] == -INF).all()
    torch.testing.assert_close(found[: len(expected)], expected, atol=2e-5, rtol=1e-5)


# ---------------------------------------------------------------------- extend


def test_every_step_of_a_document_equals_the_parallel_view(free: AutoregressiveModel) -> None:
    stream = free.grammar.flatten(document())
    with torch.no_grad():
        expected = free.stream_log_prob(document())
    state = free.state()
    logits, found = state.extend([[]]), []
    for symbol in stream:
        assert logits.dtype == torch.float32
        assert not state.done[0]
        found.append(logits.log_softmax(-1)[0, symbol])
        logits = state.extend([[symbol]])
    torch.testing.assert_close(torch.stack(found), expected, atol=2e-5, rtol=1e-5)
    assert state.done == [True]
    assert [segment.flat().tolist() for segment in state.document(0)] == [s.flat().tolist() for s in document()]


def test_lists_and_tensors_are_the_same(corpus: AutoregressiveModel) -> None:
    rows = [[1, 2, 3], [4, 5, 0]]
    by_list, by_tensor = corpus.state(2), corpus.state(2)
    expected = by_list.extend(rows)
    assert torch.equal(by_tensor.extend(torch.tensor(rows)), expected)
    assert by_tensor.streams == by_list.streams == rows
    assert torch.equal(by_tensor.extend(torch.zeros(2, 0, dtype=torch.int64)), expected)


def test_rows_may_be_extended_by_different_amounts(corpus: AutoregressiveModel) -> None:
    state = corpus.state(3)
    logits = state.extend([[1, 2, 3, 4], [], [5]])
    for row, stream in enumerate(([1, 2, 3, 4], [], [5])):
        check_row(logits[row], logits_after(corpus, stream))
    logits = state.extend([[], [0, 1], [2, 3, 4, 5, 0]])
    for row, stream in enumerate(([1, 2, 3, 4], [0, 1], [5, 2, 3, 4, 5, 0])):
        check_row(logits[row], logits_after(corpus, stream))
    assert (len(state), state.n_rows, state.lengths, state.done) == (6, 3, [4, 2, 6], [False] * 3)


def test_rows_of_different_alphabets(free: AutoregressiveModel) -> None:
    """Each row has its own logits; what its alphabet lacks has no probability, whatever the other rows' have."""
    stream = free.grammar.flatten(document())
    prefixes = [stream[:n] for n in range(len(stream) + 1)]
    logits = free.state(len(prefixes)).extend(prefixes)
    assert logits.shape == (len(prefixes), 6)
    for row, prefix in enumerate(prefixes):
        check_row(logits[row], logits_after(free, prefix))
        cursor = free.grammar.start()
        for symbol in prefix:
            free.grammar.push(cursor, symbol)
        if prefix != stream:
            assert (logits[row] > -INF).sum() <= free.grammar.vocab(cursor.slot())
            assert logits[row, stream[row]] > -INF


def test_a_done_row_says_nothing_more(free: AutoregressiveModel) -> None:
    state = free.state(2)
    logits = state.extend([[0], [1]])
    assert logits[0].tolist() == [0.0, -INF, -INF]
    assert state.done == [True, False]
    logits = state.extend([[], [2]])
    assert logits[0].tolist() == [0.0] + [-INF] * 5
    check_row(logits[1], logits_after(free, [1, 2]))
    assert free.state().extend([[0]]).tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ([[1, 2], [6]], r"row 1: symbol 6 at 3 is outside \[0, 6\)"),
        ([[1, 2, -1], []], r"row 0: symbol -1 at 5 is outside \[0, 6\)"),
        ([[1], [5, 7, 1]], r"row 1: symbol 7 at 4 is outside \[0, 6\)"),
    ],
)
def test_symbols_outside_the_alphabet_are_refused_whole(
    corpus: AutoregressiveModel, streams: list[list[int]], message: str
) -> None:
    """A refused call changes nothing: the rows before the bad symbol must not have moved."""
    state = corpus.state(2)
    before = state.extend([[1, 2, 3], [3, 2, 1]])
    with pytest.raises(InputError, match=message):
        state.extend(streams)
    assert state.lengths == [3, 3]
    torch.testing.assert_close(state.extend([[], []]), before)
    logits = state.extend([[4], [5]])
    check_row(logits[0], logits_after(corpus, [1, 2, 3, 4]))
    check_row(logits[1], logits_after(corpus, [3, 2, 1, 5]))


def test_symbols_after_the_end_are_refused(free: AutoregressiveModel) -> None:
    state = free.state(2)
    with pytest.raises(InputError, match="row 1 has ended after 3 symbols; no symbol can follow"):
        state.extend([[1], [3, 1, 0, 0]])
    assert state.lengths == [0, 0]
    state.extend([[0], []])
    with pytest.raises(InputError, match="row 0 has ended after 1 symbols"):
        state.extend([[0], []])


def test_the_context_ends_a_row() -> None:
    state = build({"letters": Letters(ended=False)}, ["letters"], context=3).state(2)
    state.extend([[1, 2, 3], [1, 2]])
    assert state.done == [True, False]
    with pytest.raises(InputError, match="row 0 has ended"):
        state.extend([[1], []])


# ---------------------------------------------------------- truncate and gather


def test_truncate_takes_symbols_back(free: AutoregressiveModel) -> None:
    """To any length, of all rows or of each its own; a row that is shorter stays as it is."""
    stream = free.grammar.flatten(document())
    for length in range(len(stream)):
        state = free.state(2)
        state.extend([stream, stream[: len(stream) // 2]])
        state.truncate(length)
        assert state.lengths == [length, min(length, len(stream) // 2)]
        assert state.done == [False, False]
        logits = state.extend([[], []])
        for row in range(2):
            check_row(logits[row], logits_after(free, stream[: state.lengths[row]]))
    state.truncate([2, 100])
    assert state.streams == [stream[:2], stream[: len(stream) // 2]]


def test_truncated_rows_write_something_else(free: AutoregressiveModel) -> None:
    """What stood beyond the cut is gone from every cache: keys, histories, halos, contexts."""
    stream = free.grammar.flatten(document())
    other = free.grammar.flatten(document()[::-1])
    rest = free.grammar.flatten([segment_of("clip", [3, 3, 3, 3, 2], 3), segment_of("picture", [1] * 8, 4, (2, 1))])
    state = free.state(2)
    state.extend([stream, other])
    state.truncate(0)
    for t, symbol in enumerate(rest):
        logits = state.extend([[symbol], [symbol]])
        for row in range(2):
            check_row(logits[row], logits_after(free, rest[: t + 1]))


@pytest.mark.parametrize("index", [[2, 0, 1], [1, 1, 1], [2], [0, 2, 1, 0, 0]])
def test_gather_copies_drops_and_adds_rows(free: AutoregressiveModel, index: list[int]) -> None:
    """And the copies are independent of each other afterwards."""
    stream = free.grammar.flatten(document())
    streams = [stream[:7], stream[:20], stream]
    state = free.state(3)
    state.extend(streams)
    state.gather_rows(index)
    assert state.streams == [streams[i] for i in index]
    assert state.done == [i == 2 for i in index]
    logits = state.extend([[]] * len(index))
    for row, i in enumerate(index):
        check_row(logits[row], logits_after(free, streams[i]))
    added = [[] if i == 2 else [row % 2] for row, i in enumerate(index)]
    logits = state.extend(added)
    for row, i in enumerate(index):
        check_row(logits[row], logits_after(free, streams[i] + added[row]))
    assert streams == [stream[:7], stream[:20], stream]


VARIED: dict[str, Any] = {
    "free": lambda: build(FREE),
    "windowed": lambda: build(
        FREE, backbone=Transformer(width=8, n_layers=2, n_heads=2, window=3, value_embeddings=True)
    ),
    "learned": lambda: build(
        FREE, context=60, backbone=Transformer(width=8, n_heads=2, position="learned", max_positions=64)
    ),
    "wavenet": lambda: build({"clip": Clip()}, ["clip"], backbone=NoBackbone()),
    "mixture": lambda: build(
        {
            "picture": Picture(
                size=(3, 2),
                block=(1, 2),
                symbol_channels=3,
                head=CausalConv(channels=4, distribution=LogisticMixture(2)),
            )
        },
        ["picture"],
    ),
}


@pytest.mark.parametrize("variant", VARIED)
@given(data=st.data())
@settings(max_examples=12)
def test_any_sequence_of_operations(variant: str, data: st.DataObject) -> None:
    """After any extensions, truncations and reorderings a row is what its symbols say, as if read at once."""
    model = VARIED[variant]()
    grammar = model.grammar
    state, streams = model.state(2), [[], []]
    logits = state.extend([[], []])
    for _ in range(6):
        operation = data.draw(st.sampled_from(["extend", "extend", "extend", "truncate", "gather"]))
        if operation == "extend":
            added = []
            for own in streams:
                cursor, new = grammar.start(), []
                for symbol in own:
                    grammar.push(cursor, symbol)
                for _ in range(data.draw(st.integers(0, 6))):
                    if cursor.stage == Stage.DONE:
                        break
                    new.append(data.draw(st.integers(0, grammar.vocab(cursor.slot()) - 1)))
                    grammar.push(cursor, new[-1])
                added.append(new)
            logits = state.extend(added)
            streams = [own + new for own, new in zip(streams, added, strict=True)]
        elif operation == "truncate":
            lengths = [data.draw(st.integers(0, len(own))) for own in streams]
            state.truncate(lengths)
            streams = [own[:length] for own, length in zip(streams, lengths, strict=True)]
        else:
            index = data.draw(st.lists(st.integers(0, len(streams) - 1), min_size=1, max_size=3))
            state.gather_rows(index)
            streams = [streams[i] for i in index]
        if operation != "extend":
            logits = state.extend([[]] * len(streams))
        assert state.streams == streams
        for row, own in enumerate(streams):
            check_row(logits[row], logits_after(model, own))


# ------------------------------------------------------- nothing computed twice


class Counter:
    """Records what a state asks of its backbone and of its heads."""

    def __init__(self, model: AutoregressiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.units: list[int] = []
        self.loads: list[int] = []

        def fail(*_: object) -> None:
            raise AssertionError("the parallel view was run while stepping")

        monkeypatch.setattr(model.backbone, "forward", fail)
        self.wrap(model.backbone, "extend", monkeypatch, lambda rows, x, *_: self.units.append(x.shape[1]))
        for head in model.heads.values():
            monkeypatch.setattr(head, "forward", fail)
            self.wrap(head, "load", monkeypatch, lambda *arguments: self.loads.append(1))

    @staticmethod
    def wrap(module: Any, name: str, monkeypatch: pytest.MonkeyPatch, record: Any) -> None:
        build_state = module.state

        def state(n_rows: int, min_rows: int = 1) -> Any:
            own = build_state(n_rows, min_rows)
            method = getattr(own, name)

            def recorded(*arguments: Any) -> Any:
                record(*arguments)
                return method(*arguments)

            setattr(own, name, recorded)
            return own

        monkeypatch.setattr(module, "state", state)


STEPPED: dict[str, tuple[dict[str, Modality], list[str] | None, Document]] = {
    "letters": ({"letters": Letters(ended=False)}, ["letters"], [segment_of("letters", hash_symbols(30, 6), 1)]),
    "rows": ({"picture": Picture()}, ["picture"], [segment_of("picture", hash_symbols(16, 5), 4, (4, 1))]),
    "clip": ({"clip": Clip()}, ["clip"], [segment_of("clip", hash_symbols(14, 5), 3)]),
    "free": (FREE, None, document()),
}


@pytest.mark.parametrize("case", STEPPED)
def test_each_symbol_costs_at_most_one_unit_of_the_backbone(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stepping must never run the past again: one call with N = 1 per completed unit, one head load per segment."""
    modalities, layout, written = STEPPED[case]
    model = build(modalities, layout)
    counter = Counter(model, monkeypatch)
    state = model.state(2)
    state.extend([[], []])
    for symbol in model.grammar.flatten(written):
        position, calls = state.cursors[0].position, len(counter.units)
        state.extend([[symbol], [symbol]])
        completed = state.cursors[0].position - position
        assert counter.units[calls:] == [1] * completed
    assert len(counter.units) == 1 + model.grammar.n_units(written), "the first is the context of an empty document"
    remembering = [segment for segment in written if isinstance(model.heads[segment.modality], CausalConvHead)]
    assert len(counter.loads) == len(remembering), "a softmax head reads the context alone"


def test_a_prompt_is_read_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(FREE)
    counter = Counter(model, monkeypatch)
    state = model.state()
    state.extend([model.grammar.flatten(document())[:-3]])
    assert len(counter.units) == 1
    assert len(counter.loads) == 1


def test_the_count_sees_a_second_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above can fail: a state that forgets where its heads are loads them again at every symbol."""
    model = build({"clip": Clip()}, ["clip"])
    counter = Counter(model, monkeypatch)
    state: State = model.state()
    for symbol in model.grammar.flatten([segment_of("clip", [1, 2, 3, 4], 3)])[:-1]:
        state._synced = [None]
        state.extend([[symbol]])
    assert len(counter.loads) > 1


def test_states_of_one_model_are_independent(corpus: AutoregressiveModel) -> None:
    first, second = corpus.state(), corpus.state()
    first.extend([[1, 2, 3]])
    check_row(second.extend([[4]])[0], logits_after(corpus, [4]))
    assert first.streams == [[1, 2, 3]]


def test_a_state_builds_no_graph(corpus: AutoregressiveModel) -> None:
    """Gradients through a long sample would keep every step of it in memory."""
    state = corpus.state()
    for _ in range(3):
        assert not state.extend([[1]]).requires_grad
    assert isinstance(state.document(0)[0], Segment)


def test_symbols_may_be_appended_without_asking_what_follows() -> None:
    """The ring of a convolution head needs the places that nobody asked about."""
    model = build({"clip": Clip()}, ["clip"])
    stream = [0, 3, 1, 2, 0, 4, 0, 1, 0, 2, 2, 3]
    state = model.state()
    for number, symbol in enumerate(stream):
        state.append([[symbol]])
        if number in (3, 7):
            state.logits([0])
    torch.testing.assert_close(state.logits([0])[0], logits_after(model, stream), atol=2e-5, rtol=1e-5)


def test_states_move_with_gradients_on(corpus: AutoregressiveModel) -> None:
    """Their tensors were made without, which in-place changes outside would refuse."""
    state, other = corpus.state(2), corpus.state(1)
    state.append([[1, 2, 3], [4]])
    other.append([[5]])
    state.truncate([1, 1])
    state.gather_rows([1, 0])
    state.copy_row(0, other, 0)
    check_row(state.extend([[2], [3]])[0], logits_after(corpus, [5, 2]))

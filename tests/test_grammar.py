"""Documents as streams of symbols and back: which alphabet is next is a function of the symbols before it."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_modalities import Clip, Letters, Picture, hash_parameters, segment_of

from armm.backbones import Transformer
from armm.batching import collate
from armm.errors import InputError
from armm.grammar import END, Grammar, Slot, Stage
from armm.modality import Modality
from armm.model import AutoregressiveModel
from armm.sequence import Batch, Document, Segment

MODALITIES: dict[str, Modality] = {
    "letters": Letters(),
    "picture": Picture(size=(2, 4), block=(1, 4)),
    "clip": Clip(),
    "sketch": Picture(size=(4, 6), block=(2, 2), sizes_differ=True, name="sketch"),
    "corpus": Letters(ended=False, name="corpus"),
}
FREE = Grammar({name: MODALITIES[name] for name in ("letters", "picture", "clip", "sketch")})
LAYOUTS = [["picture"], ["letters", "sketch"], ["sketch", "clip", "picture"], ["picture", "corpus"], ["corpus"]]


def runs(vocab: int, least: int = 0, most: int = 8) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, vocab - 1), min_size=least, max_size=most)


@st.composite
def segments(draw: st.DrawFn, name: str) -> Segment:
    modality = MODALITIES[name]
    if not isinstance(modality, Picture):
        return segment_of(name, draw(runs(modality.vocab)), modality.unit_symbols)
    grid = modality.grid
    header = (draw(st.integers(1, grid[0])), draw(st.integers(1, grid[1]))) if modality.sizes_differ else grid
    n = header[0] * header[1] * modality.unit_symbols
    return segment_of(name, draw(runs(modality.vocab, n, n)), modality.unit_symbols, header)


@st.composite
def documents(draw: st.DrawFn) -> tuple[Grammar, Document]:
    """Free documents, and those of every layout."""
    layout = draw(st.sampled_from([None, *LAYOUTS]))
    names = draw(st.lists(st.sampled_from(FREE.names), max_size=4)) if layout is None else layout
    grammar = FREE if layout is None else Grammar(MODALITIES, layout)
    return grammar, [draw(segments(name)) for name in names]


def contents(document: Document) -> list[tuple[str, tuple[int, ...], list[int]]]:
    return [(segment.modality, segment.header, segment.flat().tolist()) for segment in document]


def count_units(grammar: Grammar, stream: list[int]) -> int:
    cursor = grammar.start()
    return sum(grammar.push(cursor, symbol) for symbol in stream)


# ------------------------------------------------------------------ round trip


@given(documents())
def test_parse_inverts_flatten(case: tuple[Grammar, Document]) -> None:
    """What is compressed or sampled is a stream: every document, also with empty segments, comes back from its own."""
    grammar, document = case
    grammar.check(document)
    stream = grammar.flatten(document)
    assert contents(grammar.parse(stream)) == contents(document)


@given(documents(), st.data())
def test_a_stream_cut_anywhere_is_a_beginning(case: tuple[Grammar, Document], data: st.DataObject) -> None:
    """An interrupted sample is shown as far as it goes: segments before the cut whole, the open one its beginning."""
    grammar, document = case
    stream = grammar.flatten(document)
    cut = data.draw(st.integers(0, len(stream)))
    found, expected = contents(grammar.parse(stream[:cut])), contents(document)
    assert len(found) <= len(expected)
    assert found[:-1] == expected[: max(len(found) - 1, 0)]
    if found:
        name, header, symbols = expected[len(found) - 1]
        assert found[-1][:2] == (name, header)
        assert found[-1][2] == symbols[: len(found[-1][2])]
    # and every payload symbol before the cut is there
    cursor, n_payload = grammar.start(), 0
    for symbol in stream[:cut]:
        n_payload += cursor.stage == Stage.PAYLOAD
        grammar.push(cursor, symbol)
    assert sum(len(symbols) for _, _, symbols in found) == n_payload


@given(documents())
def test_every_symbol_lies_in_the_alphabet_that_the_cursor_names(case: tuple[Grammar, Document]) -> None:
    """Streams and `n_units` agree, and a document that has an end is done after its last symbol and not before."""
    grammar, document = case
    cursor, n_units = grammar.start(), 0
    for symbol in grammar.flatten(document):
        slot = cursor.slot()
        assert slot.stage != Stage.DONE
        assert 0 <= symbol < grammar.vocab(slot)
        if slot.stage == Stage.DECISION:
            index = torch.tensor(cursor.position - cursor.start)
            assert grammar.decision_mask(slot.modality, index)[symbol], "a decision that the model holds impossible"
        n_units += grammar.push(cursor, symbol)
    endless = grammar.layout is not None and grammar.layout[-1] == "corpus"
    assert (cursor.stage == Stage.DONE) == (not endless)
    if not (endless and not document[-1].n_units):
        assert n_units == cursor.position == grammar.n_units(document)
    assert not cursor.cut


@given(documents())
def test_open_end_is_a_beginning_of_any_longer_document(case: tuple[Grammar, Document]) -> None:
    """A prompt says neither that its last segment ends nor that the document does."""
    grammar, document = case
    if not document or isinstance(MODALITIES[document[-1].modality], Picture):
        return
    last = document[-1]
    modality = MODALITIES[last.modality]
    longer = segment_of(last.modality, [*last.flat().tolist(), 1, 2, 3, 4], modality.unit_symbols)
    prompt = grammar.flatten(document, open_end=True)
    assert prompt == grammar.flatten([*document[:-1], longer])[: len(prompt)]
    if not last.length:  # nothing yet, and it may stay so
        assert prompt == grammar.flatten(document)[: len(prompt)]
    assert contents(grammar.parse(prompt)) == contents(document)


def test_open_end_of_a_picture_keeps_its_size() -> None:
    """The top rows of an image, as a prompt, with the header of the whole."""
    top = segment_of("picture", [1, 2, 3, 4], 4, (2, 1))
    assert FREE.flatten([top], open_end=True) == [2, 1, 2, 3, 4]


# ------------------------------------------------------- streams, written out


@pytest.mark.parametrize(
    ("document", "stream"),
    [
        ([], [END]),
        ([segment_of("letters", [], 1)], [1, 1, END]),
        ([segment_of("letters", [4], 1)], [1, 2, 4, END]),
        ([segment_of("letters", [4, 5], 1)], [1, 0, 4, 2, 5, END]),
        ([segment_of("clip", [], 3)], [3, 1, END]),
        ([segment_of("clip", [1, 2], 3)], [3, 3, 1, 2, END]),
        ([segment_of("clip", [1, 2, 3], 3)], [3, 4, 1, 2, 3, END]),
        ([segment_of("clip", [1, 2, 3, 4], 3)], [3, 0, 1, 2, 3, 2, 4, END]),
        ([segment_of("picture", [0, 1, 2, 3, 4, 3, 2, 1], 4, (2, 1))], [2, 0, 1, 2, 3, 4, 3, 2, 1, END]),
        ([segment_of("sketch", [1, 2, 3, 4, 4, 3, 2, 1], 4, (1, 2))], [4, 0, 1, 1, 2, 3, 4, 4, 3, 2, 1, END]),
        (
            [
                segment_of("letters", [3], 1),
                segment_of("sketch", [1, 1, 1, 1], 4, (1, 1)),
                segment_of("letters", [], 1),
            ],
            [1, 2, 3, 4, 0, 0, 1, 1, 1, 1, 1, 1, END],
        ),
    ],
)
def test_streams_are_the_documented_code(document: Document, stream: list[int]) -> None:
    """Control, header, decision, payload: the order and the numbers are a file format."""
    assert FREE.flatten(document) == stream
    assert count_units(FREE, stream) == FREE.n_units(document)


def test_a_fixed_layout_needs_no_control_units() -> None:
    """The classics are exact: an image model of fixed size codes pixels and nothing else."""
    picture = segment_of("picture", [0, 1, 2, 3, 4, 0, 1, 2], 4, (2, 1))
    assert Grammar(MODALITIES, ["picture"]).flatten([picture]) == [0, 1, 2, 3, 4, 0, 1, 2]
    sketch = segment_of("sketch", [1, 2, 3, 4], 4, (1, 1))
    both = Grammar(MODALITIES, ["sketch", "picture"])
    assert both.flatten([sketch, picture]) == [0, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2]
    assert both.n_units([sketch, picture]) == 2 + 1 + 2
    corpus = Grammar(MODALITIES, ["corpus"])
    assert corpus.flatten([segment_of("corpus", [5, 0, 5], 1)]) == [5, 0, 5]


def test_a_corpus_never_ends() -> None:
    grammar = Grammar(MODALITIES, ["corpus"])
    cursor = grammar.start()
    for symbol in [1] * 100:
        grammar.push(cursor, symbol)
    assert (cursor.stage, cursor.position) == (Stage.PAYLOAD, 100)


def test_adding_a_modality_renumbers_nothing() -> None:
    """A trained model that gets one more modality still reads its old documents, at the same payload bits."""
    old = {name: MODALITIES[name] for name in ("letters", "clip")}
    new = {**old, "sketch": MODALITIES["sketch"]}
    document = [segment_of("letters", [1, 2, 3], 1), segment_of("clip", [4, 3, 2, 1], 3)]
    assert Grammar(old).flatten(document) == Grammar(new).flatten(document)

    backbone = Transformer(width=8, n_layers=1, n_heads=2)
    before, after = AutoregressiveModel(old, backbone), AutoregressiveModel(new, backbone)
    hash_parameters(before)
    report = after.load_state_dict(before.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert report.missing_keys and all("sketch" in key for key in report.missing_keys), report.missing_keys
    with torch.no_grad():
        nats = [model.log_prob(collate([document], model.grammar)) for model in (before, after)]
        logits = [model.state().extend([[]]) for model in (before, after)]
    for name in old:
        assert torch.equal(nats[0].payload[name], nats[1].payload[name])
        assert torch.equal(nats[0].decisions[name], nats[1].decisions[name])
    torch.testing.assert_close(logits[0], logits[1][:, :3])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_control_symbols_follow_the_order_of_the_modalities(number: int) -> None:
    """A ParameterDict sorts its keys, which once numbered control symbols by the alphabet."""
    names = ["letters", "sketch", "clip"]
    model = AutoregressiveModel({n: MODALITIES[n] for n in names}, Transformer(width=8, n_layers=1, n_heads=2))
    with torch.no_grad():
        model.control_logits[f"begin_{names[number - 1]}"][-1] = 5.0
        assert model.state().extend([[]])[0].argmax() == number
        before = model.state().extend([[number]])
        model.control_embeddings[f"begin_{names[number - 1]}"].add_(torch.arange(8.0))
        assert not torch.equal(model.state().extend([[number]]), before)


# --------------------------------------------------------------- end decisions


@pytest.mark.parametrize("max_units", [None, 1, 3])
def test_decision_mask_allows_what_documents_say_and_nothing_else(max_units: int | None) -> None:
    """A wrong mask either makes a real document impossible or wastes bits on decisions that no document makes."""
    grammar = Grammar({"clip": Clip(max_units=max_units)}, ["clip"])
    n_units = max_units or 4
    seen = [set() for _ in range(n_units)]
    for length in range(n_units * 3 + 1):
        stream = grammar.flatten([segment_of("clip", [0] * length, 3)])
        cursor = grammar.start()
        for symbol in stream:
            if cursor.stage == Stage.DECISION:
                seen[cursor.position].add(symbol)
            grammar.push(cursor, symbol)
        assert cursor.stage == Stage.DONE
    if max_units is None:
        n_units, seen = 3, seen[:3]  # whether the fourth goes on was not tried
    mask = grammar.decision_mask("clip", torch.arange(n_units))
    allowed = [{i for i, possible in enumerate(row) if possible} for row in mask.tolist()]
    assert allowed == seen


def test_impossible_decisions_have_no_probability() -> None:
    """In both views: at the last unit that fits, all of it goes to the ends."""
    model = AutoregressiveModel({"clip": Clip(max_units=1)}, Transformer(width=8, n_layers=1, n_heads=2), ["clip"])
    hash_parameters(model)
    first = model.state().extend([[]])[0]
    assert first.isinf().tolist() == [True, False, False, False, False]
    with torch.no_grad():
        nats = [model.stream_log_prob([segment_of("clip", [0] * n, 3)])[0] for n in range(4)]
    torch.testing.assert_close(torch.stack(nats).exp().sum().item(), 1.0)
    torch.testing.assert_close(torch.stack(nats), first.log_softmax(-1)[1:])


# --------------------------------------------------------------------- context


def test_context_ends_a_document() -> None:
    """A sample never outgrows the context, and is told apart from one that ended by itself."""
    grammar = Grammar(MODALITIES, ["corpus"], context=3)
    cursor = grammar.start()
    for symbol in (1, 2, 3):
        assert cursor.stage == Stage.PAYLOAD
        grammar.push(cursor, symbol)
    assert (cursor.stage, cursor.cut) == (Stage.DONE, True)
    ended = Grammar(MODALITIES, ["picture"], context=2)
    cursor = ended.start()
    for symbol in [0] * 8:
        ended.push(cursor, symbol)
    assert (cursor.stage, cursor.cut) == (Stage.DONE, False)


@given(documents(), st.integers(1, 12))
@settings(max_examples=50)
def test_context_is_the_longest_document_that_is_accepted(case: tuple[Grammar, Document], context: int) -> None:
    grammar, document = case
    limited = Grammar(grammar.modalities, grammar.layout, context)
    if grammar.n_units(document) > context:
        with pytest.raises(InputError, match=f"units, the model's context is {context}$"):
            limited.check(document)
    else:
        limited.check(document)
        assert contents(limited.parse(grammar.flatten(document))) == contents(document)


# --------------------------------------------------------------------- batches


def rebuilt(grammar: Grammar, batch: Batch) -> list[list[int]]:
    """The streams of a batch, from its tensors alone; every position is taken by exactly one unit."""
    rows: list[list[list[int] | None]] = [[None] * int(n) for n in batch.lengths]

    def put(row: int, position: int, symbols: list[int]) -> None:
        assert rows[row][position] is None, "two units in one place"
        rows[row][position] = symbols

    controls = (batch.control_rows, batch.control_positions, batch.control_values)
    for row, position, value in zip(*(t.tolist() for t in controls), strict=True):
        put(row, position, [value])
    for name, segment in batch.segments.items():
        modality = grammar.modalities[name]
        for s, (row, start) in enumerate(zip(segment.rows.tolist(), segment.starts.tolist(), strict=True)):
            coded = segment.coded[s].tolist()
            for i, own in enumerate(coded):
                put(row, start - len(coded) + i, [own])
            for u in range(int(segment.n_units[s])):
                symbols = segment.symbols[s, u][segment.known[s, u]].tolist()
                put(row, start + u, [int(segment.ends[s, u]), *symbols] if modality.ended else symbols)
    streams = []
    for row in rows:
        assert None not in row, "a place without a unit"
        streams.append([symbol for unit in row for symbol in unit or []])
    return streams


@given(
    st.lists(
        st.lists(st.sampled_from(FREE.names), max_size=4).flatmap(lambda n: st.tuples(*map(segments, n))), max_size=3
    )
)
def test_batches_hold_the_same_symbols_as_streams(rows: list[tuple[Segment, ...]]) -> None:
    """Training sees a batch, sampling and compression a stream: they are two layouts of one document."""
    many = [list(row) for row in rows]
    assert rebuilt(FREE, collate(many, FREE)) == [FREE.flatten(document) for document in many]


@given(st.data())
@settings(max_examples=50)
def test_batches_of_a_layout(data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(LAYOUTS))
    grammar = Grammar(MODALITIES, layout)
    many = [[data.draw(segments(name)) for name in layout] for _ in range(2)]
    assert rebuilt(grammar, collate(many, grammar)) == [grammar.flatten(document) for document in many]


# -------------------------------------------------------------- what is refused


WRONG = {
    "unknown modality": (segment_of("lettres", [1], 1), r"'lettres'.*did you mean 'letters'"),
    "another unit": (segment_of("clip", [1, 2], 2), r"'clip' has 2 symbols per unit, the model wants 3"),
    "above the alphabet": (segment_of("letters", [1, 6], 1), r"'letters' has symbols outside \[0, 6\)"),
    "below the alphabet": (segment_of("letters", [-1], 1), r"'letters' has symbols outside \[0, 6\)"),
    "too few units": (segment_of("sketch", [0] * 4, 4, (2, 1)), r"'sketch' has 1 units, its header says 2"),
    "too many units": (segment_of("picture", [0] * 12, 4, (2, 1)), r"'picture' has 3 units, its header says 2"),
    "a broken unit": (segment_of("picture", [0] * 7, 4, (2, 1)), r"'picture' ends after 7 symbols"),
    "a header too large": (segment_of("sketch", [0] * 12, 4, (3, 1)), r"'sketch' has the header \(3, 1\)"),
    "a header of nothing": (segment_of("sketch", [], 4, (0, 2)), r"'sketch' has the header \(0, 2\)"),
    "another fixed header": (segment_of("picture", [0] * 8, 4, (1, 2)), r"'picture' has the header \(1, 2\)"),
    "a header too many": (segment_of("letters", [0], 1, (1,)), r"'letters' has the header \(1,\)"),
}


@pytest.mark.parametrize("what", WRONG)
def test_documents_that_cannot_be_coded_are_refused(what: str) -> None:
    """Each of these would otherwise be coded as something else, or fail as an index error deep in the model."""
    segment, message = WRONG[what]
    for refuse in (FREE.check, lambda document: collate([[], document], FREE)):
        with pytest.raises(InputError, match=message) as caught:
            refuse([segment_of("letters", [1], 1), segment])
        assert "\n" not in str(caught.value)


def test_too_many_units_of_coded_length_are_refused() -> None:
    grammar = Grammar({"clip": Clip(max_units=2)}, ["clip"])
    grammar.check([segment_of("clip", [0] * 6, 3)])
    with pytest.raises(InputError, match="has 3 units, at most 2 fit"):
        grammar.check([segment_of("clip", [0] * 7, 3)])


def test_another_layout_is_refused() -> None:
    with pytest.raises(InputError, match=r"\['letters'\], this model's layout is \['picture'\]"):
        Grammar(MODALITIES, ["picture"]).check([segment_of("letters", [], 1)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modalities": {}}, "at least one modality"),
        ({"modalities": MODALITIES, "layout": ["pictures"]}, "did you mean 'picture'"),
        ({"modalities": MODALITIES, "layout": []}, "layout is empty"),
        ({"modalities": MODALITIES}, "'corpus' never end"),
        ({"modalities": MODALITIES, "layout": ["corpus", "picture"]}, "'corpus' never end"),
        ({"modalities": {"my letters": Letters()}}, "'my letters' cannot name a modality"),
        ({"modalities": {"keys": Letters()}}, "'keys' cannot name a modality"),
        ({"modalities": MODALITIES, "layout": ["picture"], "context": 0}, "context is 0"),
    ],
)
def test_grammars_that_cannot_be_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Grammar(**arguments)


def test_slots_follow_from_the_prefix_alone() -> None:
    """Two documents that agree so far agree on what is next: no decoder needs anything but the symbols."""
    found: dict[tuple[int, ...], set[Slot]] = {}
    options = [segment_of("letters", list(symbols), 1) for n in range(3) for symbols in product(range(2), repeat=n)] + [
        segment_of("clip", [0] * n, 3) for n in range(5)
    ]
    for document in product(options, repeat=2):
        cursor, prefix = FREE.start(), ()
        for symbol in FREE.flatten(list(document)):
            found.setdefault(prefix, set()).add(cursor.slot())
            FREE.push(cursor, symbol)
            prefix = (*prefix, symbol)
    assert len(found) > 400
    assert all(len(slots) == 1 for slots in found.values())

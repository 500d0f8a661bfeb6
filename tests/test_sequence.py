"""Segments and batches: what counts as a symbol, and what is only padding."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_modalities import Clip, Letters, segment_of

from armm.batching import collate
from armm.grammar import Grammar
from armm.sequence import Batch, Segment, SegmentBatch


@given(st.integers(0, 4), st.integers(1, 4), st.integers(-3, 20))
def test_only_the_last_unit_may_be_partial(n_units: int, k: int, n_symbols: int) -> None:
    """A length is accepted if and only if it ends in the last unit; one unit may be empty: how nothing is coded."""
    symbols = torch.arange(n_units * k).view(n_units, k)
    ends_in_last_unit = -(-n_symbols // k) == n_units if n_symbols else n_units <= 1
    if n_symbols < 0 or not ends_in_last_unit:
        with pytest.raises(ValueError, match="do not end in the last"):
            Segment("a", symbols, n_symbols)
    else:
        segment = Segment("a", symbols, n_symbols)
        assert segment.length == n_symbols
        assert segment.n_units == n_units
        assert segment.flat().tolist() == list(range(n_symbols))


def test_length_defaults_to_all_symbols() -> None:
    segment = Segment("a", torch.arange(6).view(2, 3))
    assert (segment.length, segment.flat().tolist()) == (6, [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("symbols", [torch.zeros(3, dtype=torch.int64), torch.zeros(3, 1), torch.zeros(1, 1).int()])
def test_symbols_of_another_shape_or_type_are_refused(symbols: torch.Tensor) -> None:
    """Floats and flat lists would only fail much later, inside an embedding."""
    with pytest.raises(ValueError, match=r"must be \(U, K\) int64"):
        Segment("a", symbols)


def test_condition_is_given_and_otherwise_the_same() -> None:
    segment = segment_of("clip", [1, 2, 3, 4], 3)
    condition = segment.as_condition()
    assert (segment.n_given, condition.n_given) == (0, 2)
    assert condition.flat().tolist() == segment.flat().tolist()


def batch_of(*rows: list[Segment]) -> Batch:
    return collate(list(rows), Grammar({"clip": Clip(), "letters": Letters()}))


def test_padding_is_neither_known_nor_scored_and_lies_outside_the_alphabet() -> None:
    """A data value as padding would be learned from; a scored one would change the bits."""
    batch = batch_of([segment_of("clip", [1, 2, 3, 4], 3)], [segment_of("clip", [0, 0, 0, 0, 0, 0, 0], 3)])
    clip = batch.segments["clip"]
    assert clip.symbols.tolist() == [[[1, 2, 3], [4, 5, 5], [5, 5, 5]], [[0, 0, 0], [0, 0, 0], [0, 5, 5]]]
    assert torch.equal(clip.known, clip.symbols < 5)
    assert clip.present().tolist() == [[True, True, False], [True, True, True]]
    assert torch.equal(clip.scored(), clip.known.float())
    assert clip.weights.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert clip.ends.tolist() == [[0, 2, 0], [0, 0, 2]]


def test_given_units_are_known_but_not_scored() -> None:
    segment = segment_of("clip", [1, 2, 3, 4, 0, 1], 3)
    part = Segment("clip", segment.symbols, segment.n_symbols, n_given=1)
    empty = segment_of("letters", [], 1)
    batch = batch_of([part, empty.as_condition()], [segment.as_condition(), empty])
    clip, letters = batch.segments["clip"], batch.segments["letters"]
    assert clip.known.all()
    assert clip.scored().sum(-1).tolist() == [[0, 3], [0, 0]]
    assert letters.weights.tolist() == [[0], [1]], "an empty segment has one unit, which says that it is empty"


def test_batch_moves_whole_to_another_device() -> None:
    """A field forgotten in `to` fails on a GPU only."""
    batch = batch_of([segment_of("clip", [1, 2], 3), segment_of("letters", [1], 1)]).to("meta")
    assert batch.n_positions == 5
    assert batch.unscored == batch_of([segment_of("clip", [1, 2], 3), segment_of("letters", [1], 1)]).unscored
    for field in fields(Batch):
        value = getattr(batch, field.name)
        if field.name in ("n_positions", "unscored"):
            continue
        parts = (
            [value]
            if field.name != "segments"
            else [getattr(segment, inner.name) for segment in value.values() for inner in fields(SegmentBatch)]
        )
        assert parts and all(part.device.type == "meta" for part in parts), field.name


def test_sizes_of_a_batch() -> None:
    batch = batch_of([segment_of("letters", [1, 2, 3], 1)], [])
    assert (batch.n_rows, batch.n_positions, batch.lengths.tolist()) == (2, 5, [5, 1])
    nothing = batch_of()
    assert (nothing.n_rows, nothing.n_positions) == (0, 0)

"""Long documents as windows: every unit scored once, with enough before it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tiny_modalities import Clip, Letters, Picture, hash_parameters, hash_symbols

from armm.backbones import Transformer
from armm.batching import collate
from armm.grammar import Grammar
from armm.modality import Modality
from armm.model import AutoregressiveModel
from armm.sequence import Document, Segment
from armm.windows import room, windows


def grammar_of(*modalities: Modality, layout: list[str] | None = None, context: int | None = None) -> Grammar:
    return Grammar({m.name: m for m in modalities}, layout, context)


def numbered(name: str, n: int, k: int = 1, length: int | None = None, **options: int) -> Segment:
    """Units whose first symbol is their number."""
    symbols = torch.arange(n)[:, None].expand(n, k).contiguous()
    return Segment(name, symbols, n * k if length is None else length, **options)  # type: ignore[arg-type]


def scored(pieces: list[Document], name: str) -> list[int]:
    """The numbers of the units that are scored, in the order of the windows."""
    return [
        int(number)
        for document in pieces
        for segment in document
        if segment.modality == name
        for number in segment.symbols[segment.n_given :, 0]
    ]


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 16, 17, 31])
@pytest.mark.parametrize("ended", [False, True])
def test_every_unit_is_scored_once_with_half_a_window_before_it(n: int, size: int, ended: bool) -> None:
    """Windows of odd size once scored their middle unit twice."""
    grammar = grammar_of(Letters(ended=ended), layout=["letters"])
    pieces = windows([numbered("letters", n)], grammar, size)
    assert scored(pieces, "letters") == list(range(n))
    for (segment,) in pieces:
        assert segment.n_units <= size
        before = segment.n_given  # of the first unit that is scored
        first = int(segment.symbols[0, 0])
        assert first == 0 or before >= size / 2 or size == 1
        assert segment.n_given < segment.n_units


def test_a_document_that_fits_stays_as_it_is() -> None:
    document = [numbered("letters", 8)]
    grammar = grammar_of(Letters(), layout=["letters"], context=8)
    assert windows(document, grammar, 8) == windows(document, grammar, None) == [document]
    assert windows(document, grammar_of(Letters(), layout=["letters"]), None) == [document]


def test_the_last_window_keeps_the_partial_unit() -> None:
    """7 units of 3 with 19 symbols: the symbol count of every window adds up to those that exist."""
    grammar = grammar_of(Clip(), layout=["clip"])
    pieces = windows([numbered("clip", 7, k=3, length=19)], grammar, 4)
    assert [segment.length for (segment,) in pieces] == [12, 12, 7]
    assert [segment.cut for (segment,) in pieces] == [True, True, False]


def test_the_context_limits_windows_too() -> None:
    """The picture and three control units take 7 of 10 positions."""
    grammar = grammar_of(Letters(), Picture(), layout=None, context=10)
    document = [numbered("picture", 4, k=4, header=(4, 1)), numbered("letters", 30)]  # type: ignore[arg-type]
    assert room(document, 1, grammar, None) == 3
    assert room(document, 1, grammar, 2) == 2
    pieces = windows(document, grammar, None)
    assert scored(pieces, "letters") == list(range(30))
    assert all(grammar.n_units(piece) <= 10 for piece in pieces)


def test_other_segments_are_scored_once() -> None:
    """What comes before the long segment is scored with its first window, what comes after it with its last."""
    grammar = grammar_of(Picture(), Letters(vocab=40), Clip(vocab=40), layout=["picture", "letters", "clip"])
    document = [numbered("picture", 4, k=4, header=(4, 1)), numbered("letters", 20), numbered("clip", 2, k=3)]  # type: ignore[arg-type]
    pieces = windows(document, grammar, 6)
    assert len(pieces) == 6
    assert scored(pieces, "picture") == [0, 1, 2, 3] and scored(pieces, "clip") == [0, 1]
    assert scored(pieces, "letters") == list(range(20))
    assert pieces[0][0].n_given == 0 and pieces[-1][2].n_given == 0
    for piece in pieces:
        grammar.check(piece)


def test_conditions_stay_conditions() -> None:
    """Of a text whose first 5 units are given, the others are scored once, in whichever window they are."""
    grammar = grammar_of(Letters(), layout=["letters"])
    pieces = windows([numbered("letters", 20, n_given=5)], grammar, 6)
    counts = Counter(scored(pieces, "letters"))
    assert counts == Counter(range(5, 20))


def test_a_picture_is_never_cut() -> None:
    """Its header says how many units it has."""
    document = [numbered("picture", 4, k=4, header=(4, 1))]  # type: ignore[arg-type]
    assert windows(document, grammar_of(Picture(), layout=["picture"]), 2) == [document]


def test_cut_windows_decide_that_more_follow() -> None:
    """The end decision of a window's last unit is "more follow" unless the document itself ends there."""
    grammar = grammar_of(Clip(vocab=40), layout=["clip"])
    pieces = windows([numbered("clip", 7, k=3, length=19)], grammar, 4)
    ends = [collate([piece], grammar).segments["clip"].ends[0].tolist() for piece in pieces]
    assert ends == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 2]]


@pytest.mark.parametrize("modality", [Letters(vocab=6), Clip(vocab=5)])
def test_windows_of_a_model_that_sees_no_further_score_the_same(modality: Modality) -> None:
    """With attention over 3 units and a head that sees as far, half a window of 16 is all that counts: payload and
    decisions of all windows add up to the parallel view of the whole."""
    model = AutoregressiveModel(
        {modality.name: modality}, Transformer(width=16, n_layers=1, n_heads=2, window=3), [modality.name]
    ).eval()
    hash_parameters(model, 2.0)
    document: Document = [modality.encode(hash_symbols(100, modality.vocab))]
    with torch.no_grad():

        def nats(pieces: list[Document]) -> tuple[float, float]:
            batches = [collate([piece], model.grammar) for piece in pieces]
            sums = [model.log_prob(batch).scored(batch) for batch in batches]
            return float(sum(payload for payload, _ in sums)), float(sum(more for _, more in sums))

        pieces = windows(document, model.grammar, 16)
        assert len(pieces) > 3
        assert nats(pieces) == pytest.approx(nats([document]), rel=1e-5)

"""Beam search finds what enumeration finds; votes and best-of-n choose what they say."""

from __future__ import annotations

import math

import pytest
import torch
from laws.cases import COUNTABLE
from tiny_modalities import Clip, Letters, Picture, hash_parameters, segment_of

from armm.backbones import Transformer
from armm.errors import InputError
from armm.generation import Allowed, Regex, Sample, Temperature, beam_search, best_of, generate, self_consistency
from armm.modalities import Text
from armm.model import AutoregressiveModel
from armm.testing.streams import conditionals, leaves


def every_document(model: AutoregressiveModel) -> dict[tuple[int, ...], float]:
    """The log-probability of each document of a model that has few, cut where there would be too many."""
    streams = leaves(model.grammar, 3000)
    follow = conditionals(model, streams)
    return {tuple(s): sum(follow[tuple(s[:t])][s[t]] for t in range(len(s))) for s in streams}


@pytest.mark.parametrize("case", ["text", "image RGB rows", "free documents"])
def test_a_wide_beam_finds_the_most_probable(case: str) -> None:
    """Against enumeration, over states of every kind: reordered rows are the rows they say they are."""
    model = COUNTABLE[case].model()
    known = every_document(model)
    width = len(known)
    longest = max(map(len, known))
    found = beam_search(model, width=width, n_best=3, max_symbols=longest)
    best = sorted(known.values(), reverse=True)
    for rank, sample in enumerate(found):
        assert sum(sample.log_probs) == pytest.approx(best[rank], abs=1e-4)
        assert known[tuple(sample.symbols)] == pytest.approx(best[rank], abs=1e-4) and sample.index == rank


@pytest.fixture(scope="module")
def free() -> AutoregressiveModel:
    modalities = {"letters": Letters(max_units=4), "picture": Picture(size=(2, 4)), "clip": Clip(max_units=2)}
    model = AutoregressiveModel(modalities, Transformer(width=8, n_layers=1, n_heads=2), context=12)
    hash_parameters(model)
    return model.eval()


def test_width_one_is_greedy(free: AutoregressiveModel) -> None:
    (beam,) = beam_search(free, width=1)
    (greedy,) = generate(free, filters=[Temperature(0)])
    assert beam.symbols == greedy.symbols and beam.stop == greedy.stop
    assert beam.log_probs == pytest.approx(greedy.log_probs)


def test_a_wider_beam_is_no_worse(free: AutoregressiveModel) -> None:
    """Not a theorem, but true of these; and scores are the model's own."""
    scores = []
    for width in (1, 3, 12):
        (best,) = beam_search(free, [segment_of("letters", [2], 1)], width=width)
        with torch.no_grad():
            nats = free.stream_log_prob(best.document)[best.n_prompt :]
        assert sum(best.log_probs) == pytest.approx(float(nats.sum()), abs=1e-4)
        scores.append(sum(best.log_probs))
    assert scores == sorted(scores) and scores[0] < scores[-1]


def test_length_penalty_prefers_longer_documents(free: AutoregressiveModel) -> None:
    """By the average per symbol, an end at once is no longer the best."""
    short = beam_search(free, width=8, n_best=8)
    long = beam_search(free, width=8, n_best=8, length_penalty=1.0)
    mean = [sum(s.log_probs) / len(s.log_probs) for s in long]
    assert mean == sorted(mean, reverse=True)
    assert sum(len(s.symbols) for s in long) > sum(len(s.symbols) for s in short)


def test_filters_rule_symbols_out_of_the_search(free: AutoregressiveModel) -> None:
    found = beam_search(
        free, [segment_of("letters", [2], 1)], width=4, n_best=4, filters=[Allowed([2, 3], modality="letters")]
    )
    for sample in found:
        assert {symbol for s in sample.document if s.modality == "letters" for symbol in s.flat().tolist()} <= {2, 3}


def test_a_search_ends_where_a_grammar_does() -> None:
    constraints = pytest.importorskip("llguidance", reason="the constraints extra is not installed")
    assert constraints
    model = AutoregressiveModel({"text": Text(kind="bytes")}, Transformer(width=8, n_layers=1, n_heads=2), ["text"])
    hash_parameters(model)
    pattern = Regex("ab|cd|e", model.modalities["text"])
    found = beam_search(model.eval(), width=3, n_best=3, filters=[pattern], max_symbols=10)
    assert {s.decoded[0] for s in found} == {"ab", "cd", "e"} and {s.stop for s in found} == {"grammar"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 0}, "width is 0"),
        ({"n_best": 9}, "n_best is 9"),
        ({"max_symbols": 0}, "max_symbols is 0"),
        ({"filters": [Temperature(0.5)]}, "temperature"),
    ],
)
def test_searches_that_make_no_sense_are_refused(options: dict, words: str, free: AutoregressiveModel) -> None:
    with pytest.raises(InputError, match=words):
        beam_search(free, **options)


def sample(index: int, *nats: float, decoded: str = "") -> Sample:
    return Sample(index, [0] * len(nats), 0, [], [decoded], list(nats), "end", True)


def test_best_of_ranks_by_the_average_or_the_sum() -> None:
    samples = [sample(0, -1.0, -1.0, -1.0), sample(1, -2.0), sample(2, -0.5, -0.6)]
    assert [s.index for s in best_of(samples, 2)] == [2, 0]
    assert [s.index for s in best_of(samples, 3, per_symbol=False)] == [2, 1, 0]


def test_votes() -> None:
    samples = [sample(k, -1.0, decoded=text) for k, text in enumerate(["7", "8", "", "8", "7", "8"])]
    answer, share = self_consistency(samples, lambda s: s.decoded[0] or None)
    assert answer == "8" and math.isclose(share, 3 / 5)
    tie, _ = self_consistency(samples[:2], lambda s: s.decoded[0])
    assert tie == "7"
    with pytest.raises(InputError, match="none of 6 samples"):
        self_consistency(samples, lambda s: None)

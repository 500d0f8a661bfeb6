"""Filters: each against its definition, what it leaves alone, the order they are put in, and mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tiny_modalities import hash_symbols
from torch import Tensor

from armm.errors import InputError
from armm.generation.content import Allowed, Banned, FrequencyPenalty, LogitBias, PresencePenalty, RepetitionPenalty
from armm.generation.filter import Filter, Row
from armm.generation.filters import MinP, Temperature, TopK, TopP, Typical, arrange
from armm.grammar import Slot, Stage

INF = float("inf")
VOCAB = 9


def row(payload: Sequence[int] = (), n_given: int = 0, stage: Stage = Stage.PAYLOAD, modality: str = "text") -> Row:
    return Row(Slot(stage, modality, 0), payload, n_given)


def random_logits(n_rows: int = 60, seed: int = 0) -> Tensor:
    """Some flat, some sharp, with equals and with symbols that are ruled out already."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n_rows, VOCAB)) * rng.uniform(0.1, 5, size=(n_rows, 1))
    logits[::3] = logits[::3].round()
    logits[::4, 2] = -INF
    logits[::5, -3:] = -INF
    return torch.tensor(logits, dtype=torch.float32)


def histories(n_rows: int = 60) -> list[Row]:
    """Rows whose histories differ, of which the prompt gave none, a part or all."""
    lengths = [i * 7 % 13 for i in range(n_rows)]
    return [row(hash_symbols(n, VOCAB, seed=i), min(n, i % 5)) for i, n in enumerate(lengths)]


# ------------------------------------------------- definitions, one row each, in numpy


def probabilities(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def repeated(logits: np.ndarray, history: Row, penalty: float) -> np.ndarray:
    out = logits.copy()
    for symbol in set(history.payload):
        out[symbol] = out[symbol] / penalty if out[symbol] > 0 else out[symbol] * penalty
    return out


def present(logits: np.ndarray, history: Row, penalty: float) -> np.ndarray:
    out = logits.copy()
    for symbol in set(history.payload[history.n_given :]):
        out[symbol] -= penalty
    return out


def frequent(logits: np.ndarray, history: Row, penalty: float) -> np.ndarray:
    out = logits.copy()
    for symbol in history.payload[history.n_given :]:
        out[symbol] -= penalty
    return out


def first_with_mass(logits: np.ndarray, order: list[int], p: float) -> np.ndarray:
    """Symbols in an order until their probability is at least p."""
    out, mass = np.full_like(logits, -INF), 0.0
    for symbol in order:
        out[symbol] = logits[symbol]
        mass += probabilities(logits)[symbol]
        if mass >= p:
            break
    return out


def nucleus(logits: np.ndarray, p: float) -> np.ndarray:
    return first_with_mass(logits, sorted(range(VOCAB), key=lambda symbol: -logits[symbol]), p)


def most_typical(logits: np.ndarray, p: float) -> np.ndarray:
    probability = probabilities(logits)
    surprise = np.array([-np.log(q) if q else INF for q in probability])
    entropy = sum(q * s for q, s in zip(probability, surprise, strict=True) if q)
    distance = [round(float(abs(s - entropy)), 6) for s in surprise]  # equals are equal in float32 only
    return first_with_mass(logits, sorted(range(VOCAB), key=lambda symbol: distance[symbol]), p)


def k_most(logits: np.ndarray, k: int) -> np.ndarray:
    return np.where(logits >= sorted(logits, reverse=True)[k - 1], logits, -INF)


def at_least(logits: np.ndarray, p: float) -> np.ndarray:
    probability = probabilities(logits)
    return np.where(probability >= p * probability.max() * (1 - 1e-7), logits, -INF)


def greedy(logits: np.ndarray) -> np.ndarray:
    return np.where(np.arange(VOCAB) == logits.argmax(), logits, -INF)


def biased(logits: np.ndarray, bias: dict[int, float]) -> np.ndarray:
    return np.array([value + bias.get(symbol, 0) for symbol, value in enumerate(logits)])


DEFINITIONS = {
    "repetition 1.3": (RepetitionPenalty(1.3), lambda logits, at: repeated(logits, at, 1.3)),
    "repetition 0.6": (RepetitionPenalty(0.6), lambda logits, at: repeated(logits, at, 0.6)),
    "presence": (PresencePenalty(0.7), lambda logits, at: present(logits, at, 0.7)),
    "frequency": (FrequencyPenalty(0.4), lambda logits, at: frequent(logits, at, 0.4)),
    "frequency below 0": (FrequencyPenalty(-0.4), lambda logits, at: frequent(logits, at, -0.4)),
    "bias": (LogitBias({0: 2.0, 7: -1.5}), lambda logits, at: biased(logits, {0: 2.0, 7: -1.5})),
    "banned": (Banned([1, 5]), lambda logits, at: biased(logits, {1: -INF, 5: -INF})),
    "allowed": (Allowed([0, 3, 4]), lambda logits, at: biased(logits, {i: -INF for i in (1, 2, 5, 6, 7, 8)})),
    "temperature 0.6": (Temperature(0.6), lambda logits, at: logits / np.float32(0.6)),
    "temperature 0": (Temperature(0), lambda logits, at: greedy(logits)),
    "top-k 1": (TopK(1), lambda logits, at: k_most(logits, 1)),
    "top-k 4": (TopK(4), lambda logits, at: k_most(logits, 4)),
    "top-p 0.6": (TopP(0.6), lambda logits, at: nucleus(logits, 0.6)),
    "top-p 0.95": (TopP(0.95), lambda logits, at: nucleus(logits, 0.95)),
    "min-p 0.1": (MinP(0.1), lambda logits, at: at_least(logits, 0.1)),
    "min-p 1": (MinP(1), lambda logits, at: at_least(logits, 1)),
    "typical 0.3": (Typical(0.3), lambda logits, at: most_typical(logits, 0.3)),
    "typical 0.9": (Typical(0.9), lambda logits, at: most_typical(logits, 0.9)),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_filters_are_their_definitions(name: str) -> None:
    """Row by row in plain numpy, with histories that differ; float32 against the same or float64."""
    keep, definition = DEFINITIONS[name]
    logits, rows = random_logits(), histories()
    found = keep(logits, rows)
    changed = 0
    for own, at, filtered in zip(logits.numpy(), rows, found.numpy(), strict=True):
        np.testing.assert_allclose(filtered, definition(own, at), rtol=1e-5, atol=1e-5)
        changed += not np.array_equal(filtered, own)
    assert changed > len(rows) // 2


@pytest.mark.parametrize("name", DEFINITIONS)
def test_filters_touch_neither_their_input_nor_other_rows(name: str) -> None:
    """Alone, or beside others, also with larger alphabets: bitwise the same."""
    keep, _ = DEFINITIONS[name]
    logits, rows = random_logits(), histories()
    before = logits.clone()
    found = keep(logits, rows)
    assert torch.equal(logits, before)
    alone = torch.cat([keep(own[None], [at]) for own, at in zip(logits, rows, strict=True)])
    assert torch.equal(found, alone)
    padded = torch.nn.functional.pad(logits, (0, 40), value=-INF)
    assert torch.equal(keep(padded, rows)[:, :VOCAB], found)
    assert keep(padded, rows)[:, VOCAB:].isneginf().all()


@pytest.mark.parametrize("name", DEFINITIONS)
def test_rows_without_any_symbol_stay_so(name: str) -> None:
    """No NaN, no error, and nothing that was ruled out comes back."""
    nothing = torch.full((2, VOCAB), -INF)
    assert torch.equal(DEFINITIONS[name][0](nothing, [row([1, 1]), row()]), nothing)


@pytest.mark.parametrize(
    "keep",
    [
        *(RepetitionPenalty(1), PresencePenalty(0), FrequencyPenalty(0), LogitBias({}), LogitBias({3: 0}), Banned([])),
        *(Allowed(range(VOCAB)), Temperature(1), TopK(VOCAB), TopK(1000), TopP(1), MinP(0), Typical(1)),
    ],
    ids=repr,
)
def test_neutral_parameters_change_nothing(keep: Filter) -> None:
    logits = random_logits()
    assert torch.equal(keep(logits, histories()), logits)


# ------------------------------------------------------------------------------- ties

ROW = torch.tensor([[1.0, 3.0, 2.0, 3.0, -INF]])


def kept(filtered: Tensor) -> list[int]:
    return (filtered[0] > -INF).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (TopK(1), [1, 3]),  # equals of the k-th stay
        (TopK(2), [1, 3]),
        (TopK(3), [1, 2, 3]),
        (TopK(4), [0, 1, 2, 3]),
        (TopK(5), [0, 1, 2, 3]),
        (TopK(1000), [0, 1, 2, 3]),
        (TopP(1e-30), [1]),
        (TopP(1e-300), [1]),
        (TopP(0.45), [1, 3]),  # probabilities 0.054, 0.400, 0.147, 0.400
        (TopP(0.84), [1, 2, 3]),
        (TopP(1.0), [0, 1, 2, 3]),
        (MinP(1), [1, 3]),
        (MinP(0.36), [1, 2, 3]),  # e^-1 is 0.368
        (MinP(0.37), [1, 3]),
        (Typical(1e-300), [1]),  # surprises 2.92, 0.92, 1.92, 0.92, their mean 1.17
        (Typical(0.42), [1, 3]),
        (Typical(0.9), [1, 2, 3]),
        (Temperature(0.0), [1]),  # the lowest of equals
        (Temperature(0.5), [0, 1, 2, 3]),
    ],
    ids=repr,
)
def test_equals(keep: Filter, expected: list[int]) -> None:
    assert kept(keep(ROW, [])) == expected


def test_exactly_enough_mass_is_enough() -> None:
    """Two of four equals have probability 0.5, and the lower ones come first."""
    equals = torch.zeros(1, 4)
    assert kept(TopP(0.5)(equals, [])) == kept(Typical(0.5)(equals, [])) == [0, 1]


def test_typical_may_rule_out_the_most_probable() -> None:
    """A surprise far below the entropy is as untypical as one above it: 0.3 and fourteen equals."""
    logits = torch.tensor([[0.3] + [0.05] * 14]).log()
    assert kept(Typical(0.42)(logits, [])) == list(range(1, 10))


@pytest.mark.parametrize("keep", [TopK(2), TopP(0.5), TopP(1.0), MinP(0.4), Typical(0.5), Temperature(0), Banned([0])])
def test_what_is_kept_keeps_its_logit(keep: Filter) -> None:
    filtered = keep(ROW, [row()])
    chosen = filtered > -INF
    assert torch.equal(filtered[chosen], ROW[chosen])


def test_sharp_logits_stay_numbers() -> None:
    """Neither large logits nor small temperatures make NaN, or rule out everything."""
    logits = torch.tensor([[300.0, -300.0, 299.0], [1e4, 1e4, -1e4]])
    rows = [row([0, 1, 2] * 50), row([0])]
    for keep in (Temperature(1e-6), TopP(0.5), MinP(0.5), Typical(0.5), RepetitionPenalty(1000), FrequencyPenalty(1e6)):
        filtered = keep(logits, rows)
        assert not filtered.isnan().any() and not (filtered == INF).any() and (filtered > -INF).any(-1).all()


# ------------------------------------------------------------------------------- rows


CONTENT = [
    RepetitionPenalty(1.5),
    PresencePenalty(1),
    FrequencyPenalty(1),
    LogitBias({1: 3}),
    Banned([1]),
    Allowed([1]),
]


@pytest.mark.parametrize("keep", CONTENT, ids=repr)
def test_content_filters_leave_structure_alone(keep: Filter) -> None:
    """A banned symbol 1 is not a ban on ending: rows at a decision, a header or a control symbol stay as they are."""
    stages = [Stage.PAYLOAD, Stage.DECISION, Stage.HEADER, Stage.CONTROL, Stage.DONE]
    logits = torch.ones(len(stages), VOCAB)
    found = keep(logits, [row([1, 1, 2], stage=stage) for stage in stages])
    assert not torch.equal(found[0], logits[0])
    assert torch.equal(found[1:], logits[1:])
    structure = [row([1, 1, 2], stage=stage) for stage in stages[1:]]
    assert torch.equal(keep(logits[1:], structure), logits[1:])


@pytest.mark.parametrize("keep", CONTENT, ids=repr)
def test_content_filters_of_a_modality_leave_the_others_alone(keep: Any) -> None:
    named = type(keep)(**{**asdict(keep), "modality": "music"})
    rows = [row([1, 1, 2], modality="music"), row([1, 1, 2])]
    logits = torch.ones(2, VOCAB)
    found, everywhere = named(logits, rows), keep(logits, rows)
    assert torch.equal(found[0], everywhere[0]) and not torch.equal(found[0], logits[0])
    assert torch.equal(found[1], logits[1]) and not torch.equal(everywhere[1], logits[1])


SHAPE: list[Any] = [Temperature(0.5), TopK(2), TopP(0.5), MinP(0.5), Typical(0.5)]


@pytest.mark.parametrize("keep", SHAPE, ids=repr)
def test_filters_of_one_modality_leave_other_symbols_and_structure_alone(keep: Any) -> None:
    """A cooler sound must not be a longer one: end decisions keep their temperature."""
    named = type(keep)(**{**asdict(keep), "modality": "music"})
    assert named.reads_rows
    stages = [Stage.DECISION, Stage.HEADER, Stage.CONTROL]
    rows = [row(), *(row(stage=stage, modality="music") for stage in stages), row(modality="music")]
    logits = random_logits(len(rows), seed=1)
    found = named(logits, rows)
    assert torch.equal(found[-1:], keep(logits[-1:], [])) and not torch.equal(found[-1], logits[-1])
    assert torch.equal(found[:-1], logits[:-1])


@pytest.mark.parametrize("keep", SHAPE, ids=repr)
def test_other_filters_act_on_every_symbol_and_read_no_rows(keep: Filter) -> None:
    assert not keep.reads_rows
    logits = random_logits(2)
    assert torch.equal(keep(logits, []), keep(logits, [row(stage=Stage.DECISION), row()]))


def test_the_prompt_counts_for_repetition_only() -> None:
    """CTRL penalises whatever was seen; presence and frequency are about what was generated."""
    logits, rows = torch.ones(1, 4), [row([0, 0, 1, 1], n_given=2)]
    assert RepetitionPenalty(2)(logits, rows).tolist() == [[0.5, 0.5, 1, 1]]
    assert PresencePenalty(1)(logits, rows).tolist() == [[1, 0, 1, 1]]
    assert FrequencyPenalty(1)(logits, rows).tolist() == [[1, -1, 1, 1]]


def test_symbols_outside_a_smaller_alphabet_are_no_mistake() -> None:
    """Whether a row stands beside one of a larger alphabet must not decide what happens to it."""
    logits = torch.ones(1, 4)
    assert torch.equal(Banned([9])(logits, [row()]), logits)
    assert torch.equal(LogitBias({9: 1.0})(logits, [row()]), logits)
    assert kept(Allowed([2, 9])(logits, [row()])) == [2]


def test_content_filters_complete_nothing() -> None:
    assert not any(keep.complete(row([1])) for keep, _ in DEFINITIONS.values())


# ------------------------------------------------------------------------ arrangement


def test_arranged_in_the_documented_order_whatever_the_list() -> None:
    content = [RepetitionPenalty(1.1), PresencePenalty(1), FrequencyPenalty(1), LogitBias({1: 1}), Banned([0])]
    expected = [*content, Allowed([1]), Temperature(0.5), TopK(5), TopP(0.9), MinP(0.1), Typical(0.9)]
    assert arrange(expected) == arrange(expected[::-1]) == expected
    shuffled = [expected[i] for i in (5, 2, 9, 0, 7, 3, 10, 1, 8, 6, 4)]
    assert arrange(shuffled) == expected
    assert arrange([]) == []


def test_filters_of_one_place_stay_as_listed() -> None:
    one, other = Banned([1]), Banned([0])
    assert arrange([Temperature(1), one, other]) == [one, other, Temperature(1)]
    assert arrange([other, one]) == [other, one]


def test_temperature_comes_before_the_nucleus() -> None:
    """The order is not a matter of taste: heated first, the nucleus is larger."""
    listed = [TopP(0.79), Temperature(2.0)]
    for filters, expected in ((arrange(listed), [1, 2, 3]), (listed, [1, 3])):
        logits = ROW
        for keep in filters:
            logits = keep(logits, [])
        assert kept(logits) == expected


@dataclass(frozen=True)
class Everything(Filter):
    """Somebody's own."""

    order: ClassVar[int] = 35

    def __call__(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        return logits


def test_own_filters_find_their_place_and_may_repeat() -> None:
    assert arrange([TopK(1), Everything(), Temperature(1), Everything()]) == [
        *(Temperature(1), Everything(), Everything(), TopK(1))
    ]


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ([Temperature(1), Temperature(1)], "Temperature and Temperature.*keep one"),
        ([TopK(1), TopP(0.5), TopK(2)], "TopK and TopK"),
        ([Typical(0.5), Typical(0.5)], "Typical and Typical"),
        ([RepetitionPenalty(2), RepetitionPenalty(2, modality="text")], "RepetitionPenalty and RepetitionPenalty"),
        ([Allowed([1, 2]), Banned([2, 1, 0])], "leaves no symbol"),
        ([Allowed([1]), Allowed([2])], "leaves no symbol"),
        ([Allowed([1]), Banned([1], modality="text")], "leaves no symbol"),
        ([Allowed([1], modality="text"), Banned([1])], "leaves no symbol"),
        ([Temperature(1), min], r"filters\[1\] is <built-in"),
        ([TopK], r"filters\[0\] is <class"),
    ],
    ids=repr,
)
def test_contradictions_are_refused(filters: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        arrange(filters)
    assert "\n" not in str(error.value)


def test_filters_about_different_symbols_do_not_contradict() -> None:
    filters = [
        *(RepetitionPenalty(2, "text"), RepetitionPenalty(3, "music"), PresencePenalty(1), FrequencyPenalty(1)),
        *(Banned([1], "text"), Allowed([1], "music"), Allowed([1, 2])),
    ]
    assert arrange(filters) == filters


# --------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Temperature(-0.1), "Temperature.t"),
        (lambda: Temperature(float("nan")), "Temperature.t"),
        (lambda: Temperature(INF), "Temperature.t"),
        (lambda: Temperature(1e-40), "Temperature.t"),  # divides to infinities and NaN
        (lambda: TopK(0), "TopK.k"),
        (lambda: TopK(2.5), "TopK.k"),  # type: ignore[arg-type]
        (lambda: TopP(0.0), "TopP.p"),
        (lambda: TopP(1.1), "TopP.p"),
        (lambda: TopP(float("nan")), "TopP.p"),
        (lambda: MinP(-0.1), "MinP.p"),
        (lambda: MinP(1.1), "MinP.p"),
        (lambda: MinP(float("nan")), "MinP.p"),
        (lambda: Typical(0), "Typical.p"),
        (lambda: Typical(1.5), "Typical.p"),
        (lambda: RepetitionPenalty(0), "RepetitionPenalty.penalty"),
        (lambda: RepetitionPenalty(-1), "RepetitionPenalty.penalty"),
        (lambda: RepetitionPenalty(float("nan")), "RepetitionPenalty.penalty"),
        (lambda: PresencePenalty(INF), "PresencePenalty.penalty"),
        (lambda: FrequencyPenalty(float("nan")), "FrequencyPenalty.penalty"),
        (lambda: LogitBias({-1: 0.5}), "LogitBias.bias lists -1"),
        (lambda: LogitBias({1: -INF}), "LogitBias.bias.*symbol 1"),
        (lambda: LogitBias([(1, 0.5), (1, 0.6)]), "LogitBias.bias.*twice"),
        (lambda: Banned([3, -2]), "Banned.symbols lists -2"),
        (lambda: Banned(["a"]), "Banned.symbols lists 'a'"),  # type: ignore[list-item]
        (lambda: Allowed([]), "Allowed.symbols is empty"),
        (lambda: Allowed([0.5]), "Allowed.symbols lists 0.5"),  # type: ignore[list-item]
    ],
)
def test_impossible_filters_are_refused(make: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [Banned([0, 1, 2, 3]), Allowed([4])], ids=repr)
def test_ruling_everything_out_is_a_mistake(keep: Filter) -> None:
    """What is left depends on the model and on other filters: only then does it show."""
    with pytest.raises(InputError, match=f"{type(keep).__name__} leaves no symbol"):
        keep(ROW, [row()])
    assert torch.equal(keep(ROW, [row(stage=Stage.HEADER)]), ROW)


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (Banned([5], modality="txt"), "Banned.modality is 'txt'.*did you mean 'text'"),
        (PresencePenalty(1, modality="music"), "PresencePenalty.modality is 'music'"),
        (Banned([1, 5], modality="text"), "Banned names symbol 5; the symbols of 'text' are 0 to 4"),
        (Allowed([10]), "Allowed names symbol 10; the symbols are 0 to 9"),
        (LogitBias({7: 1.0}, modality="text"), "LogitBias names symbol 7"),
    ],
    ids=repr,
)
def test_filters_are_compared_with_the_model(keep: Filter, words: str) -> None:
    """A mistyped modality, or a symbol that does not exist, would do nothing at all."""
    with pytest.raises(InputError, match=words):
        keep.check({"text": 5, "image": 10})


def test_filters_that_fit_the_model_pass() -> None:
    for keep in (Banned([4], modality="text"), Allowed([9]), LogitBias({9: 1.0}), Temperature(1), Banned([])):
        keep.check({"text": 5, "image": 10})


def test_filters_are_values() -> None:
    """Equal, hashed and written down by their fields: they go into a sample's provenance."""
    assert LogitBias({3: 1, 0: 2}) == LogitBias([(0, 2.0), (3, 1.0)]) and len({Banned([2, 1]), Banned((1, 2, 1))}) == 1
    assert asdict(LogitBias({3: 1})) == {"bias": ((3, 1.0),), "modality": ""}
    assert asdict(Temperature(0.5, "audio")) == {"t": 0.5, "modality": "audio"}
    assert repr(Banned([2, 1], modality="text")) == "Banned(symbols=(1, 2), modality='text')"

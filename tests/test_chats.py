"""Talks with a calculator: who says what, what is learned, and that calls are answered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from armm.datasets import Calculator, Splits
from armm.datasets.chats import CALL, Talks, calculator
from armm.datasets.documents import Documents
from armm.errors import InputError
from armm.evaluation.chat import SHAPE, ToolUse
from armm.evaluation.score import Material
from armm.generation import Regex, Temperature, converse
from armm.grammar import Grammar
from armm.modalities import Text
from armm.modality import Modality
from armm.testing import tiny_model


def speakers() -> dict[str, Modality]:
    return {name: Text("bytes", ended=True, name=name) for name in ("user", "assistant", "tool")}


def test_calculator_answers_calls_only() -> None:
    assert [calculator(f"calc({call})") for call in ("23+45", "7-80", "99*99")] == ["68", "-73", "9801"]
    for text in ("calc(1)", "calc(123+1)", "calc(1+2) ", "1+2", "calc(1/2)", "calc(__import__)", ""):
        assert calculator(text) is None


def test_talks_are_consistent() -> None:
    """Every call of the assistant is of the sum that was asked, the tool answers it, and the answer states that."""
    for index in range(60):
        turns = Talks(60, 0).item(index, 0)["turns"]
        assert turns[0].name == "user" and turns[-1].name == "assistant"
        for at, turn in enumerate(turns):
            if turn.name != "tool":
                continue
            call = CALL.fullmatch(turns[at - 1].text)
            assert call is not None and calculator(call[0]) == turn.text
            assert re.findall(r"\d+", turns[at - 2].text) == [call[1], call[3]]
            assert turns[at + 1].text.endswith(f"= {turn.text}")


def test_only_the_assistant_is_learned() -> None:
    documents = Documents(Talks(10, 0), Grammar(speakers()), ())
    for index in range(10):
        for segment in documents.document(index, 0):
            assert bool(segment.n_given) == (segment.modality != "assistant")


def test_splits_ask_for_different_sums() -> None:
    splits = Calculator(n_train=800, n_val=50, n_test=50).load(speakers(), None, "fail")
    asked = [set() for _ in range(3)]
    for own, part in zip(asked, (splits.train, splits.val, splits.test), strict=True):
        for index in range(len(part)):
            calls = (CALL.fullmatch(turn.text) for turn in part.item(index, 0)["turns"])
            own.update((match[1], match[3]) for match in calls if match)
    assert not asked[0] & asked[1] and not asked[0] & asked[2] and not asked[1] & asked[2]
    assert splits.train.item(0, 1) != splits.train.item(0, 2)
    assert splits.test.item(0, 1) == splits.test.item(0, 2)


def test_own_talks_are_a_manifest(tmp_path: Path) -> None:
    line = '[{"user": "hi", "loss": false}, {"assistant": "hello"}]\n'
    (tmp_path / "talks.jsonl").write_text(line * 6)
    splits = Calculator().load(speakers(), tmp_path / "talks.jsonl", "fail")
    parts = splits.train.parts(0, 0, None)
    assert [(part.name, part.raw, part.given) for part in parts] == [
        ("user", "hi", True),
        ("assistant", "hello", False),
    ]
    with pytest.raises(InputError, match="add assistant, tool"):
        Calculator().load({"user": Text("bytes", ended=True)}, None, "fail")


# ------------------------------------------------------------------------------------- turns


def test_calls_are_answered_until_none_is_made() -> None:
    """With a grammar of calls for the first turn: call, the tool's answer as its own segment, then free text.

    The grammar holds from the turn's first symbol on, however long the user's turn before it is.
    """
    model = tiny_model(speakers(), context=200)
    user = [model.modalities["user"].encode("2+2?")]
    shape = Regex(SHAPE, model.modalities["assistant"])
    document, said = converse(model, user, calculator, first_filters=[shape], max_symbols=60, seed=3)
    assert [segment.modality for segment in document[:4]] == ["user", "assistant", "tool", "assistant"]
    assert CALL.fullmatch(said[0]) and model.modalities["tool"].decode(document[2]) == calculator(said[0])
    assert len(said) >= 2 and calculator(said[-1]) is None
    assert converse(model, user, calculator, first_filters=[shape], max_symbols=60, seed=3)[1] == said


def test_a_model_that_only_calls_is_stopped() -> None:
    """The last turn's call stays unanswered, so that whoever asks can see it."""
    model = tiny_model(speakers(), context=400)
    shape = Regex(SHAPE, model.modalities["assistant"])
    user = [model.modalities["user"].encode("2+2?")]
    document, said = converse(model, user, calculator, filters=[shape], most=3, max_symbols=60)
    assert len(said) == 3 and document[-1].modality == "assistant"
    assert [segment.modality for segment in document].count("tool") == 2


def test_what_cannot_be_a_talk_is_refused() -> None:
    free = tiny_model(speakers(), context=100)
    with pytest.raises(InputError, match="modality 'oracle'"):
        converse(free, [], calculator, tool="oracle")
    with pytest.raises(InputError, match="most is 0"):
        converse(free, [], calculator, most=0)
    fixed = tiny_model(speakers(), layout=["user", "assistant", "tool"], context=100)
    with pytest.raises(InputError, match="free documents"):
        converse(fixed, [], calculator)


def test_scores_of_an_untrained_assistant() -> None:
    """Under the grammar its calls are valid all the same, and wrong; all numbers have their trials."""
    model = tiny_model(speakers(), context=400)
    items = Talks(4, 2)
    found = ToolUse().evaluate(model, Material(Splits(items, items, items), at_most=2))
    assert {name: value.value for name, value in found.items()} == {
        "valid_calls_free": 0,
        "valid_calls": 1,
        "right_calls": 0,
        "right_answers": 0,
    }
    assert {value.n_trials for value in found.values()} == {2}


def test_filters_keep_their_order() -> None:
    """The grammar goes before the temperature, so that greedy is the best call, not a clipped best text."""
    model = tiny_model(speakers(), context=200)
    user = [model.modalities["user"].encode("1+1?")]
    shape = Regex(SHAPE, model.modalities["assistant"])
    _, said = converse(model, user, calculator, first_filters=[shape, Temperature(0)], most=1)
    assert CALL.fullmatch(said[0])

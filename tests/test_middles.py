"""Holes in Python sources: where they are, what is given, and how what fills them is judged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from armm.backbones import Transformer
from armm.datasets import FillInMiddle, Splits
from armm.datasets.documents import Documents
from armm.datasets.middles import Hole, Middles, parsed, statements
from armm.errors import InputError
from armm.evaluation.middles import MiddleBits, Parses
from armm.evaluation.score import Material
from armm.grammar import Grammar
from armm.modalities import Text
from armm.testing import tiny_model

CODE = '''"""A module."""

import os


def f(x, y):
    # a comment
    total = (x +
             y)
    if total: return 0
    name = "é"
    return total  # why not
'''
SIZES = 20, 10, 30  # before, after, middle


def middles(varies: bool = False, without_suffix: float = 0.0, suffix_first: bool = True) -> Middles:
    return Middles("text", [CODE] * 3, 50, *SIZES, varies, without_suffix, suffix_first)


@pytest.mark.parametrize("suffix_first", [True, False])
def test_documents_are_prefix_suffix_and_middle(suffix_first: bool) -> None:
    """The three join to a piece of the text; prefix and suffix are given, the middle is scored."""
    text = Text("bytes", ended=True)
    documents = Documents(middles(suffix_first=suffix_first), Grammar({"text": text}), ())
    for index in range(20):
        *around, middle = documents.document(index, 0)
        before, after = reversed(around) if suffix_first else around
        assert text.decode(before) + text.decode(middle) + text.decode(after) in CODE
        assert before.n_given and after.n_given and not middle.n_given
        assert len(text.decode(before)) <= 20 and len(text.decode(after)) <= 10 and 0 < len(text.decode(middle)) <= 30
        assert "\n" not in text.decode(middle)
        assert not text.decode(middle).startswith((" ", "#"))


def test_training_learns_all_three_and_draws_other_holes() -> None:
    """Nothing is given, some suffixes are empty, and another draw is another hole."""
    items = middles(varies=True, without_suffix=0.5)
    drawn = [items.item(0, draw) for draw in range(60)]
    assert len({item["hole"] for item in drawn}) > 20 and items.item(0, 3) == items.item(0, 3)
    assert 15 < sum(item["suffix"] == "" for item in drawn) < 45
    assert not any(part.given for part in items.parts(0, 0, None))
    assert any("\n" in item["middle"] for item in drawn)


def test_holes_are_statements_or_any_span_in_training() -> None:
    """A line that opens a block is no statement: what is filled in leaves the lines around it in their places."""
    wanted = {CODE[hole.start : hole.end] for hole in statements(CODE)}
    assert {middles().item(index, 0)["middle"] for index in range(50)} == wanted
    drawn = [middles(varies=True).item(0, draw)["middle"] for draw in range(60)]
    assert 30 < sum(middle in wanted for middle in drawn) < 55


def test_texts_that_are_no_python_have_lines_for_holes() -> None:
    items = Middles("text", ["x = (\n  one line\n\nanother\n"], 30, *SIZES)
    assert {items.item(index, 0)["middle"] for index in range(30)} == {"x = (", "one line", "another"}


def test_statements_are_those_of_one_line() -> None:
    found = [CODE[hole.start : hole.end] for hole in statements(CODE)]
    # the others span lines, stand behind others, have comments, or are not ASCII
    assert found == ["import os", "if total: return 0"]
    assert [CODE_2[hole.start : hole.end] for hole in statements(CODE_2)] == ["pass", "return 1 +  2"]


CODE_2 = "class A:\n    '''Said.'''\n    def f(self):\n        if 1:\n            pass\n        return 1 +  2\n"


def test_source_reads_a_folder_of_python(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}.py").write_text(CODE)
    splits = FillInMiddle(n_train=5, n_val=4, n_test=3).load({"text": Text("bytes", ended=True)}, tmp_path, "fail")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [5, 4, 3]
    assert next(iter(splits.train.values("text"))) == CODE
    with pytest.raises(InputError, match="without_suffix"):
        FillInMiddle(without_suffix=1).load({"text": Text("bytes")}, tmp_path, "fail")


def test_parsed_says_what_python_says() -> None:
    assert all(map(parsed, ("x = 1\n", "x = '\\d'\n", "")))
    assert not any(map(parsed, ("x = (\n", "x\0", "  x = 1\n y\n")))


def test_scores_of_holes() -> None:
    """Both run on two trials, and the bits with and without the suffix are of the same bytes."""
    model = tiny_model({"text": Text("bytes", ended=True)}, Transformer(width=16, n_layers=1, n_heads=2), context=120)
    items = middles()
    data = Material(Splits(items, items, items), at_most=2)
    bits = MiddleBits().evaluate(model, data)
    assert set(bits) == {"middle_bits_per_byte", "middle_left_to_right_bits_per_byte"}
    assert len({value.n_trials for value in bits.values()}) == 1 and len({value.value for value in bits.values()}) == 2
    found = Parses(max_symbols=10).evaluate(model, data)
    assert found["parse_rate"].n_trials == 2


def test_a_middle_that_belongs_there_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge puts what was made between the whole prefix and the whole suffix, not between what the model saw."""
    from types import SimpleNamespace

    from armm.evaluation import middles as module

    model = tiny_model({"text": Text("bytes", ended=True)}, context=120)
    items = middles()
    for line, parse_rate, exact in (("import os", 1.0, 0.5), ("import (", 0.0, 0.0)):
        made = [SimpleNamespace(prompt=i, decoded=["", "", line]) for i in range(2)]
        monkeypatch.setattr(module, "generate", lambda *_, made=made, **__: made)
        found = Parses().evaluate(model, Material(Splits(items, items, items), at_most=2))
        assert (found["parse_rate"].value, found["exact_middle"].value) == (parse_rate, exact)


def test_lines_to_fill_in_are_different_ones() -> None:
    text = Text("bytes", ended=True)
    items = middles()
    statements_of_all = sum(len(items.statements_of(number)) for number in range(len(items.texts)))
    found = Parses(n=500).evaluate(tiny_model({"text": text}, context=120), Material(Splits(items, items, items)))
    assert found["parse_rate"].n_trials == statements_of_all


def test_a_line_is_asked_for() -> None:
    """What is filled in stops before a line break, however the model would go on."""
    text = Text("bytes", ended=True)
    model = tiny_model({"text": text}, context=120)
    with torch.no_grad():
        model.head("text").get_parameter("bias")[ord("\n")] += 50.0
    items = middles()
    found = Parses(n=2).evaluate(model, Material(Splits(items, items, items)))
    assert found["parse_rate"].value == 1.0 and parsed(CODE.replace("import os", ""))


def test_hole_of_a_text_without_lines_is_its_beginning() -> None:
    items = Middles("text", ["# only\n# comments\n"], 3, *SIZES)
    assert items.item(0, 0)["hole"] == Hole(0, 18)

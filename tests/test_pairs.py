"""Pairs of texts: numbers in words, two-column files, functions and their docstrings; what sources are worth."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from armm.datasets import Numbers, Pairs, Splits
from armm.datasets.pairs import NumberItems, date_in_words, documented, in_words, ordinal
from armm.datasets.source import ListOfItems
from armm.errors import InputError
from armm.evaluation.score import Material
from armm.evaluation.translation import SharedWords, TargetBits, shared
from armm.modalities import Text
from armm.modality import Modality
from armm.testing import tiny_model

BYTES: dict[str, Modality] = {"source": Text("bytes", ended=True), "target": Text("bytes", ended=True)}


@pytest.mark.parametrize(
    "number, words",
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety-nine"),
        (207, "two hundred and seven"),
        (1000, "one thousand"),
        (1001, "one thousand and one"),
        (20_300, "twenty thousand three hundred"),
        (999_999, "nine hundred and ninety-nine thousand nine hundred and ninety-nine"),
    ],
)
def test_numbers_in_words(number: int, words: str) -> None:
    assert in_words(number) == words


def test_different_numbers_have_different_words() -> None:
    """Otherwise 100 % could not be reached."""
    assert len({in_words(n) for n in range(30_000)}) == 30_000
    assert [ordinal(n) for n in (1, 2, 3, 5, 8, 9, 12, 20, 21, 30, 31)] == [
        *("first", "second", "third", "fifth", "eighth", "ninth", "twelfth", "twentieth", "twenty-first"),
        *("thirtieth", "thirty-first"),
    ]


def test_dates_in_words() -> None:
    day = date(1987, 5, 3)
    wanted = ["the third of May 1987", "May 3, 1987", "3 May 1987"]
    assert [date_in_words(day, style) for style in range(3)] == wanted


def test_splits_of_numbers_share_nothing() -> None:
    """A value is in one split, whatever the words; training draws others each time, the test stays."""
    splits = Numbers(n_train=2000, n_val=200, n_test=200).load(BYTES, None, "fail")
    values = [{part.item(i, 0)["target"] for i in range(len(part))} for part in (splits.train, splits.val, splits.test)]
    assert not values[0] & values[1] and not values[0] & values[2] and not values[1] & values[2]
    assert any("-" in value for value in values[2]) and any(value.isdigit() for value in values[2])
    small = [{value for value in own if value.isdigit() and int(value) < 100} for own in values]
    assert len(small[0]) > 90 and not small[1] | small[2]  # what has words of its own is told
    assert splits.train.item(0, 1) != splits.train.item(0, 2) and splits.train.item(0, 1) == splits.train.item(0, 1)
    assert splits.test.item(3, 1) == splits.test.item(3, 2)
    assert isinstance(splits.train, NumberItems) and splits.train.varies


# ---------------------------------------------------------------------------- two columns


def rows(n: int = 20) -> str:
    return "".join(f"ein Wort {i}\ta word {i}\n" for i in range(n))


def test_two_columns_are_dealt_out_by_their_source(tmp_path: Path) -> None:
    """The same source twice, with two targets, is not in two splits; quotes of a text are its own."""
    path = tmp_path / "pairs.tsv"
    path.write_text('\ufeff"Hallo"\t"Hello"\n\n' + rows() + "ein Wort 3\tone word 3\n", encoding="utf-8")
    splits = Pairs().load(BYTES, path, "fail")
    parts = [{part.item(i, 0)["source"] for i in range(len(part))} for part in (splits.train, splits.val, splits.test)]
    assert sum(map(len, parts)) == 21 and set().union(*parts) >= {'"Hallo"', "ein Wort 3"}
    assert sum(len(part) for part in (splits.train, splits.val, splits.test)) == 22


def test_csv_has_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"a, b",c\n"two\nlines",d\n' + "".join(f"s{i},t{i}\n" for i in range(9)))
    splits = Pairs().load(BYTES, tmp_path / "a.csv", "fail")
    every = [part.item(i, 0) for part in (splits.train, splits.val, splits.test) for i in range(len(part))]
    assert {"source": "a, b", "target": "c"} in every and {"source": "two\nlines", "target": "d"} in every


def test_lines_that_are_no_pair_end_the_run_or_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(rows() + "no tab\n" + "x\t\n" + "y" * 900 + "\tlong\n")
    with pytest.raises(InputError, match=r"a\.tsv, line 21 has 1 columns.*on_error skip"):
        Pairs().load(BYTES, path, "fail")
    skipped = Pairs().load(BYTES, path, "skip").skipped
    assert len(skipped) == 3 and "900 characters" in str(skipped[2])


@pytest.mark.parametrize("content, message", [(b"", "no pair"), (b"\xff\xfe\t", "UTF-8"), (b"a\tb\n", "at least 3")])
def test_files_that_hold_no_pairs_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        Pairs().load(BYTES, tmp_path / "a.tsv", "fail")


def test_models_without_source_and_target_are_refused() -> None:
    with pytest.raises(InputError, match="named source and target"):
        Pairs().load({"text": Text("bytes")}, None, "fail")


# ------------------------------------------------------------------------------- docstrings

CODE = '''
class A:
    def area(self, width):
        """Width times height.

        More.
        """
        # a rectangle
        return width * self.height

    def short(self):
        """Nothing but this is here, so there is no code."""

def bare(x):
    return x

def one_line(): "A docstring beside its function."; return 1
'''


def test_functions_lose_their_docstrings_and_keep_their_code(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(CODE)
    wanted = "def area(self, width):\n    # a rectangle\n    return width * self.height"
    assert list(documented(tmp_path / "a.py")) == [(wanted, "Width times height.")]
    (tmp_path / "b.py").write_text("def broken(:\n")
    assert list(documented(tmp_path / "b.py")) == []


def test_folder_of_python_is_dealt_out_by_file(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"m{number}.py").write_text(CODE.replace("area", f"area{number}"))
    splits = Pairs().load(BYTES, tmp_path, "fail")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (4, 1, 1)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="Python files with documented functions"):
        Pairs().load(BYTES, empty, "fail")


# ----------------------------------------------------------------------------------- scores


def test_shared_words() -> None:
    assert shared("Return the value.", "return THE value") == 1
    assert shared("a b", "c") == shared("", "") == 0
    assert shared("the the", "the cat") == pytest.approx(0.5)


def test_scores_of_targets() -> None:
    """Bits with the source and without it are of the same bytes; both kinds of scores run on two items."""
    items = ListOfItems([{"source": f"a{i}", "target": f"b{i} c"} for i in range(4)])
    model = tiny_model(BYTES, layout=["source", "target"], context=40)
    data = Material(Splits(items, items, items), ("source",), at_most=2)
    bits = TargetBits().evaluate(model, data)
    assert {value.n_trials for value in bits.values()} == {8} and len({value.value for value in bits.values()}) == 2
    assert set(bits) == {"target_bits_per_byte", "target_bits_per_byte_without_source"}
    assert {value.n_trials for value in SharedWords().evaluate(model, data).values()} == {2}

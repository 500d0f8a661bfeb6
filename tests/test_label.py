"""Labels: classes by number or by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pytest
import torch

from armm.errors import InputError
from armm.modalities import Label
from armm.sequence import Segment

ANIMALS = Label(names=("cat", "dog", "eel"))


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """An InputError of one line that says all of these."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_every_class_round_trips() -> None:
    numbers = Label(n_classes=4)
    for i in range(4):
        assert numbers.decode(numbers.encode(i)) == i
    for name in ANIMALS.names:
        assert ANIMALS.decode(ANIMALS.encode(name)) == name


def test_a_named_class_may_be_given_by_number() -> None:
    assert ANIMALS.decode(ANIMALS.encode(1)) == "dog"
    assert ANIMALS.decode(ANIMALS.encode(cast(int, np.int64(2)))) == "eel"


def test_a_label_is_one_unit_of_one_symbol() -> None:
    segment = ANIMALS.encode("eel")
    assert segment.modality == "label"
    assert segment.symbols.tolist() == [[2]]
    assert (ANIMALS.vocab, ANIMALS.unit_symbols, ANIMALS.n_units(()), ANIMALS.ended) == (3, 1, 1, False)
    assert (ANIMALS.bits_per, ANIMALS.n_bits_per(segment)) == ("label", 1)


def test_a_segment_that_was_cut_before_its_label_has_none() -> None:
    assert ANIMALS.decode(Segment("label", torch.zeros(0, 1, dtype=torch.int64))) is None


def test_names_are_learned_sorted() -> None:
    label = Label().fit(iter(["b", "a", "b", "c"]))
    assert label == Label(names=("a", "b", "c"))
    assert label.vocab == 3


def test_numbers_are_learned_up_to_the_largest() -> None:
    assert Label().fit([0, 3, 1]) == Label(n_classes=4)


def test_what_the_recipe_says_is_kept() -> None:
    assert ANIMALS.fit(["cat", "cat"]) is ANIMALS
    assert Label(n_classes=10).fit([0, 1]) == Label(n_classes=10)


def test_names_of_another_number_than_the_recipe_says_are_refused() -> None:
    with refused("n_classes", "10", "2 names"):
        Label(n_classes=10).fit(["a", "b"])


def test_names_and_numbers_mixed_are_refused() -> None:
    with refused("'a'", "numbers"):
        Label().fit(["a", 1])


def test_no_labels_at_all_are_refused() -> None:
    with refused("no labels"):
        Label().fit([])


def test_what_was_learned_survives_its_files() -> None:
    for raws in (["cat", "dög"], [0, 5]):
        label = Label().fit(raws)
        files = label.files()
        assert list(files) == ["labels.json"]
        assert Label().with_files(files).vocab == label.vocab
        assert Label().with_files(files).encode(raws[1]).symbols.equal(label.encode(raws[1]).symbols)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"n_classes": "x", "names": []}'])
def test_a_damaged_labels_file_is_refused(content: bytes) -> None:
    with refused("labels.json", "damaged"):
        Label().with_files({"labels.json": content})


def test_a_missing_labels_file_is_refused_where_it_is_needed() -> None:
    with refused("number of classes"):
        Label().with_files({})
    assert Label(n_classes=3).with_files({}) == Label(n_classes=3)


def test_use_before_the_classes_are_known_is_refused() -> None:
    with refused("label", "not known yet", "n_classes"):
        Label().encode(0)


@pytest.mark.parametrize(
    ("label", "raw", "words"),
    [
        (ANIMALS, "cst", ("'cst'", "cat, dog, eel", "did you mean 'cat'")),
        (ANIMALS, 3, ("3", "0 to 2")),
        (ANIMALS, -1, ("-1", "0 to 2")),
        (Label(n_classes=4), "cat", ("'cat'", "0 to 3")),
        (Label(n_classes=4), True, ("True", "class number")),
        (Label(n_classes=4), 1.0, ("1.0", "class number")),
    ],
)
def test_classes_that_do_not_exist_are_refused(label: Label, raw: Any, words: tuple[str, ...]) -> None:
    with refused(*words):
        label.encode(raw)


def test_the_command_line_takes_names_and_numbers() -> None:
    assert ANIMALS.parse("dog") == "dog"
    assert ANIMALS.parse("2") == 2
    assert Label(n_classes=4).parse("3") == 3
    assert Label(names=("7", "3")).parse("3") == "3", "a name that looks like a number is a name"
    with refused("'dgo'", "did you mean 'dog'"):
        ANIMALS.parse("dgo")
    with refused("9", "0 to 3"):
        Label(n_classes=4).parse("9")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"n_classes": -1}, ("n_classes", "-1")),
        ({"names": ("a", "b", "a")}, ("'a'", "twice")),
        ({"names": ("a", "b"), "n_classes": 3}, ("n_classes", "2 names")),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(*words):
        Label(**keys)

"""What training is given: crops, conditions, and the same batches from any number of workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_modalities import Clip, Letters, hash_symbols
from tiny_training import RAGGED, SMALL, Given, fit, module_of

from armm.datasets import documents
from armm.datasets.source import ListOfItems
from armm.errors import InputError
from armm.grammar import Grammar
from armm.modalities import Image, Label, Text
from armm.training import DataModule, loading
from armm.training.loading import crop

pytestmark = pytest.mark.filterwarnings("ignore")


def test_crops_fit_the_context() -> None:
    """A user's clip may be longer than a recipe's context: it is cropped to what fits, not refused in mid-training."""
    data = DataModule(Given([{"letters": hash_symbols(50, 6)}] * 3), batch_size=2)
    module = module_of(Letters(), layout=["letters"], context=16)
    fit(module, data, max_steps=2)
    assert {batch.n_positions for batch, _ in data.train_dataloader()} == {16}
    assert len(data.train_dataloader()) == 3 * 3 // 2  # about as many crops as fit each
    module = module_of(Letters(), context=16)  # a control unit before, one after
    data = DataModule(Given([{"letters": hash_symbols(50, 6)}]), crop=40)
    module.prepare(data)
    document = crop(data.train.document(0, 0), data.train.grammar, 40, draw=1)
    assert document[0].n_units == 14


def test_the_longest_segment_gives_way_to_the_context_and_what_is_given_stays_given() -> None:
    """A long clip once left its caption a single unit, which was scored as if it were no condition."""
    modalities = {"letters": Letters(), "clip": Clip(max_units=100)}
    grammar = Grammar(modalities, ["letters", "clip"], context=16)
    caption, clip = Letters().encode(hash_symbols(4, 6)).as_condition(), Clip().encode(hash_symbols(120, 5))
    found = crop([caption, clip], grammar, None, draw=3)
    assert [segment.n_units for segment in found] == [4, 12]
    assert found[0] == caption
    grammar.check(found)
    long, answer = Letters().encode(hash_symbols(40, 6)).as_condition(), Clip().encode(hash_symbols(9, 5))
    source, own = crop([long, answer], grammar, None, draw=3)
    assert (source.n_units, source.n_given, own.n_given) == (13, 13, 0)
    hidden = grammar.without_conditions([long, answer], 1)
    grammar.check(crop(hidden, grammar, None, draw=3))  # "unknown" is for conditions alone


def test_crops_differ_from_draw_to_draw_and_are_pure() -> None:
    data = DataModule(Given([{"letters": hash_symbols(500, 6)}]), crop=10)
    module_of(Letters(), layout=["letters"]).prepare(data)
    windows = [crop(data.train.document(0, 0), data.train.grammar, 10, draw)[0] for draw in [*range(20), 3]]
    assert torch.equal(windows[3].symbols, windows[-1].symbols)
    assert len({tuple(window.flat().tolist()) for window in windows}) > 15


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "data.batch_size is 0"),
        ({"eval_batch_size": 0}, "data.eval_batch_size is 0"),
        ({"crop": 0}, "data.crop is 0"),
        ({"eval_window": 1}, "data.eval_window is 1"),
        ({"n_val": 0}, "data.n_val is 0"),
        ({"num_workers": -1}, "data.num_workers is -1"),
        ({"seed": -1}, "data.seed is -1"),
    ],
    ids=str,
)
def test_impossible_sizes_are_refused(options: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        DataModule(Given(RAGGED), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("conditions", "words"),
    [(["lettres"], "lettres.*did you mean 'letters'"), (["letters"], "nothing is left to learn")],
)
def test_impossible_conditions_are_refused(conditions: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        module_of(Letters(), layout=["letters"]).prepare(DataModule(Given(RAGGED), conditions=conditions))


def test_data_that_does_not_fit_shows_before_training() -> None:
    """A character of the test text that the training text lacks, an image larger than the context: at the start."""
    given = Given([{"text": "hello"}], test=[{"text": "help"}])
    with pytest.raises(InputError, match="'p' at position 3"):
        module_of(Text(kind="chars"), layout=["text"]).prepare(DataModule(given))
    image = Image(size=(4, 4), levels=17, head=SMALL)
    with pytest.raises(InputError, match="4 units, the model's context is 3"):
        module_of(image, layout=["image"], context=3).prepare(
            DataModule(Given([{"image": np.zeros((4, 4), np.uint8)}]))
        )


def test_however_they_are_loaded_batches_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that load data and send it in either way, or loading many at once, change nothing but the time."""
    items = [{"letters": hash_symbols(20 + k, 6, seed=k)} for k in range(12)]
    loaded = []
    for num_workers, together, by_value in ((0, 1, 0), (0, 4, 0), (1, 4, 1 << 18), (1, 4, 100)):
        monkeypatch.setattr(loading, "TOGETHER", together)
        monkeypatch.setattr(loading, "SENT_BY_VALUE", by_value)
        data = DataModule(Given(items), batch_size=2, crop=10, num_workers=num_workers)
        module_of(Letters(), layout=["letters"]).prepare(data)
        loaded.append([batch.segments["letters"].symbols for batch, _ in data.train_dataloader()])
    assert len(loaded[0]) % 4  # what is loaded last is less than what was loaded before
    assert all(torch.equal(one, other) for own in loaded[1:] for one, other in zip(loaded[0], own, strict=True))


class Anew(ListOfItems):
    """Documents of them are not kept."""

    varies = True


def test_words_are_encoded_once_and_as_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A label 1 is not the word "1", and more words than are kept are no harm."""
    monkeypatch.setattr(documents, "KEPT_WORDS", 2)
    names = {"number": Label(n_classes=5), "word": Text(kind="chars", name="word").fit(["01234"])}
    names = {name: modality.named(name) for name, modality in names.items()}
    items = Anew([{"number": k, "word": str(k)} for k in (1, 1, 3, 2, 1, 4, 3)])
    split = documents.Documents(items, Grammar(names, ["number", "word"]), conditions=["number"])
    for index, item in enumerate(items.items):
        number, word = split.document(index, 0)
        assert (names["number"].decode(number), names["word"].decode(word)) == (item["number"], item["word"])
        assert number.n_given == 1 and word.n_given == 0

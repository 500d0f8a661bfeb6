"""What a validation says beside bits: each number against what it stands for, on models where that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from armm.backbones import Transformer
from armm.batching import collate
from armm.datasets import Captioned, Digits
from armm.datasets.documents import Documents
from armm.errors import InputError
from armm.heads import CausalConv
from armm.modalities import Image, Label, Text
from armm.model import AutoregressiveModel
from armm.sequence import Document
from armm.testing import tiny_model
from armm.training.diagnostics import diagnose

BACKBONE = Transformer(width=16, n_layers=1, n_heads=2)
IMAGE = Image(size=(3, 4), levels=4, head=CausalConv(channels=8, dilations=(1, 2)))


def documents(model: AutoregressiveModel, n: int = 12) -> list[Document]:
    """The class is the grey of every pixel."""
    label, image = (model.modalities[name] for name in ("label", "image"))
    greys = [np.full((3, 4), i % 4, dtype=np.uint8) for i in range(n)]
    return [[label.encode(i % 4).as_condition(), image.encode(grey)] for i, grey in enumerate(greys)]


@pytest.mark.parametrize("layout", [["label", "image"], None])
def test_a_new_model_has_nothing_from_context_or_condition(layout: list[str] | None) -> None:
    """Its head's gate on the context begins at zero: every symbol costs log2 V bits, whatever is told."""
    torch.manual_seed(0)
    model = AutoregressiveModel(
        {"label": Label(4), "image": IMAGE}, Transformer(width=16, n_layers=1, n_heads=2), layout
    )
    found = diagnose(model, documents(model))
    assert set(found) == {"image"}
    assert found["image"]["backbone"] == pytest.approx(0, abs=1e-5)
    assert found["image"]["condition"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("layout", [["label", "image"], None])
def test_slots_add_up_to_the_bits_and_a_condition_that_says_all_is_worth_all(layout: list[str] | None) -> None:
    model = AutoregressiveModel(
        {"label": Label(4), "image": IMAGE}, Transformer(width=16, n_layers=1, n_heads=2), layout
    )
    own = documents(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    twins = [model.grammar.without_conditions(document, 1) for document in own]
    for _ in range(60):
        batch = collate([*own, *twins], model.grammar)
        payload, structure = model.log_prob(batch).scored(batch)
        optimiser.zero_grad()
        ((payload + structure) / 300).backward()
        optimiser.step()
    found = diagnose(model.eval(), own)["image"]
    batch = collate(own, model.grammar)
    with torch.no_grad():
        bits = float(-model.log_prob(batch).payload["image"].sum()) / math.log(2) / (12 * 12)
    assert found["unit"] == "bits_per_dim"
    assert np.mean(found["bits_by_slot"]) == pytest.approx(bits, abs=1e-3)
    assert found["bits_by_slot"][0] < 0.5  # the label says it
    # without it the first pixel of twelve is a guess among four, two bits of it
    assert 0.1 < found["condition"] < 0.35
    assert found["backbone"] > 0.05


def test_nothing_is_computed_for_what_is_only_given() -> None:
    """The loss is the same to the last bit, and the head of a condition gets no gradient."""
    model = tiny_model({"label": Label(4), "image": IMAGE, "text": Text("bytes", ended=True)})
    text = model.modalities["text"]
    rows = [[*document[:1], document[1].as_condition(), text.encode("ab")] for document in documents(model, 4)]
    batch = collate(rows, model.grammar)
    assert batch.unscored == {"label", "image"} == batch.to("cpu").unscored
    every, some = model.log_prob(batch), model.log_prob(batch, only_scored=True)
    for full, part in zip(every.scored(batch), some.scored(batch), strict=True):
        assert torch.equal(full, part)
    assert not some.payload["image"].any() and every.payload["image"].any()
    sum(some.scored(batch)).backward()  # type: ignore[union-attr]
    assert all(p.grad is None for p in model.heads["image"].parameters())
    mixed = collate([*rows, documents(model, 2)[1]], model.grammar)
    assert mixed.unscored == {"label"}


# ------------------------------------------------------------------ documents made of labelled items

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KINDS = (("text", "image"), ("image", "text"), ("image", "label"))
MODELS = {"text": Text("bytes", ended=True), "image": Image(size=(8, 8), levels=17), "label": Label(10)}


def test_items_become_documents_of_every_kind() -> None:
    """Drawn anew at every visit in training, by number in validation; all but the last segment are given."""
    splits = Captioned(Digits(), WORDS, KINDS).load(MODELS, None, "fail")
    grammar = tiny_model(MODELS).grammar
    train, val = (Documents(items, grammar, ()) for items in (splits.train, splits.val))
    drawn = [tuple(s.modality for s in train.document(3, draw)) for draw in range(60)]
    assert set(drawn) == set(KINDS) and min(drawn.count(kind) for kind in KINDS) > 8
    assert drawn == [tuple(s.modality for s in train.document(3, draw)) for draw in range(60)]
    for index in range(6):
        document = val.document(index, index)
        assert tuple(s.modality for s in document) == KINDS[index % 3]
        assert [s.n_given > 0 for s in document] == [True, False]
        item = splits.val.item(index, 0)
        assert item["text"] == WORDS[item["label"]]
        for segment in document:
            assert torch.equal(segment.symbols, MODELS[segment.modality].encode(item[segment.modality]).symbols)
    assert set(splits.train.values("text")) == set(WORDS)


def test_only_given_pictures_are_moved() -> None:
    """One that is to be made stays in its place."""
    splits = Captioned(Digits(), WORDS, KINDS, shift=1).load(MODELS, None, "fail")
    image = splits.train.item(3, 0)["image"]
    seen: dict[bool, set[bytes]] = {True: set(), False: set()}
    for draw in range(80):
        for part in splits.train.parts(3, draw, None):
            if part.name == "image":
                seen[part.given].add(part.raw.tobytes())
    assert seen[False] == {image.tobytes()} and len(seen[True]) == 9
    assert splits.val.parts(1, 7, None)[0].raw.tobytes() == splits.val.item(1, 0)["image"].tobytes()


def test_captions_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"documents names 'sound'"):
        Captioned(Digits(), WORDS, (("text", "sound"),)).load(MODELS, None, "fail")
    splits = Captioned(Digits(), WORDS[:3]).load(MODELS, None, "fail")
    with pytest.raises(InputError, match="no caption for the class"):
        [splits.train.item(i, 0) for i in range(20)]


def test_shifted_digits_are_the_same_digits_moved() -> None:
    """A pure function of item and draw; validation and test are as they were."""
    plain, moved = Digits().load(MODELS, None, "fail"), Digits(shift=1).load(MODELS, None, "fail")
    assert np.array_equal(plain.val.item(0, 5)["image"], moved.val.item(0, 5)["image"])
    image = plain.train.item(4, 0)["image"]
    seen = {moved.train.item(4, draw)["image"].tobytes() for draw in range(60)}
    padded = np.pad(image, 1)
    assert seen == {padded[i : i + 8, j : j + 8].tobytes() for i in range(3) for j in range(3)}
    assert np.array_equal(moved.train.item(4, 7)["image"], moved.train.item(4, 7)["image"])
    with pytest.raises(InputError, match=r"shift is 9"):
        Digits(shift=9).load(MODELS, None, "fail")

"""What is learned from, how it is normalised, and that it is learned."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import lightning as L
import numpy as np
import pytest
import torch
from tiny_modalities import Clip, Letters, Picture, hash_parameters, hash_symbols
from tiny_training import QUIET, RAGGED, SMALL, Given, fit, module_of
from torch import Tensor

from armm.backbones import Transformer
from armm.batching import collate
from armm.datasets import Digits
from armm.errors import InputError
from armm.heads import CausalConv
from armm.modalities import Image, Label, Text
from armm.sequence import Document
from armm.training import DataModule, GenerativeModule, Optimization

pytestmark = pytest.mark.filterwarnings("ignore")


class Watched(GenerativeModule):
    """Keeps the gradients of every step, as the optimiser gets them."""

    gradients: list[dict[str, Tensor]]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        own = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        self.gradients = [*getattr(self, "gradients", []), own]


def close(one: dict[str, Tensor], other: dict[str, Tensor], rtol: float = 1e-4) -> bool:
    assert one.keys() == other.keys() and one
    return all(torch.allclose(one[name], other[name], rtol=rtol, atol=1e-6) for name in one)


def mean_gradient(module: GenerativeModule, data: DataModule, indices: Sequence[int]) -> dict[str, Tensor]:
    """Of the mean nats per symbol of some documents in one batch."""
    model = module.model
    batch = collate([data.train.document(i, 0) for i in indices], model.grammar)
    payload, structure = model.log_prob(batch).scored(batch)
    n_symbols = sum(float(segment.scored().sum()) for segment in batch.segments.values())
    n_symbols += batch.control_values.numel()
    module.zero_grad()
    ((payload + structure) / n_symbols).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_accumulated_batches_are_one_large_batch() -> None:
    """Two batches of 4 ragged documents or one of 8: the same gradient, that of the mean over all symbols, at every
    step."""
    found = []
    standing_still = Optimization(lr=1e-12, muon_lr=0.0)
    for batch_size, n_batches in ((8, 1), (4, 2), (2, 4)):
        module = module_of(Letters(), layout=["letters"], cls=Watched, optimization=standing_still)
        data = DataModule(Given(RAGGED), batch_size=batch_size)
        fit(module, data, max_steps=3, accumulate_grad_batches=n_batches)
        found += module.gradients
    module = module_of(Letters(), layout=["letters"])
    module.prepare(data)
    hash_parameters(module.model)
    expected = mean_gradient(module, data, range(8))
    assert len(found) == 9 and all(close(gradient, expected) for gradient in found)
    # what the mean of two batches' means would be: far from it, or this test would see nothing
    parts = [mean_gradient(module, data, part) for part in (range(4), range(4, 8))]
    assert not close({name: (parts[0][name] + parts[1][name]) / 2 for name in expected}, expected, rtol=0.1)


def test_weights_do_not_depend_on_accumulation() -> None:
    """Three steps of optimiser and schedule, clipping included."""
    weights = []
    for batch_size, n_batches in ((8, 1), (4, 2)):
        module = module_of(Letters(), layout=["letters"])
        data = DataModule(Given(RAGGED), batch_size=batch_size)
        fit(module, data, max_steps=3, accumulate_grad_batches=n_batches, gradient_clip_val=0.1)
        weights.append(dict(module.model.named_parameters()))
    assert close(*weights, rtol=1e-3)


def test_a_step_with_fewer_batches_is_normalised_by_its_own_symbols() -> None:
    """Three batches an epoch, accumulated by two: the last step of the epoch has one batch only."""
    module = module_of(Letters(), layout=["letters"], cls=Watched)
    data = DataModule(Given(RAGGED), batch_size=3)  # two batches an epoch
    trainer = fit(module, data, max_epochs=1, accumulate_grad_batches=4)
    assert trainer.global_step == len(module.gradients) == 1
    order = [index for batch in data.train_dataloader().batch_sampler for index, _ in batch]  # type: ignore[union-attr]
    fresh = module_of(Letters(), layout=["letters"])
    fresh.prepare(data)
    hash_parameters(fresh.model)
    assert len(order) == 6 and close(module.gradients[0], mean_gradient(fresh, data, order))


def test_conditions_are_not_learned() -> None:
    """A label in front of an image is seen but neither trained on nor scored: its head gets no gradient."""
    items = [{"label": k % 3, "image": np.full((4, 4), k, dtype=np.uint8)} for k in range(8)]
    modalities = (Label(n_classes=3), Image(size=(4, 4), levels=17, head=SMALL))
    data = DataModule(Given(items), batch_size=8, conditions=["label"])
    module = module_of(*modalities, layout=["label", "image"], cls=Watched)
    trainer = fit(module, data, max_steps=1)
    (gradient,) = module.gradients
    assert all(not own.any() for name, own in gradient.items() if name.startswith("heads.label"))
    assert gradient["embedders.label.weight"].any()
    trainer.test(module, datamodule=data, verbose=False)
    assert set(module.metrics["test"]) == {"image"}
    assert module.n_seen == 8 * 17


@pytest.mark.parametrize("layout", [["label", "image"], None])
def test_dropped_conditions_are_unknown_or_absent(layout: list[str] | None) -> None:
    """About the share that was asked for, the same ones for the same seed, never in validation; images stay whole."""
    items = [{"label": k % 3, "image": np.full((4, 4), k % 17, dtype=np.uint8)} for k in range(200)]
    module = module_of(Label(n_classes=3), Image(size=(4, 4), levels=17, head=SMALL), layout=layout)

    def documents() -> list[Document]:
        data = DataModule(Given(items), batch_size=200, conditions=["label"], drop_conditions=0.25)
        module.prepare(data)
        loader = data.train_dataloader()
        assert all(segment.n_units for segment in data.val.document(0, 0)) and len(data.val.document(0, 0)) == 2
        return [loader.dataset[key] for batch in loader.batch_sampler for key in batch]  # type: ignore[union-attr]

    found = documents()
    dropped = [document[0].modality == "image" or int(document[0].symbols) == 3 for document in found]
    assert 0.15 < sum(dropped) / len(found) < 0.35
    assert all(document[-1].modality == "image" and document[-1].length == 16 for document in found)
    assert all(document[0].n_given == 1 for document in found if document[0].modality == "label")
    assert all(
        (len(document) == 2) == (layout is not None or not gone) for document, gone in zip(found, dropped, strict=True)
    )
    assert [[s.symbols.tolist() for s in d] for d in documents()] == [[s.symbols.tolist() for s in d] for d in found]


def test_an_unknown_condition_is_trained_on() -> None:
    """Its embedding gets a gradient, the label's own head none."""
    items = [{"label": k % 3, "image": np.full((4, 4), k, dtype=np.uint8)} for k in range(16)]
    data = DataModule(Given(items), batch_size=16, conditions=["label"], drop_conditions=0.9)
    module = module_of(
        Label(n_classes=3), Image(size=(4, 4), levels=17, head=SMALL), layout=["label", "image"], cls=Watched
    )
    fit(module, data, max_steps=1)
    (gradient,) = module.gradients
    assert gradient["embedders.label.weight"][3].any()
    assert all(not own.any() for name, own in gradient.items() if name.startswith("heads.label"))


@pytest.mark.parametrize(("share", "words"), [(1.0, "less than 1"), (-0.1, "at least 0"), (0.1, "which is nothing")])
def test_impossible_shares_of_conditions_are_refused(share: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        DataModule(Given(RAGGED), drop_conditions=share)


def test_weights_weigh_modalities() -> None:
    """The loss is linear in them, and so is the count that divides it; control symbols always weigh 1."""
    modalities = (Letters(), Clip())
    items = [{"letters": hash_symbols(5, 6), "clip": hash_symbols(7, 5)}]
    sums = {}
    for weights in ({}, {"letters": 0.0}, {"clip": 0.0}, {"letters": 3.0, "clip": 0.5}):
        module = module_of(*modalities, weights=weights)
        data = DataModule(Given(items))
        module.prepare(data)
        hash_parameters(module.model)
        batch = collate([data.train.document(0, 0)], module.model.grammar)
        total, n_symbols = module.loss_sum(batch, module.model.log_prob(batch))
        sums[json.dumps(weights)] = torch.stack([total, n_symbols]).detach()
        control = torch.stack([-module.model.log_prob(batch).control.sum(), torch.tensor(3.0)]).detach()
    whole, clip, letters, mixed = (own - control for own in sums.values())
    torch.testing.assert_close(clip + letters, whole)
    torch.testing.assert_close(3 * letters + 0.5 * clip, mixed)
    assert [float(clip[1]), float(letters[1])] == [7, 5]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"letter": 1.0}, "model.weights.letter"),
        ({"letters": -1.0}, "model.weights.letters is -1"),
        ({"letters": 0.0}, "all 0"),
    ],
)
def test_impossible_weights_are_refused(weights: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        module_of(Letters(), layout=["letters"], weights=weights)


def test_idle_parameters_are_those_without_a_gradient() -> None:
    """With several ranks every parameter needs a gradient, or DDP waits; those of absent modalities join at 0."""
    module = module_of(
        Letters(),
        Clip(),
        Picture(sizes_differ=True),
        backbone=Transformer(width=8, n_layers=2, n_heads=2, value_embeddings=True),
    )
    data = DataModule(Given([{"letters": hash_symbols(5, 6)}, {"clip": hash_symbols(7, 5), "letters": [1]}]))
    module.prepare(data)
    for index, absent in ((0, ("clip", "picture")), (1, ("picture",))):
        batch = collate([data.train.document(index, 0)], module.model.grammar)
        module.zero_grad()
        payload, structure = module.model.log_prob(batch).scored(batch)
        (payload + structure).backward()
        without = {name for name, p in module.model.named_parameters() if p.grad is None}
        idle = {id(p) for p in module.idle_parameters(batch)}
        assert without == {name for name, p in module.model.named_parameters() if id(p) in idle}
        assert {name.split(".")[1] for name in without} == set(absent)


def test_training_starts_from_the_unigram() -> None:
    """The first bits are those of the symbols' frequencies, not of the uniform distribution."""
    text = "e" * 60 + "t" * 25 + "a" * 10 + "q" * 5
    data = DataModule(Given([{"text": text}]))
    module = module_of(Text(kind="bytes"), layout=["text"])
    module.prepare(data)
    counts = np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256) + 1
    log_unigram = torch.tensor(np.log(counts / counts.sum()), dtype=torch.float32)
    torch.testing.assert_close(data.unigram("text"), log_unigram)
    symbols = module.model.modalities["text"].encode(text)
    with torch.no_grad():
        nats = -float(module.model.stream_log_prob([symbols]).mean())
    assert nats == pytest.approx(-float(log_unigram[symbols.flat()].mean()), abs=0.3)
    assert nats < math.log(256) - 2


def test_loss_falls_on_digits() -> None:
    """Thirty steps of a small model: from the marginal's bits down by more than a quarter of a bit."""
    torch.manual_seed(0)
    image = Image(size=(8, 8), levels=17, head=CausalConv(channels=8, skip=16, dilations=(1, 2, 4), hidden_layers=1))
    data = DataModule(Digits(), batch_size=48, n_val=64)
    module = module_of(image, layout=["image"], backbone=Transformer(width=32, n_layers=1, n_heads=2))
    module.prepare(data)
    L.Trainer(**QUIET).validate(module, datamodule=data, verbose=False)
    before = module.metrics["val"]["image"]["bits_per_dim"]
    trainer = L.Trainer(**QUIET, max_steps=30, check_val_every_n_epoch=None, val_check_interval=30)
    trainer.fit(module, datamodule=data)
    after = module.metrics["val"]["image"]["bits_per_dim"]
    assert before < math.log2(17) and after < before - 0.25

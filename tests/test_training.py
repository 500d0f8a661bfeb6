"""Training: what is learned from, how it is normalised, what is reported, and what a stopped run leaves."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tiny_modalities import Clip, Letters, Picture, hash_parameters, hash_symbols, segment_of
from tiny_training import QUIET, TINY, Given
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from armm import bundle
from armm.backbones import Transformer
from armm.cli import main
from armm.datasets import Digits, Item
from armm.errors import InputError
from armm.grammar import Grammar
from armm.heads import CausalConv
from armm.modalities import Audio, Image, Label, Text
from armm.modality import Modality
from armm.sequence import Document
from armm.training import DataModule, GenerativeModule, Optimization, Recorder, SampleLogger
from armm.training.guard import Guard, StepGuard, tensors_in
from armm.training.loading import STRUCTURE, count, crop

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = CausalConv(channels=4, skip=4, dilations=(1, 2), hidden_layers=1)


class Watched(GenerativeModule):
    """Keeps the gradients of every step, as the optimiser gets them."""

    gradients: list[dict[str, Tensor]]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        own = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        self.gradients = [*getattr(self, "gradients", []), own]


class NoReading(TorchDispatchMode):
    """Refuses to bring a number of a tensor to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        masks = [i for i in args[1] if i is not None and i.dtype == torch.bool] if func is aten.index.Tensor else []
        reading = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default)
        assert func not in reading and not masks, f"a tensor was read: {func}"
        return func(*args, **(kwargs or {}))


def module_of(
    *modalities: Modality, layout: list[str] | None = None, cls: Any = GenerativeModule, **options: Any
) -> Any:
    options.setdefault("backbone", TINY)
    return cls({m.name: m for m in modalities}, layout=layout, **options)


def fit(module: GenerativeModule, data: DataModule, **options: Any) -> L.Trainer:
    trainer = L.Trainer(**{**QUIET, "limit_val_batches": 0, **options})
    module.prepare(data)
    hash_parameters(module.model)
    trainer.fit(module, datamodule=data)
    return trainer


def close(one: dict[str, Tensor], other: dict[str, Tensor], rtol: float = 1e-4) -> bool:
    assert one.keys() == other.keys() and one
    return all(torch.allclose(one[name], other[name], rtol=rtol, atol=1e-6) for name in one)


def mean_gradient(module: GenerativeModule, data: DataModule, indices: Sequence[int]) -> dict[str, Tensor]:
    """Of the mean nats per symbol of some documents in one batch."""
    model = module.model
    batch = model.grammar.collate([data.train.document(i, 0) for i in indices])
    payload, structure = model.log_prob(batch).scored(batch)
    n_symbols = sum(float(segment.scored().sum()) for segment in batch.segments.values())
    n_symbols += batch.control_values.numel()
    module.zero_grad()
    ((payload + structure) / n_symbols).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ------------------------------------------------------------------------- the loss

RAGGED = [{"letters": hash_symbols(n, 6, seed=n)} for n in (1, 2, 3, 4, 25, 30, 35, 40)]


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
        batch = module.model.grammar.collate([data.train.document(0, 0)])
        total, n_symbols = module.loss_sum(batch, module.model.log_prob(batch))
        sums[json.dumps(weights)] = torch.stack([total, n_symbols]).detach()
        control = torch.stack([-module.model.log_prob(batch).control.sum(), torch.tensor(3.0)]).detach()
    whole, clip, letters, mixed = (own - control for own in sums.values())
    torch.testing.assert_close(clip + letters, whole)
    torch.testing.assert_close(3 * letters + 0.5 * clip, mixed)
    assert [float(clip[1]), float(letters[1])] == [7, 5]


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
        batch = module.model.grammar.collate([data.train.document(index, 0)])
        module.zero_grad()
        payload, structure = module.model.log_prob(batch).scored(batch)
        (payload + structure).backward()
        without = {name for name, p in module.model.named_parameters() if p.grad is None}
        idle = {id(p) for p in module.idle_parameters(batch)}
        assert without == {name for name, p in module.model.named_parameters() if id(p) in idle}
        assert {name.split(".")[1] for name in without} == set(absent)


# --------------------------------------------------------------- steps that would do harm


class Poisoned(GenerativeModule):
    """Some steps' losses times something, or their gradients; and a copy of all weights and moments after each step."""

    factor = float("nan")
    steps: tuple[int, ...] = ()
    of_gradient = False
    select = False

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.step_guard.select = self.select
        self.states: list[list[Tensor]] = []

    def is_bad(self) -> bool:
        return self.trainer.global_step in self.steps

    def loss_sum(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        total, n_symbols = super().loss_sum(*arguments)
        return (total * self.factor if self.is_bad() and not self.of_gradient else total), n_symbols

    def on_after_backward(self) -> None:
        if self.is_bad() and self.of_gradient:
            next(p for p in self.parameters() if p.grad is not None).grad.view(-1)[0] = self.factor  # type: ignore

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        kept = [callback.state_dict() for callback in self.trainer.callbacks]  # type: ignore[attr-defined]
        tensors = [*self.parameters(), *tensors_in([self.trainer.optimizers[0].state_dict(), kept])]
        self.states.append([tensor.detach().clone() for tensor in tensors])


def poisoned(select: bool = False, of_gradient: bool = False, n_steps: int = 6, **options: Any) -> Poisoned:
    given = {"guard": options.pop("guard", Guard()), "optimization": options.pop("optimization", Optimization())}
    module = module_of(Letters(), layout=["letters"], cls=Poisoned, **given)
    module.select, module.of_gradient = select, of_gradient
    for name, value in options.items():
        setattr(module, name, value)
    fit(module, DataModule(Given(RAGGED), batch_size=4), max_steps=n_steps, gradient_clip_val=1.0)
    return module


def equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) > 4 and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("of_gradient", [False, True], ids=["loss", "gradient"])
@pytest.mark.parametrize("select", [False, True], ids=["not done", "undone on the device"])
def test_a_bad_step_changes_nothing(select: bool, of_gradient: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither weights nor moments nor step counts, bitwise; the steps around it do. The first step too."""
    module = poisoned(select, of_gradient, steps=(2, 3))
    states = module.states
    assert [equal(a, b) for a, b in pairwise(states)] == [False, True, True, False, False]
    assert all(tensor.isfinite().all() for tensor in states[-1])
    said = [line for line in capsys.readouterr().err.splitlines() if "was skipped" in line]
    assert [line.split()[1] for line in said] == ["2", "3"] and "item " in said[0]
    assert [step["step"] for step in module.skipped_steps] == [2, 3]
    # without it, the same steps that are good lead to the same weights
    first = poisoned(select, of_gradient, steps=(0,))
    fresh = module_of(Letters(), layout=["letters"])
    fresh.prepare(DataModule(Given(RAGGED)))
    hash_parameters(fresh.model)
    n = len(list(fresh.parameters()))
    assert equal(first.states[0][:n], list(fresh.parameters()))
    assert not any(tensor.any() for tensor in first.states[0][n:])


@pytest.mark.parametrize("select", [False, True], ids=["not done", "undone on the device"])
def test_a_bad_step_does_not_move_the_average(select: bool) -> None:
    """Of the weights, which would move towards those of the step before."""
    optimization = Optimization(ema=0.7)
    states = poisoned(select, steps=(2, 3), optimization=optimization).states
    assert len(states[0]) > len(poisoned(select).states[0])
    assert [equal(a, b) for a, b in pairwise(states)] == [False, True, True, False, False]


def test_doing_and_undoing_a_step_is_not_doing_it() -> None:
    """The way of accelerators leads where the way of the CPU does."""
    one, other = (poisoned(select, steps=(0, 3)).states for select in (False, True))
    assert equal(one[-1], other[-1])


def test_spikes_are_skipped_and_slow_change_is_not() -> None:
    """A loss of 20 times the mean once the mean is known; at the same height before, or risen to slowly, it is none."""
    options: dict[str, Any] = {"factor": 20.0, "guard": Guard(warmup=5), "n_steps": 10}
    assert [step["step"] for step in poisoned(steps=(8,), **options).skipped_steps] == [8]
    assert not poisoned(steps=(2,), **options).skipped_steps
    assert not poisoned(steps=(8,), **{**options, "guard": Guard(spike=None)}).skipped_steps
    guard = StepGuard(Guard(warmup=20), select=False)
    nothing = torch.zeros(1)
    random = torch.Generator().manual_seed(0)
    losses = [3 + k / 100 + 0.3 * float(torch.randn((), generator=random)) for k in range(400)]
    assert all(guard.judge(torch.tensor(loss), torch.tensor(1.0), nothing) for loss in losses)
    assert not guard.judge(torch.tensor(15.0), torch.tensor(1.0), nothing)
    assert not guard.judge(torch.tensor(7.0), torch.tensor(float("inf")), nothing)


def test_a_loss_that_stays_up_is_no_spike() -> None:
    """Weights that a good batch has upset must not be kept by skipping all that could mend them; NaN never is good."""
    guard, nothing = StepGuard(Guard(warmup=5, in_a_row=3), select=False), torch.zeros(1)

    def judged(*losses: float) -> list[bool]:
        return [bool(guard.judge(torch.tensor(loss), torch.tensor(1.0), nothing)) for loss in losses]

    assert all(judged(2.0, *[0.01, 0.012] * 200))
    assert judged(0.15, 0.3) == [True, False]  # one hard example among what is known by heart
    assert judged(0.01, 0.25, 0.4, 0.7, 0.6, 0.5, 0.3) == [True] + [False] * 3 + [True] * 3
    assert judged(*[0.01] * 60, 5.0, 0.01) == [True] * 60 + [False, True]
    assert not any(judged(*[float("nan")] * 9))


def test_a_run_that_diverges_ends() -> None:
    """After so many skipped steps of the latest, instead of going on and replacing a good bundle by one of NaNs."""
    module = module_of(Letters(), layout=["letters"], optimization=Optimization(lr=1e30, warmup=0.0))
    with pytest.raises(InputError, match=r"10 of the latest 100 steps were skipped.*lower model.optimization.lr"):
        fit(module, DataModule(Given(RAGGED), batch_size=8), max_steps=50)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    guard = StepGuard(Guard(limit=2, window=10), select=False)
    guard.skipped.extend([3, 13])
    assert not guard.gives_up(14)  # the first is too long ago
    guard.skipped.append(14)
    assert guard.gives_up(15)


@pytest.mark.parametrize(
    "options", [{"spike": 1.0}, {"in_a_row": 0}, {"warmup": 0}, {"limit": 0}, {"limit": 101}], ids=str
)
def test_impossible_guards_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="guard"):
        Guard(**options)


def test_training_reads_nothing_back_from_the_device() -> None:
    """No `.item()`, `bool()` or selection by a mask in what a step does around the model: each would make an
    accelerator wait. Only the verdict on a step is read, later."""
    module = poisoned(select=True, n_steps=1)
    data = DataModule(Given(RAGGED), batch_size=4)
    module.prepare(data)
    batch = next(iter(data.train_dataloader()))[0].to("cpu")
    guard, optimizer = module.step_guard, module.trainer.optimizers[0]
    assert batch.longest == batch.n_positions
    nats = module.model.log_prob(batch)
    with NoReading():
        total, n_symbols = module.loss_sum(batch, nats)
        total.backward()
        guard.judge(total / n_symbols, torch.tensor(1.0), torch.zeros(3))
        guard.before_step(list(module.parameters()), optimizer)
    for read in (lambda x: bool(x > 1), lambda x: x.item(), lambda x: x[x > 1], lambda x: x.nonzero()):
        with pytest.raises(AssertionError, match="read"), NoReading():
            read(torch.zeros(2)[:1])


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


# ------------------------------------------------------------------------- learning


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


# ---------------------------------------------------------------------- reported bits


def results_of(module: GenerativeModule, data: DataModule, **options: Any) -> dict[str, dict[str, float]]:
    module.prepare(data)
    hash_parameters(module.model, 2.0)
    L.Trainer(**{**QUIET, **options}).test(module, datamodule=data, verbose=False)
    return module.metrics["test"]


TEXTS = ["the cat sat on the mat €uro naïve and that was that\n", "on the other mat sat the other cats", "€"]


@pytest.mark.parametrize("kind", ["bytes", "chars", "bpe"])
@pytest.mark.parametrize("eval_window", [None, 6, 7])
def test_text_bits_are_those_computed_by_hand(kind: Any, eval_window: int | None) -> None:
    """Bits per char of chars, per byte of bytes and BPE; of windows, each unit once, with half a window before it."""
    data = DataModule(Given([{"text": "".join(TEXTS) * 2}], test=[{"text": t} for t in TEXTS]), eval_window=eval_window)
    module = module_of(Text(kind=kind, vocab_size=262), layout=["text"])
    results = results_of(module, data)["text"]
    model, modality = module.model, module.model.modalities["text"]
    total = n_symbols = 0.0
    with torch.no_grad():
        for text in TEXTS:
            units = modality.encode(text)
            n, size = units.n_units, eval_window or units.n_units
            for unit in range(n):
                # the window that scores it: the first, or the first whose second half it is in
                step = max(size // 2, 1)
                number = 0 if unit < size else (unit - size) // step + 1
                first = number * step
                assert number == 0 or unit - first >= size / 2
                window = units.window(first, size)
                total -= float(model.stream_log_prob([window])[unit - first])
                n_symbols += 1
    n_bits = {"chars": sum(map(len, TEXTS))}.get(kind, sum(len(text.encode()) for text in TEXTS))
    unit = {"chars": "char"}.get(kind, "byte")
    assert results[f"bits_per_{unit}"] == pytest.approx(total / math.log(2) / n_bits, rel=1e-5)
    nats_per = {"bytes": "byte", "chars": "char", "bpe": "token"}[kind]
    assert results[f"nats_per_{nats_per}"] == pytest.approx(total / n_symbols, rel=1e-5)
    assert set(results) == {f"bits_per_{unit}", f"nats_per_{nats_per}"}


def test_bits_of_images_and_clips_and_their_structure() -> None:
    """Bits per dimension and nats per image; bits per sample; what says where a clip ends is reported apart."""
    items: list[Item] = [
        {"image": np.full((4, 4), k, dtype=np.uint8), "audio": np.sin(np.arange(20 + 9 * k, dtype=np.float32))}
        for k in range(5)
    ]
    image, audio = Image(size=(4, 4), levels=17, head=SMALL), Audio(frame=8, head=SMALL)
    module = module_of(image, audio, layout=["image", "audio"])
    data = DataModule(Given(items), eval_batch_size=2)
    results = results_of(module, data)
    sums = {"image": 0.0, "audio": 0.0, "structure": 0.0}
    with torch.no_grad():
        for index in range(5):
            document = data.test.document(index, 0)
            batch = module.model.grammar.collate([document])
            nats = module.model.log_prob(batch)
            for name in ("image", "audio"):
                sums[name] -= float(nats.payload[name].sum())
            sums["structure"] -= float(nats.decisions["audio"].sum())
    n_samples = sum(20 + 9 * k for k in range(5))
    assert results == {
        "image": {
            "bits_per_dim": pytest.approx(sums["image"] / math.log(2) / (5 * 16), rel=1e-5),
            "nats_per_image": pytest.approx(sums["image"] / 5, rel=1e-5),
        },
        "audio": {
            "bits_per_sample": pytest.approx(sums["audio"] / math.log(2) / n_samples, rel=1e-5),
            "nats_per_sample": pytest.approx(sums["audio"] / n_samples, rel=1e-5),
        },
        STRUCTURE: {"bits_per_document": pytest.approx(sums["structure"] / math.log(2) / 5, rel=1e-5)},
    }


def test_a_document_in_windows_counts_once() -> None:
    """Bits of end decisions are per document, not per window."""
    clips = [{"audio": np.zeros(8 * n, dtype=np.float32)} for n in (3, 30)]
    per_document = []
    for eval_window in (None, 6):
        backbone = Transformer(width=8, n_layers=1, n_heads=2, window=2)  # sees no further than half a window
        module = module_of(Audio(frame=8, head=SMALL), layout=["audio"], backbone=backbone)
        results = results_of(module, DataModule(Given(clips), eval_window=eval_window))
        per_document.append(results[STRUCTURE]["bits_per_document"])
    assert per_document[0] == pytest.approx(per_document[1], rel=1e-4)


def test_autocast_leaves_the_bits_alone() -> None:
    """Half precision in training is a matter of speed; reported bits are always those of float32."""
    items = [{"letters": hash_symbols(30, 6, seed=k)} for k in range(4)]
    results = [
        results_of(module_of(Letters(), layout=["letters"]), DataModule(Given(items)), precision=precision)
        for precision in ("32-true", "bf16-mixed")
    ]
    assert results[0] == results[1]


def test_validation_can_be_a_part_and_the_test_is_whole() -> None:
    items = [{"letters": hash_symbols(4, 6, seed=k)} for k in range(10)]
    data = DataModule(Given(items), n_val=3, eval_batch_size=2)
    module_of(Letters(), layout=["letters"]).prepare(data)
    assert [sum(batch.n_rows for batch, _ in loader) for loader in (data.val_dataloader(), data.test_dataloader())] == [
        3,
        10,
    ]


def test_counts_leave_conditions_out() -> None:
    image = Image(size=(4, 4), levels=17, head=SMALL)
    modalities = {"letters": Letters(), "clip": Clip(), "image": image}
    letters, clip = segment_of("letters", [1, 2, 3], 1), segment_of("clip", [1, 2, 3, 4, 0], 3)
    cut = segment_of("letters", range(6), 1).window(1, 4, n_given=2)
    given = image.encode(np.zeros((4, 4), np.uint8)).as_condition()
    counts = count([[letters.as_condition(), given, clip], [cut, clip]], modalities)
    assert counts == {"letters": (2, 2), "image": (0, 0), "clip": (10, 10), STRUCTURE: (1, 1)}


# ------------------------------------------------------------------------------ data


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


def test_workers_load_the_same_batches() -> None:
    """Processes that load data change nothing but the time."""
    items = [{"letters": hash_symbols(20 + k, 6, seed=k)} for k in range(6)]
    loaded = []
    for num_workers in (0, 1):
        data = DataModule(Given(items), batch_size=2, crop=10, num_workers=num_workers)
        module_of(Letters(), layout=["letters"]).prepare(data)
        loaded.append([batch.segments["letters"].symbols for batch, _ in data.train_dataloader()])
    assert all(torch.equal(one, other) for one, other in zip(*loaded, strict=True))


# ------------------------------------------------------------------ what a run leaves


def scalars_and_samples(folder: Path) -> dict[str, list[str]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    return accumulator.Tags()


def test_samples_are_logged(tmp_path: Path) -> None:
    """An image grid, a clip to listen to and a text to read at every validation, after the data's own conditions."""
    items = [
        {"label": k % 2, "image": np.full((4, 4), k, np.uint8), "audio": np.zeros(20, np.float32), "text": "abc"}
        for k in range(4)
    ]
    audio = Audio(frame=8, head=SMALL, max_units=4)
    modalities = (
        Label(n_classes=2),
        Image(size=(4, 4), levels=17, head=SMALL),
        audio,
        Text(kind="bytes", ended=True, max_units=5),
    )
    module = module_of(*modalities, layout=["label", "image", "audio", "text"])
    data = DataModule(Given(items), batch_size=4, conditions=["label"])
    trainer = L.Trainer(
        **{**QUIET, "logger": TensorBoardLogger(str(tmp_path), name="", version="")},
        max_steps=2,
        check_val_every_n_epoch=None,
        val_check_interval=1,
        callbacks=[SampleLogger(3)],
        log_every_n_steps=1,
    )
    trainer.fit(module, datamodule=data)
    tags = scalars_and_samples(tmp_path)
    assert tags["images"] == ["samples/image"] and tags["audio"] == ["samples/audio"]
    assert "samples/text/text_summary" in tags["tensors"] and "samples/label/text_summary" in tags["tensors"]
    assert {"train/nats", "val/image/bits_per_dim", "val/audio/bits_per_sample"} <= set(tags["scalars"])


def test_a_run_records_at_every_validation(tmp_path: Path) -> None:
    """Scores and a bundle that loads, from the first validation on; nothing else in the folder."""
    module = module_of(Letters(), layout=["letters"])
    data = DataModule(Given(RAGGED), batch_size=8)
    recorder = Recorder(tmp_path, "text/letters", 5)
    seen = []

    class After(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append(json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")))
            assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "model"}

    options = {"check_val_every_n_epoch": None, "val_check_interval": 2, "limit_val_batches": 1.0}
    module.prepare(data)
    trainer = L.Trainer(**QUIET, **options, max_steps=4, callbacks=[recorder, After()])
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    assert [own["steps"] for own in seen] == [2, 4] and all(own["val"]["letters"] for own in seen)
    final = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert final["recipe"] == "text/letters" and final["seed"] == 5
    assert final["test"] == module.metrics["test"] and final["symbols_seen"] == 4 * 140
    assert final["n_parameters"] == sum(p.numel() for p in module.model.parameters())
    assert 0 < final["training_seconds"] < 100
    document = [module.model.modalities["letters"].encode([1, 2, 3])]
    again = bundle.load(tmp_path)
    module.model.eval()
    with torch.no_grad():
        assert torch.equal(again.stream_log_prob(document), module.model.stream_log_prob(document))


def started(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """`armm train image/digits`, small, in a process of its own; its progress goes to a file."""
    small = ("--model.modalities.image.init_args.head.init_args.channels=4", "--data.batch_size=4", "--data.n_val=4")
    command = [sys.executable, "-m", "armm.cli", "train", "image/digits", f"--run_dir={folder}", "--n_samples=0"]
    with open(folder.with_suffix(".log"), "wb") as log:
        return subprocess.Popen([*command, *small, *options], stdout=log, stderr=log, env={**os.environ})


def wait_for(process: subprocess.Popen[bytes], what: Any, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert process.poll() is None and time.monotonic() < end, "the training ended or did not begin"
        time.sleep(0.05)


def test_ctrl_c_leaves_a_bundle_that_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the first validation already: exit code 130, a whole run folder, and samples from it."""
    folder = tmp_path / "run"
    endless = ("--trainer.max_steps=100000", "--trainer.val_check_interval=100000", "--trainer.log_every_n_steps=1")
    process, log = started(folder, *endless), folder.with_suffix(".log")
    try:
        wait_for(process, (folder / "metrics.csv").exists)  # written for the first time after 100 steps
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130, log.read_text(encoding="utf-8")
    finally:
        process.kill()
    assert "stopped at step" in log.read_text(encoding="utf-8")
    assert "Traceback" not in log.read_text(encoding="utf-8")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["steps"] > 0 and metrics["symbols_seen"] // (4 * 64) - metrics["steps"] in (0, 1)
    assert main(["generate", str(folder), "--n", "2", "--out", str(tmp_path / "samples")]) == 0
    assert len(list((tmp_path / "samples").glob("0-*.png"))) == 2
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_kill_leaves_the_bundle_of_the_last_validation(tmp_path: Path) -> None:
    """No chance to clean up: what was written at a validation is whole."""
    folder = tmp_path / "run"
    process = started(folder, "--trainer.max_steps=100000", "--trainer.val_check_interval=1")
    try:
        wait_for(process, (folder / "metrics.json").exists)
        time.sleep(0.2)  # into one of the next writes
        process.kill()
        process.wait(timeout=60)
    finally:
        process.kill()
    model = bundle.load(folder)
    assert model.n_parameters == bundle.read_config(folder / "model")["about"]["n_parameters"]
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["val"]["image"]["bits_per_dim"] > 0

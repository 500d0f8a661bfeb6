"""Bits as they are reported: those computed by hand."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from tiny_modalities import Clip, Letters, hash_parameters, hash_symbols, segment_of
from tiny_training import QUIET, SMALL, Given, module_of

from armm.backbones import Transformer
from armm.batching import collate
from armm.datasets import Item
from armm.modalities import Audio, Image, Text
from armm.training import DataModule, GenerativeModule
from armm.training.loading import STRUCTURE, count

pytestmark = pytest.mark.filterwarnings("ignore")


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
            batch = collate([document], module.model.grammar)
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

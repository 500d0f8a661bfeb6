"""Exposure bias: what is read in training is corrupted, what is coded is not, and bits are those of clean data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from tiny_modalities import Clip, Letters, Picture, hash_parameters, hash_symbols, segment_of
from torch import Tensor

from armm.backbones import NoBackbone, Transformer
from armm.batching import collate
from armm.errors import InputError
from armm.generation import generate
from armm.heads import CausalConv, GatedPixelCNN, HeadConfig
from armm.modalities import Audio
from armm.model import AutoregressiveModel
from armm.sequence import Batch, Segment
from armm.testing import tiny_model
from armm.training import Corruption, FrameDropout, Jitter, Optimization, ScheduledSampling, TokenDropout
from armm.training.corruption import corrupted
from armm.training.optim import build

V = 16


def clip_batch(model: AutoregressiveModel, *lengths: int) -> Batch:
    return collate([[segment_of("clip", hash_symbols(n, V, n), 4)] for n in lengths], model.grammar)


def clip_model() -> AutoregressiveModel:
    return tiny_model({"clip": Clip(vocab=V, unit_symbols=4)}, Transformer(width=16, n_layers=1), ["clip"])


@pytest.mark.parametrize("corruption", [Jitter(3.0), TokenDropout(0.5), FrameDropout(0.5), ScheduledSampling(0.5)])
def test_only_what_is_there_is_corrupted(corruption: Corruption) -> None:
    """Padding stays V, and nothing leaves the alphabet but to V, "unknown"; the batch itself stays as it was."""
    model = clip_model()
    batch = clip_batch(model, 30, 90)
    before = batch.segments["clip"].symbols.clone()
    torch.manual_seed(0)
    read = corrupted({"clip": [corruption]}, batch, model)["clip"]
    known = batch.segments["clip"].known
    assert torch.equal(batch.segments["clip"].symbols, before)
    assert (read[~known] == V).all() and read.min() >= 0 and read.max() <= V
    changed = (read != before)[known].float().mean()
    assert 0.2 < changed < 0.95


def test_jitter_is_as_wide_as_it_says_and_spares_some() -> None:
    symbols = torch.full((400, 10, 10), 128)
    torch.manual_seed(0)
    read = Jitter(2.0, share=0.25)(symbols, 256, None)
    touched = (read != 128).flatten(1).any(1)
    assert 0.15 < touched.float().mean() < 0.35
    assert 1.9 < (read - 128)[touched].float().std() < 2.2
    assert Jitter(50.0)(symbols, 129, None).max() == 128


def test_frames_are_dropped_whole() -> None:
    torch.manual_seed(0)
    read = FrameDropout(0.5)(torch.zeros(8, 50, 6, dtype=torch.int64), V, None) == V
    assert torch.equal(read.any(-1), read.all(-1)) and 0.35 < read.float().mean() < 0.65


def test_guesses_are_the_models_draws() -> None:
    """A model that is certain guesses what it is certain of, each symbol given the data before it."""
    model = tiny_model({"letters": Letters(vocab=6, ended=False)}, NoBackbone(), ["letters"])
    head = model.heads["letters"]
    with torch.no_grad():
        head.bias.copy_(torch.tensor([0.0, 0, 0, 60, 0, 0]))  # type: ignore[union-attr]
    batch = collate([[segment_of("letters", [1, 2, 0, 5], 1)]], model.grammar)
    torch.manual_seed(0)
    read = corrupted({"letters": [ScheduledSampling(1.0)]}, batch, model)["letters"]
    assert read.flatten().tolist() == [3, 3, 3, 3]


@dataclass(frozen=True)
class Shift(Corruption):
    """The next symbol of the alphabet, for certain."""

    guesses: ClassVar[bool] = False

    def __call__(self, symbols: Tensor, vocab: int, guesses: Tensor | None) -> Tensor:
        return (symbols + 1) % vocab


@pytest.mark.parametrize("head", [None, GatedPixelCNN(channels=4, n_layers=1, first=3)], ids=["conv", "rows"])
def test_the_past_is_read_corrupted_and_the_data_are_coded(head: HeadConfig | None) -> None:
    """Nats of the data's own symbols under what a corrupted past says of them, by definition of both."""
    modality = Picture(size=(4, 6), vocab=9, block=(1, 6))
    if head:
        modality = Picture(size=(4, 6), vocab=9, block=(1, 6), head=head)
    model = tiny_model({"picture": modality}, Transformer(width=16, n_layers=1), ["picture"])
    hash_parameters(model)
    batch = collate([[segment_of("picture", hash_symbols(24, 9), 6, (4, 1))]], model.grammar)
    read = corrupted({"picture": [Shift()]}, batch, model)
    with torch.no_grad():
        found = model.log_prob(batch, read=read).payload["picture"]
        shifted, segment = batch.reading(read), batch.segments["picture"]
        contexts = model.contexts(shifted)
        logits = model.head("picture").logits(contexts, read["picture"], segment.known, segment.header)
        normal, other = model.log_prob(batch).payload["picture"], model.log_prob(shifted).payload["picture"]
    expected = logits.log_softmax(-1).gather(-1, segment.symbols[..., None])[..., 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, normal) and not torch.allclose(found, other)
    found, _ = model.head("picture").log_prob_and_normaliser(
        contexts, segment.symbols, segment.known, segment.header, read["picture"]
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Jitter(0.0), "Jitter: levels is 0.0"),
        (lambda: Jitter(1.0, share=0.0), "Jitter: share is 0.0"),
        (lambda: TokenDropout(1.5), "TokenDropout: share is 1.5"),
        (lambda: FrameDropout(-0.1), "FrameDropout: share"),
        (lambda: ScheduledSampling(0), "ScheduledSampling: share"),
    ],
)
def test_shares_that_cannot_be_are_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        make()


# ------------------------------------------------------------------------ spoken digits


def learned(clips: list[Segment], modality: Audio, corruption: Corruption | None) -> AutoregressiveModel:
    """A small model that knows a few clips nearly by heart, as any model knows its data that is trained for long."""
    torch.manual_seed(0)
    model = AutoregressiveModel({"audio": modality}, Transformer(width=64, n_layers=2, n_heads=2), ["audio"])
    batch = collate([[clip.window(0, 56)] for clip in clips], model.grammar)
    optimizer = build(model, Optimization(lr=4e-3))
    rates, n_steps = [group["lr"] for group in optimizer.param_groups], 250
    for step in range(n_steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / 10, 2 * (n_steps - step) / n_steps)
        read = corrupted({"audio": [corruption]}, batch, model) if corruption else None
        payload, structure = model.log_prob(batch, read=read).scored(batch)
        optimizer.zero_grad()
        ((payload + structure) / batch.segments["audio"].scored().sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def loud_windows(clips: Iterable[np.ndarray]) -> np.ndarray:
    """(W,) spectral flatness of the windows of 32 ms that are loud; 1 is white noise, a voice is far below."""
    windows = np.concatenate([clip[: len(clip) // 256 * 256].reshape(-1, 256) for clip in clips])
    loud = windows[np.sqrt((windows**2).mean(-1)) > 0.05]
    spectra = np.abs(np.fft.rfft(loud * np.hanning(256))) ** 2 + 1e-9
    return np.exp(np.log(spectra).mean(-1)) / spectra.mean(-1)


def test_jitter_keeps_samples_of_spoken_digits_from_running_away_into_noise(shared_data: Path) -> None:
    """A model that has only read clean sound takes its own small errors for noise, and goes on with noise."""
    head = CausalConv(channels=24, skip=48, condition=16, kernel=4, dilations=(1, 4, 16), hidden_layers=2)
    modality = Audio(frame=32, head=head).named("audio")
    sounds = [modality.load(path) for path in sorted((shared_data / "fsdd").rglob("*_jackson_9.wav"))[:3]]
    noisiest = loud_windows(sounds).max()

    def noise_bursts(corruption: Corruption | None) -> float:
        model = learned([modality.encode(sound) for sound in sounds], modality, corruption)
        samples = generate(model, n=12, seed=5, max_symbols=1900, batch_size=12)
        return float((loud_windows(sample.decoded[0] for sample in samples) > noisiest).mean())

    clean, jittered = noise_bursts(None), noise_bursts(Jitter(3.0))
    assert clean > 0.2 and jittered < clean / 2, (clean, jittered)

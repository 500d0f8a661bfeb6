"""A judge of short recordings: a small convolutional network on log-mel spectra, trained here on real clips.

Frames of 32 ms, 16 ms apart; what is longer than a second is cut, what is shorter is padded with silence. Trained with
AdamW, clips moved in time and made louder or quieter at random. Seconds to a minute on one core.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armm.embedders import FLOOR, mel_bands

N_BANDS, FRAMES_PER_SECOND = 32, 62.5
BATCH = 32


class Judge:
    """Tells the class of a clip.

    Args:
        clips: (T,) float32 each. classes: of each clip. sample_rate: in Hz.
        n_steps: of training; the same clips and seed give the same judge.
    """

    def __init__(
        self, clips: Sequence[np.ndarray], classes: Sequence[str], sample_rate: int, n_steps: int = 1200, seed: int = 0
    ) -> None:
        self.rate, self.length = sample_rate, sample_rate
        self.names = sorted(set(classes))
        self.hop = round(sample_rate / FRAMES_PER_SECOND)
        self.window = torch.hann_window(2 * self.hop)
        self.bands = mel_bands(2 * self.hop, sample_rate, N_BANDS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = _network(len(self.names))
        self._train(clips, torch.tensor([self.names.index(c) for c in classes]), n_steps, seed)

    def classify(self, clips: Sequence[np.ndarray]) -> list[str]:
        """The class of each clip."""
        with torch.inference_mode():
            features = torch.stack([self.spectrum(self._fitted(clip, 0)) for clip in clips])
            best = torch.cat([self.network(part).argmax(-1) for part in features.split(BATCH)])
        return [self.names[i] for i in best.tolist()]

    def spectrum(self, samples: Tensor) -> Tensor:
        """(T,) -> (bands, frames) logarithms of energy, that of silence about 0."""
        spectra = torch.stft(samples, 2 * self.hop, self.hop, window=self.window, center=False, return_complex=True)
        energies = self.bands.T @ (spectra.real.square() + spectra.imag.square())
        return (energies + FLOOR).log() - np.log(FLOOR)

    def _fitted(self, clip: np.ndarray, start: int) -> Tensor:
        """One second at the same loudness, the clip beginning after `start` samples."""
        samples = torch.from_numpy(np.asarray(clip, dtype=np.float32))[: self.length - start]
        samples = samples / samples.abs().max().clamp(min=1e-3)
        return F.pad(samples, (start, self.length - start - len(samples)))

    def _train(self, clips: Sequence[np.ndarray], classes: Tensor, n_steps: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        optimiser = torch.optim.AdamW(self.network.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=n_steps)
        self.network.train()
        for _ in range(n_steps):
            chosen = rng.integers(len(clips), size=min(BATCH, len(clips)))
            rows = []
            for i in chosen:
                room = max(self.length - len(clips[i]), 0)
                rows.append(self.spectrum(self._fitted(clips[i], int(rng.integers(room + 1)))))
            features = torch.stack(rows) + torch.from_numpy(rng.normal(0, 0.3, (len(rows), 1, 1))).float()
            loss = F.cross_entropy(self.network(features), classes[chosen], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        self.network.eval()


def _network(n_classes: int) -> nn.Module:
    """(B, bands, frames) -> (B, classes): three times a convolution and half the size, then means over time."""

    def block(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]

    convolutions = [*block(1, 12), *block(12, 24), *block(24, 48)]
    bands = N_BANDS // 8
    return nn.Sequential(
        nn.Unflatten(1, (1, N_BANDS)),
        *convolutions,
        nn.Dropout2d(0.1),
        nn.AdaptiveAvgPool2d((bands, 2)),
        nn.Flatten(),
        nn.Linear(48 * bands * 2, n_classes),
    )


# ------------------------------------------------------------------------------ what went wrong


def loudest(clip: np.ndarray, sample_rate: int) -> float:
    """Root mean square of the loudest 50 ms."""
    n = max(sample_rate // 20, 1)
    padded = np.pad(np.asarray(clip, dtype=np.float64), (0, -len(clip) % n))
    return float(np.sqrt((padded.reshape(-1, n) ** 2).mean(axis=1)).max(initial=0.0))


def flatness(clip: np.ndarray, sample_rate: int) -> float:
    """Spectral flatness of a clip's frames of 32 ms, weighted by their energy: near 0 for tones, 0.5 for white noise.

    The geometric mean of the power spectrum over its arithmetic mean (Gray and Markel, 1974).
    """
    n = max(round(sample_rate * 0.032), 4)
    padded = np.pad(np.asarray(clip, dtype=np.float64), (0, -len(clip) % n)).reshape(-1, n)
    power = np.abs(np.fft.rfft(padded * np.hanning(n), axis=1)) ** 2 + 1e-12
    flat = np.exp(np.log(power).mean(axis=1)) / power.mean(axis=1)
    energy = power.sum(axis=1)
    return float((flat * energy).sum() / energy.sum()) if len(clip) else 0.0

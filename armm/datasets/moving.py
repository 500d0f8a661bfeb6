"""Two digits that move straight on and bounce off the walls (after Srivastava et al., arXiv:1502.04681), made here."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from armm.datasets.files import existing, reader
from armm.datasets.folder import own_data
from armm.datasets.idx import find_idx, read_idx
from armm.datasets.images import IDX_FILES
from armm.datasets.source import Item, Items, OnError, Source, Splits
from armm.errors import InputError
from armm.modalities.video import Video
from armm.modality import Modality

FASTEST = 2  # pixels a frame, along each axis


@dataclass(frozen=True, eq=False)
class MovingItems(Items):
    """Clips of two digits.

    Attributes:
        video: the modality, which says how large and how long clips are.
        digits: (N, h, w) uint8 greys to take them from.
        n: how many clips. split: keeps the randomness of the splits apart.
        varies: whether every draw is another clip; otherwise a clip is a function of its number.
        stills: share of the clips that are a single frame.
    """

    video: Video
    digits: np.ndarray
    n: int
    split: int
    varies: bool = False
    stills: float = 0.0

    def __len__(self) -> int:
        return self.n

    def item(self, index: int, draw: int) -> Item:
        rng = np.random.default_rng([self.split, index, draw & 0xFFFFFFFF if self.varies else 0])
        n_frames = 1 if rng.random() < self.stills else self.video.max_frames
        chosen = self.digits[rng.integers(len(self.digits), size=2)]
        greys = bounce(chosen, self.video.size, n_frames, rng)
        return {self.video.name: self.video.quantise(greys)}


def bounce(digits: np.ndarray, size: tuple[int, int], n_frames: int, rng: np.random.Generator) -> np.ndarray:
    """(n, h, w) uint8 digits at chance places and speeds -> (T, H, W) uint8; where they meet the brighter shows."""
    frames = np.zeros((n_frames, *size), dtype=np.uint8)
    for digit in digits:
        height, width = digit.shape
        ys, xs = (
            _path(int(rng.integers(0, most + 1)), most, n_frames, rng) for most in (size[0] - height, size[1] - width)
        )
        for frame, y, x in zip(frames, ys, xs, strict=True):
            np.maximum(frame[y : y + height, x : x + width], digit, out=frame[y : y + height, x : x + width])
    return frames


def _path(start: int, most: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n,) places from 0 to `most`: straight on at one speed, and back from either end."""
    speed = int(rng.choice([s for s in range(-FASTEST, FASTEST + 1) if s]))
    if not most:
        return np.zeros(n, dtype=int)
    unfolded = (start + speed * np.arange(n)) % (2 * most)
    return np.where(unfolded > most, 2 * most - unfolded, unfolded)


@dataclass(frozen=True)
class MovingDigits(Source):
    """Two bouncing digits of MNIST at half size, 14×14; other digits in each split.

    MNIST's idx files are in the path or `data/mnist` under the current folder; where they are not and no path is given,
    scikit-learn's digits take their place, which is said. If the path has other files: your own clips.

    Args:
        n_train: training clips an epoch; every draw is another clip. n_val, n_test: clips that stay the same.
        stills: share of the training clips that are one frame, so that frames alone are known too.
    """

    n_train: int = 2000
    n_val: int = 50
    n_test: int = 100
    stills: float = 0.1

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        if min(self.n_train, self.n_val, self.n_test) < 1 or not 0 <= self.stills <= 1:
            raise InputError("data.source: n_train, n_val and n_test must be at least 1, stills a share from 0 to 1")
        name, video = reader(modalities, ".gif")
        if not isinstance(video, Video):
            raise InputError(f"{name}: moving digits need the modality armm.Video, not {type(video).__name__}")
        folder = Path("data/mnist") if path is None else existing(path)
        found = [find_idx([folder, folder / "raw"], IDX_FILES[i]) for i in (0, 2)] if folder.is_dir() else [None, None]
        if found[0] and found[1]:
            train, test = (_halved(read_idx(file, 3)) for file in found if file)
        elif path is not None:
            return own_data("MNIST's idx files", modalities, path, on_error)
        else:
            print(f"{folder.resolve()}: has no MNIST, so scikit-learn's digits take its place", file=sys.stderr)
            train, test = _small_digits()
        if train.shape[1] > video.size[0] or train.shape[2] > video.size[1]:
            raise InputError(
                f"{name}.size is {list(video.size)}, digits are {train.shape[1]}x{train.shape[2]}; set it larger"
            )
        n_held = max(len(train) // 12, 1)
        return Splits(
            MovingItems(video, train[:-n_held], self.n_train, 0, varies=True, stills=self.stills),
            MovingItems(video, train[-n_held:], self.n_val, 1),
            MovingItems(video, test, self.n_test, 2),
        )


def _halved(images: np.ndarray) -> np.ndarray:
    """(N, h, w) -> (N, h / 2, w / 2), each pixel the mean of four."""
    n, height, width = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    return np.rint(even.reshape(n, height // 2, 2, width // 2, 2).mean(axis=(2, 4))).astype(np.uint8)


def _small_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits, the last 297 apart, 8×8 pixels of 17 levels as greys."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(f"the digits come with scikit-learn ({error}); pip install armm[datasets]") from error
    pixels, _ = load_digits(return_X_y=True)
    greys = np.rint(np.asarray(pixels) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    return greys[:-297], greys[-297:]

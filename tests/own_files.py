"""Small files as a user would have them: texts, pictures in two folders, clips; and what a folder holds."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

TEXT = "the cat sat on the mat, and that was that; the other cat sat on the other mat\n" * 40
SMALL_BACKBONE = "--model.backbone.init_args.width=16", "--model.backbone.init_args.n_layers=1"

Run = Callable[..., str]


def png_bytes(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def wav_bytes(n: int, rate: int = 8000, tone: float = 0.05) -> bytes:
    samples = (20000 * np.sin(np.arange(n) * tone)).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def digit(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    """An 8-bit picture of the 17 levels that the digits recipe has."""
    levels = np.random.default_rng(seed).integers(0, 17, (height, width))
    return np.rint(levels * 255 / 16).astype(np.uint8)


def write_texts(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "one.txt").write_text(TEXT, encoding="utf-8")
    (folder / "two.txt").write_text(TEXT.upper() + TEXT, encoding="utf-8")
    return folder


def write_images(folder: Path) -> Path:
    """Two classes, by sub-folder."""
    for number in range(8):
        place = folder / ("cats" if number % 2 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(png_bytes(digit(number)))
    return folder


def write_clips(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(5):
        (folder / f"{number}.wav").write_bytes(wav_bytes(300 + 150 * number, tone=0.02 * (1 + number)))
    return folder


def everything_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}

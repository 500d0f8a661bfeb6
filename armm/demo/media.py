"""Pictures and sounds as `data:` addresses, and the spectrogram of a sound."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import torch

from armm.errors import InputError

WINDOW_SECONDS, HOP_SECONDS = 0.032, 0.004
RANGE_DB = 70.0  # below the loudest, what is still told from silence
# dark to bright, evenly lighter, so that it also reads in grey
COLOURS = np.array(
    [(9, 8, 32), (52, 19, 92), (118, 28, 109), (186, 54, 85), (237, 105, 37), (251, 179, 41), (252, 248, 190)]
)


def data_uri(content: bytes, kind: str) -> str:
    """`data:image/png;base64,...`"""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture_uri(pixels: np.ndarray) -> str:
    """(H, W) or (H, W, 3) uint8 as a PNG."""
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(f"the report needs pillow ({error}); pip install armm[demo]") from error
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return data_uri(file.getvalue(), "image/png")


def sound_uri(path: Path) -> str:
    """A WAV file."""
    return data_uri(path.read_bytes(), "audio/wav")


def spectrogram(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """(F, T, 3) uint8: low frequencies at the bottom, time to the right, decibels as colours.

    Args:
        waveform: (T',) in [-1, 1].
        sample_rate: in Hz.
    """
    size, hop = round(WINDOW_SECONDS * sample_rate), max(round(HOP_SECONDS * sample_rate), 1)
    sound = torch.from_numpy(waveform.astype(np.float32))
    sound = torch.nn.functional.pad(sound, (0, max(size - len(sound), 0)))
    window = torch.hann_window(size)
    spectrum = (
        torch.stft(sound, size, hop, window=window, pad_mode="constant", return_complex=True).abs() / window.sum()
    )
    decibels = 20 * torch.log10(spectrum.clamp(min=1e-6))
    loudness = ((decibels - decibels.max()) / RANGE_DB + 1).clamp(0, 1).flip(0).numpy()
    stops = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(loudness, stops, COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)

"""Waveforms as mu-law codes, by the continuous formula of WaveNet (arXiv:1609.03499, 2.2).

G.711 is piecewise linear, so its bytes differ.

`f(x) = sign(x) ln(1 + mu |x|) / ln(1 + mu)` with `mu = levels - 1`, and a code is `f` from [-1, 1] scaled to
[0, levels - 1] and rounded. A unit is a frame of consecutive samples; the last one of a clip may be partial.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import log
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from armm.embedders import SpectrumEmbedder, UnitEmbedder
from armm.errors import InputError
from armm.heads import HeadConfig, Unit
from armm.modalities.reading import one_line, read_bytes
from armm.modalities.units import ragged_segment
from armm.modality import Modality, Preview
from armm.sequence import Segment

SYMBOL_WIDTH = 16
# the resampling filter has this many taps, more or less
MAX_RATE_TERMS = 2**24


@dataclass(frozen=True)
class Audio(Modality):
    """Mono clips of any length: (T,) float32 samples in [-1, 1] at `sample_rate`.

    Attributes:
        sample_rate: in Hz; files of another rate are resampled.
        frame: samples that the backbone sees as one position.
        levels: mu-law codes, 2 to 256.
        max_units: the longest clip, in frames; null for any length.
        normalise: `peak` scales every clip to a largest sample of 1. The gain is not coded: the bits are those of
            the scaled clip. `none` leaves clips as they are.
        heard_as: what the backbone is told of a frame: its `samples`, or its `spectrum` on the mel scale, for sound
            that is understood rather than made.
        head: the head; by default the causal convolution block.
        name: its name in a model.
    """

    sample_rate: int = 8000
    frame: int = 64
    levels: int = 256
    max_units: int | None = None
    normalise: Literal["none", "peak"] = "none"
    heard_as: Literal["samples", "spectrum"] = "samples"
    head: HeadConfig | None = None
    name: str = "audio"

    ended = True
    bits_per = "sample"
    nats_per = "sample"
    suffix: ClassVar[str] = ".wav"
    suffixes: ClassVar[tuple[str, ...]] = (".wav", ".flac", ".ogg", ".oga", ".opus")

    def __post_init__(self) -> None:
        for key, least in (("sample_rate", 1), ("frame", 1), ("max_units", 1)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise InputError(f"{self.name}.{key} is {value}; expected {least} or more")
        if not 2 <= self.levels <= 256:
            raise InputError(f"{self.name}.levels is {self.levels}; expected 2 to 256")
        if self.normalise not in ("none", "peak"):
            raise InputError(f"{self.name}.normalise is {self.normalise!r}; expected none or peak")
        if self.heard_as not in ("samples", "spectrum"):
            raise InputError(f"{self.name}.heard_as is {self.heard_as!r}; expected samples or spectrum")

    @property
    def vocab(self) -> int:
        return self.levels

    @property
    def unit_symbols(self) -> int:
        return self.frame

    @property
    def unit(self) -> Unit:
        return Unit(vocab=self.levels, symbols=self.frame, continuous=True, values=self._values())

    def build_embedder(self, width: int) -> nn.Module:
        """Of the samples' codes, companded values and amplitudes, or of their spectrum."""
        if self.heard_as == "spectrum":
            return SpectrumEmbedder(self._values()[:, 1], self.frame, self.sample_rate, width)
        return UnitEmbedder(self.levels, self.frame, width, SYMBOL_WIDTH, self._values())

    # ------------------------------------------------------------------ data

    def encode(self, raw: np.ndarray) -> Segment:
        """A clip as mu-law codes, off by at most `mu_law_error`.

        Raises InputError: not such an array, empty, too long, not finite, or beyond [-1, 1].
        """
        if not isinstance(raw, np.ndarray) or raw.dtype not in (np.float32, np.float64):
            found = f"{raw.dtype} array" if isinstance(raw, np.ndarray) else type(raw).__name__
            raise InputError(
                f"{self.name}: expected a float32 NumPy array of samples in [-1, 1], got a {found}; convert it"
            )
        if raw.ndim != 1:
            raise InputError(
                f"{self.name}: the array is {raw.shape}, expected (T,) samples; average its channels first"
            )
        waveform = self._level(raw, self.name)
        n_units = -(-len(waveform) // self.frame)
        if self.max_units is not None and n_units > self.max_units:
            longest = self.max_units * self.frame / self.sample_rate
            raise InputError(
                f"{self.name}: the clip lasts {len(waveform) / self.sample_rate:.4g} s ({n_units} frames), at most "
                f"{longest:.4g} s ({self.max_units} frames) are allowed; cut it or raise {self.name}.max_units"
            )
        return ragged_segment(self.name, torch.from_numpy(mu_law_encode(waveform, self.levels)), self.frame)

    def decode(self, segment: Segment) -> np.ndarray:
        """(T,) float32 amplitudes of the codes."""
        return mu_law_decode(segment.flat().numpy(), self.levels)

    def decode_part(self, segment: Segment, n_done: int) -> tuple[np.ndarray | None, int]:
        """(T,) amplitudes of the new samples."""
        if segment.length <= n_done:
            return None, n_done
        return mu_law_decode(segment.flat()[n_done:].numpy(), self.levels), segment.length

    def load(self, path: Path) -> np.ndarray:
        """Read WAV, FLAC or OGG by its content: channels averaged, resampled, normalised where the recipe says so.

        What lossy compression or resampling pushes beyond [-1, 1] is clipped; samples of a float WAV that lie there are
        refused, because they were never clipped before.

        Raises InputError: damaged or cut short, not audio, without samples, not finite, or beyond [-1, 1].
        """
        content = read_bytes(path)
        waveform, rate, as_stored = _read_waveform(content, path)
        if not as_stored:
            waveform = waveform.clip(-1, 1)
        waveform = self._level(waveform.mean(axis=1), str(path))
        if rate != self.sample_rate:
            waveform = _resample(waveform, rate, self.sample_rate, path).clip(-1, 1)
            if not waveform.size:
                raise InputError(f"{path} is shorter than one sample at {self.sample_rate} Hz; remove it")
            waveform = self._level(waveform, str(path))
        return waveform.astype(np.float32)

    def save(self, raw: np.ndarray, path: Path) -> None:
        """Write a WAV of 16-bit samples."""
        _soundfile().write(str(path), raw, self.sample_rate, format="WAV", subtype="PCM_16")

    @property
    def sound_rate(self) -> int:
        return self.sample_rate

    def pcm(self, raw: np.ndarray) -> bytes:
        """What `save` writes, without a header."""
        file = io.BytesIO()
        _soundfile().write(file, raw, self.sample_rate, format="RAW", subtype="PCM_16", endian="LITTLE")
        return file.getvalue()

    def preview(self, raws: Sequence[np.ndarray]) -> Preview:
        """The clips one after another, with a quarter of a second of silence between them."""
        silence = np.zeros(self.sample_rate // 4, dtype=np.float32)
        pieces = [piece for raw in raws for piece in (raw, silence)]
        return Preview("audio", np.concatenate(pieces[:-1]).astype(np.float32), self.sample_rate)

    # ---------------------------------------------------------------- private

    def _values(self) -> torch.Tensor:
        """(V, 2) of every code: its place on the companded scale, and its amplitude."""
        codes = np.arange(self.levels)
        companded = 2 * codes / (self.levels - 1) - 1
        return torch.from_numpy(np.stack([companded, mu_law_decode(codes, self.levels)], axis=1)).float()

    def _level(self, waveform: np.ndarray, what: str) -> np.ndarray:
        """(T,) samples in [-1, 1], scaled to the peak if the recipe wants that."""
        if not waveform.size:
            raise InputError(f"{what} holds no samples, expected at least one; remove it")
        if not np.isfinite(waveform).all():
            at = int(np.flatnonzero(~np.isfinite(waveform))[0])
            raise InputError(
                f"{what} has the sample {waveform[at]} at {at}, expected finite numbers; repair or remove it"
            )
        peak = float(np.abs(waveform).max())
        if self.normalise == "peak":
            return waveform / peak if peak > 0 else waveform
        if peak > 1:
            raise InputError(
                f"{what} peaks at {peak:.4g}, expected samples in [-1, 1]; divide it by its peak, or set "
                f"{self.name}.normalise: peak"
            )
        return waveform


# -------------------------------------------------------------------- mu-law


def mu_law_encode(waveform: np.ndarray, levels: int) -> np.ndarray:
    """Samples in [-1, 1] as int64 codes in [0, levels). Silence is code 128 of 256: halves round up."""
    mu = levels - 1
    amplitude = waveform.astype(np.float64)
    companded = np.sign(amplitude) * np.log1p(mu * np.abs(amplitude)) / log(levels)
    return np.floor((companded + 1) / 2 * mu + 0.5).astype(np.int64)


def mu_law_decode(codes: np.ndarray, levels: int) -> np.ndarray:
    """Codes as float32 amplitudes; `mu_law_encode` takes them back exactly."""
    mu = levels - 1
    companded = 2 * codes.astype(np.float64) / mu - 1
    return (np.sign(companded) * np.expm1(np.abs(companded) * log(levels)) / mu).astype(np.float32)


def mu_law_error(waveform: np.ndarray, levels: int) -> np.ndarray:
    """How far the decoded code of a sample may be from it: half a step times the steepest slope within that half step.

    At 256 levels 0.00009 near silence and 0.022 at full scale.
    """
    mu = levels - 1
    return (1 + mu * np.abs(waveform)) * levels ** (1 / mu) * log(levels) / mu**2


# --------------------------------------------------------------------- files


def _read_waveform(content: bytes, path: Path) -> tuple[np.ndarray, int, bool]:
    """(T, channels) float32 samples, their rate in Hz, and whether they are the very ones that were stored."""
    kind = content[:4]
    if kind not in (b"RIFF", b"RIFX", b"fLaC", b"OggS"):
        raise InputError(f"{path} is not a WAV, FLAC or OGG file, whatever its name says; convert it to one")
    if kind in (b"RIFF", b"RIFX"):
        _check_riff(content, path)
    if kind == b"OggS":
        _check_ogg(content, path)
    soundfile = _soundfile()
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            n_promised, rate = file.frames, file.samplerate
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, ValueError, OSError) as error:
        reason = one_line(error).rpartition(">: ")[2]  # without the address of the buffer
        raise InputError(f"{path} is damaged or cut short: {reason}; fetch or save it again") from error
    if len(samples) < n_promised:
        raise InputError(
            f"{path} is damaged or cut short: {len(samples)} of {n_promised} samples are readable; fetch it again"
        )
    return samples, rate, kind != b"OggS"


def _check_riff(content: bytes, path: Path) -> None:
    """Refuse a WAV whose chunks are longer than the file; libsndfile reads what is there without a word."""
    order = "<" if content.startswith(b"RIFF") else ">"
    offset = 12
    while offset + 8 <= len(content):
        name, size = content[offset : offset + 4], struct.unpack_from(f"{order}I", content, offset + 4)[0]
        found = len(content) - offset - 8
        if size > found:
            chunk = name.decode("ascii", "replace").strip()
            raise InputError(
                f"{path} is cut short: its header promises {size} bytes of {chunk!r}, the file has {found}; fetch or "
                "save it again"
            )
        offset += 8 + size + size % 2


def _check_ogg(content: bytes, path: Path) -> None:
    """Refuse an OGG whose last page is not there or not the end; libsndfile reads what comes before (RFC 3533, 6)."""
    offset, is_end = 0, False
    while content[offset : offset + 4] == b"OggS" and offset + 27 <= len(content):
        is_end = bool(content[offset + 5] & 4)
        lengths = content[offset + 27 : offset + 27 + content[offset + 26]]
        offset += 27 + content[offset + 26] + sum(lengths)
    if offset > len(content) or not is_end:
        raise InputError(f"{path} is damaged or cut short: its last page is missing; fetch or save it again")


def _resample(waveform: np.ndarray, rate: int, wanted: int, path: Path) -> np.ndarray:
    """(T,) at one rate to (T',) at another, by a windowed sinc."""
    ratio = Fraction(rate, wanted)
    if ratio.numerator * ratio.denominator > MAX_RATE_TERMS:
        raise InputError(
            f"{path} has {rate} Hz, which is no simple multiple of {wanted} Hz; resample it to a usual rate first"
        )
    try:
        from torchaudio.functional import resample
    except (ImportError, OSError) as error:  # OSError: built for another torch
        raise InputError(
            f"{path} has {rate} Hz, expected {wanted} Hz, and resampling needs torchaudio ({one_line(error)}); "
            "pip install armm[audio]"
        ) from error
    return resample(torch.from_numpy(waveform.astype(np.float32)), rate, wanted).numpy()


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: libsndfile is missing
        raise InputError(
            f"audio files need the soundfile package ({one_line(error)}); pip install armm[audio]"
        ) from error
    return soundfile

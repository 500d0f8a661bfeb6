"""Notes and sung vowels from numpy alone: the built-in audio of this project.

Notes are sums of partials with their own decays (additive synthesis). Vowels are made as a voice makes them (Fant,
Acoustic Theory of Speech Production, 1960): the pulses of the glottis (Rosenberg, JASA 49, 1971) with vibrato, and a
little breath, go through resonators at the formants of a, e, i, o, u (after Peterson & Barney, JASA 24, 1952).

A clip is a pure function of its number, the sample rate and a seed. Listen to some: `python data/synth.py --out DIR`.
"""

from __future__ import annotations

import argparse
import sys
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SCALE = (0, 2, 4, 7, 9)  # major pentatonic: any two notes go together
HIGHEST = 0.46  # of the sample rate: what partials must stay below, so that none is folded back
RELEASE_SECONDS = 0.04


@dataclass(frozen=True)
class Instrument:
    """A recipe of partials.

    Attributes:
        octaves: of its lowest and highest note, in octaves above C2 (65.4 Hz).
        ratios: frequency of each partial in fundamentals.
        amplitudes: of each partial.
        attack: seconds until a note is loud.
        decay: per second, of the fundamental; 0 for a tone that is held.
        damping: how much faster each higher partial decays, in decays of the fundamental per ratio.
        vibrato: depth in semitones.
        breath: noise in it, relative.
    """

    octaves: tuple[float, float]
    ratios: np.ndarray
    amplitudes: np.ndarray
    attack: float
    decay: float = 0.0
    damping: float = 0.0
    vibrato: float = 0.0
    breath: float = 0.0


def _harmonics(n: int, slope: float, even: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """The first `n` harmonics, falling as `k ** -slope`, the even ones weakened."""
    k = np.arange(1, n + 1)
    return k.astype(float), k**-slope * np.where(k % 2, 1.0, even)


BELL_RATIOS = np.array(
    [0.5, 1.0, 1.19, 1.5, 2.0, 2.51, 3.01, 4.17]
)  # hum, prime, minor third, fifth, ... of a church bell
BELL_AMPLITUDES = np.array([0.5, 1.0, 0.8, 0.4, 0.9, 0.4, 0.3, 0.2])
ORGAN_RATIOS = np.array([0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0])  # drawbars
ORGAN_AMPLITUDES = np.array([0.5, 1.0, 0.4, 0.6, 0.3, 0.3, 0.15, 0.15])

INSTRUMENTS = {
    "flute": Instrument((2.0, 3.6), *_harmonics(6, 2.2), attack=0.06, vibrato=0.25, breath=0.02),
    "clarinet": Instrument((1.0, 2.6), *_harmonics(15, 1.0, even=0.08), attack=0.03, breath=0.004),
    "organ": Instrument((1.0, 3.0), ORGAN_RATIOS, ORGAN_AMPLITUDES, attack=0.01),
    "brass": Instrument((0.8, 2.2), *_harmonics(20, 0.7), attack=0.08, damping=-1.0, vibrato=0.1, breath=0.004),
    "string": Instrument((0.6, 2.6), *_harmonics(24, 1.1), attack=0.003, decay=2.0, damping=0.35),
    "bell": Instrument((2.0, 3.4), BELL_RATIOS, BELL_AMPLITUDES, attack=0.002, decay=1.5, damping=0.8),
}

# formants in Hz and their bandwidths, of a man's voice
VOWELS = {
    "a": ((730, 1090, 2440, 3400), (80, 90, 120, 160)),
    "e": ((480, 1900, 2500, 3400), (60, 90, 120, 160)),
    "i": ((290, 2250, 3000, 3500), (50, 90, 120, 160)),
    "o": ((480, 850, 2410, 3300), (60, 80, 120, 160)),
    "u": ((310, 870, 2240, 3300), (50, 80, 120, 160)),
}
# of bass, tenor, alto and soprano: the lowest note in octaves above C2, and the formants relative to a man's
VOICES = ((0.3, 0.95), (0.9, 1.0), (1.6, 1.12), (2.0, 1.18))

LABELS = (*INSTRUMENTS, *VOWELS)


def make_clip(index: int, sample_rate: int, seed: int = 0) -> tuple[str, np.ndarray]:
    """One clip.

    Args:
        index: its number; kinds take turns, so any few dozen in a row have them all.
        sample_rate: in Hz.
        seed: 0 or more.

    Returns: the instrument or vowel, and (T,) float32 samples, half a second to a second, of peak 0.4 to 0.9.
    """
    label = LABELS[index % len(LABELS)]
    rng = np.random.default_rng((seed, index))
    n_samples = round(rng.uniform(0.5, 1.0) * sample_rate)
    make = _play if label in INSTRUMENTS else _sing
    waveform = make(label, n_samples, sample_rate, rng)
    waveform *= rng.uniform(0.4, 0.9) / np.abs(waveform).max()
    return label, waveform.astype(np.float32)


def _play(label: str, n_samples: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """One to three notes after each other; what still sounds of one goes on under the next."""
    instrument = INSTRUMENTS[label]
    n_notes = int(rng.integers(1, 4))
    waveform = np.zeros(n_samples)
    for note in range(n_notes):
        start = n_samples * note // n_notes
        last_for = n_samples - start if instrument.decay else n_samples // n_notes
        frequency = _note(*instrument.octaves, rng)
        seconds = np.arange(min(last_for, n_samples - start)) / sample_rate
        waveform[start : start + len(seconds)] += _tone(instrument, frequency, seconds, sample_rate, rng)
    return waveform


def _tone(
    instrument: Instrument, frequency: float, seconds: np.ndarray, sample_rate: int, rng: np.random.Generator
) -> np.ndarray:
    cycles, top = _cycles(frequency, instrument.vibrato, seconds, sample_rate, rng)
    tone = np.zeros(len(seconds))
    swell = np.minimum(1, seconds / instrument.attack)
    for ratio, amplitude in zip(instrument.ratios, instrument.amplitudes, strict=True):
        if ratio * top > HIGHEST * sample_rate:
            continue
        if instrument.damping < 0:  # brass: a note gets brighter as it gets louder
            partial = swell ** (1 - instrument.damping * (ratio - 1) * 0.3)
        else:
            partial = np.exp(-instrument.decay * (1 + instrument.damping * (ratio - 1)) * seconds) * swell
        tone += amplitude * partial * np.sin(2 * np.pi * ratio * cycles)
    tone += instrument.breath * swell * _breath(len(seconds), rng)
    return tone * _release(seconds)


def _sing(label: str, n_samples: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """One vowel on one note, or gliding to a second half-way."""
    lowest, tract = VOICES[rng.integers(len(VOICES))]
    seconds = np.arange(n_samples) / sample_rate
    first, second = (_note(lowest, lowest + 1.0, rng) for _ in range(2))
    glide = 1 / (1 + np.exp(-(seconds - seconds[-1] / 2) / 0.02)) if rng.random() < 0.5 else np.zeros(n_samples)
    frequency = first * (second / first) ** glide
    cycles, top = _cycles(frequency, 0.4, seconds, sample_rate, rng)
    source = _glottis(cycles, int(HIGHEST * sample_rate / top)) + 0.01 * _breath(n_samples, rng)
    source *= np.minimum(1, seconds / 0.05)
    formants, bandwidths = VOWELS[label]
    sung = _resonate(source, [tract * formant for formant in formants], bandwidths, sample_rate)
    return sung * _release(seconds)


def _breath(n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Noise, from a stream of its own: what is played next must not depend on the sample rate."""
    return rng.spawn(1)[0].standard_normal(n_samples)


def _note(lowest: float, highest: float, rng: np.random.Generator) -> float:
    """A note of the scale, in Hz, from `lowest` to below `highest` octaves above C2."""
    notes = [
        octave + step / 12
        for octave in range(5)
        for step in SCALE
        if lowest <= octave + step / 12 < max(highest, lowest)
    ]
    return 440 * 2 ** (notes[rng.integers(len(notes))] - 33 / 12)  # C2 is 33 semitones below A4


def _cycles(
    frequency: float | np.ndarray, vibrato: float, seconds: np.ndarray, sample_rate: int, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """How many cycles the fundamental has made at each sample, and its highest frequency in Hz.

    Vibrato of 5 to 6 Hz sets in after a fifth of a second.
    """
    rate, phase = rng.uniform(5.0, 6.0), rng.uniform(0, 2 * np.pi)
    depth = vibrato * np.clip((seconds - 0.15) / 0.2, 0, 1)
    bent = frequency * 2 ** (depth * np.sin(2 * np.pi * rate * seconds + phase) / 12)
    return np.cumsum(bent) / sample_rate, float(bent.max())


def _glottis(cycles: np.ndarray, n_harmonics: int) -> np.ndarray:
    """The derivative of the flow through the glottis as the sum of its first harmonics.

    Rosenberg's pulse opens as half a cosine for 40 % of a cycle and shuts as a quarter for 16 %. Summing its harmonics
    instead of sampling its corner keeps the sound free of aliases at any sample rate.
    """
    n_points = 2048
    place = np.arange(n_points) / n_points
    opening, closing = 0.40, 0.16
    flow = np.where(place < opening, (1 - np.cos(np.pi * place / opening)) / 2, 0)
    shutting = (place >= opening) & (place < opening + closing)
    flow = np.where(shutting, np.cos(np.pi / 2 * (place - opening) / closing), flow)
    n = min(n_harmonics, n_points // 4)
    k = np.arange(1, n + 1)
    derivative = np.fft.rfft(flow)[1 : n + 1] / n_points * 2j * np.pi * k
    turn = np.exp(2j * np.pi * cycles)
    wave_k, total = np.ones(len(cycles), dtype=complex), np.zeros(len(cycles))
    for coefficient in derivative:
        wave_k = wave_k * turn
        total += 2 * (coefficient * wave_k).real
    return total / np.abs(derivative).max()


def _resonate(source: np.ndarray, formants: list[float], bandwidths: tuple[int, ...], sample_rate: int) -> np.ndarray:
    """The source through a chain of resonators, as a product of spectra."""
    n_padded = len(source) + sample_rate // 10  # rings out in less, so that the end does not come round to the start
    s = 2j * np.pi * np.fft.rfftfreq(n_padded, 1 / sample_rate)
    response = np.ones(len(s), dtype=complex)
    for formant, bandwidth in zip(formants, bandwidths, strict=True):
        pole = np.pi * bandwidth
        squared = (2 * np.pi * formant) ** 2 + pole**2
        response *= squared / (s**2 + 2 * pole * s + squared)
    return np.fft.irfft(np.fft.rfft(source, n_padded) * response, n_padded)[: len(source)]


def _release(seconds: np.ndarray) -> np.ndarray:
    """Down to nothing at the end, without a click."""
    left = (seconds[-1] - seconds) / RELEASE_SECONDS
    return np.where(left < 1, (1 - np.cos(np.pi * np.minimum(1, left))) / 2, 1)


def write_wav(path: Path, waveform: np.ndarray, sample_rate: int) -> None:
    """(T,) samples in [-1, 1] as a 16-bit mono WAV."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(np.rint(waveform * 32767).astype("<i2").tobytes())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the built-in notes and sung vowels as WAV files.")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to; it is made if need be")
    parser.add_argument("--n", type=int, default=22, help="how many clips (default: 22, two of each kind)")
    parser.add_argument("--sample-rate", type=int, default=16000, help="in Hz (default: 16000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other clips (default: 0)")
    options = parser.parse_args(arguments)
    for key, least in (("n", 1), ("sample_rate", 1000), ("seed", 0)):
        if getattr(options, key) < least:
            parser.error(f"--{key.replace('_', '-')} is {getattr(options, key)}, it must be at least {least}")
    options.out.mkdir(parents=True, exist_ok=True)
    for index in range(options.n):
        label, waveform = make_clip(index, options.sample_rate, options.seed)
        write_wav(options.out / f"{index:03d}_{label}.wav", waveform, options.sample_rate)
    print(f"{options.n} clips in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

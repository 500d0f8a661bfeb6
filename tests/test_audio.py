"""Audio: mu-law codes, ragged clips, and sound files of every kind, damaged ones too."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from armm.errors import InputError
from armm.modalities import Audio
from armm.modalities.audio import mu_law_decode, mu_law_encode, mu_law_error

AUDIO = Audio(frame=32)


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """An InputError of one line that says all of these."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def tone(n_samples: int = 800, hertz: float = 440, sample_rate: int = 8000, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(n_samples) / sample_rate)).astype(np.float32)


def as_file(samples: np.ndarray, sample_rate: int = 8000, format: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sample_rate, format=format, subtype=subtype)
    return buffer.getvalue()


def load(audio: Audio, content: bytes, tmp_path: Path, name: str = "a.wav") -> np.ndarray:
    (tmp_path / name).write_bytes(content)
    return audio.load(tmp_path / name)


# --------------------------------------------------------------------- mu-law


def test_every_code_round_trips_at_every_number_of_levels() -> None:
    for levels in range(2, 257):
        codes = np.arange(levels)
        amplitudes = mu_law_decode(codes, levels)
        assert amplitudes.dtype == np.float32
        assert amplitudes[0] == -1 and amplitudes[-1] == 1
        assert (np.diff(amplitudes) > 0).all()
        np.testing.assert_array_equal(mu_law_encode(amplitudes, levels), codes)


def test_silence_is_the_upper_middle_code() -> None:
    assert mu_law_encode(np.zeros(1), 256).tolist() == [128]
    assert [int(mu_law_encode(np.zeros(1), levels)[0]) for levels in (2, 4, 6, 17)] == [1, 2, 3, 8]


def test_codes_are_those_of_torchaudio() -> None:
    """The reference, at its own single precision: a code may differ only where that puts it across a border."""
    functional = pytest.importorskip("torchaudio.functional")
    waveform = np.linspace(-1, 1, 20_001, dtype=np.float32)
    theirs = functional.mu_law_encoding(torch.from_numpy(waveform), 256).numpy()
    ours = mu_law_encode(waveform, 256)
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() < 1e-3


def test_the_error_stays_within_the_stated_bound() -> None:
    waveform = np.concatenate([np.linspace(-1, 1, 50_001), np.linspace(-0.001, 0.001, 10_001)])
    for levels in (2, 16, 255, 256):
        error = np.abs(mu_law_decode(mu_law_encode(waveform, levels), levels) - waveform)
        bound = mu_law_error(waveform, levels)
        assert (error <= bound + 1e-7).all()
        assert levels < 100 or (error > 0.9 * bound).any(), "the bound is not tight"
    assert mu_law_error(np.array([0.0, 1.0]), 256) == pytest.approx([0.0000872, 0.0223], rel=0.01)


# -------------------------------------------------------------- clips, frames


@pytest.mark.parametrize("n_samples", [1, 31, 32, 33, 800])
def test_clips_of_any_length_round_trip(n_samples: int) -> None:
    raw = tone(n_samples)
    segment = AUDIO.encode(raw)
    assert segment.symbols.shape == (-(-n_samples // 32), 32)
    assert (segment.length, AUDIO.n_bits_per(segment)) == (n_samples, n_samples)
    decoded = AUDIO.decode(segment)
    assert decoded.dtype == np.float32 and decoded.shape == (n_samples,)
    assert (np.abs(decoded - raw) <= mu_law_error(raw, 256) + 1e-7).all()
    assert AUDIO.encode(decoded).symbols.equal(segment.symbols), "decoding and encoding again changes no code"


def test_length_is_coded() -> None:
    assert AUDIO.ended
    assert AUDIO.n_units(()) is None
    assert AUDIO.header_sizes == ()


def test_a_prompt_is_the_beginning_of_the_clip() -> None:
    raw = tone(100)
    whole, start = AUDIO.encode(raw), AUDIO.encode_prompt(raw[:50])
    assert start.flat().equal(whole.flat()[:50])


def test_the_head_is_told_what_codes_mean() -> None:
    unit = Audio(levels=5, frame=16).unit
    assert (unit.vocab, unit.symbols, unit.continuous, unit.block) == (5, 16, True, None)
    assert unit.values is not None
    assert unit.values[:, 0].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert unit.values[:, 1].tolist() == pytest.approx(mu_law_decode(np.arange(5), 5).tolist())
    assert unit.values[3, 1] == pytest.approx((5**0.5 - 1) / 4)


def test_embedder_and_head_fit_the_frames() -> None:
    audio = Audio(frame=8, levels=16)
    segment = audio.encode(tone(40))
    n_units = segment.n_units
    header = torch.zeros(n_units, 0, dtype=torch.int64)
    vectors = audio.build_embedder(16)(segment.symbols, torch.arange(n_units), header)
    assert vectors.shape == (n_units, 16)
    symbols = segment.symbols[None]
    known = torch.ones_like(symbols, dtype=torch.bool)
    log_prob = audio.build_head(16).log_prob(vectors[None], symbols, known, header[:1])
    assert log_prob.shape == symbols.shape
    assert (log_prob < 0).all()


def test_peak_normalisation_scales_to_one_and_leaves_silence_alone() -> None:
    audio = Audio(normalise="peak")
    for amplitude in (0.01, 0.5, 3.0):
        decoded = audio.decode(audio.encode(tone(amplitude=amplitude)))
        assert np.abs(decoded).max() == 1
    assert (audio.encode(np.zeros(10, dtype=np.float32)).flat() == 128).all()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (tone(10).tolist(), ("list", "float32")),
        (np.zeros(10, dtype=np.int16), ("int16", "float32")),
        (np.zeros((10, 2), dtype=np.float32), ("(10, 2)", "(T,)")),
        (np.zeros(0, dtype=np.float32), ("no samples",)),
        (np.array([0, np.nan], dtype=np.float32), ("nan at 1", "finite")),
        (np.array([-np.inf], dtype=np.float32), ("-inf at 0",)),
        (np.array([0, -1.25], dtype=np.float32), ("peaks at 1.25", "[-1, 1]", "normalise: peak")),
    ],
)
def test_arrays_that_are_no_waveform_are_refused(raw: Any, words: tuple[str, ...]) -> None:
    with refused("audio", *words):
        AUDIO.encode(raw)


def test_clips_that_are_too_long_are_refused_in_seconds() -> None:
    audio = Audio(frame=32, max_units=10)
    assert audio.encode(tone(320)).n_units == 10
    with refused("0.1 s (25 frames)", "at most 0.04 s (10 frames)", "audio.max_units"):
        audio.encode(tone(800))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"sample_rate": 0}, ("sample_rate", "0")),
        ({"frame": 0}, ("frame", "0")),
        ({"levels": 1}, ("levels", "2 to 256")),
        ({"levels": 512}, ("levels", "512")),
        ({"max_units": 0}, ("max_units", "0")),
        ({"normalise": "loud"}, ("normalise", "'loud'")),
    ],
)
def test_keys_that_make_no_sense_are_refused(keys: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(*words):
        Audio(**keys)


# ---------------------------------------------------------------- sound files


def test_saved_clips_load_within_sixteen_bits(tmp_path: Path) -> None:
    raw = tone()
    AUDIO.save(raw, tmp_path / "a.wav")
    info = soundfile.info(tmp_path / "a.wav")
    assert (info.format, info.subtype, info.samplerate, info.channels) == ("WAV", "PCM_16", 8000, 1)
    assert np.abs(AUDIO.load(tmp_path / "a.wav") - raw).max() <= 2**-15


@pytest.mark.parametrize(
    ("format", "subtype", "error"),
    [
        ("WAV", "PCM_U8", 2**-7),
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "PCM_24", 2**-23),
        ("WAV", "PCM_32", 2**-23),
        ("WAV", "FLOAT", 0),
        ("WAV", "DOUBLE", 0),
        ("FLAC", "PCM_16", 2**-15),
        ("FLAC", "PCM_24", 2**-23),
        ("OGG", "VORBIS", 0.1),
    ],
)
def test_every_kind_of_file_loads(format: str, subtype: str, error: float, tmp_path: Path) -> None:
    raw = tone(8000)
    found = load(AUDIO, as_file(raw, format=format, subtype=subtype), tmp_path, "named.wav")
    assert found.dtype == np.float32 and found.shape == raw.shape
    assert np.abs(found - raw).max() <= error


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = tone(hertz=440), tone(hertz=660)
    found = load(AUDIO, as_file(np.stack([left, right], axis=1), subtype="FLOAT"), tmp_path)
    np.testing.assert_allclose(found, (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [4000, 11025, 16000, 22050, 44100, 48000])
def test_other_rates_are_resampled(rate: int, tmp_path: Path) -> None:
    found = load(AUDIO, as_file(tone(rate, sample_rate=rate), rate, subtype="FLOAT"), tmp_path)
    assert found.shape == (8000,)
    inside = slice(200, -200)
    assert np.abs(found - tone(8000))[inside].max() < 0.01


def test_what_is_beyond_the_new_rate_is_filtered_out(tmp_path: Path) -> None:
    found = load(AUDIO, as_file(tone(16000, hertz=7000, sample_rate=16000), 16000, subtype="FLOAT"), tmp_path)
    assert np.abs(found)[200:-200].max() < 0.01


def test_overshoot_of_resampling_is_clipped(tmp_path: Path) -> None:
    square = np.sign(tone(16000, hertz=100, sample_rate=16000)).astype(np.float32)
    found = load(AUDIO, as_file(square, 16000, subtype="FLOAT"), tmp_path)
    assert np.abs(found).max() == 1
    AUDIO.encode(found)


def test_overshoot_of_lossy_files_is_clipped(tmp_path: Path) -> None:
    content = as_file(np.sign(tone(8000, hertz=100)) * 0.999, format="OGG", subtype="VORBIS")
    assert np.abs(soundfile.read(io.BytesIO(content))[0]).max() > 1, "the file does not overshoot"
    assert np.abs(load(AUDIO, content, tmp_path)).max() == 1


def test_a_float_wav_beyond_full_scale_is_refused_or_normalised(tmp_path: Path) -> None:
    content = as_file(tone(amplitude=1.5, hertz=1000), subtype="FLOAT")
    with refused("a.wav", "peaks at 1.5", "normalise: peak"):
        load(AUDIO, content, tmp_path)
    assert np.abs(load(Audio(normalise="peak"), content, tmp_path)).max() == 1


def test_full_scale_integers_are_within_range(tmp_path: Path) -> None:
    samples = np.array([-32768, 32767], dtype=np.int16)
    assert load(AUDIO, as_file(samples), tmp_path).tolist() == [-1, 32767 / 32768]


# -------------------------------------------------------------- damaged files


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("n_missing", [1, 3, 400])
def test_a_wav_that_is_shorter_than_its_header_says_is_refused(subtype: str, n_missing: int, tmp_path: Path) -> None:
    content = as_file(tone(), subtype=subtype)
    load(AUDIO, content, tmp_path)
    with refused("a.wav", "cut short", "promises", "'data'"):
        load(AUDIO, content[:-n_missing], tmp_path)


def test_a_wav_cut_within_its_header_is_refused(tmp_path: Path) -> None:
    content = as_file(tone())
    for length in range(44):
        with refused("a.wav"):
            load(AUDIO, content[:length], tmp_path)


def test_a_big_endian_wav_is_checked_too(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(), 8000, format="WAV", subtype="PCM_16", endian="BIG")
    content = buffer.getvalue()
    assert content.startswith(b"RIFX")
    assert load(AUDIO, content, tmp_path).shape == (800,)
    with refused("a.wav", "cut short"):
        load(AUDIO, content[:-10], tmp_path)


def test_chunks_after_the_samples_and_odd_sizes_are_no_damage(tmp_path: Path) -> None:
    content = as_file(tone(801), subtype="PCM_U8")
    extra = b"LIST" + struct.pack("<I", 4) + b"INFO"
    padded = content + b"\0" * (len(content) % 2) + extra
    padded = b"RIFF" + struct.pack("<I", len(padded) - 8) + padded[8:]
    assert load(AUDIO, padded, tmp_path).shape == (801,)


@pytest.mark.parametrize(("format", "name"), [("FLAC", "a.flac"), ("OGG", "a.ogg")])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 0.999])
def test_cut_compressed_files_are_refused(format: str, name: str, share: float, tmp_path: Path) -> None:
    content = as_file(np.random.default_rng(0).uniform(-0.5, 0.5, 80_000).astype(np.float32), format=format)
    load(AUDIO, content, tmp_path, name)
    with refused(name, "damaged or cut short"):
        load(AUDIO, content[: int(len(content) * share)], tmp_path, name)


def test_a_flac_with_wrong_bytes_is_refused(tmp_path: Path) -> None:
    content = bytearray(as_file(np.random.default_rng(0).uniform(-0.5, 0.5, 8000), format="FLAC"))
    for i in range(len(content) // 2, len(content) // 2 + 40):
        content[i] ^= 0x5A
    with refused("a.flac", "damaged"):
        load(AUDIO, bytes(content), tmp_path, "a.flac")


@pytest.mark.parametrize("content", [b"just some text\n" * 10, b"ID3\x04" + bytes(100), b"RIFF\x10\0\0\0AVI LIST"])
def test_what_is_not_audio_is_refused_whatever_its_name(content: bytes, tmp_path: Path) -> None:
    with refused("a.wav"):
        load(AUDIO, content, tmp_path)


def test_text_named_as_a_sound_file_says_what_is_expected(tmp_path: Path) -> None:
    with refused("a.wav", "not a WAV, FLAC or OGG file", "convert"):
        load(AUDIO, b"just some text\n" * 10, tmp_path)


def test_files_without_samples_are_refused(tmp_path: Path) -> None:
    with refused("a.wav", "no samples"):
        load(AUDIO, as_file(np.zeros(0, dtype=np.float32)), tmp_path)
    with refused("a.wav", "0 bytes"):
        load(AUDIO, b"", tmp_path)


def test_samples_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    with refused("a.wav", "nan at 1", "finite"):
        load(AUDIO, as_file(np.array([0, np.nan, 0], dtype=np.float32), subtype="FLOAT"), tmp_path)


def test_a_rate_that_would_need_a_giant_filter_is_refused(tmp_path: Path) -> None:
    with refused("a.wav", "44101 Hz", "8000 Hz", "resample it"):
        load(AUDIO, as_file(tone(), 44101), tmp_path)


def test_real_clips_round_trip(shared_data: Path, tmp_path: Path) -> None:
    paths = sorted((shared_data / "fsdd").rglob("*.wav"))[::300]
    if not paths:
        pytest.skip("the spoken digits are not here")
    for path in paths:
        raw = AUDIO.load(path)
        assert raw.shape == (soundfile.info(path).frames,)
        segment = AUDIO.encode(raw)
        AUDIO.save(AUDIO.decode(segment), tmp_path / "a.wav")
        again = AUDIO.load(tmp_path / "a.wav")
        assert (np.abs(again - raw) <= mu_law_error(raw, 256) + 2**-15).all()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with refused("none.wav", "no such file"):
        AUDIO.load(tmp_path / "none.wav")
    with refused(tmp_path.name, "folder"):
        AUDIO.load(tmp_path)

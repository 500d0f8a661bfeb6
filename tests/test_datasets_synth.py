"""The synthesiser of the built-in audio, and where the built-in folders are found."""

from __future__ import annotations

import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from armm.datasets import Synth, builtin, builtin_folder
from armm.datasets.builtin import load_script
from armm.errors import InputError
from armm.modalities import Audio, Image

SCRIPT = Path(__file__).resolve().parents[1] / "data" / "synth.py"
synth = load_script(SCRIPT)


def spectrum(waveform: np.ndarray) -> np.ndarray:
    """Power per 1 Hz, of a waveform made one second long."""
    return np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)))) ** 2


def test_a_clip_is_a_function_of_its_number_rate_and_seed():
    label, clip = synth.make_clip(17, 8000, 3)
    synth.make_clip(4, 16000, 0)
    again, same = synth.make_clip(17, 8000, 3)
    np.testing.assert_array_equal(clip, same)
    assert label == again
    assert not np.array_equal(clip[:2000], synth.make_clip(17, 8000, 4)[1][:2000])
    assert not np.array_equal(clip[:2000], synth.make_clip(17 + 11, 8000, 3)[1][:2000])


@pytest.mark.parametrize("sample_rate", [4000, 8000, 22050, 44100])
def test_every_kind_is_loud_enough_finite_and_within_bounds(sample_rate):
    clips = [synth.make_clip(i, sample_rate) for i in range(22)]
    assert {label for label, _ in clips} == set(synth.LABELS) and len(synth.LABELS) == 11
    for label, clip in clips:
        assert clip.dtype == np.float32 and np.isfinite(clip).all()
        assert 0.39 < np.abs(clip).max() <= 0.9, label
        assert 0.49 < len(clip) / sample_rate < 1.01
        assert abs(clip[-1]) < 0.02, f"{label} ends in a click"


def test_a_clip_has_the_same_pitch_at_any_sample_rate():
    for index in range(len(synth.LABELS)):
        loudest = []
        for sample_rate in (8000, 32000):
            last_notes = synth.make_clip(index, sample_rate)[1][-sample_rate // 4 :]
            power = np.abs(np.fft.rfft(last_notes, 4 * sample_rate)) ** 2  # a quarter of a hertz
            loudest.append(power[: 4 * 1500].argmax() / 4)
        assert loudest[0] == pytest.approx(loudest[1], rel=0.01), synth.LABELS[index]


def test_no_partial_is_folded_back():
    """A harmonic above half the sample rate would come back as a wrong, low one: here between the harmonics."""
    seconds = np.arange(8000) / 8000
    tone = synth._glottis(700.0 * seconds, n_harmonics=int(synth.HIGHEST * 8000 / 700))
    power = spectrum(tone)
    harmonics = np.zeros(len(power), dtype=bool)
    for k in range(1, 6):
        harmonics[700 * k - 2 : 700 * k + 3] = True
    assert power[harmonics].sum() > 1e6 * power[~harmonics].sum()


@pytest.mark.parametrize("vowel", ["a", "e", "i", "o", "u"])
def test_a_vowel_resonates_at_its_formants(vowel):
    formants, bandwidths = synth.VOWELS[vowel]
    click = np.zeros(16000)
    click[0] = 1
    response = np.abs(np.fft.rfft(synth._resonate(click, list(formants), bandwidths, 16000)))  # per hertz
    middle = response[1:-1]
    peaks = 1 + np.flatnonzero((middle > response[:-2]) & (middle > response[2:]))
    for formant in formants:
        assert np.abs(peaks - formant).min() <= 30, f"no peak near {formant} Hz, only at {peaks}"


def test_the_script_writes_wavs_that_the_library_reads(tmp_path):
    out = tmp_path / "new" / "folder"
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--n", "12", "--sample-rate", "8000"]
    subprocess.run(command, check=True, capture_output=True)
    names = sorted(path.name for path in out.iterdir())
    assert len(names) == 12 and names[:2] == ["000_flute.wav", "001_clarinet.wav"]
    with wave.open(str(out / names[1])) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
    np.testing.assert_allclose(Audio().load(out / names[1]), synth.make_clip(1, 8000)[1], atol=1e-4)


def test_the_script_refuses_a_sample_rate_of_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        synth.main(["--out", str(tmp_path / "x"), "--sample-rate", "0"])
    assert stop.value.code == 2 and "--sample-rate is 0" in capsys.readouterr().err and not (tmp_path / "x").exists()


# --------------------------------------------------------------------- source


def test_the_source_splits_by_the_last_digit_of_a_clips_number():
    splits = Synth(clips=30, seed=5).load({"audio": Audio(sample_rate=4000)}, None, "fail")
    assert [len(splits.train), len(splits.val), len(splits.test)] == [24, 3, 3]
    for split, numbers in ((splits.val, [8, 18, 28]), (splits.test, [9, 19, 29])):
        for i, number in enumerate(numbers):
            label, clip = synth.make_clip(number, 4000, 5)
            np.testing.assert_array_equal(split.item(i, 0)["audio"], clip)
            assert split.item(i, 0)["label"] == label


def test_every_kind_is_in_every_split_of_the_whole_set():
    splits = Synth().load({"audio": Audio(sample_rate=1000)}, None, "fail")
    for split in (splits.train, splits.val, splits.test):
        assert {split.item(i, 0)["label"] for i in range(len(split))} == set(synth.LABELS)


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match=r"data\.source\.clips is 9"):
        Synth(clips=9).load({"audio": Audio()}, None, "fail")
    with pytest.raises(InputError, match=r"data\.source\.seed is -1"):
        Synth(seed=-1).load({"audio": Audio()}, None, "fail")
    with pytest.raises(InputError, match=r"reads \.wav files; the model has: image"):
        Synth().load({"image": Image(size=(2, 2))}, None, "fail")


# ------------------------------------------------------------- built-in folders


def test_the_folders_of_a_source_tree_and_of_a_wheel_are_found(tmp_path, monkeypatch):
    assert (builtin_folder("data") / "synth.py").samefile(SCRIPT)
    package = tmp_path / "site-packages" / "armm"
    (package / "_data").mkdir(parents=True)
    (package.parent / "data").mkdir()  # of another package
    monkeypatch.setattr(builtin, "PACKAGE", package)
    assert builtin_folder("data") == package / "_data"
    with pytest.raises(InputError, match="_recipes: not found"):
        builtin_folder("recipes")
    with pytest.raises(InputError, match=r"synth\.py: not found"):
        load_script(package / "_data" / "synth.py")

"""Speech in files, and downloads that fail; nothing is downloaded here."""

from __future__ import annotations

import io
import socket
import tarfile
from collections import Counter
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest

from armm.datasets import SpeechCommands, SpokenDigits, Synth, YesNo
from armm.datasets.download import downloading, is_free
from armm.errors import InputError
from armm.modalities import Audio, Label, Text

AUDIO = {"audio": Audio(frame=8)}


def write_clip(path: Path, value: float = 0.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Audio().save(np.full(20, value, dtype=np.float32), path)


def write_digits(folder: Path) -> None:
    """Recordings 0 to 9 of two digits by two speakers."""
    for digit in (0, 7):
        for speaker in ("ann", "bob"):
            for index in range(10):
                write_clip(folder / f"{digit}_{speaker}_{index}.wav", (digit + 1) / 10)


def message(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# -------------------------------------------------------------- spoken digits


@pytest.mark.parametrize("inside", ["", "recordings"])
def test_the_test_is_the_first_five_of_each_digit_and_speaker(tmp_path, inside):
    write_digits(tmp_path / inside)
    (tmp_path / inside / "notes.wav").write_bytes(b"not one of them")
    splits = SpokenDigits().load(AUDIO, tmp_path, "fail")
    assert [len(splits.train), len(splits.val), len(splits.test)] == [8, 12, 20]
    items = [splits.test.item(i, 0) for i in range(20)]
    assert Counter((item["label"], item["speaker"]) for item in items) == dict.fromkeys(
        [(0, "ann"), (0, "bob"), (7, "ann"), (7, "bob")], 5
    )
    for item in items:
        assert item["audio"].dtype == np.float32
        np.testing.assert_allclose(item["audio"], (item["label"] + 1) / 10, atol=1e-4)


def test_a_damaged_recording_ends_the_run_or_is_counted(tmp_path):
    write_digits(tmp_path)
    bad = tmp_path / "7_bob_0.wav"
    bad.write_bytes(bad.read_bytes()[:50])
    with pytest.raises(InputError, match=r"7_bob_0\.wav"):
        SpokenDigits().load(AUDIO, tmp_path, "fail")
    splits = SpokenDigits().load(AUDIO, tmp_path, "skip")
    assert splits.skipped == (bad,) and len(splits.test) == 19


def test_recordings_that_leave_a_split_empty_are_refused(tmp_path):
    for index in range(5):
        write_clip(tmp_path / f"0_ann_{index}.wav")
    with pytest.raises(InputError, match="there are 5, 0 and 0"):
        SpokenDigits().load(AUDIO, tmp_path, "fail")


def test_without_a_path_it_says_where_to_put_the_recordings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        SpokenDigits().load(AUDIO, None, "fail")
    assert str(tmp_path / "data/fsdd") in message(error) and "free-spoken-digit-dataset" in message(error)
    write_digits(tmp_path / "data/fsdd/recordings")
    assert len(SpokenDigits().load(AUDIO, None, "fail").test) == 20


@pytest.mark.parametrize("source", [SpokenDigits(), SpeechCommands(), YesNo(), Synth()])
def test_a_folder_of_clips_is_own_data_for_every_source(tmp_path, source):
    for i in range(5):
        write_clip(tmp_path / "birds" / f"{i}.wav")
    splits = source.load({"label": Label(), **AUDIO}, tmp_path, "fail")
    assert len(splits.train) == 3 and splits.train.item(0, 0)["label"] == "birds"


def test_spoken_digits_themselves(shared_data):
    splits = SpokenDigits().load({"audio": Audio()}, shared_data / "fsdd", "fail")
    assert [len(splits.train), len(splits.val), len(splits.test)] == [2520, 180, 300]
    assert sum(len(splits.test.item(i, 0)["audio"]) for i in range(300)) == 1_034_030


# ------------------------------------------------------------ speech commands


def write_commands(root: Path) -> None:
    for word in ("yes", "no"):
        for speaker in range(6):
            write_clip(root / word / f"{speaker:08x}_nohash_0.wav")
    write_clip(root / "_background_noise_" / "hum.wav")
    (root / "testing_list.txt").write_text("".join(f"{word}/00000000_nohash_0.wav\n" for word in ("yes", "no")))
    (root / "validation_list.txt").write_text("yes/00000001_nohash_0.wav\nno/00000002_nohash_0.wav\n")


@pytest.mark.parametrize("inside", ["", "speech_commands_v0.02", "SpeechCommands/speech_commands_v0.02"])
def test_commands_that_are_there_are_split_by_their_own_lists(tmp_path, inside):
    write_commands(tmp_path / inside)
    splits = SpeechCommands().load(AUDIO, tmp_path, "fail")
    assert [len(splits.train), len(splits.val), len(splits.test)] == [8, 2, 2]
    assert {splits.val.item(i, 0)["speaker"] for i in range(2)} == {"00000001", "00000002"}
    assert {splits.test.item(i, 0)["label"] for i in range(2)} == {"yes", "no"}


def test_only_the_words_that_were_named(tmp_path):
    write_commands(tmp_path)
    splits = SpeechCommands(("yes",)).load(AUDIO, tmp_path, "fail")
    assert [len(splits.train), len(splits.val), len(splits.test)] == [4, 1, 1]
    with pytest.raises(InputError, match="'yess'; did you mean 'yes'"):
        SpeechCommands(("yess",)).load(AUDIO, tmp_path, "fail")


def test_an_archive_that_the_user_put_there_is_extracted(tmp_path):
    """No network is needed for it."""
    write_commands(tmp_path / "made")
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "speech_commands_v0.02.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made", arcname=".")
    assert len(SpeechCommands().load(AUDIO, tmp_path / "data", "fail").train) == 8


# ---------------------------------------------------------------------- yesno


def write_yesno(folder: Path) -> None:
    for i in range(20):
        write_clip(folder / f"{'_'.join(f'{i:08b}')}.wav", i / 20)


@pytest.mark.parametrize("inside", ["", "waves_yesno"])
def test_yesno_that_is_there_is_read_with_its_words(tmp_path, inside):
    write_yesno(tmp_path / inside)
    splits = YesNo().load(AUDIO, tmp_path, "fail")
    assert [len(splits.train), len(splits.val), len(splits.test)] == [16, 2, 2]
    for i in range(16):
        item = splits.train.item(i, 0)
        number = int("".join("1" if word == "yes" else "0" for word in item["text"].split()), 2)
        np.testing.assert_allclose(item["audio"], number / 20, atol=1e-4)


def test_yesno_goes_with_a_model_of_text_and_audio(tmp_path):
    write_yesno(tmp_path)
    item = YesNo().load({"text": Text(kind="bytes"), **AUDIO}, tmp_path, "fail").test.item(0, 0)
    assert item.keys() == {"text", "audio"}


# ------------------------------------------------------------------ downloads


@pytest.mark.parametrize(
    "source, module, archive, folder",
    [
        (SpeechCommands(), "speechcommands", "speech_commands_v0.02.tar.gz", "speechcommands"),
        (YesNo(), "yesno", "waves_yesno.tar.gz", "yesno"),
    ],
)
def test_an_impossible_download_says_which_file_to_put_where(tmp_path, monkeypatch, source, module, archive, folder):
    def cut_off(url: str, dst: Path, **rest: object) -> None:
        Path(dst).write_bytes(b"half an archive")
        raise URLError("the network is\nunreachable")

    monkeypatch.setattr(f"torchaudio.datasets.{module}.download_url_to_file", cut_off)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="the network is unreachable") as error:
        source.load(AUDIO, None, "fail")
    assert archive in message(error) and str(tmp_path / "data" / folder) in message(error)
    assert not any(tmp_path.iterdir()), "nothing half-written is left"


def test_a_damaged_archive_leaves_nothing_but_itself(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for i in range(5):
            info = tarfile.TarInfo(f"waves_yesno/0_0_0_0_0_0_0_{i % 2}.wav")
            info.size = 5000
            archive.addfile(info, io.BytesIO(np.random.default_rng(i).bytes(5000)))
    (tmp_path / "waves_yesno.tar.gz").write_bytes(buffer.getvalue()[:12_000])
    with pytest.raises(InputError, match="download failed"):
        YesNo().load(AUDIO, tmp_path, "fail")
    assert [path.name for path in tmp_path.rglob("*")] == ["waves_yesno.tar.gz"]


def test_an_interrupted_download_is_removed_and_the_rest_kept(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept.txt").write_text("kept")
    with pytest.raises(KeyboardInterrupt), downloading(tmp_path / "mine", "put it there"):
        (tmp_path / "mine" / "new").mkdir()
        (tmp_path / "mine" / "new" / "half").write_text("half")
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kept.txt", "mine"]


def test_a_download_that_works_stays_and_the_time_limit_is_its_own(tmp_path):
    before = socket.getdefaulttimeout()
    with downloading(tmp_path / "a" / "b", "put it there"):
        assert socket.getdefaulttimeout()
        (tmp_path / "a" / "b" / "file").write_text("all of it")
    assert (tmp_path / "a" / "b" / "file").read_text() == "all of it" and socket.getdefaulttimeout() == before


def test_only_an_empty_folder_or_one_with_the_archive_is_free_for_a_download(tmp_path):
    assert is_free(tmp_path, "a.tar.gz") and not is_free(tmp_path / "nowhere", "a.tar.gz")
    (tmp_path / "song.wav").write_bytes(b"")
    assert not is_free(tmp_path, "a.tar.gz")
    (tmp_path / "a.tar.gz").write_bytes(b"")
    assert is_free(tmp_path, "a.tar.gz")

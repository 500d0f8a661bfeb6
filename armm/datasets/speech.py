"""Speech in files: spoken digits, Speech Commands, and one man's yes and no."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armm.datasets.download import downloading, is_free
from armm.datasets.files import existing, list_files, read_files, reader, split_by_hash
from armm.datasets.folder import no_extra, own_data
from armm.datasets.source import Item, OnError, Source, Splits
from armm.errors import InputError, nearest
from armm.modality import Modality

SPOKEN_DIGIT = re.compile(r"(?P<digit>\d)_(?P<speaker>[^_]+)_(?P<index>\d+)\.wav")
SPOKEN_DIGITS_URL = "https://github.com/Jakobovski/free-spoken-digit-dataset"
TEST_INDICES, VAL_INDICES = range(5), range(5, 8)

COMMANDS = "speech_commands_v0.02"
COMMANDS_URL = f"http://download.tensorflow.org/data/{COMMANDS}.tar.gz"
YESNO = "waves_yesno"
YESNO_URL = "http://www.openslr.org/resources/1/waves_yesno.tar.gz"


@dataclass(frozen=True)
class SpokenDigits(Source):
    """The Free Spoken Digit Dataset: WAV files named `{digit}_{speaker}_{index}.wav`.

    In the folder of the path, or `data/fsdd` under the current folder, or `recordings` inside it. Of each digit and
    speaker, the recordings 0 to 4 are the test (the data set's own rule), 5 to 7 for validation and the others to train
    on. Items have the `label` (the digit) and the `speaker` (a name). If the path has no such files: your own data.

    Args:
        speakers: only these; none for all.
    """

    speakers: tuple[str, ...] = ()

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        folder = Path("data/fsdd") if path is None else existing(path)
        files = _spoken_digits(folder)
        if not files and path is not None:
            return own_data("{digit}_{speaker}_{index}.wav", modalities, path, on_error)
        if not files:
            raise InputError(
                f"{folder.resolve()}: has no {{digit}}_{{speaker}}_{{index}}.wav; copy the folder recordings of "
                f"{SPOKEN_DIGITS_URL} there, or name it by --data.path"
            )
        known = sorted({_named(file)["speaker"] for file in files})
        for speaker in self.speakers:
            if speaker not in known:
                raise InputError(f"data.source.speakers: {folder} has no {speaker!r}{nearest(speaker, known)}")
        files = [file for file in files if not self.speakers or _named(file)["speaker"] in self.speakers]
        name, modality = reader(modalities, ".wav")

        def split(file: Path) -> int:
            index = int(_named(file)["index"])
            return 2 if index in TEST_INDICES else 1 if index in VAL_INDICES else 0

        items, skipped = read_files(name, modality, files, on_error, _digit_and_speaker)
        parts = [[i for i in range(len(items)) if split(items.path(i)) == number] for number in range(3)]
        if not all(parts):
            raise InputError(
                f"{folder}: recordings 0 to 4 are for the test, 5 to 7 for validation, the others for training; "
                f"there are {len(parts[2])}, {len(parts[1])} and {len(parts[0])}; add what is missing"
            )
        train, val, test = (items.select(part) for part in parts)
        return Splits(train, val, test, skipped)


def _spoken_digits(folder: Path) -> list[Path]:
    for place in (folder, folder / "recordings"):
        if place.is_dir():
            files = [file for file in sorted(place.iterdir()) if SPOKEN_DIGIT.fullmatch(file.name)]
            if files:
                return files
    return []


def _digit_and_speaker(file: Path) -> Item:
    match = _named(file)
    return {"label": int(match["digit"]), "speaker": match["speaker"]}


def _named(file: Path) -> re.Match[str]:
    match = SPOKEN_DIGIT.fullmatch(file.name)
    assert match
    return match


@dataclass(frozen=True)
class SpeechCommands(Source):
    """Google's Speech Commands 0.02: 105,829 words of one second, 16 kHz, in 35 folders; its official splits.

    In the folder of the path or `data/speechcommands` under the current folder, where torchaudio downloads it (2.3 GB)
    if there is nothing. Items have the `label` (the word) and the `speaker` (an id). If the path has other files: your
    own data.

    Args:
        words: only these; none for all 35. The ten digits (zero to nine) are the set that papers call SC09.
    """

    words: tuple[str, ...] = ()

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        name, modality = reader(modalities, ".wav")
        folder = Path("data/speechcommands") if path is None else existing(path)
        root = _commands_root(folder)
        if root is None and path is not None and not is_free(path, f"{COMMANDS}.tar.gz"):
            return own_data(f"the folder {COMMANDS}", modalities, path, on_error)
        if root is None:
            mend = (
                f"put {COMMANDS}.tar.gz from {COMMANDS_URL} into {folder.resolve()}, or name its folder by --data.path"
            )
            with downloading(folder, mend):
                _torchaudio_datasets().SPEECHCOMMANDS(str(folder), url=COMMANDS, download=True)
            root = _commands_root(folder)
            if root is None:
                raise InputError(f"{folder}: the downloaded archive has no testing_list.txt; {mend}")
        known = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))
        for word in self.words:
            if word not in known:
                raise InputError(f"data.source.words: {root} has no {word!r}{nearest(word, known)}")
        files = [file for word in self.words or known for file in list_files(root / word, [".wav"])]
        test, val = _listed(root / "testing_list.txt"), _listed(root / "validation_list.txt")

        if not files:
            raise InputError(f"{root}: has no .wav files in its folders; extract {COMMANDS}.tar.gz again")
        items, skipped = read_files(name, modality, files, on_error, _word_and_speaker)
        parts: tuple[list[int], list[int], list[int]] = ([], [], [])
        for i, key in enumerate(items.names(root)):
            parts[2 if key in test else 1 if key in val else 0].append(i)
        if not all(parts):
            raise InputError(
                f"{root}: {len(parts[0])} training, {len(parts[1])} validation and {len(parts[2])} test files; each "
                f"needs one; extract {COMMANDS}.tar.gz again, or name more words"
            )
        train, val, test = (items.select(part) for part in parts)
        return Splits(train, val, test, skipped)


def _word_and_speaker(file: Path) -> Item:
    return {"label": file.parent.name, "speaker": file.name.split("_nohash_")[0]}


def _commands_root(folder: Path) -> Path | None:
    for place in (folder, folder / COMMANDS, folder / "SpeechCommands" / COMMANDS):
        if (place / "testing_list.txt").is_file() and (place / "validation_list.txt").is_file():
            return place
    return None


def _listed(path: Path) -> set[str]:
    try:
        return {line.strip() for line in path.read_text(encoding="utf-8").splitlines()}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); extract {COMMANDS}.tar.gz again") from error


@dataclass(frozen=True)
class YesNo(Source):
    """YESNO of OpenSLR: 60 clips of about 6 s, 8 kHz, in which one man says yes or no eight times in Hebrew.

    In the folder of the path or `data/yesno` under the current folder, where torchaudio downloads it (5 MB) if there is
    nothing. Six clips are the test and six for validation, chosen by a hash of their names. Items have a `text` too:
    "yes no ...". If the path has other files: your own data.
    """

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        name, modality = reader(modalities, ".wav")
        folder = Path("data/yesno") if path is None else existing(path)
        files = _yesno(folder)
        if not files and path is not None and not is_free(path, f"{YESNO}.tar.gz"):
            return own_data(f"the folder {YESNO}", modalities, path, on_error)
        if not files:
            mend = f"put {YESNO}.tar.gz from {YESNO_URL} into {folder.resolve()}, or name its folder by --data.path"
            with downloading(folder, mend):
                _torchaudio_datasets().YESNO(str(folder), download=True)
            files = _yesno(folder)
            if not files:
                raise InputError(f"{folder}: the downloaded archive has no recordings; {mend}")

        items, skipped = read_files(name, modality, files, on_error, _words if name != "text" else no_extra)
        if len(items) < 3:
            raise InputError(f"{folder}: {len(items)} readable clips, at least 3 are needed; extract the archive again")
        parts = split_by_hash([items.path(i).name for i in range(len(items))], val=0.1, test=0.1, seed=0)
        train, val, test = (items.select(part) for part in parts)
        return Splits(train, val, test, skipped)


def _words(file: Path) -> Item:
    return {"text": " ".join("yes" if digit == "1" else "no" for digit in file.stem.split("_"))}


def _yesno(folder: Path) -> list[Path]:
    for place in (folder, folder / YESNO):
        if place.is_dir():
            files = [file for file in sorted(place.iterdir()) if re.fullmatch(r"[01](_[01]){7}\.wav", file.name)]
            if files:
                return files
    return []


def _torchaudio_datasets() -> Any:
    try:
        from torchaudio import datasets
    except (ImportError, OSError, RuntimeError) as error:  # the latter two: a build for another torch
        raise InputError(f"torchaudio cannot be imported ({error}); pip install armm[audio]") from error
    return datasets

"""Four-part chorales: those of J. S. Bach as the JSB set has them, and made ones where that set is not there."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from armm.datasets.files import existing, reader
from armm.datasets.folder import own_data
from armm.datasets.source import Item, Items, ListOfItems, OnError, Source, Splits
from armm.errors import InputError
from armm.modalities.midi import REST, Piece, nearest_voices
from armm.modalities.music import Music
from armm.modality import Modality

JSB = Path("data/jsb/jsb-chorales-16th.json")
JSB_URL = "https://github.com/czhuang/JSB-Chorales-dataset"
N_VOICES = 4


@dataclass(frozen=True, eq=False)
class TransposedItems(Items):
    """Pieces, each in another key at every draw: all keys within `most` semitones that keep the pitches in range.

    Attributes:
        name: the modality's. pieces: as they are. music: its range. most: semitones up or down.
    """

    name: str
    pieces: Sequence[Piece]
    music: Music
    most: int

    varies: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.pieces)

    def item(self, index: int, draw: int) -> Item:
        piece = self.pieces[index]
        pitches = [entry for step in piece.steps for entry in step if entry >= 0]
        least = max(-self.most, self.music.lowest - min(pitches, default=0))
        largest = min(self.most, self.music.highest - max(pitches, default=127))
        rng = np.random.default_rng([index, draw & 0xFFFFFFFF])  # a seed has no sign
        return {self.name: transposed(piece, int(rng.integers(min(least, 0), max(largest, 0) + 1)))}


def transposed(piece: Piece, semitones: int) -> Piece:
    """The piece higher by so many semitones."""
    steps = tuple(tuple(entry + semitones if entry >= 0 else entry for entry in step) for step in piece.steps)
    return Piece(steps, piece.meter, piece.pickup)


@dataclass(frozen=True)
class Chorales(Source):
    """The JSB chorales, 382 pieces in four voices on a grid of sixteenths; their own splits.

    In the path (a file, or a folder with `jsb-chorales-16th.json`) or `data/jsb` under the current folder. Nothing
    there and no path: as many made chorales (`made_chorale`), which is said. If the path has MIDI files: your own data.

    Args:
        transpose: training pieces are heard in other keys, up to so many semitones higher or lower.
    """

    transpose: int = 6

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        if self.transpose < 0:
            raise InputError(f"data.source.transpose is {self.transpose}; expected 0 or more semitones")
        name, music = reader(modalities, ".mid")
        if not isinstance(music, Music):
            raise InputError(f"{name}: chorales need the modality armm.Music, not {type(music).__name__}")
        file = JSB if path is None else existing(path)
        file = file / JSB.name if file.is_dir() else file
        if file.is_file() and file.suffix == ".json":
            splits = read_chorales(file)
        elif path is not None:
            own = own_data(JSB.name, modalities, path, on_error)
            pieces = [own.train.item(i, 0)[name] for i in range(len(own.train))]
            return Splits(TransposedItems(name, pieces, music, self.transpose), own.val, own.test, own.skipped)
        else:
            print(f"{JSB.resolve()}: not found, so made chorales take its place; {JSB_URL} has it", file=sys.stderr)
            pieces = [made_chorale(number) for number in range(382)]
            splits = pieces[:229], pieces[229:305], pieces[305:]
        train, val, test = splits
        return Splits(
            TransposedItems(name, train, music, self.transpose),
            ListOfItems([{name: piece} for piece in val]),
            ListOfItems([{name: piece} for piece in test]),
        )


def read_chorales(path: Path) -> tuple[list[Piece], list[Piece], list[Piece]]:
    """Training, validation and test pieces of a JSON file of `train`, `valid` and `test`: pieces, steps, pitches.

    Raises InputError: it is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}; get it again from {JSB_URL}") from error
    splits = []
    for split in ("train", "valid", "test"):
        pieces = content.get(split) if isinstance(content, dict) else None
        if not isinstance(pieces, list) or not pieces:
            raise InputError(f"{path} has no pieces under {split!r}; expected train, valid and test as in {JSB_URL}")
        splits.append([_piece(piece, f"{path}: piece {i} of {split}") for i, piece in enumerate(pieces)])
    train, val, test = splits
    return train, val, test


def _piece(chords: Any, what: str) -> Piece:
    """Voices of chords in a row. Where fewer than four sound, they are the voices that would move least."""
    if not isinstance(chords, list) or not chords:
        raise InputError(f"{what} is empty; expected a list of steps")
    steps, last = [], [74, 67, 60, 50]
    for at, chord in enumerate(chords):
        is_chord = isinstance(chord, list) and len(chord) <= N_VOICES
        if not is_chord or not all(pitch in range(128) for pitch in chord):  # some are written as 67.0
            raise InputError(f"{what} has {str(chord)[:60]} at step {at}; expected at most {N_VOICES} MIDI pitches")
        step = [REST] * N_VOICES
        for voice, pitch in zip(nearest_voices(chord, last, range(N_VOICES)), chord, strict=True):
            step[voice] = last[voice] = int(pitch)
        steps.append(tuple(step))
    return Piece(tuple(steps))


# ------------------------------------------------------------------------------ made chorales

SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 11))  # major, harmonic minor
# which degrees may follow which, by how a textbook has it: I ii iii IV V vi vii
FOLLOWS = ((0, 1, 3, 4, 5), (4, 6), (5, 3), (0, 1, 4, 4), (0, 0, 5), (1, 3, 4), (0,))
LOW, HIGH = (60, 55, 48, 40), (79, 72, 67, 60)  # of soprano, alto, tenor and bass


def made_chorale(number: int) -> Piece:
    """Four phrases of four bars in 4/4: functional harmony a chord a quarter, the nearest voicing, passing notes.

    A pure function of its number. It stands in for real chorales where there are none; no one takes it for Bach.
    """
    rng = np.random.default_rng([number, 1685])
    scale, tonic = SCALES[int(rng.integers(2))], int(rng.integers(12))
    voices = [67, 62, 55, 48]
    steps: list[list[int]] = []
    for _ in range(4):
        degree = 0
        for quarter in range(16):
            degree = 0 if quarter == 15 else 4 if quarter == 14 else int(rng.choice(FOLLOWS[degree]))
            classes = [(tonic + scale[(degree + third) % 7]) % 12 for third in (0, 2, 4)]
            before, voices = voices, _voicing(classes, voices, rng)
            if steps:
                _pass(steps, before, voices, [(tonic + own) % 12 for own in scale], rng)
            steps += [list(voices) for _ in range(8 if quarter == 15 else 4)]
    return Piece(tuple(map(tuple, steps)))


def _voicing(classes: Sequence[int], last: Sequence[int], rng: np.random.Generator) -> list[int]:
    """The root in the bass, every class somewhere above, each voice near where it was."""
    chosen = [_nearest([classes[:1]], last[3], LOW[3], HIGH[3], rng)]
    missing = set(classes[1:])
    for voice in (2, 1, 0):
        wanted = [sorted(missing), classes, range(12)]
        pitch = _nearest(wanted, last[voice], max(LOW[voice], chosen[-1] + 1), HIGH[voice], rng)
        missing.discard(pitch % 12)
        chosen.append(pitch)
    return chosen[::-1]


def _nearest(wanted: Sequence[Sequence[int]], last: int, low: int, high: int, rng: np.random.Generator) -> int:
    """A pitch near the last, of the first classes that have one within range."""
    within = [[pitch for pitch in range(low, high + 1) if pitch % 12 in classes] for classes in wanted]
    return min(next(pitches for pitches in within if pitches), key=lambda pitch: abs(pitch - last) + 2 * rng.random())


def _pass(
    steps: list[list[int]], before: Sequence[int], after: Sequence[int], scale: Sequence[int], rng: np.random.Generator
) -> None:
    """Fill a third that a voice leaps with the note between, in the second half of the chord before."""
    for voice, (a, b) in enumerate(zip(before, after, strict=True)):
        if abs(a - b) in (3, 4) and rng.random() < 0.6:
            between = [pitch for pitch in range(min(a, b) + 1, max(a, b)) if pitch % 12 in scale]
            for step in steps[-2:] if between else ():
                step[voice] = between[0]

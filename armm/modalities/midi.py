"""Standard MIDI files as pieces on a sixteenth grid, and back (The Complete MIDI 1.0 Detailed Specification, RP-001).

What a grid cannot hold is said, not silently changed: `read_midi` returns a line for each kind of thing. Tempo,
loudness and instruments are no part of a piece.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import floor
from pathlib import Path
from typing import Any, NamedTuple

from armm.errors import InputError
from armm.modalities.reading import one_line, read_bytes

REST, HOLD = -1, -2
"""What a step has instead of a pitch: nothing sounds; the note before goes on."""
STEPS_PER_QUARTER = 4
STEPS_PER_WHOLE = 4 * STEPS_PER_QUARTER
DRUMS = 9
TICKS = 480  # of a quarter, as written; 120 a step
VOICE = re.compile(r"voice (\d+)")


@dataclass(frozen=True)
class Piece:
    """Voices on a grid of sixteenths.

    Attributes:
        steps: T rows of one entry a voice: a MIDI pitch, `REST` or `HOLD`.
        meter: (beats, unit) such as (3, 4); None where it is not known.
        pickup: steps before the first full bar.
    """

    steps: tuple[tuple[int, ...], ...]
    meter: tuple[int, int] | None = None
    pickup: int = 0


class Note(NamedTuple):
    """A note on the grid: steps [start, end)."""

    start: int
    end: int
    pitch: int


def bar_steps(meter: tuple[int, int]) -> int | None:
    """Sixteenths of a bar; None where that is no whole number."""
    beats, unit = meter
    return beats * STEPS_PER_WHOLE // unit if beats * STEPS_PER_WHOLE % unit == 0 else None


# ------------------------------------------------------------------------------- reading


def read_midi(path: Path, n_voices: int) -> tuple[Piece, list[str]]:
    """A file as a piece, and what of it the piece does not hold.

    Tracks (or channels) that each play one note at a time are the voices, in the file's order. Otherwise all notes
    are dealt out anew: at each onset, from above, to the voices that are free and nearest. A first bar that a time
    signature makes shorter than those after it is a pick-up.

    Raises InputError: damaged, not MIDI, without notes, or of a kind that has no common time.
    """
    file = _parse(read_bytes(path), path)
    parts, said = _parts(file)
    if not any(parts.values()):
        raise InputError(f"{path} has no notes on a pitched channel, expected some; remove it")
    meter, pickup, changes = _meter(file)
    step = file.ticks_per_beat / STEPS_PER_QUARTER
    grid = {name: _quantise(notes, step) for name, notes in parts.items()}
    n_notes = sum(map(len, parts.values()))
    moved = [
        max(abs(start / step - on.start), abs(end / step - on.end))
        for name, notes in parts.items()
        for (start, end, _), on in zip(notes, grid[name], strict=True)
    ]
    n_moved = sum(distance > 1e-9 for distance in moved)
    if n_moved:
        said.append(f"{n_moved} of {n_notes} notes moved to the sixteenth grid, by up to {max(moved):.2g} of a step")
    voices, n_cut, n_lost = _voices(grid, n_voices)
    if n_cut:
        said.append(f"{_count(n_cut, 'note')} cut where the next of the same voice begins")
    if n_lost:
        said.append(f"{_count(n_lost, 'note')} left out where more than {n_voices} sound at once")
    if changes:
        said.append(f"later changes of meter left out ({', '.join(changes)})")
    return Piece(_steps(voices), meter, pickup), said


def _parse(content: bytes, path: Path) -> Any:
    if content[:4] != b"MThd":
        raise InputError(f"{path} is not a MIDI file, whatever its name says; export it as a standard MIDI file")
    division = int.from_bytes(content[12:14], "big")
    if division & 0x8000 or not division:
        raise InputError(f"{path} counts time in film frames, expected ticks of a quarter; export it anew")
    try:
        file = _mido().MidiFile(file=io.BytesIO(content))
    except Exception as error:  # mido raises anything from EOFError to KeyError on damaged data
        raise InputError(f"{path} is damaged or cut short: {one_line(error)}; fetch or save it again") from error
    if file.type == 2:
        raise InputError(f"{path} has tracks that are pieces of their own (type 2); save each as a file")
    return file


def _parts(file: Any) -> tuple[dict[str, list[tuple[int, int, int]]], list[str]]:
    """(start, end, pitch) in ticks of the notes of every track and channel, and what was found on the way."""
    parts: dict[str, list[tuple[int, int, int]]] = {}
    n_drums = n_open = 0
    for number, track in enumerate(file.tracks):
        now, sounding = 0, defaultdict(list)
        for message in track:
            now += message.time
            if message.type not in ("note_on", "note_off"):
                continue
            if message.channel == DRUMS:
                n_drums += message.type == "note_on" and message.velocity > 0
                continue
            key = message.channel, message.note
            name = f"{number:04d} {message.channel:02d} {track.name}"
            notes = parts.setdefault(name, [])
            if message.type == "note_on" and message.velocity > 0:
                sounding[key].append((len(notes), now))
                notes.append((now, -1, message.note))
            elif sounding[key]:  # the first of those that overlap ends first
                index, start = sounding[key].pop(0)
                notes[index] = (start, now, message.note)
        n_open += sum(map(len, sounding.values()))
        for (channel, pitch), begun in sounding.items():
            for index, start in begun:
                parts[f"{number:04d} {channel:02d} {track.name}"][index] = (start, now, pitch)
    said = [f"{_count(n_drums, 'drum note')} left out"] if n_drums else []
    said += [f"{_count(n_open, 'note')} without an end held to the end of the track"] if n_open else []
    return {name: sorted(notes) for name, notes in parts.items() if notes}, said


def _meter(file: Any) -> tuple[tuple[int, int], int, list[str]]:
    """The meter, the steps of the pick-up, and the changes of meter that come later; 4/4 where nothing is said."""
    found: dict[int, tuple[int, int]] = {}
    for track in file.tracks:
        now = 0
        for message in track:
            now += message.time
            if message.type == "time_signature":
                found[now] = message.numerator, message.denominator
    signs = [(at, meter) for at, meter in sorted(found.items())]
    signs = [sign for i, sign in enumerate(signs) if not i or sign[1] != signs[i - 1][1]]
    if not signs or signs[0][0] > 0:
        signs = [(0, (4, 4)), *signs]
    meter, pickup = signs[0][1], 0
    if len(signs) > 1:
        at, second = signs[1]
        steps = at * STEPS_PER_QUARTER / file.ticks_per_beat
        bar = bar_steps(second)
        if bar and steps == int(steps) and bar_steps(signs[0][1]) == steps < bar:
            meter, pickup, signs = second, int(steps), signs[1:]
    return meter, pickup, [f"{beats}/{unit}" for _, (beats, unit) in signs[1:]]


def _quantise(notes: Iterable[tuple[int, int, int]], step: float) -> list[Note]:
    on_grid = []
    for start, end, pitch in notes:
        first = floor(start / step + 0.5)
        on_grid.append(Note(first, max(floor(end / step + 0.5), first + 1), pitch))
    return on_grid


# -------------------------------------------------------------------------------- voices


def _voices(parts: dict[str, list[Note]], n_voices: int) -> tuple[list[list[Note]], int, int]:
    """Notes by voice, in time; how many were cut, and how many left out."""
    own = [VOICE.search(name) for name in parts]
    if all(own) and len({match[1] for match in own if match}) == len(parts):
        numbers = [int(match[1]) - 1 for match in own if match]
    else:
        numbers = list(range(len(parts)))
    if max(numbers) < n_voices and all(map(_is_single, parts.values())):
        voices: list[list[Note]] = [[] for _ in range(n_voices)]
        n_cut = 0
        for number, notes in zip(numbers, parts.values(), strict=True):
            voices[number], cut = _without_overlap(notes)
            n_cut += cut
        return voices, n_cut, 0
    return _deal([note for notes in parts.values() for note in notes], n_voices)


def _is_single(notes: Sequence[Note]) -> bool:
    """Whether they are one voice: no two begin together, and none sounds for more than a step into the next."""
    return all(a.start < b.start and a.end <= b.start + 1 for a, b in pairwise(sorted(notes)))


def _without_overlap(notes: Sequence[Note]) -> tuple[list[Note], int]:
    ordered = sorted(notes)
    cut = [a._replace(end=min(a.end, b.start)) for a, b in pairwise(ordered)] + ordered[-1:]
    return cut, sum(a != b for a, b in zip(ordered, cut, strict=True))


def _deal(notes: Sequence[Note], n_voices: int) -> tuple[list[list[Note]], int, int]:
    """Notes to voices, onset by onset."""
    onsets: dict[int, dict[int, int]] = defaultdict(dict)
    for note in notes:  # the same pitch twice at once is one note
        own = onsets[note.start]
        own[note.pitch] = max(own.get(note.pitch, 0), note.end)
    voices: list[list[Note]] = [[] for _ in range(n_voices)]
    last = [round(74 - 26 * voice / max(n_voices - 1, 1)) for voice in range(n_voices)]
    n_cut = n_lost = 0
    for start, own in sorted(onsets.items()):
        chord = sorted(own, reverse=True)
        free = [v for v in range(n_voices) if not voices[v] or voices[v][-1].end <= start]
        if len(free) < len(chord):  # then those that end next give way
            busy = [v for v in range(n_voices) if v not in free and voices[v][-1].end == start + 1]
            for voice in busy[: len(chord) - len(free)]:
                voices[voice][-1] = voices[voice][-1]._replace(end=start)
                n_cut += 1
                free.append(voice)
        if len(chord) > len(free):  # the outer notes matter most
            n_lost += len(chord) - len(free)
            keep = (len(free) + 1) // 2
            chord = chord[:keep] + chord[len(chord) - (len(free) - keep) :]
        for voice, pitch in zip(nearest_voices(chord, last, sorted(free)), chord, strict=True):
            voices[voice].append(Note(start, own[pitch], pitch))
            last[voice] = pitch
    return voices, n_cut, n_lost


def nearest_voices(chord: Sequence[int], last: Sequence[int], free: Sequence[int]) -> tuple[int, ...]:
    """Which of the free voices take the notes of a chord, in order, so that they move least from their last pitch."""
    return min(
        combinations(free, len(chord)),
        key=lambda chosen: sum(abs(last[voice] - pitch) for voice, pitch in zip(chosen, chord, strict=True)),
    )


def _steps(voices: Sequence[Sequence[Note]]) -> tuple[tuple[int, ...], ...]:
    length = max(notes[-1].end for notes in voices if notes)
    columns = [[REST] * length for _ in voices]
    for column, notes in zip(columns, voices, strict=True):
        for note in notes:
            column[note.start : note.end] = [note.pitch, *[HOLD] * (note.end - note.start - 1)]
    return tuple(zip(*columns, strict=True))


# -------------------------------------------------------------------------------- writing


def notes_of(piece: Piece) -> list[list[Note]]:
    """The notes of every voice, in time. What is held after a rest, or before any note, is a rest."""
    voices: list[list[Note]] = [[] for _ in (piece.steps[0] if piece.steps else ())]
    for at, step in enumerate(piece.steps):
        for notes, entry in zip(voices, step, strict=True):
            if entry >= 0:
                notes.append(Note(at, at + 1, entry))
            elif entry == HOLD and notes and notes[-1].end == at:
                notes[-1] = notes[-1]._replace(end=at + 1)
    return voices


def write_midi(piece: Piece, path: Path, tempo: float) -> None:
    """A file of type 1: the meter and the tempo in quarters a minute, then a track for each voice."""
    mido = _mido()
    file = mido.MidiFile(type=1, ticks_per_beat=TICKS)
    head = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(tempo))])
    ticks = TICKS // STEPS_PER_QUARTER
    if piece.meter is not None:
        signs = [(0, piece.meter)]
        if piece.pickup:
            signs = [(0, _sign_of(piece.pickup)), (piece.pickup * ticks, piece.meter)]
        for at, (beats, unit) in signs:
            head.append(mido.MetaMessage("time_signature", numerator=beats, denominator=unit, time=at))
    file.tracks.append(head)
    for number, notes in enumerate(notes_of(piece)):
        track = mido.MidiTrack([mido.MetaMessage("track_name", name=f"voice {number + 1}")])
        now = 0
        for note in notes:
            for kind, at in (("note_on", note.start), ("note_off", note.end)):
                channel = number % 16 if number % 16 != DRUMS else DRUMS + 1
                track.append(mido.Message(kind, note=note.pitch, channel=channel, time=at * ticks - now))
                now = at * ticks
        file.tracks.append(track)
    file.save(path)


def _sign_of(steps: int) -> tuple[int, int]:
    """A bar of so many sixteenths, in the largest unit that divides it."""
    unit = STEPS_PER_WHOLE
    while steps % 2 == 0 and unit > 4:
        steps, unit = steps // 2, unit // 2
    return steps, unit


def _count(n: int, what: str) -> str:
    return f"1 {what}" if n == 1 else f"{n} {what}s"


def _mido() -> Any:
    try:
        import mido
    except ImportError as error:
        raise InputError(f"MIDI files need the mido package ({error}); pip install armm[music]") from error
    return mido

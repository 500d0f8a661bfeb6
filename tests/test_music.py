"""Music on a grid: pieces come back from their symbols, MIDI comes back or says what it lost, chorales are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from armm.datasets import Chorales
from armm.datasets.music import TransposedItems, made_chorale, transposed
from armm.errors import InputError
from armm.modalities import HOLD, REST, Music, Piece
from armm.modalities.midi import read_midi
from armm.modalities.music import COLOURS, held, repeated
from armm.testing import run_checks

mido = pytest.importorskip("mido")

CHORALE = Piece(((72, 67, 60, 48), (72, 67, 62, 48), (74, REST, 62, 43), (74, 67, 60, 43)))
STRUCK = Piece(((72, 67, 60, REST), (72, HOLD, HOLD, 48), (HOLD, REST, 62, HOLD), (74, 67, 60, 43)), (3, 4), 2)


@pytest.mark.parametrize(
    "music",
    [
        Music(max_units=3, lowest=60, highest=61),
        Music(voices=2, lowest=60, highest=62, holds=True, meters=("4/4", "3/8")),
    ],
    ids=["chorales", "holds and meters"],
)
def test_music_passes_every_law(music: Music) -> None:
    assert [fault for _, fault in run_checks(music)] == [None] * 6


def test_pieces_come_back_from_their_symbols() -> None:
    assert Music().decode(Music().encode(CHORALE)) == CHORALE
    music = Music(holds=True, meters=("4/4", "3/4"))
    assert music.decode(music.encode(STRUCK)) == STRUCK
    assert music.encode(STRUCK).header == (1, 2)
    # without holds a note that goes on is one that is repeated
    assert Music().decode(Music().encode(STRUCK)).steps == repeated(STRUCK.steps)


def test_alphabet_is_that_of_the_chorales() -> None:
    """47 symbols: 46 pitches and the rest, as the n-gram baselines count them."""
    assert Music().vocab == 47 and Music(holds=True).vocab == 48


def test_place_in_the_bar_counts_from_the_pick_up() -> None:
    """The embedder must give the first step after a pick-up the place 0, whatever the meter."""
    embed = Music(meters=("4/4", "3/4")).build_embedder(8)
    symbols = torch.ones(3, 4, dtype=torch.int64)
    three_four = embed(symbols, torch.tensor([0, 2, 14]), torch.tensor([[1, 2]]).expand(3, 2))
    plain = embed(symbols, torch.tensor([10, 0, 12]), torch.tensor([[1, 0]]).expand(3, 2))
    assert torch.equal(three_four, plain)
    assert not torch.equal(three_four[0], three_four[1])


REFUSED = {
    "other voices": (Music(voices=3), CHORALE, "4 voices, expected 3; set music.voices: 4"),
    "a pitch out of range": (Music(highest=70), CHORALE, "pitch 72 at step 0"),
    "a meter that is not coded": (Music(meters=("4/4",)), STRUCK, "3/4, expected 4/4"),
    "a long pick-up": (Music(meters=("3/4",)), Piece(CHORALE.steps, (3, 4), 12), "less than a bar"),
    "too long": (Music(max_units=3), CHORALE, "4 sixteenths, at most 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_pieces_that_do_not_fit_are_refused(name: str) -> None:
    music, piece, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as refused:
        music.encode(piece)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", [{"lowest": 90}, {"voices": 0}, {"meters": ("3/5",)}, {"meters": ("3/4", "3/4")}])
def test_wrong_settings_are_refused(key: dict[str, object]) -> None:
    with pytest.raises(InputError, match="music"):
        Music(**key)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- MIDI

METERS = ("4/4", "3/4", "6/8")


@pytest.mark.parametrize(
    "meter, pickup", [((4, 4), 0), ((4, 4), 4), ((3, 4), 4), ((6, 8), 2), ((6, 8), 6), ((4, 4), 3)]
)
def test_midi_round_trips(meter: tuple[int, int], pickup: int, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Held and repeated notes, rests, a silent voice, meter and pick-up are there again, and nothing is said."""
    music = Music(voices=5, holds=True, meters=METERS)
    steps = tuple((*step, REST) for step in STRUCK.steps * 6)
    steps = tuple((entry[0], entry[4], *entry[1:4]) for entry in steps)  # the second voice is silent
    piece = Piece(steps, meter, pickup)
    music.save(piece, tmp_path / "a.mid")
    assert music.load(tmp_path / "a.mid") == piece
    assert capsys.readouterr().err == ""


def test_midi_of_chorales_merges_repeats(tmp_path: Path) -> None:
    """Their files do not tell held from repeated notes: one long note is written, and it reads back as the same."""
    Music().save(CHORALE, tmp_path / "a.mid")
    notes = [m for track in mido.MidiFile(tmp_path / "a.mid").tracks for m in track if m.type == "note_on"]
    assert len(notes) == 9
    assert Music().load(tmp_path / "a.mid") == CHORALE


Event = tuple[int, int, int]


def write(
    path: Path, tracks: Sequence[Sequence[Event]], signs: Sequence[tuple[int, int, int]] = (), channel: int = 0
) -> Path:
    """Tracks of (start, end, pitch) in ticks, 96 a quarter; signs of (at, beats, unit)."""
    file = mido.MidiFile(ticks_per_beat=96)
    head, now = mido.MidiTrack(), 0
    for at, beats, unit in signs:
        head.append(mido.MetaMessage("time_signature", numerator=beats, denominator=unit, time=at - now))
        now = at
    file.tracks.append(head)
    for notes in tracks:
        events = sorted([(s, 1, p) for s, _, p in notes] + [(e, 0, p) for _, e, p in notes])
        track, now = mido.MidiTrack(), 0
        for at, on, pitch in events:
            track.append(mido.Message("note_on", channel=channel, note=pitch, velocity=64 * on, time=at - now))
            now = at
        file.tracks.append(track)
    file.save(path)
    return path


def test_pick_up_is_a_first_bar_that_is_shorter(tmp_path: Path) -> None:
    notes = [(24 * i, 24 * i + 24, 60 + i) for i in range(16)]
    path = write(tmp_path / "a.mid", [notes], [(0, 1, 4), (96, 3, 4)])
    piece, said = read_midi(path, 4)
    assert (piece.meter, piece.pickup, said) == ((3, 4), 4, [])
    path = write(tmp_path / "b.mid", [notes], [(0, 4, 4), (192, 3, 4)])  # a change of meter, in the middle of a bar
    piece, said = read_midi(path, 4)
    assert (piece.meter, piece.pickup) == ((4, 4), 0)
    assert said == ["later changes of meter left out (3/4)"]


def test_what_is_off_the_grid_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Triplets and staccato are moved, by how much is on the line."""
    triplets = [(32 * i, 32 * i + 32, 60) for i in range(6)]
    piece = Music(holds=True).load(write(tmp_path / "a.mid", [triplets]))
    assert "6 of 6 notes moved to the sixteenth grid, by up to 0.33 of a step" in capsys.readouterr().err
    assert [step[0] for step in piece.steps] == [60, 60, HOLD, 60, 60, 60, HOLD, 60]


def test_notes_that_overlap_in_a_voice_are_cut(tmp_path: Path) -> None:
    legato = [(0, 30, 60), (24, 54, 62), (48, 72, 64)]
    other = [(0, 72, 50)]
    piece, said = read_midi(write(tmp_path / "a.mid", [legato, other]), 2)
    assert piece.steps == ((60, 50), (62, HOLD), (64, HOLD))
    assert "3 of 4 notes moved" not in " ".join(said)
    overlapping = [(0, 48, 60), (24, 72, 62)]
    piece, said = read_midi(write(tmp_path / "b.mid", [overlapping]), 1)
    assert piece.steps == ((60,), (62,), (HOLD,))
    assert said == ["1 note cut where the next of the same voice begins"]


def test_chords_of_one_track_become_voices(tmp_path: Path) -> None:
    """From above, each voice near where it was; the bass does not jump into the tenor when the soprano rests."""
    chords = [(0, 24, p) for p in (72, 67, 60, 48)] + [(24, 72, p) for p in (67, 60, 48)] + [(48, 72, 71)]
    piece, said = read_midi(write(tmp_path / "a.mid", [chords]), 4)
    assert piece.steps == ((72, 67, 60, 48), (REST, 67, 60, 48), (71, HOLD, HOLD, HOLD)) and said == []


def test_more_notes_than_voices_are_counted(tmp_path: Path) -> None:
    chord = [(0, 24, p) for p in (72, 67, 64, 60, 48)]
    piece, said = read_midi(write(tmp_path / "a.mid", [chord]), 4)
    assert piece.steps == ((72, 67, 60, 48),)
    assert said == ["1 note left out where more than 4 sound at once"]


def test_several_tracks_are_the_voices_in_their_order(tmp_path: Path) -> None:
    """Voices may cross: a track stays a voice."""
    path = write(tmp_path / "a.mid", [[(0, 24, 60), (24, 48, 70)], [(0, 24, 65), (24, 48, 64)]])
    assert read_midi(path, 4)[0].steps == ((60, 65, REST, REST), (70, 64, REST, REST))


def test_drums_and_notes_without_an_end_are_said(tmp_path: Path) -> None:
    file = mido.MidiFile(write(tmp_path / "a.mid", [[(0, 24, 60)]]))
    file.tracks[1].append(mido.Message("note_on", channel=9, note=40, time=0))
    file.tracks[1].append(mido.Message("note_on", channel=0, note=62, time=0))
    file.tracks[1].append(mido.MetaMessage("end_of_track", time=24))
    file.save(tmp_path / "b.mid")
    piece, said = read_midi(tmp_path / "b.mid", 2)
    assert said == ["1 drum note left out", "1 note without an end held to the end of the track"]
    assert piece.steps == ((60, REST), (62, REST))


def test_meter_that_is_not_coded_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write(tmp_path / "a.mid", [[(0, 24, 60)]], [(0, 6, 8)])
    assert Music().load(path).meter is None
    assert "meter, 6/8, and pick-up are not coded; set meters" in capsys.readouterr().err
    assert Music(meters=METERS).load(path).meter == (6, 8)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "silent", "frames"])
def test_damaged_midi_is_refused_in_one_line(damage: str, tmp_path: Path) -> None:
    content = write(tmp_path / "a.mid", [[(0, 24, 60), (24, 48, 62)]]).read_bytes()
    silent = write(tmp_path / "s.mid", [[]]).read_bytes()
    frames = content[:12] + b"\xe7\x28" + content[14:]
    cases = {"cut": content[:-9], "text": b"not music", "empty": b"", "silent": silent, "frames": frames}
    (tmp_path / "b.mid").write_bytes(cases[damage])
    with pytest.raises(InputError, match=r"b\.mid") as refused:
        Music().load(tmp_path / "b.mid")
    assert "\n" not in str(refused.value)


# -------------------------------------------------------------------------- pictures and sound


def test_piano_roll_shows_the_notes() -> None:
    """High above, time to the right, a gap before a note that is struck again."""
    music = Music(lowest=60, highest=61, voices=1, holds=True)
    picture = music.roll(Piece(((61,), (HOLD,), (60,), (60,))))
    height, width = picture.shape[0] // 2, picture.shape[1] // 4
    coloured = (picture == COLOURS[0]).all(-1)
    upper, lower = coloured[:height], coloured[height:]
    assert upper[:, : 2 * width - 1].all() and not upper[:, 2 * width :].any()
    assert lower[:, 2 * width : 3 * width - 1].all() and not lower[:, 3 * width - 1].any()


def test_sound_has_the_pitch_of_the_note(tmp_path: Path) -> None:
    music = Music(voices=1, holds=True, tempo=60)
    sound = music.sound(Piece(((69,), *[(HOLD,)] * 15)))
    spectrum = np.abs(np.fft.rfft(sound[: 4 * 16_000]))
    assert abs(int(spectrum.argmax()) / 4 - 440) < 1
    assert np.abs(sound).max() <= 1 and len(sound) == pytest.approx(4.15 * 16_000, abs=2)
    music.save(Piece(((REST,),)), tmp_path / "silence.wav")
    assert (tmp_path / "silence.wav").read_bytes()[:4] == b"RIFF"


def test_preview_is_a_picture_of_all() -> None:
    preview = Music().preview([CHORALE, made_chorale(0)])
    assert preview.kind == "image" and preview.data.dtype == np.uint8 and preview.data.ndim == 3


# ---------------------------------------------------------------------------------- the source


def test_chorales_are_read_in_their_splits(tmp_path: Path) -> None:
    """Fewer than four pitches are the voices that would move least; a pitch may be written as a float."""
    piece = [[74, 70, 65, 58], [74.0, 70, 65, 58], [74, 65, 58], [], [57]]
    (tmp_path / "a.json").write_text(json.dumps({"train": [piece] * 3, "valid": [piece], "test": [piece] * 2}))
    splits = Chorales(transpose=0).load({"music": Music()}, tmp_path / "a.json", "fail")
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [3, 1, 2]
    four = (74, 70, 65, 58)
    steps = (four, four, (74, REST, 65, 58), (REST,) * 4, (REST, REST, REST, 57))
    assert splits.train.item(0, 5)["music"] == splits.test.item(0, 0)["music"] == Piece(steps)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "no pieces under 'train'"),
        ("{", "JSON"),
        ('{"train": [[[60, "a"]]], "valid": [], "test": []}', "piece 0"),
    ],
)
def test_wrong_chorales_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=message):
        Chorales().load({"music": Music()}, tmp_path / "a.json", "fail")


def test_training_pieces_are_transposed_within_range() -> None:
    """Another key at every draw, the same one at the same draw, and none that leaves the alphabet."""
    music = Music()
    items = TransposedItems("music", [CHORALE], music, 6)
    shifts = {items.item(0, draw)["music"].steps[0][0] - 72 for draw in range(100)}
    assert shifts == set(range(-6, 7))
    high = TransposedItems("music", [transposed(CHORALE, 5)], music, 6)
    assert {high.item(0, draw)["music"].steps[0][0] - 77 for draw in range(100)} == set(range(-6, 3))
    assert items.item(0, 3) == items.item(0, 3)


def test_made_chorales_take_the_place_of_those_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    splits = Chorales().load({"music": Music()}, None, "fail")
    assert "made chorales" in capsys.readouterr().err
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [229, 76, 77]
    assert made_chorale(7) == made_chorale(7) != made_chorale(8)
    for number in range(40):
        Music().encode(made_chorale(number))
        ordered = [step[i] > step[i + 1] for step in made_chorale(number).steps for i in range(3)]
        assert np.mean(ordered) > 0.95  # voices hardly ever cross


def test_folder_of_midi_is_your_own_data(tmp_path: Path) -> None:
    for number in range(5):
        Music().save(transposed(CHORALE, number), tmp_path / f"{number}.mid")
    splits = Chorales().load({"music": Music()}, tmp_path, "fail")
    assert len(splits.train) == 3 and splits.train.varies
    assert held(splits.test.item(0, 0)["music"].steps)[0][0] in range(72, 77)


def test_real_chorales(shared_data: Path) -> None:
    """229, 76 and 77 pieces; every pitch is kept, in some voice."""
    path = shared_data / "jsb" / "jsb-chorales-16th.json"
    splits = Chorales().load({"music": Music()}, path, "fail")
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [229, 76, 77]
    raw = json.loads(path.read_text())["test"]
    for index in range(77):
        piece = splits.test.item(index, 0)["music"]
        assert [sorted(map(int, chord)) for chord in raw[index]] == [
            sorted(e for e in s if e >= 0) for s in piece.steps
        ]
        assert Music().decode(Music().encode(piece)) == piece

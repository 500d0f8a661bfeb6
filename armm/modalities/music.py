"""Music in several voices on a grid of sixteenths: one step of all voices is a unit (as in DeepBach, arXiv:1612.01010).

A symbol is what one voice does in one step: it rests, it has a pitch, or, with `holds`, the note before goes on.
Axes: T steps, V symbols, M listed units, F header fields.
"""

from __future__ import annotations

import sys
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from armm.embedders import UnitEmbedder
from armm.errors import InputError
from armm.heads import HeadConfig, Unit
from armm.modalities.midi import HOLD, REST, STEPS_PER_WHOLE, Piece, bar_steps, notes_of, read_midi, write_midi
from armm.modalities.picture import pillow
from armm.modality import Modality, Preview
from armm.sequence import Segment

SYMBOL_WIDTH = 16
RATE = 16_000  # Hz, of the sound that `save` and `sound` make
HARMONICS = 8
COLOURS = np.array([(31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207)])
STEP_PIXELS, PITCH_PIXELS = 4, 5


@dataclass(frozen=True)
class Music(Modality):
    """Pieces of so many voices.

    Attributes:
        voices: how many, the highest first.
        lowest, highest: MIDI pitches.
        holds: whether a note that goes on is told from one that is struck again. Without, a pitch that is repeated is
            held: the convention of the JSB chorales, whose files do not say.
        meters: which meters there are, such as 4/4, 3/4 and 6/8. They and the length of the pick-up are coded, and the
            model knows the place in the bar. None: it knows the place in bars of 4/4 from the first step.
        tempo: quarters a minute, of what `save` writes.
        max_units: the longest piece, in sixteenths; null for any length.
        head: the head; by default the causal convolution block.
        name: its name in a model.
    """

    voices: int = 4
    lowest: int = 36
    highest: int = 81
    holds: bool = False
    meters: tuple[str, ...] = ()
    tempo: float = 80.0
    max_units: int | None = None
    head: HeadConfig | None = None
    name: str = "music"

    ended = True
    bits_per = "token"
    nats_per = "token"
    suffix: ClassVar[str] = ".mid"
    suffixes: ClassVar[tuple[str, ...]] = (".mid", ".midi")
    views: ClassVar[tuple[str, ...]] = (".png", ".wav")

    def __post_init__(self) -> None:
        object.__setattr__(self, "meters", tuple(self.meters))  # JSON and YAML have lists only
        if not 0 <= self.lowest <= self.highest <= 127:
            raise InputError(
                f"{self.name}: lowest {self.lowest} and highest {self.highest} are no range of MIDI pitches; expected "
                "0 to 127, 60 is middle C"
            )
        for key, value in (("voices", self.voices), ("max_units", self.max_units)):
            if value is not None and value < 1:
                raise InputError(f"{self.name}.{key} is {value}; expected 1 or more")
        if not 10 <= self.tempo <= 1000:
            raise InputError(f"{self.name}.tempo is {self.tempo}; expected 10 to 1000 quarters a minute")
        for meter in self.meters:
            beats, _, unit = meter.partition("/")
            if not (beats.isdigit() and unit in ("1", "2", "4", "8", "16") and 1 <= int(beats) <= 32):
                raise InputError(f"{self.name}.meters has {meter!r}; expected beats/unit, a unit of 1, 2, 4, 8 or 16")
        if len(set(self.meters)) < len(self.meters):
            raise InputError(f"{self.name}.meters names one meter twice; name each once")

    # ----------------------------------------------------------------- sizes

    @property
    def vocab(self) -> int:
        """The rest, the pitches, and the hold where there is one."""
        return 2 + self.highest - self.lowest + self.holds

    @property
    def unit_symbols(self) -> int:
        return self.voices

    @property
    def unit(self) -> Unit:
        return Unit(self.vocab, self.voices, values=self._values())

    @property
    def bars(self) -> tuple[int, ...]:
        """Steps of a bar of each meter; of 4/4 where none is coded."""
        steps = [bar_steps((int(beats), int(unit))) for beats, _, unit in (m.partition("/") for m in self.meters)]
        return tuple(bar for bar in steps if bar is not None) or (STEPS_PER_WHOLE,)

    @property
    def header_sizes(self) -> tuple[int, ...]:
        """Which meter, and how many steps the pick-up has."""
        return (len(self.meters), max(self.bars)) if self.meters else ()

    def build_embedder(self, width: int) -> nn.Module:
        """Of the voices' symbols and pitches, and of the place in the bar."""
        return StepEmbedder(self.vocab, self.voices, width, self._values(), self.bars)

    def _values(self) -> Tensor:
        """(V, 5) of every symbol: how high, its pitch class on a circle, whether a rest, whether a hold."""
        pitch = torch.arange(self.lowest, self.highest + 1)
        angle = pitch * (2 * torch.pi / 12)
        values = torch.zeros(self.vocab, 5)
        values[0, 3] = 1
        values[1 : 1 + len(pitch), :3] = torch.stack([(pitch - 60) / 12, angle.sin(), angle.cos()], dim=1)
        if self.holds:
            values[-1, 4] = 1
        return values

    # ------------------------------------------------------------------ data

    def encode(self, raw: Piece) -> Segment:
        """A piece as steps; without `holds`, what is held is repeated.

        Raises InputError: other voices, pitches, or a meter that this modality does not have, or too long.
        """
        if not isinstance(raw, Piece):
            raise InputError(f"{self.name}: expected an armm.modalities.Piece, got a {type(raw).__name__}; convert it")
        if any(len(step) != self.voices for step in raw.steps):
            n = next(len(step) for step in raw.steps if len(step) != self.voices)
            raise InputError(f"{self.name}: a step has {n} voices, expected {self.voices}; set {self.name}.voices: {n}")
        if self.max_units is not None and len(raw.steps) > self.max_units:
            raise InputError(
                f"{self.name}: the piece has {len(raw.steps)} sixteenths, at most {self.max_units} are allowed; cut "
                f"it or raise {self.name}.max_units"
            )
        entries = np.array(raw.steps if self.holds else repeated(raw.steps), dtype=np.int64).reshape(-1, self.voices)
        outside = (entries >= 0) & ((entries < self.lowest) | (entries > self.highest))
        if outside.any():
            pitch = int(entries[outside][0])
            raise InputError(
                f"{self.name}: the pitch {pitch} at step {int(np.argwhere(outside)[0, 0])} lies outside {self.lowest} "
                f"to {self.highest}; transpose the piece, or train with a wider {self.name}.lowest and highest"
            )
        symbols = np.where(entries == REST, 0, np.where(entries == HOLD, self.vocab - 1, entries - self.lowest + 1))
        return Segment(self.name, torch.from_numpy(symbols), header=self._header_of(raw))

    def _header_of(self, piece: Piece) -> tuple[int, ...]:
        if not self.meters:
            return ()
        beats, unit = piece.meter or (4, 4)
        meter = f"{beats}/{unit}"
        if meter not in self.meters:
            raise InputError(
                f"{self.name}: the piece is in {meter}, expected {', '.join(self.meters)}; add it to {self.name}.meters"
            )
        number = self.meters.index(meter)
        if not 0 <= piece.pickup < self.bars[number]:
            raise InputError(
                f"{self.name}: the pick-up has {piece.pickup} sixteenths, a bar of {meter} has {self.bars[number]}; "
                "expected less than a bar"
            )
        return number, piece.pickup

    def decode(self, segment: Segment) -> Piece:
        """The piece; of whole steps."""
        n_steps = segment.length // self.voices
        symbols = segment.flat()[: n_steps * self.voices].view(n_steps, self.voices).numpy()
        entries = np.where(symbols == 0, REST, symbols + self.lowest - 1)
        if self.holds:
            entries = np.where(symbols == self.vocab - 1, HOLD, entries)
        steps = tuple(map(tuple, entries.tolist()))
        if not self.meters:
            return Piece(steps)
        number, pickup = segment.header
        beats, _, unit = self.meters[number].partition("/")
        return Piece(steps, (int(beats), int(unit)), pickup % self.bars[number])

    # ------------------------------------------------------------------ files

    def load(self, path: Path) -> Piece:
        """Read a MIDI file; says what of it a piece cannot hold.

        Raises InputError: damaged, not MIDI, without notes.
        """
        piece, said = read_midi(path, self.voices)
        if not self.meters:
            if piece.pickup or piece.meter not in (None, (4, 4)):
                assert piece.meter is not None
                said.append(f"its meter, {piece.meter[0]}/{piece.meter[1]}, and pick-up are not coded; set meters")
            piece = Piece(piece.steps)
        if not self.holds:
            piece = Piece(repeated(piece.steps), piece.meter, piece.pickup)
        if said:
            print(f"{path}: {'; '.join(said)}", file=sys.stderr)
        return piece

    def save(self, raw: Piece, path: Path) -> None:
        """Write MIDI; where the name ends in `.png` a piano roll, in `.wav` a sound."""
        if path.suffix == ".png":
            pillow().fromarray(self.roll(raw)).save(path, format="PNG")
        elif path.suffix == ".wav":
            samples = np.rint(self.sound(raw) * 32767).astype("<i2")
            with wave.open(str(path), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(RATE)
                file.writeframes(samples.tobytes())
        else:
            write_midi(self._struck(raw), path, self.tempo)

    def preview(self, raws: Sequence[Piece]) -> Preview:
        """Piano rolls, one below the other."""
        rolls = [self.roll(raw) for raw in raws]
        width = max(roll.shape[1] for roll in rolls)
        padded = [np.pad(r, ((0, 6), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rolls]
        return Preview("image", np.concatenate(padded))

    def roll(self, piece: Piece) -> np.ndarray:
        """(H, W, 3) uint8: high notes above, time to the right, a colour for each voice, a line before each bar."""
        n_steps, n_pitches = max(len(piece.steps), 1), self.highest - self.lowest + 1
        picture = np.full((n_pitches * PITCH_PIXELS, n_steps * STEP_PIXELS, 3), 255, dtype=np.uint8)
        black_keys = [p for p in range(n_pitches) if (self.highest - p) % 12 in (1, 3, 6, 8, 10)]
        for row in black_keys:
            picture[row * PITCH_PIXELS : (row + 1) * PITCH_PIXELS] = 240
        bar = bar_steps(piece.meter) if piece.meter else None
        picture[:, piece.pickup * STEP_PIXELS :: (bar or STEPS_PER_WHOLE) * STEP_PIXELS] = 190
        for number, notes in enumerate(notes_of(self._struck(piece))):
            for note in notes:
                top = (self.highest - note.pitch) * PITCH_PIXELS
                left, right = note.start * STEP_PIXELS, note.end * STEP_PIXELS - 1
                picture[top : top + PITCH_PIXELS, left:right] = COLOURS[number % len(COLOURS)]
        return picture

    def sound(self, piece: Piece) -> np.ndarray:
        """(T',) float32 in [-1, 1] at 16 kHz: harmonics that decay, the higher the faster."""
        step = 60 / self.tempo / 4
        release = 0.15  # seconds that a note sounds on
        total = np.zeros(int((len(piece.steps) * step + release) * RATE) + 1)
        for note in (note for notes in notes_of(self._struck(piece)) for note in notes):
            seconds = (note.end - note.start) * step
            t = np.arange(int((seconds + release) * RATE)) / RATE
            frequency = 440 * 2 ** ((note.pitch - 69) / 12)
            envelope = np.minimum(t / 0.01, 1) * np.clip((seconds + release - t) / release, 0, 1)
            tone = sum(
                np.sin(2 * np.pi * k * frequency * t) * np.exp(-t * (0.6 + 0.5 * k)) / k**1.4
                for k in range(1, HARMONICS + 1)
                if k * frequency < RATE / 2
            )
            first = int(note.start * step * RATE)
            total[first : first + len(t)] += envelope * tone
        return (0.9 * total / max(float(np.abs(total).max()), 1e-9)).astype(np.float32)

    def _struck(self, piece: Piece) -> Piece:
        """The piece with holds, where repeating a pitch means that."""
        return piece if self.holds else Piece(held(piece.steps), piece.meter, piece.pickup)


class StepEmbedder(nn.Module):
    """Steps into vectors: what the voices do, and the place of the step in its bar."""

    bars: Tensor

    def __init__(self, vocab: int, voices: int, width: int, values: Tensor, bars: Sequence[int]) -> None:
        super().__init__()
        self.step = UnitEmbedder(vocab, voices, width, SYMBOL_WIDTH, values)
        self.register_buffer("bars", torch.tensor(bars), persistent=False)
        self.place = nn.Parameter(torch.randn(len(bars), max(bars), width) * 0.1)

    def forward(self, symbols: Tensor, index: Tensor, header: Tensor) -> Tensor:
        """(M, K) symbols, (M,) index of each step, (M, F) header -> (M, width)."""
        number, pickup = header.unbind(1) if header.shape[1] else (index * 0, index * 0)
        return self.step(symbols, index, header) + self.place[number, (index - pickup) % self.bars[number]]


def repeated(steps: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Steps with the pitch that sounds where the note before goes on."""
    result: list[tuple[int, ...]] = []
    for step in steps:
        before = result[-1] if result else (REST,) * len(step)
        result.append(tuple(b if entry == HOLD else entry for entry, b in zip(step, before, strict=True)))
    return tuple(result)


def held(steps: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Steps that hold a pitch instead of repeating it."""
    before = [None, *steps]
    return tuple(
        tuple(HOLD if own >= 0 and last is not None and last[v] == own else own for v, own in enumerate(step))
        for last, step in zip(before, steps, strict=False)
    )

"""Notes of a melody: (pitch, velocity, duration, pause), each a small number; one note is one unit of four symbols."""

from dataclasses import dataclass

import torch

from armm.errors import InputError
from armm.modality import Modality
from armm.sequence import Segment


@dataclass(frozen=True)
class Notes(Modality):
    levels: int = 128
    name: str = "notes"
    unit_symbols = 4
    ended = True
    bits_per = nats_per = "note"

    @property
    def vocab(self) -> int:
        return self.levels

    def n_bits_per(self, segment: Segment) -> int:
        return segment.n_units

    n_nats_per = n_bits_per

    def encode(self, raw: list[tuple[int, int, int, int]]) -> Segment:
        if not raw or not all(len(note) == 4 and 0 <= min(note) <= max(note) < self.levels for note in raw):
            raise InputError(f"expected notes of four numbers below {self.levels}, got {raw!r}")
        return Segment(self.name, torch.tensor(raw))

    def decode(self, segment: Segment) -> list[tuple[int, ...]]:
        whole = segment.length // 4  # a note that was cut short is no note
        return [tuple(note) for note in segment.symbols[:whole].tolist()]

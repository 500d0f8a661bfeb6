"""Readings of a sensor from 0 to 1, eight of them a unit: all that it takes to add a modality."""

import json
from dataclasses import dataclass

import torch

from armm.errors import InputError
from armm.modality import Modality
from armm.sequence import Segment


@dataclass(frozen=True)
class Trace(Modality):
    vocab: int = 64
    name: str = "trace"
    unit_symbols, ended, bits_per, nats_per = 8, True, "reading", "reading"

    def encode(self, raw: list[float]) -> Segment:
        if not isinstance(raw, list) or not all(0 <= x <= 1 for x in raw):
            raise InputError(f"{self.name}: expected a list of numbers from 0 to 1, found {str(raw)[:60]}")
        units = torch.tensor(raw + [0.0] * (-len(raw) % 8)).mul(self.vocab - 1).round().long()
        return Segment(self.name, units.view(-1, 8), n_symbols=len(raw))

    def decode(self, segment: Segment) -> list[float]:
        return [step / (self.vocab - 1) for step in segment.flat().tolist()]

    def parse(self, text: str) -> list[float]:
        return json.loads(text)

"""Proteins as strings of amino acids in their one-letter codes; X is any."""

from dataclasses import dataclass

import torch

from armm.errors import InputError
from armm.modality import Modality
from armm.sequence import Segment

RESIDUES = "ACDEFGHIKLMNPQRSTVWYX"


@dataclass(frozen=True)
class Protein(Modality):
    name: str = "protein"
    vocab = len(RESIDUES)
    ended = True
    bits_per = nats_per = "residue"

    def encode(self, raw: str) -> Segment:
        if not raw or set(raw) - set(RESIDUES):
            raise InputError(f"{raw!r} is no protein; expected at least one letter, all of them from {RESIDUES}")
        return Segment(self.name, torch.tensor([[RESIDUES.index(letter)] for letter in raw]))

    def decode(self, segment: Segment) -> str:
        return "".join(RESIDUES[symbol] for symbol in segment.flat())

"""How well proteins are predicted, from either end, beside counts; and whether fixed residues stay where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log

import numpy as np

from armm.datasets.baselines import trigram_bits, unigram_bits
from armm.datasets.files import reader
from armm.errors import InputError
from armm.evaluation.likelihood import payload_nats
from armm.evaluation.score import Material, Score, Value
from armm.generation import generate
from armm.modalities.protein import UNKNOWN, Protein
from armm.model import AutoregressiveModel
from armm.sequence import Segment


@dataclass(frozen=True)
class ProteinBits(Score):
    """Bits a residue of the test proteins, from both ends; those of unigrams and trigrams counted in training proteins.

    Attributes:
        n: at most so many test proteins; all by default. n_train: training proteins to count in.
    """

    n: int | None = None
    n_train: int = 100_000

    def check(self, model: AutoregressiveModel) -> None:
        protein(model)

    def evaluate(self, model: AutoregressiveModel, data: Material) -> Mapping[str, Value]:
        own = protein(model)
        raws = [item[own.name] for item in data.items("test", self.n)]
        train = [_residues(item[own.name], own) for item in data.items("train", self.n_train)]
        n = sum(map(len, raws))
        test = [own.encode(raw).flat().numpy() for raw in raws]
        found = {
            "bits_per_residue": _bits(model, [own.encode(raw) for raw in raws]),
            "unigram_bits_per_residue": unigram_bits(train, test, own.vocab),
            "trigram_bits_per_residue": trigram_bits(train, test, own.vocab),
        }
        if own.both_directions:
            found["reversed_bits_per_residue"] = _bits(model, [own.encode_reversed(raw) for raw in raws])
        return {name: Value(value, n) for name, value in found.items()}


@dataclass(frozen=True)
class FixedResidues(Score):
    """Generate with every other residue of a stretch fixed: the share that stands where it was put.

    Attributes:
        n: how many proteins, of the test's. length: of the stretch, from the N-terminus.
    """

    n: int = 50
    length: int = 30

    def check(self, model: AutoregressiveModel) -> None:
        protein(model)

    def evaluate(self, model: AutoregressiveModel, data: Material) -> Mapping[str, Value]:
        own = protein(model)
        kept = []
        masked = []
        for item in data.items("test", self.n):
            stretch = item[own.name][: self.length]
            masked.append("".join(letter if at % 2 == 0 else UNKNOWN for at, letter in enumerate(stretch)))
        prompts = [[own.encode_prompt(letters)] for letters in masked]
        longest = model.grammar.context or 4 * self.length
        for sample in generate(model, prompts, seed=data.seed, max_symbols=longest):
            residues, wanted = own.decode(sample.document[0]), masked[sample.prompt]
            kept += [residues[at : at + 1] == letter for at, letter in enumerate(wanted) if letter != UNKNOWN]
        return {"fixed_residues_kept": Value(float(np.mean(kept)), len(kept))}


def _bits(model: AutoregressiveModel, segments: list[Segment]) -> float:
    nats, n = payload_nats(model, [[segment] for segment in segments])[segments[0].modality]
    return nats / log(2) / max(n, 1)


def _residues(raw: str | Segment, own: Protein) -> np.ndarray:
    """(n,) symbols from the N-terminus on."""
    residues = own.decode(raw) if isinstance(raw, Segment) else raw
    return own.encode(residues).flat().numpy()


def protein(model: AutoregressiveModel) -> Protein:
    """The model's proteins.

    Raises InputError: it has none.
    """
    _, modality = reader(model.modalities, ".fasta")
    if not isinstance(modality, Protein):
        raise InputError(f"this score is about armm.modalities.Protein, the model has {type(modality).__name__}")
    return modality

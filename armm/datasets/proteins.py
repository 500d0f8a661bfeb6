"""Proteins: the user's FASTA, and made families where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from armm.datasets.files import check_fractions, existing, list_files, reader, split_by_hash
from armm.datasets.source import Item, Items, ListOfItems, OnError, Source, Splits
from armm.errors import InputError
from armm.modalities.protein import Protein, Record, read_fasta
from armm.modality import Modality


@dataclass(frozen=True, eq=False)
class EitherEnd(Items):
    """Proteins, read from either end by chance at every draw.

    Attributes:
        name: the modality's. proteins: from the N-terminus. modality: which knows both directions.
    """

    name: str
    proteins: Sequence[str]
    modality: Protein

    varies: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.proteins)

    def item(self, index: int, draw: int) -> Item:
        backwards = np.random.default_rng([index, draw & 0xFFFFFFFF]).random() < 0.5  # a seed has no sign
        protein = self.proteins[index]
        return {self.name: self.modality.encode_reversed(protein) if backwards else self.modality.encode(protein)}


@dataclass(frozen=True)
class Fasta(Source):
    """Proteins of FASTA files: those of `--data.path`, a file or a folder; otherwise made families (`made_protein`).

    Your own are dealt out by a hash of their names; of the made ones number i is for the test where i ends in 9, for
    validation where it ends in 8. Where the modality codes the direction, training proteins are read from either end.

    Args:
        n: how many are made.
        val, test: shares of your own.
        seed: another seed deals your own out differently, or makes other families.
    """

    n: int = 3000
    val: float = 0.1
    test: float = 0.1
    seed: int = 0

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        check_fractions(self.val, self.test)
        if self.n < 10 or self.seed < 0:
            raise InputError(
                f"data.source: n is {self.n}, expected 10 or more; seed is {self.seed}, expected 0 or more"
            )
        name, modality = reader(modalities, ".fasta")
        if not isinstance(modality, Protein):
            raise InputError(f"{name}: FASTA needs the modality armm.Protein, not {type(modality).__name__}")
        skipped: tuple[str, ...] = ()
        if path is None:
            made = [made_protein(i, self.seed) for i in range(self.n)]
            parts = [made[i::10] for i in range(10)]
            train, val, test = [p for part in parts[:8] for p in part], parts[8], parts[9]
        else:
            records, skipped = self._own(existing(path), modality, on_error)
            numbers = split_by_hash([record.name for record in records], self.val, self.test, self.seed)
            train, val, test = ([records[i].residues for i in part] for part in numbers)
        items = EitherEnd(name, train, modality) if modality.both_directions else _plain(name, train)
        return Splits(items, _plain(name, val), _plain(name, test), skipped)

    def _own(self, path: Path, modality: Protein, on_error: OnError) -> tuple[list[Record], tuple[str, ...]]:
        files = [path] if path.is_file() else list_files(path, modality.suffixes)
        if not files:
            raise InputError(f"{path}: holds no file that ends in {', '.join(modality.suffixes)}; put FASTA there")
        records: list[Record] = []
        skipped: list[str] = []
        for file in files:
            good, bad = read_fasta(file)
            for record in good:
                try:
                    modality.encode(record.residues)
                    records.append(record)
                except InputError as error:
                    bad.append(InputError(f"{file}, line {record.line}: {record.name}: {error}"))
            if bad and on_error == "fail":
                raise InputError(f"{bad[0]}; or leave such records out by --data.on_error skip")
            skipped += map(str, bad)
        if len(records) < 3:
            raise InputError(
                f"{path}: {len(records)} usable proteins, at least 3 are needed: one each to train, validate and test"
            )
        return records, tuple(skipped)


def _plain(name: str, proteins: Sequence[str]) -> ListOfItems:
    return ListOfItems([{name: protein} for protein in proteins])


# -------------------------------------------------------------------------------- made families

FAMILIES = 24
# percent of all residues, about as in UniProtKB/Swiss-Prot's statistics
BACKGROUND = {
    **{"A": 8.25, "C": 1.38, "D": 5.46, "E": 6.72, "F": 3.86, "G": 7.07, "H": 2.27, "I": 5.91, "K": 5.80, "L": 9.65},
    **{"M": 2.41, "N": 4.06, "P": 4.74, "Q": 3.93, "R": 5.53, "S": 6.64, "T": 5.36, "V": 6.86, "W": 1.10, "Y": 2.92},
}
GROUPS = ("AVILMFWC", "STNQ", "DE", "KRH", "FWY", "GP", "AGS", "ILVM")
PAIRS = (("KR", "DE"), ("C", "C"), ("FWY", "GP"))  # what two places far apart may demand of each other


@dataclass(frozen=True, eq=False)
class Family:
    """A profile: (L, 20) shares of residues, (L,) chances to skip a place, (L,) to insert after it, and pairs."""

    shares: np.ndarray
    deletions: np.ndarray
    insertions: np.ndarray
    pairs: tuple[tuple[int, int, int], ...]
    has_signal: bool


def made_protein(number: int, seed: int = 0) -> str:
    """A protein of one of 24 families, a pure function of its number and the seed.

    A family is a profile in the manner of Pfam's: conserved places, places of one kind of residue, loops of any; places
    that are skipped, insertions, pairs of places that depend on each other; some have a signal peptide before them.
    """
    rng = np.random.default_rng([seed, number, 1])
    family = _family(int(rng.integers(FAMILIES)), seed)
    letters, background = np.array(list(BACKGROUND)), _background()
    chosen = [str(letters[rng.choice(20, p=shares)]) for shares in family.shares]
    for first, second, kind in family.pairs:
        own, other = PAIRS[kind] if rng.random() < 0.5 else PAIRS[kind][::-1]
        chosen[first], chosen[second] = str(rng.choice(list(own))), str(rng.choice(list(other)))
    protein = ["M"]
    if family.has_signal:
        protein += [*rng.choice(list("KR"), 2), *rng.choice(list("LLLAVIF"), int(rng.integers(8, 13))), *"ASA"]
    for place, residue in enumerate(chosen):
        if rng.random() >= family.deletions[place]:
            protein.append(residue)
        if rng.random() < family.insertions[place]:
            protein += [str(letters[i]) for i in rng.choice(20, int(rng.geometric(0.5)), p=background)]
    return "".join(protein)


@lru_cache(maxsize=64)
def _family(number: int, seed: int) -> Family:
    rng = np.random.default_rng([seed, number, 0])
    letters, background = list(BACKGROUND), _background()
    length = int(rng.integers(45, 120))
    shares = np.zeros((length, 20))
    for place in range(length):
        kind = rng.random()
        if kind < 0.4:  # conserved
            shares[place] = 0.1 * background
            shares[place, rng.choice(20, p=background)] += 0.9
        elif kind < 0.8:  # of a kind
            group = GROUPS[int(rng.integers(len(GROUPS)))]
            inside = np.array([letter in group for letter in letters]) * rng.gamma(1.0, size=20)
            shares[place] = 0.15 * background + 0.85 * inside / inside.sum()
        else:
            shares[place] = background
    loops = rng.random(length) < 0.12
    places = rng.permutation(length)[: 2 * (length // 12)].reshape(-1, 2)
    pairs = tuple((int(a), int(b), int(rng.integers(len(PAIRS)))) for a, b in places)
    return Family(shares, 0.3 * loops, 0.4 * loops + 0.01, pairs, bool(rng.random() < 0.3))


def _background() -> np.ndarray:
    shares = np.array(list(BACKGROUND.values()))
    return shares / shares.sum()

"""Proteins as residues, one symbol each, read from either end (as in RITA, arXiv:2205.05789, and ProGen2, 2206.13517).

The alphabet is that of IUPAC and IUB for amino acids: the 20 usual ones, B, J, Z (one of two), O, U (rare) and X (any).
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch

from armm.errors import InputError
from armm.heads import HeadConfig
from armm.modalities.reading import read_bytes
from armm.modality import Modality, Preview
from armm.sequence import Segment

RESIDUES = "ACDEFGHIKLMNPQRSTVWYBJOUXZ"
UNKNOWN = "?"
FORWARD, REVERSED = 0, 1
LINE = 60  # residues of a line of FASTA


@dataclass(frozen=True)
class Protein(Modality):
    """Sequences of residues, as strings of upper-case letters.

    Attributes:
        both_directions: the direction is coded, so that a model can begin at either end; data sources that know it
            train on both. A sequence means the same either way: raw data is always from the N-terminus.
        max_units: the longest protein, in residues; null for any length.
        head: the head; by default softmax.
        name: its name in a model.
    """

    both_directions: bool = True
    max_units: int | None = None
    head: HeadConfig | None = None
    name: str = "protein"

    vocab = len(RESIDUES)
    ended = True
    bits_per = "residue"
    nats_per = "residue"
    suffix: ClassVar[str] = ".fasta"
    suffixes: ClassVar[tuple[str, ...]] = (".fasta", ".fa", ".faa", ".fas", ".pep")

    def __post_init__(self) -> None:
        if self.max_units is not None and self.max_units < 1:
            raise InputError(f"{self.name}.max_units is {self.max_units}; expected 1 or more")

    @property
    def header_sizes(self) -> tuple[int, ...]:
        """The direction, where it is coded."""
        return (2,) if self.both_directions else ()

    # ------------------------------------------------------------------ data

    def encode(self, raw: str) -> Segment:
        """A protein from its N-terminus.

        Raises InputError: a letter that is no residue, or too long.
        """
        symbols = self._symbols(raw, RESIDUES)
        if self.max_units is not None and len(raw) > self.max_units:
            raise InputError(
                f"{self.name}: the protein has {len(raw)} residues, at most {self.max_units} are allowed; leave it out "
                f"or raise {self.name}.max_units"
            )
        return Segment(self.name, symbols, header=(FORWARD,) if self.both_directions else ())

    def encode_reversed(self, raw: str) -> Segment:
        """The same protein from its C-terminus.

        Raises InputError: as `encode` does, or the direction is not coded.
        """
        if not self.both_directions:
            raise InputError(f"{self.name} is read from the N-terminus only; set {self.name}.both_directions: true")
        segment = self.encode(raw)
        return replace(segment, symbols=segment.symbols.flip(0), header=(REVERSED,))

    def encode_prompt(self, raw: str) -> Segment:
        """The beginning of a protein, `?` where a residue is to be found; after `<`, its end, to be continued.

        `MK??V` has two holes; `<GHK` is what the protein ends in, at its C-terminus.

        Raises InputError: a letter that is no residue, or the direction is not coded.
        """
        backwards = raw.startswith("<")
        symbols = self._symbols(raw.removeprefix("<"), RESIDUES + UNKNOWN)
        if not backwards:
            return Segment(self.name, symbols, header=(FORWARD,) if self.both_directions else ())
        if not self.both_directions:
            raise InputError(f"{self.name} is read from the N-terminus only; set {self.name}.both_directions: true")
        return Segment(self.name, symbols.flip(0), header=(REVERSED,))

    def decode(self, segment: Segment) -> str:
        """The residues from the N-terminus on."""
        letters = "".join((RESIDUES + UNKNOWN)[symbol] for symbol in segment.flat().tolist())
        return letters[::-1] if segment.header == (REVERSED,) else letters

    def _symbols(self, raw: str, alphabet: str) -> torch.Tensor:
        """(U, 1) the number of every letter; the last of a longer alphabet is V, "unknown"."""
        for at, letter in enumerate(raw):
            if letter not in alphabet:
                raise InputError(
                    f"{self.name}: {letter!r} at position {at + 1} is no residue; expected letters of {RESIDUES}"
                )
        return torch.tensor([[alphabet.index(letter)] for letter in raw], dtype=torch.int64).view(-1, 1)

    # ------------------------------------------------------------------ files

    def parse(self, text: str) -> str:
        """The residues as typed, or the only protein of a FASTA file."""
        return self.load(Path(text)) if text.lower().endswith(self.suffixes) else text.upper()

    def load(self, path: Path) -> str:
        """Read a FASTA file of one protein; `read_fasta` has the rules.

        Raises InputError: it is none, it cannot be used, or there are several.
        """
        good, bad = read_fasta(path)
        if bad:
            raise bad[0]
        if len(good) > 1:
            raise InputError(f"{path} holds {len(good)} proteins, expected one; save each as a file")
        return good[0].residues

    def save(self, raw: str, path: Path) -> None:
        """Write FASTA, 60 residues a line."""
        path.write_text(f">armm {len(raw)} residues\n" + "\n".join(textwrap.wrap(raw, LINE)) + "\n", encoding="ascii")

    def preview(self, raws: Sequence[str]) -> Preview:
        return Preview("text", "\n".join(raws))


# --------------------------------------------------------------------------------- FASTA


class Record(NamedTuple):
    """A protein of a file: its name (the first word of its header), its residues, and the line of its header."""

    name: str
    residues: str
    line: int


def read_fasta(path: Path) -> tuple[list[Record], list[InputError]]:
    """The proteins of a FASTA file that can be used, and what is wrong with each of the others.

    Lower case (masked regions) is read as upper case; blank lines, spaces and numbers between residues mean nothing; a
    `*` at the end is the end, which is coded anyway; X and other ambiguity codes are residues of their own. What cannot
    be used: no residues, a `*` in the middle (a translation that went on through a stop), gaps (`-`, `.`) of an
    alignment, or any other letter.

    Raises InputError: not FASTA at all, or no record.
    """
    good: list[Record] = []
    bad: list[InputError] = []
    for record in _records(path):
        bad.append(record) if isinstance(record, InputError) else good.append(record)
    return good, bad


def _records(path: Path) -> Iterator[Record | InputError]:
    text = read_bytes(path).decode("utf-8", "replace").removeprefix("\ufeff")
    name, line, residues, fault = "", 0, [], None
    n_records = 0
    lines = text.splitlines()
    for number, content in enumerate([*lines, ">"], start=1):
        content = content.strip()
        if content.startswith(">"):
            if line:
                n_records += 1
                yield fault or _finished(path, name, line, "".join(residues))
            words = content[1:].split()
            name, line, residues, fault = words[0] if words else f"record at line {number}", number, [], None
        elif content and not content.startswith(";"):  # a comment, in old files
            if not line:
                raise InputError(
                    f"{path}, line {number}: {content[:30]!r} comes before any header; FASTA begins with a line such "
                    "as >name"
                )
            letters = re.sub(r"[\s\d]", "", content).upper()
            fault = fault or _fault(path, number, letters)
            residues.append(letters)
    if not n_records:
        raise InputError(f"{path} holds no record, expected lines such as >name and residues below; name another file")


def _fault(path: Path, line: int, letters: str) -> InputError | None:
    wrong = next((letter for letter in letters if letter not in RESIDUES + "*"), None)
    if wrong is None:
        return None
    gap = "; remove the gaps of the alignment" if wrong in "-." else f"; expected letters of {RESIDUES}"
    return InputError(f"{path}, line {line}: {wrong!r} is no residue{gap}")


def _finished(path: Path, name: str, line: int, residues: str) -> Record | InputError:
    residues = residues.removesuffix("*")
    if "*" in residues:
        return InputError(
            f"{path}, line {line}: {name} has a stop (*) in the middle, after {residues.index('*')} residues; remove "
            "the record, or cut it there"
        )
    if not residues:
        return InputError(f"{path}, line {line}: {name} has no residues; remove the record")
    return Record(name, residues, line)

"""Proteins: residues come back from either end, FASTA is read as it is found, and fixed residues stay fixed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from armm.datasets import Fasta, trigram_bits, unigram_bits
from armm.datasets.proteins import BACKGROUND, EitherEnd, made_protein
from armm.errors import InputError
from armm.evaluation.protein import FixedResidues, ProteinBits
from armm.evaluation.score import Material
from armm.generation import generate
from armm.modalities import Protein
from armm.modalities.protein import RESIDUES, read_fasta
from armm.sequence import Segment
from armm.testing import check_round_trip, run_checks, tiny_model


@pytest.mark.parametrize("protein", [Protein(), Protein(both_directions=False, max_units=4)])
def test_protein_passes_every_law(protein: Protein) -> None:
    assert [fault for _, fault in run_checks(protein)] == [None] * 6


def test_protein_comes_back_from_either_end() -> None:
    protein = Protein()
    check_round_trip(protein, ["MKV", RESIDUES, ""])
    backwards = protein.encode_reversed("MKV")
    assert [RESIDUES[s] for s in backwards.flat().tolist()] == ["V", "K", "M"] and backwards.header == (1,)
    assert protein.decode(backwards) == "MKV"


def test_letters_that_are_no_residues_are_refused() -> None:
    with pytest.raises(InputError, match=r"'k' at position 2 is no residue"):
        Protein().encode("Mk")
    with pytest.raises(InputError, match="4 residues, at most 3"):
        Protein(max_units=3).encode("MKVA")
    with pytest.raises(InputError, match="both_directions: true"):
        Protein(both_directions=False).encode_prompt("<MK")


# ------------------------------------------------------------------------------------ FASTA


def write(folder: Path, text: str) -> Path:
    path = folder / "a.fasta"
    path.write_text(text, encoding="utf-8")
    return path


def test_fasta_is_read_as_it_is_found(tmp_path: Path) -> None:
    """Lower case, X, a stop at the end, blank lines, Windows' line ends, numbers, comments, a byte order mark."""
    text = "\ufeff; old\n>sp|P1 a first\r\nmkVx\r\n\r\n  AC 60\r\nGH*\r\n\r\n>two\nX*\n>\nBZJUO\n"
    good, bad = read_fasta(write(tmp_path, text))
    assert not bad
    assert [tuple(record) for record in good] == [
        ("sp|P1", "MKVXACGH", 2),
        ("two", "X", 8),
        ("record at line 10", "BZJUO", 10),
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        (">a\nMK*V\n", "line 1: a has a stop .* after 2 residues"),
        (">a\nMK\n\nM-V\n", "line 4: '-' is no residue; remove the gaps"),
        (">a\nMK1é\n", "line 2: 'É' is no residue"),
        (">a\n\n>b\nMK\n", "line 1: a has no residues"),
    ],
)
def test_records_that_cannot_be_used_are_named(text: str, message: str, tmp_path: Path) -> None:
    _, bad = read_fasta(write(tmp_path, text))
    assert len(bad) == 1
    with pytest.raises(InputError, match=message) as refused:
        raise bad[0]
    assert "\n" not in str(refused.value) and str(tmp_path) in str(refused.value)


@pytest.mark.parametrize("text, message", [("MKV\n", "before any header"), ("\n\n", "no record"), ("", "empty")])
def test_files_that_are_no_fasta_are_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_fasta(write(tmp_path, text))


def test_saved_proteins_are_fasta(tmp_path: Path) -> None:
    Protein().save("MKV" * 50, tmp_path / "a.fasta")
    assert max(map(len, (tmp_path / "a.fasta").read_text().splitlines())) == 60
    assert Protein().load(tmp_path / "a.fasta") == "MKV" * 50
    assert Protein().parse(str(tmp_path / "a.fasta")) == "MKV" * 50 and Protein().parse("mkv") == "MKV"
    with pytest.raises(InputError, match="holds 2 proteins"):
        Protein().load(write(tmp_path, ">a\nMK\n>b\nMK\n"))


# ------------------------------------------------------------------------------- the source


def test_own_fasta_is_dealt_out_and_bad_records_are_skipped_or_end_the_run(tmp_path: Path) -> None:
    records = [f">p{i}\n{'MKVACD'[: 1 + i % 6] * 3}\n" for i in range(20)]
    path = write(tmp_path, "".join(records) + ">bad\nM*K\n>long\n" + "M" * 40 + "\n")
    modalities = {"protein": Protein(max_units=30)}
    with pytest.raises(InputError, match=r"line 41: bad has a stop.*on_error skip"):
        Fasta().load(modalities, path, "fail")
    splits = Fasta().load(modalities, path, "skip")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (16, 2, 2)
    assert len(splits.skipped) == 2 and "line 43: long" in str(splits.skipped[1])
    with pytest.raises(InputError, match="at least 3 are needed"):
        Fasta().load(modalities, write(tmp_path, ">a\nMK\n"), "fail")


def test_training_proteins_are_read_from_either_end() -> None:
    """By chance, the same at the same draw; validation and test from the N-terminus."""
    splits = Fasta(n=20).load({"protein": Protein()}, None, "fail")
    assert isinstance(splits.train, EitherEnd) and len(splits.train) == 16
    segments = [splits.train.item(0, draw)["protein"] for draw in range(40)]
    assert {segment.header for segment in segments} == {(0,), (1,)}
    assert {Protein().decode(segment) for segment in segments} == {made_protein(0)}
    assert splits.train.item(0, 7)["protein"].header == splits.train.item(0, 7)["protein"].header
    assert isinstance(splits.test.item(0, 0)["protein"], str)
    one = Fasta(n=20).load({"protein": Protein(both_directions=False)}, None, "fail")
    assert isinstance(one.train.item(0, 0)["protein"], str)


def test_made_proteins_are_families() -> None:
    """What comes before tells more than how frequent residues and pairs are: conserved places recur in a family."""
    proteins = [made_protein(i) for i in range(300)]
    assert proteins[:5] == [made_protein(i) for i in range(5)] != [made_protein(i, seed=1) for i in range(5)]
    assert {residue for protein in proteins for residue in protein} <= set(BACKGROUND)
    letters = list("".join(proteins))
    np.random.default_rng(0).shuffle(letters)
    assert n_blocks("".join(proteins)) < 0.95 * n_blocks("".join(letters))


def n_blocks(residues: str, length: int = 5) -> int:
    """How many different ones there are."""
    return len({residues[i : i + length] for i in range(len(residues) - length + 1)})


# ------------------------------------------------------------------------------ scores


def test_trigrams_know_more_than_unigrams() -> None:
    """A sequence that repeats is all but certain after two symbols; what was never seen still has a share."""
    stream = np.arange(300) % 3
    assert trigram_bits(stream, stream, 3) < 0.1 < unigram_bits(stream, stream, 3)
    assert np.isfinite(trigram_bits(stream, np.array([2, 2, 2, 0]), 5))


def test_trigram_shares_sum_to_one() -> None:
    """Over all symbols that may follow, the share left for "before the beginning" included, which never follows."""
    train = [np.array([0, 1, 2, 0, 1, 1]), np.array([2, 2, 1])]
    for before in ([], [0], [0, 1], [2, 0], [1, 1]):
        total = 0.0
        for symbol in range(3):
            bits = trigram_bits(train, np.array([*before, symbol]), 3) * (len(before) + 1)
            bits -= trigram_bits(train, np.array(before), 3) * len(before) if before else 0
            total += 2**-bits
        assert 0.9 < total <= 1 + 1e-9


def test_scores_of_a_model() -> None:
    """Every number with its trials; an untrained model keeps fixed residues too, and its bits are the alphabet's."""
    splits = Fasta(n=20).load({"protein": Protein()}, None, "fail")
    model = tiny_model({"protein": Protein()}, layout=["protein"], context=200)
    data = Material(splits, at_most=2)
    found = {**ProteinBits().evaluate(model, data), **FixedResidues(length=10).evaluate(model, data)}
    assert found["fixed_residues_kept"].value == 1 and found["fixed_residues_kept"].n_trials == 10
    assert found["bits_per_residue"].n_trials == sum(len(splits.test.item(i, 0)["protein"]) for i in (0, 1))
    assert found["bits_per_residue"].value == pytest.approx(np.log2(26), abs=1)
    assert found["reversed_bits_per_residue"].value != found["bits_per_residue"].value
    assert 0 < found["trigram_bits_per_residue"].value < 6 and 0 < found["unigram_bits_per_residue"].value < 6


def test_holes_are_filled_and_the_rest_is_kept() -> None:
    protein = Protein()
    model = tiny_model({"protein": protein}, layout=["protein"], context=60)
    for letters, check in {"MK??V": _forward, "<?HK": _backward}.items():
        prompt: list[Segment] = [protein.encode_prompt(letters)]
        for sample in generate(model, [prompt], n=8, seed=3):
            check(protein.decode(sample.document[0]))


def _forward(residues: str) -> None:
    assert residues[:2] == "MK" and residues[4] == "V" and "?" not in residues


def _backward(residues: str) -> None:
    assert residues.endswith("HK") and len(residues) >= 3 and "?" not in residues

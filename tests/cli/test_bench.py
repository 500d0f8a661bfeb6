"""`armm bench`: a table for people, one JSON object for programs, and numbers that belong together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from own_files import Run, everything_in

from armm.commands import machine


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a gigabyte seven times takes longer than the rest."""
    monkeypatch.setattr(machine, "read_bandwidth", lambda device: 1e10)


@pytest.mark.parametrize(
    ("name", "unit"), [("text", "chars of text"), ("image", "dims of image"), ("audio", "real time")]
)
def test_bench_measures_both_ways_of_computing(name: str, unit: str, runs: Path, here: Path, run: Run) -> None:
    out = run("bench", runs / name, "--rows", "1,3", "--seconds", "0.01", "--max-symbols", "40")
    *table, last = out.splitlines()
    found = json.loads(last)
    assert [(r["rows"], r["exact"]) for r in found["results"]] == [(1, True), (1, False), (3, True), (3, False)]
    assert all(unit in row for row in table[2:]) and len(table) == 6
    for result in found["results"]:
        assert result["symbols"] > 0 and 0 < result["first"] < 60 and result["memory"] > 1 << 20
        assert 0 < result["bandwidth"] < 10
        modality = {"text": "text", "image": "image", "audio": "audio"}[name]
        assert 0 < result["natural"][modality] <= result["symbols"] * 1.001
    assert everything_in(here) == set()


def test_bench_of_packed_weights(runs: Path, here: Path, run: Run) -> None:
    out = run("bench", runs / "text", "--rows", "1", "--seconds", "0.01", "--max-symbols", "8", "--weights", "int8")
    assert json.loads(out.splitlines()[-1])["weights"] == "int8"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rows", "0"], ["--rows 0"]),
        (["--rows", "1,x"], ["--rows 1,x"]),
        (["--seconds", "0"], ["--seconds is 0"]),
        (["--weights", "int3"], ["int3"]),
        (["--device", "abacus"], ["abacus"]),
    ],
)
def test_bench_refuses(options: list[str], words: list[str], runs: Path, here: Path, refused: Run) -> None:
    refused(["bench", runs / "text", *options], *words)
    refused(["bench", "nowhere"], "nowhere does not exist")

"""The examples outside the package: short, lawful, and taking part in mixed documents by the documented commands."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from armm.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example's folder, to work in, with its documents."""
    folder = tmp_path / "trace"
    shutil.copytree(EXAMPLES / "trace", folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    exec(compile((folder / "make.py").read_text(encoding="utf-8"), "make.py", "exec"), {"__name__": "__main__"})
    yield folder
    sys.modules.pop("trace", None)


def test_a_modality_is_short_and_lawful(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len((trace / "trace.py").read_text(encoding="utf-8").splitlines()) < 30
    assert main(["check-modality", "trace.Trace"]) == 0
    assert "every law holds" in capsys.readouterr().out


def test_it_takes_part_in_mixed_documents(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained with words and a class in either order, generated after each and before, scored by modality."""
    small = ["--model.backbone.init_args.width=16", "--model.backbone.init_args.n_heads=2", "--n_samples=0"]
    assert main(["train", "recipe.yaml", "--debug", *small]) == 0
    metrics = json.loads((trace / "runs/recipe/0/metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["test"]) == {"text", "trace", "structure"}
    assert set(metrics["diagnostics"]["trace"]) == {"unit", "backbone", "condition", "bits_by_slot"}
    assert len(metrics["diagnostics"]["trace"]["bits_by_slot"]) == 8
    station = '{"label": 1, "name": "station"}'
    for given, then, files in (
        (f'[{station}, {{"text": "it rises"}}]', "trace", ["0-0000-1-text.txt", "0-0000-2-trace.txt"]),
        (f'[{station}, {{"trace": [0.1, 0.2, 0.3]}}]', "text", ["0-0000.txt"]),
    ):
        out = trace / f"to_{then}"
        options = ["--then", then, "--out", str(out), "--max-symbols", "60"]
        assert main(["generate", "runs/recipe", "--prompt", given, *options]) == 0
        names = sorted(path.name for path in out.iterdir() if path.suffix == ".txt")
        assert names == files
    capsys.readouterr()
    (trace / "some.jsonl").write_text("".join((trace / "documents.jsonl").open().readlines()[:2]), encoding="utf-8")
    assert main(["score", "runs/recipe", "--manifest", "some.jsonl", "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["document"] == "some.jsonl line 1" and set(first["modalities"]) == {"trace", "text"}
    assert set(second["modalities"]) == {"trace"}
    bits = sum(own["bits"] for own in first["modalities"].values()) + first["structure_bits"]
    assert first["bits"] == pytest.approx(bits) and first["structure_bits"] > 0

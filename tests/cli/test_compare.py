"""`armm compare`: recipes trained for the same time, a table, a plot, and what goes wrong."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from armm.cli import main
from armm.commands import compare
from armm.commands.compare import Result

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = ["--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1", "--data.eval_batch_size=4"]
RECIPES = ["classics/pixelcnn", "classics/patches"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def run(command: list[str], check: bool) -> SimpleNamespace:
        """In this process: another one takes seconds to import torch."""
        return SimpleNamespace(returncode=main(command[3:]))

    monkeypatch.setattr(subprocess, "run", run)


def test_recipes_are_trained_for_the_same_time_and_put_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *RECIPES, "--minutes", "0.04", "--out", "both", *SMALL]) == 0
    results = json.loads(Path("both/comparison.json").read_text(encoding="utf-8"))
    assert {result["recipe"] for result in results} == set(RECIPES)
    assert results[0]["bits"] <= results[1]["bits"]
    for result in results:
        assert result["unit"] == "dim" and result["steps"] > 0 and 0 < result["bits"] < 20
        assert result["curve"] and all(seconds > 0 and bits > 0 for seconds, bits in result["curve"])
        config = (Path("both") / result["recipe"].replace("/", "-") / "config.yaml").read_text(encoding="utf-8")
        assert "max_time: 00:00:00:02" in config and "max_steps: -1" in config and "limit_val_batches: 1" in config
    table = Path("both/comparison.md").read_text(encoding="utf-8")
    assert all(f"| {recipe} |" in table for recipe in RECIPES) and table.strip() in capsys.readouterr().out
    assert Path("both/comparison.png").read_bytes().startswith(b"\x89PNG")

    assert main(["compare", *RECIPES, "--minutes", "0.04", "--out", "both", *SMALL]) == 0
    assert "complete in" in capsys.readouterr().out, "what is there is not trained again"
    assert main(["compare", *RECIPES, "--minutes", "1", "--out", "both"]) == 2
    assert "holds a comparison of 0.04 minutes" in capsys.readouterr().err


def test_a_recipe_that_fails_does_not_take_the_others_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_text("model: {modalities: {image: armm.modalities.Imag}}\n", encoding="utf-8")
    assert main(["compare", "bad.yaml", RECIPES[0], "--minutes", "0.02", "--out", "some", *SMALL]) == 2
    said = capsys.readouterr()
    assert "bad.yaml did not train" in said.err and f"| {RECIPES[0]} |" in said.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["image/digits", "--minutes", "0", "--out", "x"], "--minutes is 0"),
        (["image/digits", "image/digits", "--out", "x"], "is there twice"),
        (["image/digits", "--out", "x", "--data.batch_size", "3"], "written --key=value"),
        (["image/digits", "--out", "x", "--trainer.max_steps=3"], "is set by the comparison"),
        (["image/digits", "--out", "full"], "holds something else"),
        (["image/digits"], "--out"),
    ],
)
def test_what_cannot_be_compared_is_said(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("full").mkdir()
    Path("full/file").touch()
    assert main(["compare", *arguments]) == 2
    assert message in capsys.readouterr().err and not Path("x").exists()


def test_table_names_every_unit() -> None:
    """Bits of unlike units stand in one table, each with its own."""
    both = [Result(n, "a", u, 1.5, u, 9.0, 60.0, 10, 1000, []) for n, u in (("one", "byte"), ("two", "char"))]
    table = compare._table(both, 1)
    assert "| one | 1.500 bits/byte |" in table and "| two | 1.500 bits/char |" in table

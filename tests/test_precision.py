"""Which precision is trained in: the faster, unless several processes might disagree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny_modalities import Letters, hash_symbols
from tiny_training import Given, module_of

from armm.backbones import Transformer
from armm.cli import main
from armm.training import DataModule, GenerativeModule, precision
from armm.training.precision import choose, measure, several_processes

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that multiplies bfloat16, and no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda on_gpu: True)


def tiny(width: int = 8, dropout: float = 0.0) -> tuple[GenerativeModule, DataModule]:
    blocks = Transformer(width=width, n_layers=1, n_heads=2, dropout=dropout)
    items = [{"letters": hash_symbols(9, 6, seed=k)} for k in range(4)]
    return module_of(Letters(), layout=["letters"], backbone=blocks), DataModule(Given(items), batch_size=2)


@pytest.mark.parametrize(
    ("seconds", "expected"), [((0.2, 0.1), "bf16-mixed"), ((0.1, 0.2), "32-true"), ((0.105, 0.1), "32-true")], ids=str
)
def test_the_faster_is_chosen(seconds: tuple[float, float], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And float32 where there is next to no difference."""
    monkeypatch.setattr(precision, "measure", lambda *_: dict(zip(("32-true", "bf16-mixed"), seconds, strict=True)))
    choice = choose(*tiny(), "auto")
    assert choice.precision == expected and "ms" in choice.reason


def test_several_processes_choose_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would measure something else."""
    monkeypatch.setattr(precision, "measure", lambda *_: pytest.fail("measured"))
    assert choose(*tiny(8), "cpu", alone=False).precision == "32-true"
    assert choose(*tiny(256), "cpu", alone=False).precision == "bf16-mixed"


def test_what_cannot_do_it_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "measure", lambda *_: pytest.fail("measured"))
    assert choose(*tiny(), "mps").precision == "32-true"
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda on_gpu: False)
    assert choose(*tiny(), "cpu").precision == "32-true"


def test_measuring_leaves_no_trace() -> None:
    """Weights, gradients and random numbers, dropout's too, are as before: a run is the same with and without it."""
    module, data = tiny(dropout=0.5)
    module.prepare(data)
    before, state = {name: p.clone() for name, p in module.named_parameters()}, torch.get_rng_state()
    seconds = measure(module, data, "cpu")
    assert set(seconds) == {"32-true", "bf16-mixed"} and min(seconds.values()) > 0
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in module.named_parameters())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"devices": 1}, False),
        ({"devices": "auto"}, False),
        ({"devices": 2}, True),
        ({"devices": "2"}, True),
        ({"devices": [0]}, False),
        ({"devices": [0, 1]}, True),
        ({"devices": 1, "num_nodes": 2}, True),
    ],
    ids=str,
)
def test_several_processes(options: dict[str, object], expected: bool) -> None:
    assert several_processes(options) == expected


def test_torchrun_starts_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert several_processes({})


@pytest.mark.parametrize("given", ["auto", None, "32-true"])
def test_the_choice_is_in_the_run(
    given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`auto` is the default and can be said; what came of it is in the configuration, the metrics and the log."""
    monkeypatch.setattr(precision, "measure", lambda *_: {"32-true": 2.0, "bf16-mixed": 1.0})
    folder = tmp_path / "run"
    options = ["--debug", "--n_samples=0", f"--run_dir={folder}", *([f"--trainer.precision={given}"] if given else [])]
    assert main(["train", "image/digits", *options]) == 0
    expected = "32-true" if given == "32-true" else "bf16-mixed"
    saved = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert saved["trainer"]["precision"] == metrics["precision"]["used"] == expected
    assert ("precision bf16-mixed: forward and backward" in capsys.readouterr().out) == (given != "32-true")

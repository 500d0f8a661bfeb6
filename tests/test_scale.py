"""The plan of a large training is arithmetic about our own models; and what a GPU's measurements are made into."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from armm.backbones import Transformer
from armm.modalities import Text
from armm.model import AutoregressiveModel

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def on_path() -> Iterator[None]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.parametrize(
    "config",
    [
        Transformer(width=64, n_layers=3, n_heads=4, n_kv_heads=2, mlp="swiglu", mlp_width=96, norm_gain=True),
        Transformer(width=64, n_layers=2, n_heads=4),
    ],
)
def test_the_plan_counts_the_weights_of_our_models(config: Transformer) -> None:
    plan = replace(importlib.import_module("scale").Plan(), backbone=config, vocab=256)
    model = AutoregressiveModel({"text": Text(kind="bytes")}, config, ["text"])
    matrices = sum(p.numel() for p in model.backbone.parameters() if p.dim() == 2)
    assert plan.matrices == matrices
    assert plan.parameters == pytest.approx(model.n_parameters, rel=0.02)  # gains, and what begins a document


def test_the_page_says_what_the_script_prints() -> None:
    scale = importlib.import_module("scale")
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert "\n".join(scale.lines(scale.Plan())) in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure for 25 minutes")
def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path), str(tmp_path / "out")],
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "no GPU" in done.stdout and not (tmp_path / "out").exists()


def test_the_report_has_every_figure_that_there_is(tmp_path: Path) -> None:
    """From runs as `armm train` leaves them and benchmarks' last lines; what was cut short is a dash."""
    run = tmp_path / "shakespeare_3min"
    run.mkdir()
    scores: dict[str, Any] = {"test": {"text": {"nats_per_char": 1.4321987}}}
    (run / "metrics.json").write_text(json.dumps(scores), encoding="utf-8")
    result = {"work": "train_4x128", "ours": 123456.0, "unit": "tokens/s", "ratio": 1.5, "peer_name": "nanoGPT"}
    (tmp_path / "training.log").write_text("a table\n" + json.dumps({"results": [result]}), encoding="utf-8")
    (tmp_path / "generation.log").write_text("killed", encoding="utf-8")
    text = "\n".join(importlib.import_module("gpu_report").report(tmp_path, "GPU X, commit abc"))
    assert "## GPU X, commit abc" in text
    assert "| tiny Shakespeare, nats/char, 3 min | 1.4322 | ≤ 1.45 |" in text
    assert "| dynamic MNIST, nats/image, 10 min | – | ≤ 77.8 |" in text
    assert "train_4x128 | 1.2346e+05 tokens/s, 1.50× nanoGPT" in text

"""`armm consolidate`: the bundle of a checkpoint is the one that training wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from own_files import Run
from safetensors.torch import load_file

from armm import bundle
from armm.training.checkpoints import newest


@pytest.mark.parametrize("name", ["text", "class"])
def test_a_checkpoint_is_all_that_a_bundle_needs(name: str, runs: Path, here: Path, run: Run) -> None:
    """A learned alphabet and free layouts too; the run's own bundle is not looked at."""
    shutil.copytree(runs / name / "checkpoints", here / "run" / "checkpoints")
    shutil.copy(runs / name / "config.yaml", here / "run")
    out = run("consolidate", here / "run")
    assert "step 4" in out and str(Path("run") / "model") in out
    own, written = (load_file(place / "model" / "weights.safetensors") for place in (here / "run", runs / name))
    assert own.keys() == written.keys() and all(torch.equal(own[key], written[key]) for key in own)
    model, other = bundle.load(here / "run"), bundle.load(runs / name)
    assert model.modalities.keys() == other.modalities.keys() and model.grammar.layout == other.grammar.layout
    assert {n: m.files() for n, m in model.modalities.items()} == {n: m.files() for n, m in other.modalities.items()}


def test_bad_places(runs: Path, here: Path, refused: Run) -> None:
    refused(["consolidate", "nowhere"], "nowhere", "run")
    saved = newest(runs / "text")
    assert saved is not None
    damaged = here / saved.path.name
    content = bytearray(saved.path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(bytes(content))
    refused(["consolidate", damaged], damaged.name, "damaged", "checksum")
    (here / "empty").mkdir()
    shutil.copy(runs / "text" / "config.yaml", here / "empty")
    refused(["consolidate", "empty"], "empty", "no checkpoint")

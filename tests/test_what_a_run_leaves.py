"""What a run leaves in its folder, finished, stopped or killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tiny_modalities import Letters
from tiny_training import QUIET, RAGGED, SMALL, Given, module_of

from armm import bundle
from armm.cli import main
from armm.modalities import Audio, Image, Label, Text
from armm.training import DataModule, Recorder, SampleLogger

pytestmark = pytest.mark.filterwarnings("ignore")


def scalars_and_samples(folder: Path) -> dict[str, list[str]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    return accumulator.Tags()


def test_samples_are_logged(tmp_path: Path) -> None:
    """An image grid, a clip to listen to and a text to read at every validation, after the data's own conditions."""
    items = [
        {"label": k % 2, "image": np.full((4, 4), k, np.uint8), "audio": np.zeros(20, np.float32), "text": "abc"}
        for k in range(4)
    ]
    audio = Audio(frame=8, head=SMALL, max_units=4)
    modalities = (
        Label(n_classes=2),
        Image(size=(4, 4), levels=17, head=SMALL),
        audio,
        Text(kind="bytes", ended=True, max_units=5),
    )
    module = module_of(*modalities, layout=["label", "image", "audio", "text"])
    data = DataModule(Given(items), batch_size=4, conditions=["label"])
    trainer = L.Trainer(
        **{**QUIET, "logger": TensorBoardLogger(str(tmp_path), name="", version="")},
        max_steps=2,
        check_val_every_n_epoch=None,
        val_check_interval=1,
        callbacks=[SampleLogger(3)],
        log_every_n_steps=1,
    )
    trainer.fit(module, datamodule=data)
    tags = scalars_and_samples(tmp_path)
    assert tags["images"] == ["samples/image"] and tags["audio"] == ["samples/audio"]
    assert "samples/text/text_summary" in tags["tensors"] and "samples/label/text_summary" in tags["tensors"]
    assert {"train/nats", "val/image/bits_per_dim", "val/audio/bits_per_sample"} <= set(tags["scalars"])


def test_a_run_records_at_every_validation(tmp_path: Path) -> None:
    """Scores and a bundle that loads, from the first validation on; nothing else in the folder."""
    module = module_of(Letters(), layout=["letters"])
    data = DataModule(Given(RAGGED), batch_size=8)
    recorder = Recorder(tmp_path, "text/letters", 5)
    seen = []

    class After(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append(json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")))
            assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "model"}

    options = {"check_val_every_n_epoch": None, "val_check_interval": 2, "limit_val_batches": 1.0}
    module.prepare(data)
    trainer = L.Trainer(**QUIET, **options, max_steps=4, callbacks=[recorder, After()])
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    assert [own["steps"] for own in seen] == [2, 4] and all(own["val"]["letters"] for own in seen)
    final = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert final["recipe"] == "text/letters" and final["seed"] == 5
    assert final["test"] == module.metrics["test"] and final["symbols_seen"] == 4 * 140
    assert final["n_parameters"] == sum(p.numel() for p in module.model.parameters())
    assert 0 < final["training_seconds"] < 100
    document = [module.model.modalities["letters"].encode([1, 2, 3])]
    again = bundle.load(tmp_path)
    module.model.eval()
    with torch.no_grad():
        assert torch.equal(again.stream_log_prob(document), module.model.stream_log_prob(document))


def started(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """`armm train image/digits`, small, in a process of its own; its progress goes to a file."""
    small = ("--model.modalities.image.init_args.head.init_args.channels=4", "--data.batch_size=4", "--data.n_val=4")
    command = [sys.executable, "-m", "armm.cli", "train", "image/digits", f"--run_dir={folder}", "--n_samples=0"]
    with open(folder.with_suffix(".log"), "wb") as log:
        return subprocess.Popen([*command, *small, *options], stdout=log, stderr=log, env={**os.environ})


def wait_for(process: subprocess.Popen[bytes], what: Any, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert process.poll() is None and time.monotonic() < end, "the training ended or did not begin"
        time.sleep(0.05)


def test_ctrl_c_leaves_a_bundle_that_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the first validation already: exit code 130, a whole run folder, and samples from it."""
    folder = tmp_path / "run"
    endless = ("--trainer.max_steps=100000", "--trainer.val_check_interval=100000", "--trainer.log_every_n_steps=1")
    process, log = started(folder, *endless), folder.with_suffix(".log")
    try:
        wait_for(process, (folder / "metrics.csv").exists)  # written for the first time after 100 steps
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130, log.read_text(encoding="utf-8")
    finally:
        process.kill()
    assert "stopped at step" in log.read_text(encoding="utf-8")
    assert "Traceback" not in log.read_text(encoding="utf-8")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["steps"] > 0 and metrics["symbols_seen"] // (4 * 64) - metrics["steps"] in (0, 1)
    assert main(["generate", str(folder), "--n", "2", "--out", str(tmp_path / "samples")]) == 0
    assert len(list((tmp_path / "samples").glob("0-*.png"))) == 2
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_kill_leaves_the_bundle_of_the_last_validation(tmp_path: Path) -> None:
    """No chance to clean up: what was written at a validation is whole."""
    folder = tmp_path / "run"
    process = started(folder, "--trainer.max_steps=100000", "--trainer.val_check_interval=1")
    try:
        wait_for(process, (folder / "metrics.json").exists)
        time.sleep(0.2)  # into one of the next writes
        process.kill()
        process.wait(timeout=60)
    finally:
        process.kill()
    model = bundle.load(folder)
    assert model.n_parameters == bundle.read_config(folder / "model")["about"]["n_parameters"]
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["val"]["image"]["bits_per_dim"] > 0

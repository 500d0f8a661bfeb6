"""What a run says about its own speed: counted right, by a clock of our own; nothing here is timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tiny_modalities import Clip, Letters, hash_symbols
from tiny_training import QUIET, Given, module_of

from armm.backbones import NoBackbone, Transformer
from armm.training import DataModule, Recorder, loading, speed
from armm.training.speed import Counts, FetchTimer, SpeedMonitor, flops_per_unit

pytestmark = pytest.mark.filterwarnings("ignore")


class Clock:
    """Seconds that pass only when somebody works."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    own = Clock()
    monkeypatch.setattr(speed, "perf_counter", own)
    monkeypatch.setattr(speed, "peak_flops", lambda device, dtype: 1e9)
    monkeypatch.setattr(loading, "TOGETHER", 1)  # every step waits as long as the others
    return own


class Slow(DataModule):
    """A quarter of a second to get a batch of 2 documents."""

    clock: Clock

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        collate = loader.collate_fn

        def slowly(documents: Any) -> Any:
            self.clock.now += 0.25
            return collate(documents)

        loader.collate_fn = slowly
        return loader


class Work(L.Callback):
    """Three quarters of a second a step, 100 s a validation."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.clock.now += 0.75

    def on_validation_batch_start(self, *arguments: Any) -> None:
        self.clock.now += 100


def run(clock: Clock, folder: Path, **options: Any) -> tuple[SpeedMonitor, dict[str, Any]]:
    module = module_of(Letters(), layout=["letters"])
    data = Slow(Given([{"letters": hash_symbols(10, 6, seed=k)} for k in range(8)]), batch_size=2, n_val=1)
    data.clock, monitor = clock, SpeedMonitor()
    options = {**QUIET, "profiler": FetchTimer(), "logger": CSVLogger(str(folder), "", ""), "max_steps": 9, **options}
    recorder = Recorder(folder, "text/letters", 0, monitor)
    trainer = L.Trainer(
        **options,
        log_every_n_steps=2,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        callbacks=[monitor, recorder, Work(clock)],
    )
    trainer.fit(module, datamodule=data)
    return monitor, json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_throughput_and_waiting(clock: Clock, tmp_path: Path) -> None:
    """2 documents of 10 letters a second, a quarter of it waiting; validation is not in it."""
    _, metrics = run(clock, tmp_path)
    told = metrics["speed"]
    assert told["symbols_per_second"] == told["units_per_second"] == pytest.approx(20)
    assert told["steps_per_second"] == pytest.approx(1) and told["waiting_for_data"] == pytest.approx(0.25)
    assert told["share_of_peak"] == pytest.approx(20 * told["flops_per_unit"] / 1e9, rel=1e-3)
    assert told["peak_memory_bytes"] > 1e6


@pytest.mark.parametrize(("steps", "waiting", "said"), [(200, 0.5, "5.0%"), (200, 0.1, None), (20, 0.5, None)])
def test_a_run_that_waits_for_data_is_told(steps: int, waiting: float, said: str | None) -> None:
    """More than 2 % of its time, once there are steps enough to tell."""
    monitor = SpeedMonitor()
    monitor._first = Counts(steps=1, seconds=1.0)
    monitor.total = Counts(steps=steps, seconds=11.0, waiting=waiting)
    complaint = monitor.complaint()
    assert complaint is None if said is None else complaint and said in complaint and "num_workers" in complaint


def test_accumulated_batches_all_count(clock: Clock, tmp_path: Path) -> None:
    _, metrics = run(clock, tmp_path, accumulate_grad_batches=2, max_steps=6)
    assert metrics["speed"]["symbols_per_second"] == pytest.approx(20)
    assert metrics["speed"]["steps_per_second"] == pytest.approx(0.5, rel=0.2)


def test_bits_against_time(clock: Clock, tmp_path: Path) -> None:
    """At every validation: the seconds trained so far, and the scores."""
    monitor, metrics = run(clock, tmp_path)
    assert metrics["history"] == monitor.history and [own["step"] for own in monitor.history] == [3, 6, 9]
    assert [own["seconds"] for own in monitor.history] == pytest.approx([2.75, 5.75, 8.75], abs=0.3)
    assert monitor.history[-1]["val"] == metrics["val"] and metrics["val"]["letters"]


def test_speed_is_logged(clock: Clock, tmp_path: Path) -> None:
    run(clock, tmp_path)
    head = (tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert {"speed/symbols_per_second", "speed/waiting_for_data", "speed/share_of_peak", "speed/seconds"} <= set(head)


def test_it_goes_on_after_a_resume(clock: Clock, tmp_path: Path) -> None:
    """Seconds and history so far are in the checkpoint; throughput is that of the new process."""
    monitor, _ = run(clock, tmp_path)
    later = SpeedMonitor()
    later.load_state_dict(monitor.state_dict())
    assert later.total == monitor.total and later.history == monitor.history and later.summary() == {}


def test_counts_subtract() -> None:
    assert Counts(5, 50, 10, 4.0, 1.0).since(Counts(2, 20, 4, 1.0, 0.5)) == Counts(3, 30, 6, 3.0, 0.5)


def test_arithmetic_is_that_of_the_products() -> None:
    """Three times the forward pass: 2 operations for each weight of a matrix, and the attention's products."""
    width, n, n_layers, vocab = 8, 10, 2, 6
    blocks = Transformer(width=width, n_layers=n_layers, n_heads=2)
    module = module_of(Letters(ended=False), layout=["letters"], backbone=blocks)
    data = DataModule(Given([{"letters": hash_symbols(n, 6, seed=k)} for k in range(4)]), batch_size=4)
    module.prepare(data)
    batch, _ = next(iter(data.train_dataloader()))
    before = {name: p.clone() for name, p in module.named_parameters()}
    state = torch.get_rng_state()
    found = flops_per_unit(module, batch)
    weights = n_layers * (4 * width * width + 8 * width * width) + vocab * width
    attention = n_layers * 2 * n * width
    assert found == 3 * 2 * (weights + attention)
    assert module.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], p) for name, p in module.named_parameters())


def test_arithmetic_of_a_model_without_a_backbone() -> None:
    module = module_of(Clip(), layout=["clip"], backbone=NoBackbone(width=8))
    data = DataModule(Given([{"clip": hash_symbols(12, 5, seed=k)} for k in range(2)]), batch_size=2)
    module.prepare(data)
    assert flops_per_unit(module, next(iter(data.train_dataloader()))[0]) > 0

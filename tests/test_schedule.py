"""The learning rate by steps and by the clock."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Timer
from tiny_modalities import Letters, hash_symbols
from tiny_training import QUIET, Given, module_of

from armm.errors import InputError
from armm.training import DataModule, GenerativeModule, Optimization
from armm.training.schedule import progress_of

pytestmark = pytest.mark.filterwarnings("ignore")


def by_steps(config: Optimization, n_steps: int) -> list[float]:
    return [config.factor(step / max(n_steps, 1), 1 / max(n_steps, 1)) for step in range(n_steps + 1)]


def test_rates_rise_stay_and_fall() -> None:
    """100 steps with 10 % of warm-up and 40 % of decay: linear up, flat, linear down, and zero after the last step."""
    at = by_steps(Optimization(warmup=0.1, decay=0.4), 100)
    assert at[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert at[10:61] == pytest.approx([1.0] * 51)
    assert at[60:] == pytest.approx([(100 - step) / 40 for step in range(60, 101)])
    assert at[99] > 0 == at[100]


def test_cosine_falls_from_the_warm_up_to_its_end() -> None:
    """Half a cosine: half-way down in the middle, and no further than `final`."""
    at = by_steps(Optimization(schedule="cosine", warmup=0.1, final=0.2), 100)
    assert at[10] == pytest.approx(1.0) and at[55] == pytest.approx(0.6) and at[100] == pytest.approx(0.2)
    assert all(one >= other for one, other in pairwise(at[10:]))


@pytest.mark.parametrize("n_steps", [1, 2, 1000])
def test_runs_of_any_length_learn_from_the_first_step(n_steps: int) -> None:
    """A warm-up of a fraction of a step must not divide by zero or begin at zero."""
    for config in (Optimization(), Optimization(warmup=0.0, decay=0.0), Optimization(warmup=0.5, decay=0.5)):
        assert all(0 < own <= 1 for own in by_steps(config, n_steps)[:-1])


class Clock(Timer):
    """A timer whose time is told."""

    def __init__(self, seconds: float) -> None:
        super().__init__(duration=timedelta(seconds=seconds))
        self.now = 0.0

    def time_elapsed(self, stage: Any = "train") -> float:
        return self.now


class Run:
    """What `progress_of` asks of a Trainer."""

    world_size = 1

    def __init__(self, n_steps: float, *timers: Timer) -> None:
        self.estimated_stepping_batches, self.callbacks = n_steps, list(timers)


def test_the_clock_decays_where_no_steps_are_set() -> None:
    """10 minutes: the rate follows the time used, however many steps that were."""
    clock = Clock(600)
    at = progress_of(Run(float("inf"), clock))  # type: ignore[arg-type]
    config = Optimization(warmup=0.1, decay=0.5)
    rates = []
    for step, now in enumerate((0, 30, 60, 300, 450, 600, 660)):
        clock.now = now
        rates.append(config.factor(*at(step)))
    assert 0 < rates[0] < 0.01
    assert rates[2:] == pytest.approx([1.0, 1.0, 0.5, 0.0, 0.0])


def test_what_ends_first_counts() -> None:
    """Both a number of steps and a time: a run that the clock will end has decayed by then, and the other way round."""
    clock = Clock(100)
    at = progress_of(Run(1000, clock))  # type: ignore[arg-type]
    clock.now = 80
    assert at(10)[0] == pytest.approx(0.8)
    clock.now = 10
    assert at(900)[0] == pytest.approx(0.9)


def test_a_run_without_an_end_is_refused() -> None:
    with pytest.raises(InputError, match="max_time"):
        progress_of(Run(float("inf"), Timer()))  # type: ignore[arg-type]


class Rates(L.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def timed(
    clock: Clock, folder: Path, stop_after: int, load: Path | None = None
) -> tuple[list[float], Path, GenerativeModule]:
    """Train by the clock, a second a step, and save."""

    class Second(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *arguments: Any) -> None:
            clock.now += 1

    module = module_of(Letters(), layout=["letters"], optimization=Optimization(lr=1.0, warmup=0.1, decay=0.5))
    data = DataModule(Given([{"letters": hash_symbols(8, 6, seed=k)} for k in range(4)]), batch_size=4)
    rates = Rates()
    trainer = L.Trainer(
        **{**QUIET, "callbacks": [clock, Second(), rates], "max_steps": stop_after}, limit_val_batches=0
    )
    module.prepare(data)
    with pytest.MonkeyPatch.context() as patch:  # the steps only stop the test, as a kill would: the clock ends the run
        patch.setattr(L.Trainer, "estimated_stepping_batches", float("inf"))
        torch.manual_seed(0)
        trainer.fit(module, datamodule=data, ckpt_path=load, weights_only=False)
    path = folder / f"{stop_after}.ckpt"
    trainer.save_checkpoint(path)
    return rates.seen, path, module


class SavedClock(Clock):
    """Its time is in checkpoints, as Lightning's is."""

    def state_dict(self) -> dict[str, Any]:
        return {"time_elapsed": {"train": self.now}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.now = state_dict["time_elapsed"]["train"]


def test_a_resumed_run_decays_on(tmp_path: Path) -> None:
    """The time used before the stop counts: 20 s of 40 before, the decay goes on from there and ends at zero."""
    whole, _, _ = timed(SavedClock(40), tmp_path, 40)
    first, path, _ = timed(SavedClock(40), tmp_path, 20)
    second, _, _ = timed(SavedClock(40), tmp_path, 40, load=path)
    assert first + second == pytest.approx(whole) and whole[-1] == 0.0 and whole[19] == pytest.approx(1.0)


def test_lightnings_timer_keeps_its_time_in_checkpoints() -> None:
    """What the test above takes for granted."""
    timer, other = Timer(duration=timedelta(seconds=100)), Timer(duration=timedelta(seconds=100))
    timer.load_state_dict({"time_elapsed": {"train": 30.0}})
    other.load_state_dict(timer.state_dict())
    assert other.time_elapsed() == 30.0 and other.time_remaining() == 70.0

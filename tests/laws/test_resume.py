"""Law 8: a run that is stopped anywhere and goes on ends with the weights, moments and scores of one that was not."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from laws.tiny_runs import CASES, Result, Watched, train
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import distributed

from armm.training import GenerativeModule, Optimization
from armm.training.checkpoints import newest

pytestmark = pytest.mark.filterwarnings("ignore")
HERE = Path(__file__).parent


class Killed(BaseException):
    """The end of a process."""


class KillBefore(L.Callback):
    """Ends everything when a batch, counted over all epochs, is about to be trained on."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            raise Killed


def same(one: Result, other: Result) -> bool:
    """Bitwise; the losses of the steps that both have seen."""
    assert len(one.state) == len(other.state) > 4 and one.losses and other.losses
    both = one.losses.keys() & other.losses.keys()
    return (
        all(torch.equal(a, b) for a, b in zip(one.state, other.state, strict=True))
        and one.n_seen == other.n_seen
        and [one.losses[step] for step in both] == [other.losses[step] for step in both]
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("workers", "accumulate"), [(0, 1), (2, 2)], ids=["plain", "workers, accumulation"])
def test_killed_and_resumed_is_as_never_stopped(case: str, workers: int, accumulate: int, tmp_path: Path) -> None:
    """In the middle of an epoch of 3 batches, at its end and in a later one; what is not resumed would differ."""
    options: dict[str, Any] = {"accumulate": accumulate}
    whole = train(case, tmp_path / "whole", **options)
    for batch in (2, 3, 7):
        folder = tmp_path / str(batch)
        with pytest.raises(Killed):
            train(case, folder, callbacks=[KillBefore(batch)], workers=workers, **options)
        resumed = train(case, folder, seed=5, workers=workers, **options)
        assert same(whole, resumed), batch
        assert min(resumed.losses) > 0  # it did not just begin again
    assert not same(whole, train(case, tmp_path / "other", seed=5, **options))


@pytest.mark.parametrize("interval", [1, 2, 3, 0.5, 1.0])
def test_resumed_after_every_batch_and_again(interval: float, tmp_path: Path) -> None:
    """Whatever stands between two batches, the end of an epoch or a validation, by steps or by epochs."""
    by_epochs = isinstance(interval, float)
    options: dict[str, Any] = {"val_check_interval": interval, "check_val_every_n_epoch": 1 if by_epochs else None}
    whole = train("images", tmp_path / "whole", **options)
    folder = tmp_path / "stopped"
    for batch in range(1, 8):
        with pytest.raises(Killed):
            train("images", folder, callbacks=[KillBefore(batch)], seed=batch - 1, **options)
        saved = newest(folder)
        assert saved is not None and saved.step == batch
    resumed = train("images", folder, **options)
    assert same(whole, resumed) and set(resumed.losses) == {7}


def test_validations_are_the_same_too(tmp_path: Path) -> None:
    """They score the same weights, and nothing in them moves the noise of training."""
    whole = train("images", tmp_path / "whole", val_check_interval=2)
    never = train("images", tmp_path / "never", limit_val_batches=0)
    assert all(torch.equal(a, b) for a, b in zip(whole.state, never.state, strict=True))
    with pytest.raises(Killed):
        train("images", tmp_path / "stopped", callbacks=[KillBefore(5)], val_check_interval=2)
    resumed = train("images", tmp_path / "stopped", val_check_interval=2)
    assert set(whole.validations) == {2, 4, 6, 8} and set(resumed.validations) == {6, 8}
    assert all(whole.validations[step] == bits for step, bits in resumed.validations.items())


class FailIn(GenerativeModule):
    """Fails once, in the middle of a batch or of a validation."""

    where: tuple[str, int] = ("", 0)

    def training_step(self, data: Any, index: int) -> Any:
        loss = super().training_step(data, index)
        self.fail("training_step")
        return loss

    def validation_step(self, data: Any, index: int) -> None:
        self.fail("validation_step")
        super().validation_step(data, index)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        super().optimizer_step(*arguments, **options)
        self.fail("optimizer_step")

    def fail(self, where: str) -> None:
        if type(self).where == (where, self.trainer.fit_loop.total_batch_idx):
            raise RuntimeError("as planned")


@pytest.mark.parametrize(
    ("where", "batch", "step"),
    # two batches a step, three an epoch: steps end with batches 1, 2, 4, 5, 7 ...
    [
        ("training_step", 3, 2),
        ("training_step", 4, 2),
        ("training_step", 1, 0),
        ("validation_step", 5, 4),
        ("optimizer_step", 4, 0),  # the weights are neither here nor there; nothing is kept of them
    ],
)
def test_an_error_in_a_step_loses_nothing_before_it(where: str, batch: int, step: int, tmp_path: Path) -> None:
    """A worker that dies, too little memory, a plug-in's mistake: saved as of the last whole step, though no checkpoint
    was due."""
    options: dict[str, Any] = {"accumulate": 2, "minutes": 60, "n_steps": 6, "module_class": FailIn}
    options["val_check_interval"] = 6  # at steps 4 and 8
    FailIn.where = "", 0
    whole = train("mixed", tmp_path / "whole", **options)
    FailIn.where = where, batch
    with pytest.raises(RuntimeError, match="as planned"):
        train("mixed", tmp_path / "failed", **options)
    saved = newest(tmp_path / "failed")
    assert (saved.step if saved else 0) == step
    FailIn.where = "", 0
    assert same(whole, train("mixed", tmp_path / "failed", **options))


class Rates(L.Callback):
    """Notes what every step is done with."""

    def __init__(self) -> None:
        self.seen: dict[int, list[tuple[float, float]]] = {}

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        groups = optimizer.param_groups
        self.seen[trainer.global_step] = [(group["lr"], group["weight_decay"]) for group in groups]


def test_rates_can_be_given_anew(tmp_path: Path) -> None:
    """A checkpoint holds rates and moments; what a resumed run is told to train with comes before them."""
    old, given = Optimization(lr=1e-2, warmup=0.2), Optimization(lr=3e-3, muon_lr=0.01, warmup=0.2, weight_decay=0.5)
    rates, straight = Rates(), Rates()
    with pytest.raises(Killed):
        train("images", tmp_path / "run", optimization=old, callbacks=[KillBefore(3)])
    train("images", tmp_path / "run", optimization=given, callbacks=[rates])
    train("images", tmp_path / "straight", optimization=given, callbacks=[straight])
    assert set(rates.seen) == set(range(3, 8))
    assert all(
        group == pytest.approx(straight.seen[step][n])
        for step in rates.seen
        for n, group in enumerate(rates.seen[step])
    )


class Average(EMAWeightAveraging):
    """Keeps the averaged weights where the test finds them."""

    averages: list[torch.Tensor]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._average_model is not None
        self.averages = [parameter.detach().clone() for parameter in self._average_model.module.parameters()]


def test_what_callbacks_keep_is_resumed(tmp_path: Path) -> None:
    """Such as a moving average of the weights, which validation looks at."""
    averages, results = [], []
    for stops in ((), (4,)):
        folder = tmp_path / str(len(stops))
        for batch in stops:
            with pytest.raises(Killed):
                train("images", folder, callbacks=[Average(decay=0.7), KillBefore(batch)])
        average = Average(decay=0.7)
        results.append(train("images", folder, callbacks=[average], seed=len(stops)))
        averages.append(average.averages)
    assert same(*results)
    assert all(torch.equal(a, b) for a, b in zip(*averages, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(averages[0], results[0].state, strict=False))


def test_the_average_of_the_weights_is_resumed(tmp_path: Path) -> None:
    """That of the recipes, wherever it is kept."""
    average = Optimization(warmup=0.2, ema=0.7)
    whole = train("mixed", tmp_path / "whole", optimization=average)
    assert len(whole.state) > len(train("mixed", tmp_path / "without").state)
    with pytest.raises(Killed):
        train("mixed", tmp_path / "run", optimization=average, callbacks=[KillBefore(5)])
    assert same(whole, train("mixed", tmp_path / "run", optimization=average, seed=3))


# ------------------------------------------------------------------------ two processes


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What `two_ranks.py FOLDER` on rank 0 of two processes prints, and the folder."""
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    folder = tmp_path_factory.mktemp("two")
    port = str(free_port())
    processes = []
    for rank in range(2):
        environment = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "WORLD_SIZE": "2",
            "NODE_RANK": "0",
            "LOCAL_RANK": str(rank),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": ":".join([str(HERE.parent), *sys.path[1:]]),
        }
        command = [sys.executable, str(HERE / "two_ranks.py"), str(folder)]
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    try:
        outputs = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(err[-3000:] for _, err in outputs)
    return outputs[0][0], folder


def test_two_processes_resume_exactly(two_ranks: tuple[str, Path]) -> None:
    """DDP with dropout and modalities that differ by rank, accumulation and loader processes."""
    lines = two_ranks[0].splitlines()
    digests = dict(line.split(" ", 1) for line in lines if line.startswith(("whole", "resumed", "other")))
    assert digests["whole"] == digests["resumed"] != digests["other"]
    assert (two_ranks[1] / "noise0").read_text() != (two_ranks[1] / "noise1").read_text()


def test_two_processes_are_one_larger_batch(two_ranks: tuple[str, Path], tmp_path: Path) -> None:
    """Ragged batches of different modalities: the gradients of 2 ranks x 2 batches x 1 document are those of one batch
    of 4, to 1e-5, though a rank alone or the plain mean of them is far from it."""
    found = [torch.load(two_ranks[1] / f"gradients{rank}.pt", weights_only=True) for rank in range(2)]
    train("mixed", tmp_path / "one", module_class=Watched, batch_size=4, n_steps=1, dropout=0.0)
    expected = Watched.gradients
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for own in found:
        # with several ranks every parameter has a gradient, zero for those that take no part
        assert all(name in expected or not gradient.any() for name, gradient in own.items())
        assert all(float((own[n] - gradient).abs().max()) < 1e-5 * largest for n, gradient in expected.items())
    train("mixed", tmp_path / "half", module_class=Watched, batch_size=2, n_steps=1, dropout=0.0)
    assert any(float((Watched.gradients[n] - found[0][n]).abs().max()) > 1e-2 * largest for n in Watched.gradients)

"""Runs that a kill, a disk, a file or a spike ended: nothing good is lost, and they go on as if nothing had been."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ended_runs import ALWAYS, Child, flipped, in_step, kill_self, new, no_space, same, weights
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from own_files import Run, everything_in, write_images
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.data import get_worker_info

import armm.datasets.documents
import armm.datasets.files
import armm.training.loading
from armm import bundle
from armm.cli import main
from armm.training import GenerativeModule
from armm.training import checkpoints as files
from armm.training.checkpoints import DamagedError, check, in_run, newest

pytestmark = pytest.mark.filterwarnings("ignore")


# ------------------------------------------------------------------- kills and disks


def kill_in(owner: Any, name: str, call: int, after: int = 0) -> Callable[[], None]:
    """Have a function kill its process at its call number `call`, from 1, before it has done anything; counted from
    when there are so many checkpoints."""

    def prepare() -> None:
        real, calls = getattr(owner, name), []

        def instead(*arguments: Any, **options: Any) -> Any:
            if len(in_run(Path("mine"))) >= after:
                calls.append(1)
            return kill_self() if len(calls) == call else real(*arguments, **options)

        setattr(owner, name, instead)

    return prepare


@pytest.mark.parametrize(
    ("prepare", "step"),
    [
        (kill_in(files.Hashing, "write", 20, after=1), 1),  # in the middle of the second file
        (kill_in(files.os, "fsync", 5), 1),  # whole, not renamed yet
        (kill_in(files, "sync_folder", 4), 2),  # renamed
        (kill_in(bundle, "save_model", 2), 6),  # in the bundle, after a validation
    ],
    ids=["in the file", "before its name", "after it", "in the bundle"],
)
def test_kill_during_a_save(
    prepare: Callable[[], None], step: int, here: Path, run: Run, whole: dict[str, torch.Tensor]
) -> None:
    """kill -9 leaves the checkpoint before, or the new one; what was half-written is cleared away."""
    child = Child(new("mine", ALWAYS), here / "log", before=prepare)
    assert child.wait() == -signal.SIGKILL, child.log.read_text(encoding="utf-8")
    saved = newest(here / "mine")
    assert saved is not None and abs(saved.step - step) <= 1
    assert f"step {saved.step}," in run("train", "--resume", "mine")
    assert same(weights(here / "mine"), whole)
    assert not [name for name in everything_in(here / "mine") if name.split("/")[-1].startswith(".")]


def test_the_only_good_checkpoint_stays_until_there_is_another(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged ones do not count among those that are kept, and go once a new one is whole."""
    with monkeypatch.context() as patch:
        in_step(6, kill_self, patch)
        assert Child(new("mine", ALWAYS, "--checkpoints.keep=9"), here / "log").wait() == -signal.SIGKILL
    good = next(path for path in in_run(here / "mine") if check(path).step == 2)
    for path in in_run(here / "mine"):
        if path != good:
            path.write_bytes(path.read_bytes()[:-1])
    with monkeypatch.context() as patch:
        in_step(2, kill_self, patch)
        assert Child(["train", "--resume=mine", "--checkpoints.keep=1"], here / "log").wait() == -signal.SIGKILL
    assert good.exists() and len(in_run(here / "mine")) == 6
    assert "step-000000002.ckpt, step 2" in run("train", "--resume=mine", "--checkpoints.keep=1")
    saved = newest(here / "mine")
    assert not good.exists() and saved is not None and saved.step == 9


def test_a_finished_run_that_was_taken_up_again_is_not_complete(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed as it trains on, it goes on; its old test score does not stand for the end."""
    run(*new("mine", "--trainer.max_steps=2"))
    assert "mine: complete" in run("train", "--resume=mine")
    with monkeypatch.context() as patch:
        in_step(5, kill_self, patch)
        longer = ["train", "--resume=mine", "--trainer.max_steps=9", "--trainer.val_check_interval=9", ALWAYS]
        assert Child(longer, here / "log").wait() == -signal.SIGKILL
    assert "step 5," in run("train", "--resume=mine")
    assert json.loads((here / "mine/metrics.json").read_text(encoding="utf-8"))["steps"] == 9


def test_a_damaged_checkpoint_is_left_out(
    here: Path, run: Run, whole: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bit that flipped, an end that is missing, an empty file: named, and the newest good one is taken."""
    with monkeypatch.context() as patch:
        in_step(6, kill_self, patch)
        assert Child(new("mine", ALWAYS, "--checkpoints.keep=9"), here / "log").wait() == -signal.SIGKILL
    paths = in_run(here / "mine")
    assert [check(path).step for path in paths] == [6, 5, 4, 3, 2, 1]
    content = paths[0].read_bytes()
    middle = len(content) // 2
    said = content.index(b'"step": 6') + len(b'"step": ')
    for damaged in (flipped(content, middle), flipped(content, said), content[:-1], b""):
        paths[0].write_bytes(damaged)
        with pytest.raises(DamagedError):
            check(paths[0])
    paths[1].write_bytes(content[:middle])
    assert torch.load(paths[2], weights_only=True)["global_step"] == 4  # anyone can read it
    out = run("train", "--resume", "mine")
    assert out.count("is damaged") == 2 and paths[0].name in out and "step-000000004.ckpt, step 4" in out
    assert same(weights(here / "mine"), whole)


def test_a_full_disk_for_a_while(
    here: Path, whole: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be saved is said, and training goes on; the older checkpoint stays until there is a newer one."""
    real = files.Hashing.write
    in_step(3, lambda _: monkeypatch.setattr(files.Hashing, "write", no_space), monkeypatch)
    in_step(6, lambda _: monkeypatch.setattr(files.Hashing, "write", real), monkeypatch)
    found = []
    in_step(5, lambda _: found.append(newest(Path("mine"))), monkeypatch)
    assert main(new("mine", ALWAYS)) == 0
    said = capsys.readouterr().err
    assert said.count("No space left on device") == said.count("the checkpoints before it stay") == 3
    assert found[0].step == 3
    assert same(weights(here / "mine"), whole)


def test_curves_on_a_full_disk(
    here: Path, whole: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorBoard's writing thread dies of it, the CSV file's writer raises: said once, and all steps are drawn."""
    writers = ((RecordWriter, "write"), (ExperimentWriter, "save"))
    real = {writer: getattr(writer, name) for writer, name in writers}

    def fill(_: Any) -> None:
        for writer, name in writers:
            monkeypatch.setattr(writer, name, no_space)

    def clear(_: Any) -> None:
        for writer, name in writers:
            monkeypatch.setattr(writer, name, real[writer])

    in_step(3, fill, monkeypatch)
    in_step(6, clear, monkeypatch)
    assert main(new("mine")) == 0
    said = capsys.readouterr().err
    assert 1 <= said.count("the curves could not be written: No space left on device; training goes on") <= 2
    assert "Traceback" not in said and "Exception in thread" not in said
    assert same(weights(here / "mine"), whole)
    with (here / "mine/metrics.csv").open(encoding="utf-8") as file:
        drawn = {row["step"] for row in csv.DictReader(file) if row["train/nats"]}
    assert drawn == {str(step) for step in range(9)}
    assert len(list((here / "mine").glob("events*"))) > 1, "a new file, now that there is space"


def test_a_full_disk_until_the_end(
    here: Path,
    run: Run,
    whole: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run ends with one line that says so; when there is space, it goes on from what there was."""
    with monkeypatch.context() as patch:
        in_step(4, lambda _: patch.setattr(files.Hashing, "write", no_space), patch)
        assert main(new("mine", ALWAYS)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("armm train: mine/checkpoints/step-000000009.ckpt could not be written: No space left")
    assert last.endswith("armm train --resume mine")
    saved = newest(here / "mine")
    assert saved is not None and saved.step == 4
    assert "step 4" in run("train", "--resume", "mine")
    assert same(weights(here / "mine"), whole)


def test_a_folder_for_checkpoints_that_is_none(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing can be saved: the model is trained, written, and the exit code says that it cannot go on."""
    (here / "mine").mkdir()
    (here / "mine/checkpoints").write_text("mine", encoding="utf-8")
    assert main(new("mine")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("armm train: mine/checkpoints") and "check the place" in last
    assert bundle.load("mine").n_parameters > 0
    assert (here / "mine/checkpoints").read_text(encoding="utf-8") == "mine"


# ------------------------------------------------------------------------------ data


def test_a_loader_that_dies(
    here: Path, run: Run, whole: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, refused: Run
) -> None:
    """Killed for its memory, say: one line, and all steps that were done are kept."""
    real = armm.training.loading.TrainingSet.__getitem__
    loaded: list[int] = []

    def item(self: Any, key: tuple[int, int]) -> Any:
        loaded.append(1)
        if get_worker_info() is not None and len(loaded) > 22:
            kill_self()
        return real(self, key)

    monkeypatch.setattr(armm.training.loading.TrainingSet, "__getitem__", item)
    refused([*new("mine", "--trainer.enable_progress_bar=false"), "--data.num_workers=1"], "has died", "--resume mine")
    saved = newest(here / "mine")
    assert saved is not None and 1 <= saved.step <= 5
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert f"step {saved.step}," in run("train", "--resume", "mine")
    assert same(weights(here / "mine"), whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_during_training(
    workers: int, here: Path, run: Run, refused: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named in one line; once it is mended, training goes on as if it had never been broken."""
    folder = write_images(here / "data")
    paths = sorted(folder.rglob("*.png"))
    contents = {path: path.read_bytes() for path in paths}
    monkeypatch.setattr(armm.datasets.files, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(armm.datasets.documents, "KEPT_SYMBOLS", 0)
    options = ("--data.path=data", "--trainer.enable_progress_bar=false", f"--data.num_workers={workers}")
    run(*new("whole", *options))

    def corrupt(_: GenerativeModule) -> None:
        for path in paths:
            path.write_bytes(contents[path][:40])

    with monkeypatch.context() as patch:
        in_step(3, corrupt, patch)
        refused(new("mine", *options), "data/", ".png", "armm train --resume mine")
    for path, content in contents.items():
        path.write_bytes(content)
    saved = newest(here / "mine")
    assert saved is not None and 4 <= saved.step < 9
    run("train", "--resume", "mine")
    assert same(weights(here / "mine"), weights(here / "whole"))


# --------------------------------------------------------------------------- spikes


def test_a_bad_batch_is_skipped_and_named(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The step, epoch, batch and files; all of it in metrics.json too."""
    folder = write_images(here / "data")
    real = GenerativeModule.loss_sum

    def loss_sum(self: GenerativeModule, *arguments: Any) -> Any:
        total, n_symbols = real(self, *arguments)
        return (total * float("nan") if self.trainer.global_step == 3 else total), n_symbols

    monkeypatch.setattr(GenerativeModule, "loss_sum", loss_sum)
    assert main(new("mine", f"--data.path={folder}", "--data.batch_size=2")) == 0
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if "was skipped" in line]
    (skipped,) = json.loads((here / "mine/metrics.json").read_text(encoding="utf-8"))["skipped_steps"]
    assert "step 3" in line and "the loss was nan" in line and f"epoch {skipped['epoch']}, batch" in line
    assert len(skipped["items"]) == 2 and all(item["file"] in line for item in skipped["items"])


def test_a_run_that_does_not_get_on_ends(here: Path, refused: Run, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a limit, with the weights before the first bad step, from which it can go on."""
    real = GenerativeModule.loss_sum

    def loss_sum(self: GenerativeModule, *arguments: Any) -> Any:
        total, n_symbols = real(self, *arguments)
        return (total * float("inf") if self.trainer.global_step >= 3 else total), n_symbols

    with monkeypatch.context() as patch:
        patch.setattr(GenerativeModule, "loss_sum", loss_sum)
        code = main(new("mine", "--model.guard.limit=3", ALWAYS))
    assert code == 2
    saved = newest(here / "mine")
    assert saved is not None and saved.step == 6
    best = [path for path in in_run(here / "mine") if check(path).step == 3]
    states = [torch.load(path, weights_only=True) for path in (saved.path, *best)]
    assert same(states[0]["state_dict"], states[1]["state_dict"])
    assert "step 6" in run("train", "--resume", "mine")

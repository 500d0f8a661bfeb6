"""`armm train --resume` after all that can end a run: nothing good is lost, and it ends as if nothing had happened."""

from __future__ import annotations

import csv
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from own_files import Run, everything_in, write_images
from safetensors.torch import load_file
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.data import get_worker_info

import armm.datasets.documents
import armm.datasets.files
import armm.training.loading
from armm import bundle
from armm.cli import main
from armm.errors import InputError
from armm.training import GenerativeModule, run_folder
from armm.training import checkpoints as files
from armm.training.checkpoints import CheckedIO, DamagedError, check, in_run, newest

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = (
    "--model.modalities.image.init_args.head.init_args.channels=4",
    "--model.backbone.init_args.width=16",
    "--model.backbone.init_args.n_layers=1",
    "--data.batch_size=4",
    "--data.n_val=4",
    "--trainer.limit_test_batches=1",
    "--trainer.val_check_interval=3",
    "--trainer.max_steps=9",
    "--trainer.log_every_n_steps=1",
    "--n_samples=0",
    "--trainer.precision=32-true",  # nothing is measured: two runs are the same run
)
ALWAYS = "--checkpoints.minutes=0"


def new(folder: str | Path, *options: str) -> list[str]:
    return ["train", "image/digits", f"--run_dir={folder}", *SMALL, *options]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a run that nothing befell."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(new(folder)) == 0
    return weights(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "weights.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def in_step(number: int, do: Callable[[GenerativeModule], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have something happen in the forward pass of a step, counted from 0."""
    real = GenerativeModule.training_step

    def step(self: GenerativeModule, data: Any, index: int) -> Any:
        loss = real(self, data, index)
        if self.trainer.global_step == number:
            do(self)
        return loss

    monkeypatch.setattr(GenerativeModule, "training_step", step)


class Child:
    """A command in a process of its own, forked so that it starts at once; what it prints goes to a file."""

    def __init__(self, arguments: list[str], log: Path, before: Callable[[], None] = lambda: None) -> None:
        def body() -> None:
            with log.open("w", encoding="utf-8", buffering=1) as out:
                sys.stdout = sys.stderr = out
                before()
                code = main(arguments)
            os._exit(code)

        self.log = log
        self.process = multiprocessing.get_context("fork").Process(target=body)
        self.process.start()

    def wait(self, seconds: float = 120) -> int | None:
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
        return self.process.exitcode

    def wait_for(self, what: Callable[[], Any], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert self.process.is_alive() and time.monotonic() < end, self.log.read_text(encoding="utf-8")
            time.sleep(0.02)

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


# ------------------------------------------------------------------------- the command


def test_a_run_goes_on_where_it_was_stopped(
    here: Path, run: Run, whole: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what it found; config, weights, curves, scores and time are those of one run."""
    with monkeypatch.context() as patch:
        in_step(5, lambda _: 1 / 0, patch)
        with pytest.raises(ZeroDivisionError):
            main(new("mine"))
    before = json.loads((here / "mine/metrics.json").read_text(encoding="utf-8"))
    assert before["steps"] == 3
    out = run("train", "--resume", "mine")
    assert "mine: goes on with checkpoints/step-000000005.ckpt, step 5" in out
    assert same(weights(here / "mine"), whole)
    with (here / "mine/metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["step"]) for row in rows if row["train/nats"]) == list(range(9))
    assert [int(row["step"]) for row in rows if row["val/image/bits_per_dim"]][:3] == [2, 5, 8]
    after = json.loads((here / "mine/metrics.json").read_text(encoding="utf-8"))
    assert after["steps"] == 9 and after["test"] and after["recipe"] == "image/digits"
    assert after["training_seconds"] > before["training_seconds"] and after["symbols_seen"] == 9 * 4 * 64
    names = {path.name for path in (here / "mine/checkpoints").iterdir()}
    assert len(names) <= 3 and any(name.endswith("-000000009.ckpt") for name in names)
    assert any(name.startswith("best-") for name in names)


def test_nothing_is_lost_before_the_first_validation(
    here: Path, run: Run, whole: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that fails early leaves no folder, but for one with a checkpoint in it."""
    for step in (0, 2):
        with monkeypatch.context() as patch:
            in_step(step, lambda _: 1 / 0, patch)
            with pytest.raises(ZeroDivisionError):
                main(new("mine"))
        assert (here / "mine").exists() == bool(step)
    assert not (here / "mine/model").exists()
    assert "step 2" in run("train", "--resume", "mine")
    assert same(weights(here / "mine"), whole)


def test_a_recipe_goes_on_with_its_newest_run(here: Path, run: Run, refused: Run) -> None:
    """And begins where there is none, so that a job that is started again can repeat its command."""
    options = [option for option in SMALL if "max_steps" not in option]
    out = run("train", "image/digits", "--resume", *options, "--trainer.max_steps=2")
    assert "runs/digits: nothing to go on with yet; begins" in out
    assert "runs/digits/0: complete" in run("train", "image/digits", "--resume")
    out = run("train", "image/digits", "--resume", "--trainer.max_steps=4")
    assert "runs/digits/0: goes on with checkpoints" in out and "step 2" in out
    assert json.loads((here / "runs/digits/0/metrics.json").read_text(encoding="utf-8"))["steps"] == 4
    assert "runs/digits/0: complete" in run("train", "--resume", "runs/digits")
    assert {path.name for path in (here / "runs/digits").iterdir()} == {"0"}
    (here / "runs/digits/0/metrics.json").unlink()


def test_what_is_refused_leaves_the_run_as_it_was(here: Path, run: Run, refused: Run) -> None:
    """Its configuration above all, by which it goes on."""
    run(*new("mine", "--trainer.max_steps=2"))
    (here / "mine/metrics.json").unlink()
    before = (here / "mine/config.yaml").read_bytes()
    refused(["train", "--resume=mine", "--data.batch_size=3"], "data.batch_size", "was 4, now it is 3")
    refused(["train", "--resume=mine", "--model.backbone.init_args.width=32"], "another model")
    refused(["train", "--resume=mine", "--model.optimization.muon_lr=0"], "other groups of parameters")
    refused(["train", "--resume=mine", "--size", "2"], "--size changes the model", "leave --size out")
    assert (here / "mine/config.yaml").read_bytes() == before
    run("train", "--resume=mine", "--trainer.max_steps=3")
    assert "max_steps: 3" in (here / "mine/config.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--data.path=other.txt", "the checksum of 3 of them was"),
        ("--data.path=letters.txt", "the checksum of 3 of them was"),
        ("--data.crop=16", "data.crop was 32, now it is 16"),
    ],
)
def test_other_data_is_refused(option: str, words: str, here: Path, run: Run, refused: Run) -> None:
    """A text of the same length in the same letters, one in others (so another size of the model), other crops."""
    lines = [f"{i} is a line, not a verse" for i in range(400)]
    (here / "mine.txt").write_text("\n".join(lines), encoding="utf-8")
    (here / "other.txt").write_text("\n".join(lines[::-1]), encoding="utf-8")
    (here / "letters.txt").write_text("\n".join(lines).replace("v", "w").replace("e", "z"), encoding="utf-8")
    text = ["train", "text/shakespeare_char", "--data.path=mine.txt", "--run_dir=mine", "--data.crop=32"]
    run(*text, *(key for key in SMALL if "image" not in key), "--trainer.max_steps=2")
    refused(["train", "--resume=mine", "--trainer.max_steps=4", option], words)
    run("train", "--resume=mine", "--trainer.max_steps=4")


def test_what_cannot_go_on_is_refused(here: Path, refused: Run) -> None:
    (here / "empty").mkdir()
    refused(["train", "--resume", "nowhere"], "--resume nowhere does not exist")
    refused(["train", "--resume", "empty"], "empty holds no run", "config.yaml")
    refused(["train", "--resume"], "armm train --resume RUN")
    refused(new("mine", "--checkpoints.minuts=3"), "--checkpoints.minuts", "did you mean 'minutes'")
    refused(new("mine", "--checkpoints.keep=0"), "keep 0")
    refused(new("mine", "--model.guard.limit=0"), "limit 0")
    assert everything_in(here) == {"empty"}


def test_no_checkpoint_yet_begins_anew(here: Path, run: Run, whole: dict[str, torch.Tensor]) -> None:
    """Killed before the first was written; its configuration is there."""
    child = Child(new("mine"), here / "log", before=lambda: setattr(CheckedIO, "save_checkpoint", kill_self))
    assert child.wait() == -signal.SIGKILL
    assert (here / "mine/config.yaml").exists() and not in_run(here / "mine")
    assert "mine: no checkpoint yet; begins anew" in run("train", "--resume", "mine")
    assert same(weights(here / "mine"), whole)


# -------------------------------------------------------------------------- signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_after_its_step(
    number: int, code: int, here: Path, run: Run, whole: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes in the middle of step 4 and is answered at its end; a service manager and a shell see the usual code."""
    in_step(4, lambda _: os.kill(os.getpid(), number), monkeypatch)
    child = Child(new("mine"), here / "log")
    assert child.wait() == code
    said = child.log.read_text(encoding="utf-8")
    assert "stopped at step 5" in said and "armm train --resume mine" in said and "Traceback" not in said
    saved = newest(here / "mine")
    assert saved is not None and saved.step == 5
    assert bundle.load("mine").n_parameters > 0
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert "step 5" in run("train", "--resume", "mine")
    assert same(weights(here / "mine"), whole)


def run_apart(command: list[str]) -> None:
    subprocess.run(command, start_new_session=True, check=True)
    time.sleep(0.5)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_all_processes_ends_the_run_as_one_to_the_first(
    number: int, code: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a terminal's Ctrl-C and a job's end reach them: the loaders go on until the step is done and saved."""
    kill = ["kill", f"-{int(number)}", "--"]  # another process: to what its own parent sends a loader is used
    in_step(4, lambda _: run_apart([*kill, f"-{os.getpgid(0)}"]), monkeypatch)
    child = Child(new("mine", "--data.num_workers=2"), here / "log", before=lambda: os.setpgid(0, 0))
    assert child.wait() == code, child.log.read_text(encoding="utf-8")
    said = child.log.read_text(encoding="utf-8")
    assert "stopped at step 5" in said and "Traceback" not in said and "has died" not in said
    saved = newest(here / "mine")
    assert saved is not None and saved.step == 5 and (here / "mine/model").exists()


def test_slurm_saves_and_starts_the_job_again(
    here: Path, run: Run, whole: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGUSR1, as `#SBATCH --signal=SIGUSR1@90` sends it: a checkpoint at the end of the step, `scontrol requeue`; then
    training goes on until the job is ended."""
    (here / "bin").mkdir()
    (here / "bin/scontrol").write_text(f"#!/bin/sh\necho $@ > {here}/asked\n", encoding="utf-8")
    (here / "bin/scontrol").chmod(0o755)
    job = {"SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    job |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost"}
    job["PATH"] = f"{here}/bin:{os.environ['PATH']}"

    def happen(module: GenerativeModule) -> None:
        os.kill(os.getpid(), signal.SIGUSR1 if module.trainer.global_step == 4 else signal.SIGKILL)

    in_step(4, happen, monkeypatch)
    in_step(6, happen, monkeypatch)
    child = Child(new("mine", "--trainer.val_check_interval=100"), here / "log", before=lambda: os.environ.update(job))
    assert child.wait() == -signal.SIGKILL, child.log.read_text(encoding="utf-8")
    assert (here / "asked").read_text(encoding="utf-8").split() == ["requeue", "17"]
    saved = newest(here / "mine")
    assert saved is not None and saved.path.name == "hpc_ckpt_1.ckpt" and saved.step == 5
    monkeypatch.undo()
    monkeypatch.chdir(here)
    run("train", "image/digits", "--resume", "--run_dir=mine", "--trainer.val_check_interval=3")
    assert same(weights(here / "mine"), whole)


# ------------------------------------------------------------------- two at once


def test_two_trainings_do_not_share_a_folder(
    here: Path, refused: Run, whole: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would write over what the other has."""
    monkeypatch.setattr(run_folder, "PATIENCE", 0.1)
    in_step(2, lambda _: child_waits(here / "go"), monkeypatch)
    child = Child(new("mine", ALWAYS), here / "log")
    child.wait_for(lambda: in_run(here / "mine"))
    refused(["train", "--resume=mine"], "mine: another training writes into it", "--run_dir")
    (here / "go").touch()
    assert child.wait() == 0, child.log.read_text(encoding="utf-8")
    assert same(weights(here / "mine"), whole)


def child_waits(place: Path) -> None:
    while not place.exists():
        time.sleep(0.02)


def test_of_two_trainings_that_begin_together_one_has_the_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the other takes nothing away when it gives up."""
    monkeypatch.setattr(run_folder, "PATIENCE", 0.1)
    folder = here / "runs/digits/0"
    with run_folder.keep_only_runs(folder, is_new=True):
        with pytest.raises(InputError, match="another training writes"), run_folder.keep_only_runs(folder, is_new=True):
            raise AssertionError("two have it")
        (folder / "config.yaml").touch()
    with pytest.raises(InputError, match="has begun there"), run_folder.keep_only_runs(folder, is_new=True):
        raise AssertionError("it is no new run")
    with run_folder.keep_only_runs(folder, is_new=False):
        assert everything_in(here) == {"runs", "runs/digits", "runs/digits/0", "runs/digits/0/config.yaml"}


# ------------------------------------------------------------------- kills and disks


def kill_self(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


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


def flipped(content: bytes, at: int) -> bytes:
    """With another bit."""
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


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


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


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

"""`armm train --resume`: the command, signals, and two trainings at once; it ends as if nothing had happened."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from ended_runs import ALWAYS, SMALL, Child, in_step, kill_self, new, same, weights
from own_files import Run, everything_in

from armm import bundle
from armm.cli import main
from armm.errors import InputError
from armm.training import GenerativeModule, run_folder
from armm.training.checkpoints import CheckedIO, in_run, newest

pytestmark = pytest.mark.filterwarnings("ignore")


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
    refused(["train", "--resume=mine", "--trainer.max_steps=1"], "max_steps is 1", "at step 2 already")
    refused(["train", "--resume=mine", "--size", "2"], "--size changes the model", "leave --size out")
    assert (here / "mine/config.yaml").read_bytes() == before
    run("train", "--resume=mine", "--trainer.max_steps=3")
    assert "max_steps: 3" in (here / "mine/config.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--data.path=other.txt", "the checksum of the first of them was"),
        ("--data.path=letters.txt", "the checksum of the first of them was"),
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

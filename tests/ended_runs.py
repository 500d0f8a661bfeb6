"""Small runs of digits for tests of what can end one: commands, a process of its own, what happens in a step."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from armm.cli import main
from armm.training import GenerativeModule

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


def kill_self(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def flipped(content: bytes, at: int) -> bytes:
    """With another bit."""
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

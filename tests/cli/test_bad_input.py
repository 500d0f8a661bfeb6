"""Prompts, files, bundles and disks that are not right: one line, exit code 2, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_files import Run, digit, everything_in, png_bytes, wav_bytes, write_clips, write_images, write_texts

from armm import bundle
from armm.cli import main
from armm.modalities import Image

pytestmark = pytest.mark.filterwarnings("ignore")

DIGITS = "image/digits"

# ---------------------------------------------------------------- generate and score: no


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("image", ["--n", "0"], ["n is 0"]),
        ("image", ["--n", "-1"], ["n is -1"]),
        ("image", ["--temperature", "-0.5"], ["--temperature", "is -0.5"]),
        ("image", ["--temperature", "nan"], ["--temperature", "is nan"]),
        ("image", ["--top-k", "0"], ["--top-k", "is 0"]),
        ("image", ["--top-p", "1.5"], ["--top-p", "is 1.5"]),
        ("image", ["--batch-size", "0"], ["batch_size is 0"]),
        ("image", ["--max-symbols", "0"], ["max_symbols is 0"]),
        ("image", ["--plan", "image"], ["always image"]),
        ("image", ["--out", "file.txt"], ["--out file.txt is a file"]),
        ("image", ["--out", "file.txt/samples"], ["file.txt/samples"]),
        ("image", ["--device", "abacus"], ["abacus"]),
        ("image", ["--prompt", "nowhere.png"], ["nowhere.png"]),
        ("image", ["--prompt", "wide.png"], ["wide.png", "3x9", "8x8"]),
        ("image", ["--prompt", "whole.png"], ["whole.png", "8x8", "1 to 7 rows"]),
        ("class", ["--prompt", "cats"], ["--prompt 'cats'", "NAME=VALUE", "label, image"]),
        ("class", ["--prompt", "lable=cats"], ["'label'"]),
        ("class", ["--prompt", "label=birds"], ["birds", "cats, dogs"]),
        ("class", ["--prompt", "image=top.png"], ["the prompt is image", "label, image"]),
        ("text", ["--prompt", "the cat €"], ["'€' at position 8"]),
        ("text", ["--prompt", "a" * 64], ["64 units", "context is 64"]),
        ("text", ["--prompt", "a" * 1000], ["1000 units", "context is 64"]),
        ("audio", ["--prompt", "long.wav"], ["context is 512"]),
        ("audio", ["--prompt", "whole.png"], ["whole.png is not a WAV"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else value,
)
def test_generate_refuses(
    model: str, options: list[str], words: list[str], runs: Path, here: Path, refused: Run
) -> None:
    (here / "file.txt").write_text("x", encoding="utf-8")
    (here / "wide.png").write_bytes(png_bytes(digit(0, 3, 9)))
    (here / "whole.png").write_bytes(png_bytes(digit(0)))
    (here / "top.png").write_bytes(png_bytes(digit(0, 3)))
    (here / "long.wav").write_bytes(wav_bytes(40_000))
    before = everything_in(here)
    refused(["generate", runs / model, *options], *words)
    assert everything_in(here) == before


PNG, WAV = png_bytes(digit(0)), wav_bytes(400)


def corrupted(content: bytes, at: int = -20) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "cut short PNG": ("image", PNG[: len(PNG) // 2], ".png"),
    "PNG without its end": ("image", PNG[:-12], ".png"),
    "corrupt PNG": ("image", corrupted(PNG), ".png"),
    "empty PNG": ("image", b"", ".png"),
    "text named .png": ("image", b"hello, world\n" * 9, ".png"),
    "WAV named .png": ("image", WAV, ".png"),
    "PNG of another size": ("image", png_bytes(digit(0, 9, 8)), ".png"),
    "coloured PNG": ("image", png_bytes(np.dstack([digit(1), digit(2), digit(3)])), ".png"),
    "transparent PNG": ("image", png_bytes(np.dstack([digit(1)] * 4)), ".png"),
    "cut short WAV": ("audio", WAV[: len(WAV) // 2], ".wav"),
    "WAV of a header": ("audio", WAV[:20], ".wav"),
    "WAV without samples": ("audio", wav_bytes(0), ".wav"),
    "empty WAV": ("audio", b"", ".wav"),
    "text named .wav": ("audio", b"hello, world\n" * 9, ".wav"),
    "PNG named .wav": ("audio", PNG, ".wav"),
    "text that is not UTF-8": ("text", b"the cat \xff\xfe sat", ".txt"),
    "empty text": ("text", b"", ".txt"),
    "PNG named .txt": ("text", PNG, ".txt"),
}


@pytest.mark.parametrize("bad", BAD_FILES)
def test_score_refuses_bad_files(bad: str, runs: Path, here: Path, refused: Run) -> None:
    model, content, suffix = BAD_FILES[bad]
    (here / f"bad{suffix}").write_bytes(content)
    refused(["score", runs / model, f"bad{suffix}"], f"bad{suffix}")


@pytest.mark.parametrize("bad", [bad for bad, (model, *_) in BAD_FILES.items() if model != "text"])
def test_generate_refuses_bad_prompts(bad: str, runs: Path, here: Path, refused: Run) -> None:
    model, content, suffix = BAD_FILES[bad]
    (here / f"bad{suffix}").write_bytes(content)
    refused(["generate", runs / model, "--prompt", f"bad{suffix}"], f"bad{suffix}")
    assert everything_in(here) == {f"bad{suffix}"}


@pytest.mark.parametrize("bad", BAD_FILES)
def test_train_refuses_bad_files(bad: str, here: Path, refused: Run) -> None:
    """Among good ones, before a run has a folder, and says how to go on without them."""
    model, content, suffix = BAD_FILES[bad]
    recipe = {"image": DIGITS, "audio": "audio/fsdd", "text": "text/shakespeare_char"}[model]
    folder = {"image": write_images, "audio": write_clips, "text": write_texts}[model](here / "data")
    (folder / f"bad{suffix}").write_bytes(content)
    refused(["train", recipe, "--debug", "--data.path=data"], f"data/bad{suffix}", "--data.on_error skip")
    assert not (here / "runs").exists()


def test_bad_files_can_be_skipped(here: Path, run: Run) -> None:
    """Only when asked for, and each is named."""
    folder = write_images(here / "data")
    (folder / "cats" / "bad.png").write_bytes(PNG[:40])
    (folder / "cats" / "wide.png").write_bytes(png_bytes(digit(0, 8, 9)))
    out = run("train", DIGITS, "--debug", "--data.path=data", "--data.on_error=skip", "--n_samples=0")
    assert "left out data/cats/bad.png" in out and "left out data/cats/wide.png" in out


def test_unknown_characters_are_refused_before_training(here: Path, refused: Run) -> None:
    """The end of a text, which is validation, may have characters that its beginning lacks."""
    (here / "mine.txt").write_text("the cat sat on the mat\n" * 30 + "ünïque", encoding="utf-8")
    refused(["train", "text/shakespeare_char", "--debug", "--data.path=mine.txt"], "'ü'", "kind: bytes")
    assert everything_in(here) == {"mine.txt"}


@pytest.mark.parametrize("command", ["score", "generate"])
def test_bundle_problems_are_one_line(command: str, runs: Path, here: Path, refused: Run) -> None:
    """Each names the place: nothing there, no model in it, another format, a file missing."""
    (here / "a.png").write_bytes(PNG)
    last = ["a.png"] if command == "score" else []
    refused([command, "nowhere", *last], "nowhere does not exist")
    (here / "empty").mkdir()
    refused([command, "empty", *last], "empty holds no model")
    refused([command, "a.png", *last], "a.png holds no model")
    shutil.copytree(runs / "image" / "model", here / "model")
    (here / "model" / "weights.safetensors").unlink()
    refused([command, "model", *last], "model/weights.safetensors is missing")
    config = json.loads((here / "model/config.json").read_text(encoding="utf-8"))
    (here / "model/config.json").write_text(json.dumps({**config, "format": 99}), encoding="utf-8")
    refused([command, "model", *last], "model/config.json", "format 99")


# ----------------------------------------------------------------------- no space left


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def half_written(self: Any, raw: Any, path: Path) -> None:
    path.write_bytes(b"half")
    no_space()


def test_a_full_disk_leaves_no_half_sample(
    runs: Path, here: Path, refused: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "save", half_written)
    refused(["generate", runs / "image"], "samples/0-0000.png", "No space left on device")
    assert everything_in(here) == {"samples"}


def test_a_folder_that_cannot_be_written(runs: Path, here: Path, refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", read_only)
    refused(["generate", runs / "image", "--out", "locked"], "locked", "Permission denied")
    refused(["train", DIGITS, "--debug", "--run_dir=locked"], "locked", "Permission denied")
    assert everything_in(here) == set()


def test_a_full_disk_in_training_keeps_the_last_bundle(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second validation finds no space: the bundle and the scores of the first are still whole."""
    save, calls = bundle.save_model, []

    def second_fails(*arguments: Any) -> None:
        calls.append(1)
        save(*arguments) if len(calls) == 1 else no_space()

    monkeypatch.setattr(bundle, "save_model", second_fails)
    assert main(["train", DIGITS, "--debug", "--run_dir=mine", "--n_samples=0"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("armm train: ") and "mine/model" in last and "No space left" in last
    assert json.loads((here / "mine/metrics.json").read_text(encoding="utf-8"))["steps"] == 2
    assert bundle.load("mine").n_parameters > 0
    assert not [name for name in everything_in(here / "mine") if name.split("/")[-1].startswith(".")]


# ------------------------------------------------------------------ a process of its own


def test_a_real_process_prints_one_line_too(runs: Path, here: Path) -> None:
    """Warnings of libraries go past what the tests above capture; a pipe that closes early is no error."""
    (here / "bad.wav").write_bytes(WAV[:200])
    calls = [
        ["train", DIGITS, "--trainer.max_stepz=3"],
        ["train", DIGITS, "--data.path=nowhere"],
        ["train", DIGITS, "--trainer.devices=0"],
        ["score", str(runs / "audio"), "bad.wav"],
        ["generate", str(runs / "image"), "--n", "0"],
    ]
    code = f"from armm.cli import main\nfor call in {calls!r}:\n    assert main(call) == 2"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env={**os.environ}
    )
    assert result.returncode == 0, result.stderr
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == [f"armm {call[0]}" for call in calls]
    assert everything_in(here) == {"bad.wav"}


def test_a_pipe_that_closes_early_is_no_error() -> None:
    command = f"{sys.executable} -m armm.cli list | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120, env={**os.environ})
    assert result.stdout == "modalities:\n" and result.stderr == ""

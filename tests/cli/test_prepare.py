"""`armm prepare`, as a user runs it, and stops it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from own_files import SMALL_BACKBONE, TEXT, Run, everything_in

from armm import bundle

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = ("--val=0.1", "--test=0.1", "--vocab-size=300")


def write_documents(folder: Path, n: int) -> Path:
    folder.mkdir()
    lines = (json.dumps({"body": f"document {i}, {TEXT[: 40 + 7 * i % 300]}"}) for i in range(n))
    (folder / "documents.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_prepared_text_trains_and_generates(here: Path, run: Run) -> None:
    """From a text to a set, a run, samples and bits: the run has the set's tokenizer."""
    (here / "mine.txt").write_text(TEXT, encoding="utf-8")
    out = run("prepare", "text/shards", "mine.txt", "--out=my_set", *SMALL)
    assert f"1 documents, {len(TEXT):,} bytes of text" in out and "next: armm train text/shards" in out
    assert everything_in(here / "my_set") == {
        *("index.json", "made_from.json", "learned.json", "tokenizer.json", "000000-000.bin", "000000-000.idx"),
    }
    run(
        "train",
        "text/shards",
        "--debug",
        "--data.path=my_set",
        "--data.num_workers=2",
        *SMALL_BACKBONE,
        "--n_samples=0",
    )
    learned = (here / "my_set/tokenizer.json").read_bytes()
    assert bundle.load(here / "runs/shards/0").modalities["text"].files() == {"tokenizer.json": learned}
    metrics = json.loads((here / "runs/shards/0/metrics.json").read_text(encoding="utf-8"))
    assert metrics["test"]["text"]["bits_per_byte"] > 0
    assert "bits" in run("score", "runs/shards/0", "mine.txt")


def test_the_number_of_workers_changes_nothing(here: Path, run: Run) -> None:
    write_documents(here / "texts", 300)
    for workers in (1, 2):
        options = ("--field=body", "--shard-mb=0.01", f"--workers={workers}", *SMALL)
        out = run("prepare", "text/shards", "texts", f"--out=set{workers}", *options)
        assert "MB/s" in out
    one, two = ({p.name: p.read_bytes() for p in sorted((here / f"set{n}").iterdir())} for n in (1, 2))
    assert one == two and len(one) > 10


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_preparation_goes_on(workers: int, here: Path, run: Run) -> None:
    """`kill -9` in the middle: its workers end too, there is no index yet, and the next run keeps what was finished."""
    write_documents(here / "texts", 3000)
    options = ["--field=body", "--shard-mb=0.002", f"--workers={workers}", *SMALL]
    command = [sys.executable, "-m", "armm.cli", "prepare", "text/shards", "texts", "--out=my_set", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list((here / "my_set").glob("000003-*.json")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.002)
        children = _children(process.pid)
    finally:
        process.kill()
        process.wait()
    assert len(children) >= (workers if workers > 1 else 0)
    assert not (here / "my_set/index.json").exists()
    while any(_is_running(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(_is_running(child) for child in children)
    finished = {path.name: path.stat().st_mtime_ns for path in (here / "my_set").glob("*.bin") if _recorded(path)}
    run("prepare", "text/shards", "texts", "--out=my_set", *options)
    run("prepare", "text/shards", "texts", "--out=whole", *options)
    assert finished and all((here / "my_set" / name).stat().st_mtime_ns == at for name, at in finished.items())
    mine, whole = (
        {p.name: p.read_bytes() for p in (here / n).iterdir() if p.name[0] != "."} for n in ("my_set", "whole")
    )
    assert mine == whole


def _recorded(path: Path) -> bool:
    return path.with_suffix(".json").is_file()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_ctrl_c_is_one_line(here: Path) -> None:
    write_documents(here / "texts", 3000)
    options = ["--field=body", "--shard-mb=0.002", "--workers=2", *SMALL]
    command = [sys.executable, "-m", "armm.cli", "prepare", "text/shards", "texts", "--out=my_set", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    while not list((here / "my_set").glob("000001-*.json")) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and err.decode().strip() == "armm prepare: stopped"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["text/shard", "mine.txt"], ["text/shard", "did you mean 'text/shards'"]),
        (["image/digits", "mine.txt"], ["needs a modality that reads .txt files; the model has: image"]),
        (["mine.txt", "mine.txt"], ["mine.txt is no recipe"]),
        (["text/shakespeare_char", "mine.txt", "--vocab-size=300"], ["--vocab-size is for byte pairs", "kind: chars"]),
        (["text/shards", "mine.txt", "--sample-mb=2000000"], ["--sample-mb is 2000000", "less than 1048576"]),
        (["text/shards", "nowhere.txt"], ["nowhere.txt: no such file"]),
        (["text/shards", "mine.txt", "--val=0"], ["--val is 0.0"]),
        (["text/shards", "mine.txt", "--workers=0"], ["--workers is 0"]),
        (["text/shards", "mine.txt", "--shard-mb=0"], ["--shard-mb is 0.0"]),
        (["text/shards", "mine.txt", "--fild=x"], ["--fild", "did you mean '--field'"]),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], words: list[str], here: Path, refused: Run) -> None:
    (here / "mine.txt").write_text("some text\n" * 20, encoding="utf-8")
    refused(["prepare", *arguments, "--out=my_set"], *words)
    assert everything_in(here) == {"mine.txt"}


def test_a_folder_that_cannot_be_written_is_refused(here: Path, refused: Run) -> None:
    (here / "mine.txt").write_text("some text\n" * 20, encoding="utf-8")
    refused(["prepare", "text/shards", "mine.txt", "--out=mine.txt"], "mine.txt is a file")
    refused(["prepare", "text/shards", "mine.txt", "--out=mine.txt/set"], "mine.txt/set")

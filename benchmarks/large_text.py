"""Text of any size: how fast it is prepared, and what memory training on it takes: `python benchmarks/large_text.py`.

Makes --mb of text out of Python's own sources, prepares it, enlarges the set by hard links (--times), and trains on the
small and on the large one. Prints the rows of a table in Markdown. Memory is the largest process's resident memory at
its peak.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

from armm.datasets import StandardLibrary, TokenShards
from armm.grammar import Grammar
from armm.memory import keep_freed_memory
from armm.modalities import Text
from armm.training import DataModule

N_FILES = 10
CONTEXT, CROP, BATCH = 8192, 256, 8  # as recipes/text/shards.yaml has them
SHORT = ["--trainer.limit_test_batches=2", "--n_samples=0", "--trainer.enable_progress_bar=false"]


def write_texts(folder: Path, n_bytes: int, seed: int = 0) -> None:
    """About so much text: modules of the standard library in random order, again and again."""
    items = StandardLibrary(max_bytes=20_000_000).load({"text": Text(kind="bytes")}, None, "fail").train
    modules = [str(items.item(i, 0)["text"]) for i in range(len(items))]
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(N_FILES):
        left = n_bytes // N_FILES
        with (folder / f"{number}.txt").open("w", encoding="utf-8") as file:
            while left > 0:
                text = modules[rng.integers(len(modules))]
                file.write(text)
                left -= len(text)


def enlarge(small: Path, times: int, large: Path) -> None:
    """A set of so many times the shards, which are links to the small one's files."""
    index = json.loads((small / "index.json").read_bytes())
    large.mkdir()
    for name in index["learned"]:
        os.link(small / name, large / name)
    shards = []
    for number, shard in enumerate(index["shards"] * times):
        name = f"{number:06d}-000"
        for ending in (".bin", ".idx"):
            os.link(small / f"{shard['name']}{ending}", large / f"{name}{ending}")
        shards.append({**shard, "name": name})
    (large / "index.json").write_text(json.dumps({**index, "shards": shards}))


def measured(command: Sequence[str]) -> tuple[float, float]:
    """Seconds and gigabytes that `armm` with some arguments took, the processes that it started included.

    Raises RuntimeError: it failed.
    """
    begin = perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "armm.cli", *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"armm {' '.join(command)} ended with exit code {process.returncode}")
    return perf_counter() - begin, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def batch_times(path: Path, n: int, vocab_size: int) -> tuple[float, float]:
    """Milliseconds of a batch of crops, and of finding what one anywhere in the epoch consists of; medians."""
    data = DataModule(TokenShards(), str(path), BATCH, crop=CROP)
    fitted = data.fit_modalities({"text": Text(kind="bpe", vocab_size=vocab_size)})
    data.attach(Grammar(fitted, ["text"], CONTEXT))
    loader = data.train_dataloader()
    batches, order = iter(loader), loader.batch_sampler
    next(batches)
    loading = [_milliseconds(lambda: next(batches)) for _ in range(n)]
    numbers = np.random.default_rng(0).integers(len(order), size=n)  # type: ignore[arg-type]
    finding = [_milliseconds(lambda k=int(k): order.batch(k)) for k in numbers]  # type: ignore[union-attr]
    return median(loading), median(finding)


def _milliseconds(do: Callable[[], object]) -> float:
    begin = perf_counter()
    do()
    return 1e3 * (perf_counter() - begin)


def rows(place: Path, n_bytes: int, times: int, steps: int, workers: int, vocab_size: int) -> Iterator[str]:
    """The lines of the table, as they are found."""
    texts, small, large = place / "texts", place / "small", place / "large"
    write_texts(texts, n_bytes)
    size = sum(path.stat().st_size for path in texts.iterdir()) / 1e9
    vocabulary = f"--vocab-size={vocab_size}"
    seconds, peak = measured(
        ["prepare", "text/shards", str(texts), "--out", str(small), f"--workers={workers}", vocabulary]
    )
    yield f"| preparing {size:.2f} GB, {workers} workers | {1e3 * size / seconds:.1f} MB/s, {peak:.2f} GB |"
    enlarge(small, times, large)
    train = ["train", "text/shards", f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}", *SHORT]
    train += [f"--model.modalities.text.init_args.vocab_size={vocab_size}"]
    for name, folder, more in (
        (f"{size:.2f} GB", small, []),
        (f"{times * size:.1f} GB", large, []),
        (f"{times * size:.1f} GB, 2 processes that load", large, ["--data.num_workers=2"]),
    ):
        run = place / f"run_{folder.name}{len(more)}"
        _, peak = measured([*train, f"--data.path={folder}", f"--run_dir={run}", *more])
        yield f"| {steps} steps of training on {name} | {peak:.2f} GB |"
    loading, finding = batch_times(large, 10 * steps, vocab_size)
    yield f"| a batch of {BATCH} crops of {CROP} from {times * size:.1f} GB | {loading:.1f} ms |"
    yield f"| what any batch of its epoch consists of | {finding:.2f} ms |"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=300, help="of text; 300 by default")
    parser.add_argument("--times", type=int, default=34, help="how much larger the large set is; 34 by default")
    parser.add_argument("--steps", type=int, default=60, help="of training; 60 by default")
    parser.add_argument("--workers", type=int, default=2, help="processes that prepare; 2 by default")
    parser.add_argument("--vocab-size", type=int, default=4096, help="byte pairs; 4096 by default")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    print("| what | result |\n|---|---|", flush=True)
    with TemporaryDirectory() as place:
        found = rows(Path(place), int(given.mb * 1e6), given.times, given.steps, given.workers, given.vocab_size)
        for line in found:
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Small sets of token shards, and the documents they are made of."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from armm.datasets import Items, Splits, TokenShards
from armm.datasets.jobs import Settings
from armm.datasets.preparing import prepare
from armm.datasets.raw_texts import Dealing, find_sources, pieces, plan
from armm.modalities import Text

BPE = Text(kind="bpe", vocab_size=300)
DEALING = Dealing(val=0.2, test=0.2, seed=0)


def read_all(files: list[Path], job_bytes: int) -> list[Any]:
    sources = find_sources(files, (".txt", ".jsonl"))
    jobs = plan(sources, job_bytes, DEALING)
    return [piece for job in jobs for wanted in job for piece in pieces(wanted, "text", DEALING)]


def silent(line: str) -> None:
    """Reports nothing."""


def write_lines(folder: Path, n: int = 60) -> Path:
    """Documents of lines in two files, one of them gzipped."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"text": f"document {i}: " + f"the {i % 7} cats sat on {i} mats. " * (1 + i % 5)}) for i in range(n)
    ]
    (folder / "a.jsonl").write_text("\n".join(lines[: n // 2]) + "\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[n // 2 :]).encode(), mtime=0))
    return folder


SETTINGS = Settings(val=0.2, test=0.2, shard_bytes=1000)


def make(
    modality: Any, texts: Path, out: Path, settings: Settings = SETTINGS, report: Callable[[str], None] = silent
) -> Path:
    prepare(modality, [texts], out, settings, 1, report)
    return out


def load(path: Path, modality: Any = BPE) -> Splits:
    return TokenShards().load({"text": modality}, path, "fail")


def texts_of(items: Items, modality: Text) -> list[str]:
    return [modality.decode(items.item(i, 0)["text"]) for i in range(len(items))]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

"""The numbers of a demo: what the runs recorded, and what simple models reach on the same test data."""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armm import bundle
from armm.datasets import Items, Source, Splits, bigram_bits, marginal_bits, unigram_bits
from armm.errors import InputError
from armm.modality import Modality
from armm.spec import from_spec

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Baseline:
    """A simple model of the same test data.

    Attributes:
        name: short.
        about: what it knows.
        bits: per natural unit.
    """

    name: str
    about: str
    bits: float


@dataclass(frozen=True)
class Measurement:
    """A finished run.

    Attributes:
        metrics: its `metrics.json`.
        unit: what bits are counted per.
        bits: of the test.
        train: (step, bits) in training, one batch each.
        val: (step, bits) at validations.
        baselines: the simple models.
        n_items: texts, images or clips of each split.
        n_test: natural units of the test split.
    """

    metrics: dict[str, Any]
    unit: str
    bits: float
    train: Curve
    val: Curve
    baselines: list[Baseline]
    n_items: dict[str, int]
    n_test: int

    @property
    def best(self) -> Baseline:
        return min(self.baselines, key=lambda baseline: baseline.bits)


def read_metrics(run: Path) -> dict[str, Any]:
    """A run's scores.

    Raises InputError: they are not there, or the run was not tested.
    """
    path = run / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}; run the demo again") from error
    if not metrics.get("test"):
        raise InputError(f"{path} has no test scores, so the training did not finish; run the demo again")
    return metrics


def load_data(run: Path, modality: Modality) -> Splits:
    """The data that a run was trained on, by its resolved configuration."""
    try:
        import yaml
    except ImportError as error:
        raise InputError(f"the demo needs pyyaml ({error}); pip install armm[demo]") from error
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    source = from_spec(config["data"]["source"], Source)
    return source.load({modality.name: modality}, None, "fail")


def load_modality(run: Path, name: str) -> Modality:
    """A run's modality, with the vocabulary that it learned."""
    return bundle.load(run).modalities[name]


def measure(run: Path, modality: Modality, splits: Splits) -> Measurement:
    """Read a run and set simple models beside it.

    Raises InputError: the run did not finish.
    """
    metrics = read_metrics(run)
    name, unit = modality.name, modality.bits_per
    segments = [modality.encode(raw) for raw in _raws(splits.test, name)]
    n_symbols, n_test = sum(s.length for s in segments), sum(modality.n_bits_per(s) for s in segments)
    train, val = read_curves(run / "metrics.csv", f"val/{name}/bits_per_{unit}", metrics["steps"])
    per_unit = n_symbols / n_test / math.log(2)  # from nats per symbol to bits per natural unit
    return Measurement(
        metrics=metrics,
        unit=unit,
        bits=metrics["test"][name][f"bits_per_{unit}"],
        train=[(step, nats * per_unit) for step, nats in train],
        val=val,
        baselines=baselines(modality, splits),
        n_items={"train": len(splits.train), "val": len(splits.val), "test": len(splits.test)},
        n_test=n_test,
    )


def read_curves(path: Path, val_key: str, n_steps: int) -> tuple[Curve, Curve]:
    """(step, nats per symbol) in training and (step, bits) in validation, from Lightning's metrics.csv.

    The file counts steps from 0; here a step is how many had been made. The last validation stands in it again after
    the training; it is kept once.
    """
    train: dict[int, float] = {}
    val: dict[int, float] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step = min(int(row["step"]) + 1, n_steps)
            for curve, key in ((train, "train/nats"), (val, val_key)):
                if row.get(key):
                    curve[step] = float(row[key])
    return sorted(train.items()), sorted(val.items())


def baselines(modality: Modality, splits: Splits) -> list[Baseline]:
    """Simple models of a modality: of the bytes of texts, of the symbols of anything else."""
    train, test = (_raws(items, modality.name) for items in (splits.train, splits.test))
    if modality.bits_per == "byte":
        vocab, what = 256, "byte"
        train_streams, test_streams = ([_bytes(raw) for raw in raws] for raws in (train, test))
    else:
        vocab, what = modality.vocab, {"dim": "pixel"}.get(modality.bits_per, modality.bits_per)
        train_streams, test_streams = ([modality.encode(raw).flat().numpy() for raw in raws] for raws in (train, test))
    found = [
        Baseline("uniform", f"every {what} equally likely", math.log2(vocab)),
        Baseline("unigram", f"how often a {what} occurs", unigram_bits(train_streams, test_streams, vocab)),
        Baseline("bigram", f"how often it follows the {what} before", bigram_bits(train_streams, test_streams, vocab)),
    ]
    if modality.bits_per == "dim":
        items = np.stack(train_streams), np.stack(test_streams)
        found.append(Baseline("marginal", "how often a pixel has a value at its place", marginal_bits(*items, vocab)))
    if modality.bits_per == "byte":
        text = b"".join(stream.tobytes() for stream in test_streams)
        found.append(Baseline("gzip", "the test texts as one .gz file", 8 * len(gzip.compress(text, 9)) / len(text)))
        found.append(Baseline("xz", "the test texts as one .xz file", 8 * len(_xz(text)) / len(text)))
        before = b"".join(stream.tobytes() for stream in train_streams)
        more = len(_xz(before + text)) - len(_xz(before))
        found.append(Baseline("xz, primed", "what they add to an .xz file of the training texts", 8 * more / len(text)))
    return found


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": f"{cores}, PyTorch uses {torch.get_num_threads()} threads",
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _raws(items: Items, name: str) -> list[Any]:
    return [items.item(index, 0)[name] for index in range(len(items))]


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), dtype=np.uint8)


def _xz(content: bytes) -> bytes:
    return lzma.compress(content, preset=6)

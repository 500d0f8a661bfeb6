"""What benchmarks/gpu.sh measured, as a section of docs/results.md: `python benchmarks/gpu_report.py FOLDER`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Goal:
    """A figure of a run's metrics.json, and what it should be.

    Attributes:
        keys: the way to it.
    """

    run: str
    what: str
    keys: tuple[str, ...]
    goal: str


GOALS = (
    Goal("share_350m", "share of peak arithmetic, 350M weights, bf16, compiled", ("speed", "share_of_peak"), "≥ 0.45"),
    Goal("share_350m", "the same, tokens/s", ("speed", "units_per_second"), ""),
    Goal("share_350m", "the same, bytes of memory", ("speed", "peak_memory_bytes"), ""),
    Goal("shakespeare_3min", "tiny Shakespeare, nats/char, 3 min", ("test", "text", "nats_per_char"), "≤ 1.45"),
    Goal("mnist_dynamic_10min", "dynamic MNIST, nats/image, 10 min", ("test", "image", "nats_per_image"), "≤ 77.8"),
    Goal("mnist_8bit_3min", "8-bit MNIST, bits/dim, 3 min", ("test", "image", "bits_per_dim"), "< 0.80"),
)
BENCHMARKS = ("training", "generation")
PROFILE = 14  # lines of its table


def report(folder: Path, where: str) -> list[str]:
    """Lines of Markdown. Figures that are missing are said to be.

    where: what it was measured on.
    """
    lines = [f"## {where}", "", "| what | measured | goal |", "|---|---|---|"]
    lines += [
        f"| {goal.what} | {figure(folder / goal.run / 'metrics.json', goal.keys)} | {goal.goal} |" for goal in GOALS
    ]
    for name in BENCHMARKS:
        for result in results(folder / f"{name}.log"):
            beside = f", {result['ratio']:.2f}× {result['peer_name']}" if result.get("ratio") else ""
            lines.append(f"| {result['work']} | {result['ours']:.5g} {result['unit']}{beside} | |")
    profiles = sorted(folder.glob("*profile*.txt"))
    if profiles:
        table = profiles[0].read_text(encoding="utf-8").splitlines()[:PROFILE]
        lines += ["", "Where a step's time goes:", "", "```", *(line[:160].rstrip() for line in table), "```"]
    return lines


def figure(path: Path, keys: tuple[str, ...]) -> str:
    """A number of a JSON file to five digits; a dash where there is none."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        for key in keys:
            found = found[key]
        return f"{float(found):.5g}"
    except (OSError, ValueError, KeyError, TypeError):
        return "–"


def results(log: Path) -> list[dict[str, Any]]:
    """Of a benchmark, from the JSON object that is its last line; none where it was cut short."""
    try:
        return json.loads(log.read_text(encoding="utf-8").splitlines()[-1])["results"]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return []


def here() -> str:
    """Commit, hardware, versions and date."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{gpu}, commit {git.stdout.strip() or 'unknown'}, torch {version('torch')}, {date.today()}"


if __name__ == "__main__":
    print("\n".join(report(Path(sys.argv[1]), here())))

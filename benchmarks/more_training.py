"""What more training gives: the scores of runs of one recipe, by how long each was trained.

    python benchmarks/more_training.py RUN ... [--score agreement] [--out more_training.png]

RUN is a run of `armm train RECIPE` with scores, each ended (and its learning rate decayed) at its own time. Prints a
table, and draws bits on the validation split above shares of trials: agreement, runaways and whatever else was scored.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """What a run's metrics.json says.

    Attributes:
        steps, minutes: of training.
        unit: of the bits, as in bits_per_sample. bits: of the test.
        curve: (steps, bits) of the validations.
        scores: by name.
    """

    steps: int
    minutes: float
    unit: str
    bits: float
    curve: list[tuple[int, float]]
    scores: dict[str, float]

    @classmethod
    def read(cls, folder: Path) -> Run:
        metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        modality = next(name for name in metrics["test"] if name != "structure")
        name = next(name for name in metrics["test"][modality] if name.startswith("bits_per_"))
        return cls(
            steps=metrics["steps"],
            minutes=metrics["training_seconds"] / 60,
            unit=name.removeprefix("bits_per_"),
            bits=metrics["test"][modality][name],
            curve=[(point["step"], point["val"][modality][name]) for point in metrics["history"]],
            scores={name: score["value"] for name, score in metrics.get("scores", {}).items()},
        )


def table(runs: Sequence[Run], names: Sequence[str]) -> str:
    rows = [["steps", "minutes", f"bits/{runs[0].unit} (test)", *names], ["---"] * (3 + len(names))]
    for run in runs:
        shares = [f"{100 * run.scores[name]:.1f} %" for name in names]
        rows.append([f"{run.steps:,}", f"{run.minutes:.1f}", f"{run.bits:.3f}", *shares])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(runs: Sequence[Run], names: Sequence[str], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, figsize=(7, 7), sharex=True, layout="constrained")
    for run in runs:
        above.plot(*zip(*run.curve, strict=True), marker=".", label=f"{run.minutes:.0f} minutes: {run.bits:.3f} (test)")
    above.set_ylabel(f"bits/{runs[0].unit} (validation)")
    for name in names:
        shares = [100 * run.scores[name] for run in runs]
        below.plot([run.steps for run in runs], shares, marker="o", label=name.replace("_", " "))
    below.set(ylabel="% of trials", xlabel="steps of training", ylim=(-2, 102))
    for axes in (above, below):
        axes.grid(alpha=0.3)
    above.legend(fontsize="small")
    below.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.18), ncol=3)  # clear of the lines
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    p.add_argument("--out", type=Path, default=Path("more_training.png"), help="the picture")
    p.add_argument("--score", action="append", metavar="NAME", help="which of the scores; all by default; repeatable")
    options = p.parse_args(arguments)
    runs = sorted(map(Run.read, options.runs), key=lambda run: run.steps)
    if not runs[0].scores or any(run.scores.keys() != runs[0].scores.keys() for run in runs):
        p.error("the runs have no scores, or different ones; give runs of one recipe with scores")
    names = options.score or list(runs[0].scores)
    if unknown := set(names) - runs[0].scores.keys():
        p.error(f"--score {min(unknown)}: the runs have {', '.join(runs[0].scores)}")
    print(table(runs, names))
    draw(runs, names, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

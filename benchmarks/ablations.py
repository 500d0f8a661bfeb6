"""What helped: variants of recipes at equal wall time: `python benchmarks/ablations.py text --minutes 2`.

Every variant is a row of docs/experiments.md: `armm train RECIPE` with some keys changed, `--trainer.max_time`, a seed.
Prints a table in Markdown as it goes; --out keeps it and every run's scores. A run that is there already is not made
again, so an interrupted evening can be gone on with.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

TRANSFORMER = "model.backbone.init_args"
IMAGE = "model.modalities.image.init_args"
AUDIO = "model.modalities.audio.init_args"
Keys = Mapping[str, object]


@dataclass(frozen=True)
class Study:
    """Variants of one recipe.

    Attributes:
        recipe: by name. modality: whose score is compared.
        variants: what each changes, by name; the first changes nothing.
    """

    recipe: str
    modality: str
    variants: Mapping[str, Keys]


STUDIES: dict[str, Study] = {
    "text": Study(
        "text/shakespeare_char",
        "text",
        {
            "as in the recipe": {},
            "no value embeddings": {f"{TRANSFORMER}.value_embeddings": False},
            "no residual scalars": {f"{TRANSFORMER}.residual_scalars": False},
            "GELU instead of ReLU²": {f"{TRANSFORMER}.mlp": "gelu"},
            "SwiGLU instead of ReLU²": {f"{TRANSFORMER}.mlp": "swiglu"},
            "no QK-norm": {f"{TRANSFORMER}.qk_norm": False},
            "soft-cap of attention, 30": {f"{TRANSFORMER}.attention_softcap": 30.0},
            "soft-cap of logits, 15": {
                "model.modalities.text.init_args.head": "armm.heads.Categorical",
                "model.modalities.text.init_args.head.init_args.softcap": 15.0,
            },
            "AdamW instead of Muon": {"model.optimization.muon_lr": 0.0},
            "Muon's rate 0.02": {"model.optimization.muon_lr": 0.02},
            "Muon's rate 0.01": {"model.optimization.muon_lr": 0.01},
            "embeddings at 1e-2": {"model.optimization.embedding_lr": 1e-2},
            "cosine instead of WSD": {"model.optimization.schedule": "cosine"},
            "EMA 0.99": {"model.optimization.ema": 0.99},
            "z-loss 1e-4": {"model.optimization.z_loss": 1e-4},
            "float32": {"trainer.precision": "32-true"},
            "bfloat16": {"trainer.precision": "bf16-mixed"},
            "batch 4": {"data.batch_size": 4},
            "batch 16": {"data.batch_size": 16},
            "batch 32": {"data.batch_size": 32},
            "dropout 0.1": {f"{TRANSFORMER}.dropout": 0.1},
            "size small": {"size": "small"},
        },
    ),
    "text_windows": Study(
        "text/shakespeare_char",
        "text",
        {
            "windows of 256, attention over 64": {},
            "windows of 64": {"data.crop": 64, "data.batch_size": 32},
            "windows of 64, attention over 32": {"data.crop": 64, "data.batch_size": 32, f"{TRANSFORMER}.window": 32},
            "windows of 128": {"data.crop": 128, "data.batch_size": 16},
            "windows of 512": {"data.crop": 512, "data.batch_size": 4},
            "attention over 32": {f"{TRANSFORMER}.window": 32},
            "attention over 128": {f"{TRANSFORMER}.window": 128},
            "attention over 256": {f"{TRANSFORMER}.window": 256},
        },
    ),
    "image": Study(
        "image/mnist_binary",
        "image",
        {
            "as in the recipe": {},
            **{f"head of {n} channels": {f"{IMAGE}.head.init_args.channels": n} for n in (16, 24, 48)},
            **{f"halo of {n}": {f"{IMAGE}.head.init_args.halo": n} for n in (0, 1, 2, 3)},
            **{f"halo of {n} layers": {f"{IMAGE}.head.init_args.halo_layers": n} for n in (0, 1, 2)},
            "pixels alone": {f"{IMAGE}.place": [1, 1]},
            "pixels in squares of four": {f"{IMAGE}.place": [2, 2]},
            "pixels of a pair one after the other": {f"{IMAGE}.head.init_args.distribution": "armm.heads.Softmax"},
            "dilations 1, 2, 4": {f"{IMAGE}.head.init_args.dilations": [1, 2, 4]},
            "dilations 1, 2, 4, 8, 16": {f"{IMAGE}.head.init_args.dilations": [1, 2, 4, 8, 16]},
            "dropout 0.1": {f"{IMAGE}.head.init_args.dropout": 0.1},
            **{f"condition of {n} layers": {f"{IMAGE}.head.init_args.condition_layers": n} for n in (0, 2, 6)},
            "no convolution before the backbone": {f"{IMAGE}.embedder_channels": 0},
            "AdamW for the head": {"model.optimization.muon_head_lr": 0.0},
            "Muon's rate for the head 0.01": {"model.optimization.muon_head_lr": 0.01},
            "AdamW instead of Muon": {"model.optimization.muon_lr": 0.0},
            "Muon's rate 0.02": {"model.optimization.muon_lr": 0.02},
            "float32": {"trainer.precision": "32-true"},
            "batch 16": {"data.batch_size": 16},
            "batch 64": {"data.batch_size": 64},
            "batch 128": {"data.batch_size": 128},
        },
    ),
    "audio": Study(
        "audio/fsdd",
        "audio",
        {
            "as in the recipe": {},
            **{f"frames of {n}": {f"{AUDIO}.frame": n} for n in (16, 32, 128)},
            **{f"head of {n} channels": {f"{AUDIO}.head.init_args.channels": n} for n in (32, 64)},
            "receptive field 64": {f"{AUDIO}.head.init_args.dilations": [1, 4, 16]},
            "receptive field 511": {f"{AUDIO}.head.init_args.dilations": [1, 4, 16, 64, 85]},
            "dropout 0.1": {f"{AUDIO}.head.init_args.dropout": 0.1},
            **{
                f"backbone of {width}, {n} layers": {f"{TRANSFORMER}.width": width, f"{TRANSFORMER}.n_layers": n}
                for width, n in ((128, 2), (128, 3), (128, 4), (192, 2))
            },
            "Muon for the head too": {"model.optimization.muon_head_lr": 0.02},
            "AdamW instead of Muon": {"model.optimization.muon_lr": 0.0},
            "float32": {"trainer.precision": "32-true"},
            **{f"batch {n}": {"data.batch_size": n} for n in (1, 4, 8)},
        },
    ),
    "digits": Study(
        "image/digits",
        "image",
        {
            "as in the recipe": {},
            **{f"dropout {n}": {f"{IMAGE}.head.init_args.dropout": n} for n in (0.0, 0.15, 0.35)},
            **{f"head of {n} channels": {f"{IMAGE}.head.init_args.channels": n} for n in (16, 32)},
            "EMA 0.99": {"model.optimization.ema": 0.99},
            "Muon for the head too": {"model.optimization.muon_head_lr": 0.02},
        },
    ),
}


@dataclass(frozen=True)
class Score:
    """What came of one run."""

    value: float
    unit: str
    steps: int
    n_parameters: int


def options(keys: Keys) -> list[str]:
    return [f"--{key}={json.dumps(value) if isinstance(value, list | bool) else value}" for key, value in keys.items()]


def command(study: Study, keys: Keys, seed: int, minutes: float, folder: Path, more: Sequence[str]) -> list[str]:
    """`armm train` for so long, without samples, validated at its end alone."""
    seconds = round(60 * minutes)
    days, rest = divmod(seconds, 86400)
    time = f"{days:02}:{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"
    own = {"trainer.max_time": time, "trainer.max_steps": -1, "trainer.val_check_interval": 10**9, "n_samples": 0}
    own |= {"seed_everything": seed, "data.seed": seed, "run_dir": folder, "trainer.enable_progress_bar": False}
    start = [sys.executable, "-m", "armm.cli", "train", study.recipe]
    return [*start, *options(own), *options(keys), *more]


def score_of(folder: Path, modality: str) -> Score | None:
    """The test score of a run that is complete; None for another."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        values = metrics["test"][modality]
    except (OSError, ValueError, KeyError):
        return None
    unit = min(values)  # bits before nats
    return Score(values[unit], unit.replace("_per_", "/"), metrics["steps"], metrics["n_parameters"])


def row(name: str, scores: Sequence[Score], base: float | None) -> str:
    """One line of the table: the mean over seeds, their spread, the difference from the first variant."""
    values = [score.value for score in scores]
    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    change = "" if base is None else f"{mean(values) - base:+.4f}"
    steps, size = round(mean(score.steps for score in scores)), scores[0].n_parameters
    return f"| {name} | {mean(values):.4f}{spread} | {change} | {steps:,} | {size / 1e6:.2f}M |"


def run(study: Study, names: Sequence[str], n_seeds: int, minutes: float, out: Path, more: Sequence[str]) -> list[str]:
    """Train what is not there yet, print the table, return its lines. A variant that fails has a line that says so."""
    lines = [f"`{study.recipe}`, {minutes:g} min a run, {n_seeds} seed{'s' * (n_seeds > 1)}", ""]
    base, unit = None, ""
    for number, name in enumerate(names):
        scores, failure = [], ""
        for seed in range(n_seeds):
            folder = out / study.recipe.replace("/", "_") / f"{slug(name)}-{minutes:g}min-{seed}"
            score = score_of(folder, study.modality)
            if score is None:
                done = subprocess.run(
                    command(study, study.variants[name], seed, minutes, folder, more), capture_output=True, text=True
                )
                score = score_of(folder, study.modality)
                failure = (
                    failure or (done.stderr.strip().splitlines() or ["no score"])[-1] if score is None else failure
                )
            scores += [score] if score else []
        if scores and not unit:
            unit = scores[0].unit
            lines += [f"| change | {unit} (test) | against the first | steps | parameters |", "|---|---|---|---|---|"]
            print("\n".join(lines))
        if scores and number == 0:
            base = mean(score.value for score in scores)
        lines.append(row(name, scores, base if number else None) if scores else f"| {name} | failed: {failure} | | | |")
        print(lines[-1], flush=True)
    return lines


def slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Variants of recipes, each trained for the same wall time.")
    parser.add_argument("study", choices=[*STUDIES, "all"])
    parser.add_argument("--minutes", type=float, default=2.0, help="of training for each run; 2 by default")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant; 3 by default")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="parts of the names of some variants")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), help="where runs and tables are kept")
    parser.add_argument("--list", action="store_true", help="name the variants and stop")
    given, more = parser.parse_known_args(argv)  # the rest goes to `armm train`: --data.path=...
    for name in STUDIES if given.study == "all" else [given.study]:
        study = STUDIES[name]
        first, *others = study.variants
        chosen = [v for v in others if not given.only or any(part in v for part in given.only)]
        if given.list:
            print("\n".join([f"{name}: {study.recipe}", *(f"  {v}" for v in (first, *chosen))]))
            continue
        lines = run(study, [first, *chosen], given.seeds, given.minutes, given.out, more)
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`armm compare`: train recipes for the same wall time, one after another, and put their bits side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from armm.commands.options import OptionParser
from armm.errors import InputError

SETTINGS = "compare.json"
N_POINTS = 8  # validations of a run, more or less: what its curve is drawn from


@dataclass(frozen=True)
class Result:
    """What a recipe reached.

    Attributes:
        recipe: its name. modality: what the bits are of. unit: what they are per, as in `bits_per_dim`.
        bits: of the test. nats: of the test, per `nats_per`.
        seconds, steps: of training. parameters: of the model.
        curve: (seconds, bits) of the validations.
    """

    recipe: str
    modality: str
    unit: str
    bits: float
    nats_per: str
    nats: float
    seconds: float
    steps: int
    parameters: int
    curve: list[tuple[float, float]]


def run(arguments: list[str]) -> int:
    """Run `armm compare`.

    Raises InputError: recipes, times or keys that are not right, or a comparison that was begun with others.
    """
    p = OptionParser(
        "compare",
        "Train recipes for the same wall time each, one after another, and write a table and a plot of their bits. "
        "Any --key=value of a recipe is passed on to all of them: --data.path=DIR, --model.optimization.lr=1e-3.",
    )
    p.add_argument("recipes", nargs="+", metavar="RECIPE", help="names or files of recipes")
    p.add_argument("--minutes", type=float, default=5.0, help="of training, validations included (default 5)")
    p.add_argument("--out", type=Path, required=True, help="folder for the runs, comparison.md, .png and .json")
    options, keys = p.parse_known_args(arguments)
    _check(options.recipes, options.minutes, keys)
    _begin(options.out, {"recipes": options.recipes, "minutes": options.minutes, "keys": keys})
    failed = []
    for number, recipe in enumerate(options.recipes):
        folder = options.out / _name(recipe)
        if _is_scored(folder):
            print(f"{recipe}: complete in {folder}", flush=True)
            continue
        print(f"{recipe} ({number + 1} of {len(options.recipes)}): {options.minutes:g} minutes", flush=True)
        if not _train(recipe, folder, options.minutes, keys):
            failed.append(recipe)
    results = [_result(recipe, options.out / _name(recipe)) for recipe in options.recipes if recipe not in failed]
    results.sort(key=lambda result: (result.unit, result.bits))
    if results:
        print("\n" + _write(results, options.out, options.minutes))
    if failed:
        raise InputError(f"{', '.join(failed)} did not train, see above; mend it and run the same command again")
    return 0


def _check(recipes: Sequence[str], minutes: float, keys: Sequence[str]) -> None:
    if find_spec("matplotlib") is None:
        raise InputError('the plot needs matplotlib: pip install "armm[demo]"')
    if not 0 < minutes < 1e6:
        raise InputError(f"--minutes is {minutes:g}, it must be greater than 0")
    for recipe in recipes:
        if sum(_name(other) == _name(recipe) for other in recipes) > 1:
            raise InputError(f"{recipe} is there twice; name each recipe once")
    for key in keys:
        if not (key.startswith("--") and "=" in key):
            raise InputError(f"{key}: what is passed on to the recipes is written --key=value, in one word")
        if key.startswith(("--run_dir", "--trainer.max_time", "--trainer.max_steps")):
            raise InputError(f"{key.partition('=')[0]} is set by the comparison; leave it out (--minutes, --out)")


def _begin(out: Path, settings: dict[str, Any]) -> None:
    """Make the folder; a comparison with the same settings that stands there already is gone on with."""
    place = out / SETTINGS
    if not place.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"--out {out} holds something else; name an empty or new folder")
        out.mkdir(parents=True, exist_ok=True)
        _write_whole(place, json.dumps(settings, indent=1) + "\n")
        return
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{place} cannot be read ({error}); name another --out") from error
    if (found["minutes"], found["keys"]) != (settings["minutes"], settings["keys"]):
        given = " ".join(found["keys"]) or "no keys"
        raise InputError(
            f"--out {out} holds a comparison of {found['minutes']:g} minutes, {given}; give the same or name another"
        )


def _name(recipe: str) -> str:
    """A folder's name for a recipe: image-digits."""
    return recipe.removeprefix("recipes/").removesuffix(".yaml").strip("./").replace("/", "-")


def _train(recipe: str, folder: Path, minutes: float, keys: Sequence[str]) -> bool:
    """Train a recipe in a process of its own, so that none inherits threads, memory or caches."""
    command = [
        *(sys.executable, "-m", "armm.cli", "train", recipe),
        *("--trainer.max_steps=-1", f"--trainer.max_time={_clock(minutes * 60)}"),
        *(f"--trainer.val_check_interval={_clock(max(minutes * 60 / N_POINTS, 1))}", "--n_samples=0"),
        *("--trainer.enable_progress_bar=false", *keys, f"--run_dir={folder}"),
    ]
    if folder.exists():  # it was stopped
        command = [*command[:4], "--resume", str(folder)]
    return subprocess.run(command, check=False).returncode == 0


def _clock(seconds: float) -> str:
    """DD:HH:MM:SS, as the Trainer reads it."""
    whole = max(round(seconds), 1)
    return f"{whole // 86400:02}:{whole // 3600 % 24:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def _metrics(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _is_scored(folder: Path) -> bool:
    return bool(_metrics(folder).get("test"))


def _result(recipe: str, folder: Path) -> Result:
    metrics = _metrics(folder)
    modality, scores = next((name, scores) for name, scores in metrics["test"].items() if name != "structure")
    (bits,), (nats,) = ([key for key in scores if key.startswith(kind)] for kind in ("bits_per_", "nats_per_"))
    history = metrics.get("history", [])
    curve = [(point["seconds"], point["val"][modality][bits]) for point in history if modality in point.get("val", {})]
    return Result(
        recipe=recipe,
        modality=modality,
        unit=bits.removeprefix("bits_per_"),
        bits=scores[bits],
        nats_per=nats.removeprefix("nats_per_"),
        nats=scores[nats],
        seconds=metrics["training_seconds"],
        steps=metrics["steps"],
        parameters=metrics["n_parameters"],
        curve=curve,
    )


def _write(results: Sequence[Result], out: Path, minutes: float) -> str:
    """Write table, plot and numbers; returns the table."""
    table = _table(results, minutes)
    _write_whole(out / "comparison.md", table)
    _write_whole(out / "comparison.json", json.dumps([asdict(result) for result in results], indent=1) + "\n")
    _plot(results, out / "comparison.png", minutes)
    return f"{table}\n{out / 'comparison.md'}, .png and .json"


def _table(results: Sequence[Result], minutes: float) -> str:
    rows = ["| recipe | bits (test) | nats (test) | parameters | steps | seconds |", "|---|---|---|---|---|---|"]
    for r in results:
        cells = (f"{r.bits:.3f} bits/{r.unit}", f"{r.nats:.2f} nats/{r.nats_per}", f"{r.parameters:,}", f"{r.steps:,}")
        rows.append(f"| {r.recipe} | {' | '.join(cells)} | {r.seconds:.0f} |")
    return "\n".join([f"{minutes:g} minutes of training each, validations included.", "", *rows]) + "\n"


def _plot(results: Sequence[Result], path: Path, minutes: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for result in results:
        seconds, bits = [point[0] for point in result.curve], [point[1] for point in result.curve]
        axes.plot(seconds, bits, marker=".", label=f"{result.recipe}: {result.bits:.3f}")
    units = sorted({result.unit for result in results})
    axes.set_xlabel(f"seconds of training, of {minutes:g} minutes")
    axes.set_ylabel(f"bits/{' or '.join(units)} (validation)")
    points = [result.curve or [(result.seconds, result.bits)] for result in results]
    lowest, last = min(bits for curve in points for _, bits in curve), max(curve[-1][1] for curve in points)
    axes.set_ylim(lowest - 0.1 * (last - lowest), last + 1.5 * max(last - lowest, 0.02 * lowest))
    axes.grid(alpha=0.3)
    axes.legend(title="test", fontsize="small")
    beside = path.with_name(f".{path.name}.{os.getpid()}.png")
    try:
        figure.savefig(beside, dpi=120)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
        pyplot.close(figure)


def _write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen half-written."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)

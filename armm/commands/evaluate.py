"""`armm evaluate RUN`: the scores that a run's recipe names, of its model on its data, into its `metrics.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from armm import bundle
from armm.commands.options import OptionParser
from armm.datasets import Source
from armm.errors import InputError
from armm.evaluation import Material, Score, evaluate
from armm.evaluation.record import keep_scores, lines
from armm.spec import from_spec

CONFIG = "config.yaml"


def parser() -> OptionParser:
    p = OptionParser("evaluate", "The scores that a run's recipe names, into its metrics.json.")
    p.add_argument("run", help="a run folder, or a folder of runs (the newest)")
    p.add_argument("--data-path", type=Path, metavar="PATH", help="where the data is, if it is no longer where it was")
    p.add_argument("--trials", type=int, metavar="N", help="at most so many trials a score")
    p.add_argument("--seed", type=int, help="of samples (default: the seed of the run's data)")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p.add_argument("--device", default="cpu", help="where to run, such as cuda (default cpu)")
    return p


def run(arguments: list[str]) -> int:
    """Run `armm evaluate`.

    Raises InputError: no such run, a run without scores, or data that is not there.
    """
    options = parser().parse_args(arguments)
    if options.trials is not None and options.trials < 1:
        raise InputError(f"--trials is {options.trials}, it must be at least 1")
    place = bundle.find(options.run)
    folder = place.parent if place.name == "model" else place
    config = read_recipe(folder)
    scores = [from_spec(_with_arguments(spec), Score) for spec in config.get("scores") or []]
    if not scores:
        raise InputError(f"{folder / CONFIG}: the recipe names no scores; list some under its key `scores`")
    model = bundle.load(place, options.device)
    for score in scores:
        score.check(model)
    found = evaluate(scores, model, material(model, config["data"], options.data_path, options.trials, options.seed))
    keep_scores(folder, found)
    print(json.dumps(found) if options.json else "\n".join(lines(found)))
    return 0


def read_recipe(folder: Path) -> dict[str, Any]:
    """A run's resolved recipe.

    Raises InputError: there is none.
    """
    try:
        import yaml
    except ImportError as error:
        raise InputError(f'evaluating needs pyyaml ({error}); pip install "armm[train]"') from error
    path = folder / CONFIG
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read ({error}); name the folder of a run, not a bundle alone") from error
    if not isinstance(config, dict) or not isinstance(config.get("data"), dict):
        raise InputError(f"{path} is no recipe of a run; name the folder of a run")
    return config


def material(
    model: bundle.AutoregressiveModel, data: dict[str, Any], path: Path | None, at_most: int | None, seed: int | None
) -> Material:
    """The data that a run was trained on, by its recipe."""
    source = from_spec(_with_arguments(data["source"]), Source)
    given = data.get("path")
    place = path if path is not None else Path(given) if given else None
    splits = source.load(model.modalities, place, data.get("on_error", "fail"))
    return Material(splits, tuple(data.get("conditions") or ()), at_most, data.get("seed", 0) if seed is None else seed)


def _with_arguments(spec: Any) -> Any:
    """A class may stand as its path alone."""
    return {"class_path": spec} if isinstance(spec, str) else spec

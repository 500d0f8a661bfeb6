"""Going on with a run: which one is meant, what it left, and the curves it has drawn so far."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from armm.errors import InputError
from armm.training.callbacks import write_json
from armm.training.checkpoints import Saved, newest

CONFIG = "config.yaml"
METRICS = "metrics.json"
KEPT = ".metrics.csv.kept"


@dataclass(frozen=True)
class Resume:
    """What `--resume` asked for.

    Attributes:
        run: as it was given; None for the newest of the recipe.
    """

    run: Path | None


def take(arguments: list[str]) -> tuple[list[str], Resume | None]:
    """The arguments without `--resume`, `--resume RUN` or `--resume=RUN`, and what it said."""
    for at, argument in enumerate(arguments):
        if argument.startswith("--resume="):
            return arguments[:at] + arguments[at + 1 :], Resume(Path(argument.partition("=")[2]))
        if argument == "--resume":
            value = arguments[at + 1 : at + 2]
            if value and not value[0].startswith("-"):
                return arguments[:at] + arguments[at + 2 :], Resume(Path(value[0]))
            return arguments[:at] + arguments[at + 1 :], Resume(None)
    return arguments, None


def newest_run(folder: Path) -> Path | None:
    """The run in a folder, or of the runs in it the one with the highest number."""
    if (folder / CONFIG).is_file():
        return folder
    runs = [path.parent for path in folder.glob(f"*/{CONFIG}") if path.parent.name.isdigit()]
    return max(runs, key=lambda path: int(path.name), default=None)


def find_run(place: Path) -> Path:
    """The run that a user means.

    Raises InputError: there is none.
    """
    if not place.exists():
        raise InputError(f"--resume {place} does not exist; name the folder of a run (armm list shows runs)")
    run = newest_run(place)
    if run is None:
        raise InputError(f"--resume {place} holds no run to go on with: expected {CONFIG} in it (armm list shows runs)")
    return run


def find_checkpoint(run: Path) -> Saved | None:
    """The newest whole checkpoint of a run, and say what was found."""
    say = rank_zero_only(lambda line: print(line, flush=True))
    saved = newest(run, say)
    if saved is None:
        say(f"{run}: no checkpoint yet; begins anew with its {CONFIG}")
    else:
        say(f"{run}: goes on with {saved.path.relative_to(run)}, step {saved.step:,}, written {saved.when}")
    return saved


def recipe_of(run: Path) -> str:
    """The name of the recipe that a run was begun with."""
    try:
        return str(json.loads((run / METRICS).read_text(encoding="utf-8"))["recipe"])
    except (OSError, ValueError, KeyError, TypeError):  # no validation yet, or damaged
        return run.absolute().parent.name


def is_complete(run: Path) -> bool:
    """Whether a run was trained to its end, and tested."""
    try:
        return bool(json.loads((run / METRICS).read_text(encoding="utf-8")).get("test"))
    except (OSError, ValueError, AttributeError):
        return False


@rank_zero_only
def reopen(run: Path) -> None:
    """A run that was complete trains on: from now on it is not, whatever ends it."""
    try:
        content = json.loads((run / METRICS).read_text(encoding="utf-8"))
        if content.pop("test", None) is not None:
            write_json(run / METRICS, content)
    except (OSError, ValueError, AttributeError):  # none yet, or damaged; the next validation writes it anew
        return


@rank_zero_only
def keep_curves(logger: CSVLogger, step: int) -> None:
    """Keep the rows before a step of a file that the logger would begin anew. Nothing is lost if this is broken off."""
    path = Path(logger.log_dir) / "metrics.csv"
    kept = path.with_name(KEPT)
    if path.exists() and not kept.exists():
        path.replace(kept)
    if not kept.exists():
        return
    with kept.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit() and int(row["step"]) < step]
    writer = logger.experiment
    writer.metrics = [{key: value for key, value in row.items() if key} for row in rows]
    writer.save()
    kept.unlink()

"""Where scores stand: in the `metrics.json` of a run, under `scores`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armm.datasets.store import write_aside
from armm.errors import InputError

METRICS = "metrics.json"


def keep_scores(run: Path, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Put them beside what is there; those of an earlier evaluation under the same names are replaced.

    Raises InputError: the file cannot be read or written.
    """
    path = run / METRICS
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        content["scores"] = {**content.get("scores", {}), **scores}
        write_aside(path, [(json.dumps(content, indent=1) + "\n").encode()])
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: the scores cannot be put there ({error}); check the file and its place") from error


def lines(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The same to read."""
    return [f"score {name}: {own['value']:.4f} ({own['n_trials']} trials)" for name, own in scores.items()]

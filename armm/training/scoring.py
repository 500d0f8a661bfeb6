"""The scores of a run at its end: of the bundle that it leaves, into its `metrics.json`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from armm import bundle
from armm.errors import InputError
from armm.evaluation import Material, Score, evaluate
from armm.evaluation.record import keep_scores, lines
from armm.model import AutoregressiveModel
from armm.training.data import DataModule


def check_scores(scores: Sequence[Score], model: AutoregressiveModel) -> None:
    """Raises InputError: a score that this model cannot have."""
    for score in scores:
        score.check(model)


def score_run(run: Path, scores: Sequence[Score], data: DataModule, at_most: int | None) -> None:
    """Compute what the recipe lists; where that fails, say so: the trained model is there already."""
    if not scores or at_most == 0:
        return
    assert data.splits is not None, "the run has been trained"
    print(f"scores of {run / 'model'}")
    material = Material(data.splits, tuple(data.conditions), at_most, data.seed)
    try:
        found = evaluate(scores, bundle.load(run), material)
    except InputError as error:
        print(f"\nno scores: {error}; once that is mended: armm evaluate {run}", file=sys.stderr)
        return
    keep_scores(run, found)
    for line in lines(found):
        print(line)

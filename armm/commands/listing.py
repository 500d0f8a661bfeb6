"""`armm list`: modalities, recipes and runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from armm.commands.options import OptionParser
from armm.datasets.builtin import builtin_folder
from armm.modality import discover


def run(arguments: list[str]) -> int:
    """Run `armm list`."""
    p = OptionParser("list", "Modalities, recipes and runs.")
    p.add_argument("what", nargs="?", choices=["modalities", "recipes", "runs"], help="one of them; all by default")
    p.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs (default runs/)")
    options = p.parse_args(arguments)
    parts = {"modalities": modalities(), "recipes": recipes(), "runs": runs(options.runs)}
    for name, rows in parts.items():
        if options.what not in (None, name):
            continue
        print(f"{name}:")
        width = max((len(row[0]) for row in rows), default=0)
        for key, about in rows:
            print(f"  {key:<{width}}  {about}")
        if not rows:
            print("  none")
    return 0


def modalities() -> list[tuple[str, str]]:
    """Name and class of every installed modality."""
    return sorted((name, f"{cls.__module__}.{cls.__qualname__}") for name, cls in discover().items())


def recipes() -> list[tuple[str, str]]:
    """Name and opening comment of every recipe that comes with the library."""
    folder = builtin_folder("recipes")
    rows = []
    for path in sorted(folder.rglob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        rows.append((str(path.relative_to(folder).with_suffix("")), first.lstrip("# ")))
    return rows


def runs(folder: Path) -> list[tuple[str, str]]:
    """Folder and scores of every run."""
    rows = []
    for path in sorted(folder.rglob("metrics.json")):
        try:
            about = _scores(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, AttributeError):  # someone else's, or damaged
            about = "metrics.json cannot be read"
        rows.append((str(path.parent), about))
    return rows


def _scores(metrics: dict[str, Any]) -> str:
    """Its recipe, and the bits of the test or else of the latest validation."""
    scores = metrics.get("test") or metrics.get("val") or {}
    bits = [f"{name} {key} {value:.3f}" for name, v in scores.items() for key, value in v.items() if "bits" in key]
    return f"{metrics.get('recipe')}: {', '.join(bits) or 'no scores yet'}"

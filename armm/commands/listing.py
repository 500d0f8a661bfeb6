"""`armm list`: modalities, recipes and runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from armm.datasets.builtin import builtin_folder
from armm.modality import discover


def run(arguments: list[str]) -> int:
    """Run `armm list`."""
    p = argparse.ArgumentParser(prog="armm list", description="Modalities, recipes and runs.")
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
            metrics = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            rows.append((str(path.parent), "metrics.json cannot be read"))
            continue
        scores = metrics.get("test") or metrics.get("val") or {}
        bits = [f"{name} {key} {value:.3f}" for name, v in scores.items() for key, value in v.items() if "bits" in key]
        rows.append((str(path.parent), f"{metrics.get('recipe')}: {', '.join(bits) or 'no scores yet'}"))
    return rows

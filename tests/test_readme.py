"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from armm.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def python_example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    return code


def test_python_example_has_at_most_twelve_lines() -> None:
    assert len([line for line in python_example().splitlines() if line.strip()]) <= 12


def test_python_example_trains_saves_loads_and_samples(tmp_path: Path) -> None:
    """The code block itself, with fewer steps."""
    code, n_replaced = re.subn(r"max_steps=\d+", "max_steps=3", python_example())
    assert n_replaced == 1
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "digits" / "weights.safetensors").is_file()
    assert len(re.findall(r"\[\[", done.stdout)) == 4, "four 8x8 arrays are printed"


def test_commands_in_the_readme_exist() -> None:
    """Every `armm COMMAND` in a code block is a command, and every recipe that is named is there."""
    blocks = "\n".join(re.findall(r"```\n(.*?)```", README, re.DOTALL))
    named = set(re.findall(r"^armm (\S+)", blocks, re.MULTILINE))
    assert named and named <= set(COMMANDS)
    recipes = re.findall(r"(recipes/\S+\.yaml)", README)
    assert recipes and all((ROOT / recipe).is_file() for recipe in recipes)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{page} links to {target}"

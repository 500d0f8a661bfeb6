"""The project as it is installed: what is in the wheel, what a base install needs, what the metadata says."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# What the extras install, by import name.
OPTIONAL = (
    "jsonargparse",
    "lightning",
    "litdata",
    "llguidance",
    "matplotlib",
    "numba",
    "PIL",
    "pytorch_lightning",
    "sklearn",
    "soundfile",
    "tensorboard",
    "tokenizers",
    "torchaudio",
    "torchvision",
    "transformers",
    "yaml",
)

# Everything that loads a bundle, generates from it and scores with it.
BASE_MODULES = (
    "armm",
    "armm.backbones",
    "armm.bundle",
    "armm.cli",
    "armm.generation",
    "armm.heads",
    "armm.modalities.audio",
    "armm.modalities.image",
    "armm.modalities.label",
    "armm.modalities.text",
    "armm.model",
    "armm.sequence",
)

# Something below a folder that only one machine has.
MACHINE_PATH = re.compile(r"(?<![\w.~/:])/(?:home|mnt|root|tmp|Users|work)/\w")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)


def files_under(*names: str) -> list[Path]:
    """Files of the project below these folders or by these names; caches left out."""
    found = [path for name in names for path in (ROOT / name, *sorted((ROOT / name).rglob("*")))]
    return [path for path in found if path.is_file() and "__pycache__" not in path.parts]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_wheel_holds_package_recipes_and_data(wheel: zipfile.ZipFile) -> None:
    """A recipe or a data script that exists only in a checkout would leave `pip install armm` without it."""
    names = set(wheel.namelist())
    expected = {
        *(path.relative_to(ROOT).as_posix() for path in files_under("armm")),
        *(f"armm/_{path.relative_to(ROOT).as_posix()}" for path in files_under("recipes", "data")),
    }
    assert expected <= names, sorted(expected - names)
    assert "armm/py.typed" in names
    assert any(re.fullmatch(r"armm/_recipes/.+\.yaml", name) for name in names)
    assert any(name.startswith("armm/_data/") for name in names)


def test_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    """Tests, caches, runs or a virtual environment in the wheel would be installed into everyone's site-packages."""
    strangers = [name for name in wheel.namelist() if not name.startswith(("armm/", "armm-")) or "__pycache__" in name]
    assert not strangers
    assert any(name.endswith("/licenses/LICENSE") for name in wheel.namelist())


@pytest.mark.parametrize(
    ("text", "is_path"),
    [
        ("folder = '/home/ann/data'", True),
        ("see /tmp/run1", True),
        ("https://example.org/home/page", False),
        ("../work/main", False),
        ("/path/to/recordings", False),
    ],
)
def test_machine_path_pattern(text: str, is_path: bool) -> None:
    """The pattern below sees a machine's path, and only that."""
    assert bool(MACHINE_PATH.search(text)) == is_path


def test_no_machine_paths() -> None:
    """A path that exists on one machine only, left in a recipe, a document or the source."""
    folders = ("armm", "recipes", "data", "docs", "benchmarks", "tests", ".ci")
    files = ("README.md", "CHANGELOG.md", "Makefile", "pyproject.toml")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files_under(*folders, *files)
        if path != Path(__file__) and path.suffix in {"", ".cfg", ".json", ".md", ".py", ".toml", ".yaml", ".yml"}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "\n".join(found)


def test_import_loads_nothing_optional() -> None:
    """`import armm` stays quick: no training framework, no codec, no plotting."""
    result = run_python(f"import sys, armm; print(*sorted(set({OPTIONAL!r}) & set(sys.modules)))")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


@pytest.mark.parametrize("module", BASE_MODULES)
def test_base_install_can_import(module: str) -> None:
    """With none of the extras installed, what loads, generates and scores still imports."""
    block = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL!r}))"
    result = run_python(f"{block}; import {module}")
    assert result.returncode == 0, result.stderr


def test_blocked_import_fails() -> None:
    """The block used above does block: a planted import of an optional package is seen."""
    result = run_python(f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL!r})); import lightning")
    assert result.returncode != 0
    assert "lightning" in result.stderr


def test_packages_are_packages() -> None:
    """A folder of modules without `__init__.py` imports all the same, but the check of import directions skips it."""
    folders = {path.parent for path in files_under("armm") if path.suffix == ".py"}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_metadata_is_current() -> None:
    """The installed metadata is that of this checkout, the changelog knows the version, every entry point loads."""
    assert version("armm") == PROJECT["version"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    ours = {entry.name: entry for entry in entry_points(group="armm.modalities") if entry.value.startswith("armm.")}
    assert set(ours) == set(PROJECT["entry-points"]["armm.modalities"])
    assert all(entry.load().__name__.lower() == name for name, entry in ours.items())


def test_all_extras_are_in_all() -> None:
    """`armm[all]` misses no extra but the developers' and the benchmarks', so that a new one reaches `make install`."""
    extras = PROJECT["optional-dependencies"]

    def reached(name: str) -> set[str]:
        inner = [re.fullmatch(r"armm\[(.+)\]", requirement) for requirement in extras[name]]
        names = [part.strip() for match in inner if match for part in match[1].split(",")]
        return {name}.union(*(reached(part) for part in names))

    assert reached("all") == set(extras) - {"bench", "dev"}

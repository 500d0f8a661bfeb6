"""Where the folders `data/` and `recipes/` of the project are: in a source tree, and inside an installed wheel."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Literal

from armm.errors import InputError

PACKAGE = Path(__file__).resolve().parents[1]


def builtin_folder(kind: Literal["data", "recipes"]) -> Path:
    """The project's folder of this name.

    A wheel carries it as `armm/_data` or `armm/_recipes`; that one is looked for first, because a folder that happens
    to be called `data` may lie beside an installed package.

    Raises InputError: neither place has it.
    """
    inside, beside = PACKAGE / f"_{kind}", PACKAGE.parent / kind
    for folder in (inside, beside):
        if folder.is_dir():
            return folder
    raise InputError(f"{inside}: not found, and no {beside} either; this installation of armm is incomplete: reinstall")


def load_script(path: Path) -> ModuleType:
    """The Python file at `path` as a module, run anew.

    Raises InputError: there is no such file.
    """
    if not path.is_file():
        raise InputError(f"{path}: not found; this installation of armm is incomplete: reinstall")
    spec = spec_from_file_location(f"armm_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module

"""What a user can mend, in one line: the complaints of the parser with their keys, of libraries, of the disk."""

from __future__ import annotations

import inspect
import re
from argparse import ArgumentError
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only

from armm.backbones import BackboneConfig
from armm.datasets import Source
from armm.errors import InputError, nearest
from armm.heads import HeadConfig
from armm.modality import Modality
from armm.spec import import_class
from armm.training.data import DataModule
from armm.training.guard import Guard
from armm.training.module import GenerativeModule
from armm.training.optim import Optimization
from armm.training.saving import Checkpointing

SECTIONS = {"trainer": L.Trainer, "model": GenerativeModule, "data": DataModule, "checkpoints": Checkpointing}
PARTS = {"model.optimization": Optimization, "model.guard": Guard}
LOADER_DIED = "a process that loads data has died, killed for the memory it took perhaps; lower data.num_workers"
NO_MEMORY = "there is not enough memory; lower data.batch_size, data.crop or the size of the model"
TOP = (*SECTIONS, "run_dir", "seed_everything", "n_samples", "scores", "score_trials", "size", "resume")


@contextmanager
def told_by_process() -> Iterator[None]:
    """Of several processes that each have found a mistake, have all but the first say which they are."""
    try:
        yield
    except InputError as error:
        if rank_zero_only.rank == 0:
            raise
        raise InputError(f"{error} (process {rank_zero_only.rank})") from error


@contextmanager
def in_one_line(recipe: Path) -> Iterator[None]:
    """Have what a user can do something about end as an InputError.

    Raises InputError: of what was raised inside.
    """
    try:
        yield
    except ArgumentError as error:
        raise InputError(f"{recipe}: {explain(error)}") from error
    except InputError as error:
        raise InputError(plain(error)) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise InputError(NO_MEMORY) from error
    except (OSError, EOFError) as error:
        if raised_by(error, "multiprocessing"):
            raise InputError(LOADER_DIED) from error
        if not isinstance(error, OSError):
            raise
        place = error.filename or "a file of the run"
        raise InputError(f"{place}: {error.strerror or error}; check the place and its space") from error
    except (RuntimeError, MisconfigurationException, ValueError, TypeError) as error:
        if said := of_a_library(error):
            raise InputError(said) from error
        if isinstance(error, RuntimeError) or not raised_by(error, "lightning"):
            raise
        raise InputError(f"{recipe}: the Trainer says: {error}") from error


def raised_by(error: BaseException, package: str) -> bool:
    """Whether an error was raised in a package's own code."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and str(last.tb_frame.f_globals.get("__name__")).partition(".")[0] == package


def explain(error: Exception) -> str:
    """The parser's complaint in one line."""
    text = " ".join(line.strip(" -") for line in str(error).splitlines() if line.strip(" -")).replace("typing.", "")
    place = ".".join(re.findall(r'Parser key "([\w.]+)"', text))
    at = f"{place}: " if place else ""
    # the deepest cause stands last; what a Union's other branches say comes after it and starts with Expected
    if found := re.search(r"unrecognized arguments: (\S+)", text):
        return _unknown_option(found[1])
    if found := re.search(r"Group '([\w.]+)' does not accept option '([\w.-]+)'", text):
        return f"{found[1]} takes no {found[2]!r}{nearest(found[2], _parameters(SECTIONS.get(found[1])))}"
    if found := _last(r"class_path '([\w.]+)': Option '([\w.-]+)' is not accepted", text):
        return f"{at}{found[1]} takes no {found[2]!r}{nearest(found[2], _parameters(_class_at(found[1])))}"
    if found := re.search(r"Option '([\w.-]+)' is not accepted", text):
        word = found[1].partition(".")[0]
        return f"a recipe takes no {word!r}{nearest(word, TOP)}"
    if found := _last(r"class_path '([\w.]+)': module '([\w.]+)' has no attribute '(\w+)'", text):
        return f"{at}there is no class {found[1]}{_nearest_in_module(found[2], found[3])}"
    if found := _last(r"class_path '([\w.]+)': No module named '([\w.]+)'", text):
        return f"{at}there is no class {found[1]}: no module {found[2]}; install its package or mend the path"
    if found := _last(r"Import path ([\w.]+) does not correspond to a subclass of (\w+)", text):
        return f"{at}{found[1]} is no {found[2]}"
    if found := _last(r"Expected a dot import path string: (\S*)", text):
        return f"{at}there is no class {found[1]!r}{nearest(found[1], _class_names())}"
    if found := _last(r"Not a valid subclass of (\w+)\. Got value: (.*?)(?= Subclass types|$)", text):
        return f"{at}expected a class_path and init_args for a {found[1]}, found {_short(found[2])}"
    if found := _last(r"Expected an? ([^.]+?)\. Got value: (.*?)(?= Expected an? |$)", text):
        return f"{at}expected {_plain(found[1])}, found {_short(found[2])}"
    if found := re.search(r"Subtypes: \[(.*?)\] Errors: .*Given value: (.*)", text):
        return f"{at}expected {_plain(found[1])}, found {_short(found[2])}"
    return text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}"


def of_a_library(error: Exception) -> str | None:
    """What torch or Lightning say with many words about what a user can mend."""
    text = str(error)
    if "DataLoader worker" in text:
        return LOADER_DIED
    if "closed by peer" in text or "reset by peer" in text:  # gloo's
        return "another process of the training has ended; the cause is what it said, or the machine's memory"
    if "can't allocate memory" in text:  # torch's, on a CPU
        return NO_MEMORY
    if "InvalidCxxCompiler" in f"{type(error).__name__} {text}":
        return "model.compile needs a C++ compiler, and none was found; install g++, or set model.compile: false"
    if "parameter group" in text:
        return (
            "the checkpoint's optimiser has other groups of parameters; give model.optimization as the run began with"
        )
    if "loading state_dict" in text:
        found = re.search(r"size mismatch for ([\w.]+):.*?(\[[\d, ]*\]).*?(\[[\d, ]*\])", text, re.DOTALL)
        which = f": {found[1]} is {found[2]} in it and {found[3]} here" if found else ""
        return f"the checkpoint is of another model{which}; give the keys of model that the run began with"
    return None


def plain(error: Exception) -> str:
    """What an error says, without the traceback that a process which loads data puts before it."""
    text = str(error)
    if "Original Traceback" not in text:
        return " ".join(text.split())
    return " ".join(text.rpartition(f"{type(error).__name__}: ")[2].split())


def _last(pattern: str, text: str) -> re.Match[str] | None:
    found = None
    for match in re.finditer(pattern, text):
        found = match
    return found


def _unknown_option(argument: str) -> str:
    if not argument.startswith("-"):
        return f"{argument!r} is no option; write --key value, or --key=value"
    key = argument.lstrip("-").partition("=")[0]
    section, dot, _ = key.partition(".")
    owner, _, last = key.rpartition(".")
    if key in TOP:
        word = " for this recipe"
    elif not dot or section not in SECTIONS:
        word = nearest(section, TOP)
    else:
        word = nearest(last, _parameters(PARTS.get(owner, SECTIONS[section])))
    return f"there is no option --{key}{word}"


def _parameters(owner: Any) -> list[str]:
    return list(inspect.signature(owner.__init__).parameters) if owner is not None else []


def _class_at(path: str) -> Any:
    try:
        return import_class(path, object)
    except InputError:
        return None


def _nearest_in_module(module: str, word: str) -> str:
    try:
        return nearest(word, vars(import_module(module)))
    except ImportError:
        return ""


def _class_names() -> list[str]:
    """The classes that a recipe can name without their module."""
    found: list[type] = [Source, Modality, HeadConfig, BackboneConfig]
    for cls in found:
        found += cls.__subclasses__()
    return [cls.__name__ for cls in found]


def _plain(types: str) -> str:
    """`int or null` for `<class 'int'>, <class 'NoneType'>`."""
    names = re.sub(r"<class '([\w.]+)'>", lambda match: match[1].rpartition(".")[2], types)
    names = " or ".join(_outer_parts(names.replace("NoneType", "null")))
    return re.sub(r"Literal\[([^\]]*)\]", lambda match: match[1].replace("'", "").replace(", ", " or "), names)


def _outer_parts(types: str) -> Iterable[str]:
    """Split at the commas that stand in no brackets."""
    return re.split(r", (?![^\[]*\])", types)


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= 120 else f"{text[:117]}..."

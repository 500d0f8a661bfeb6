"""All laws on one modality: what `armm check-modality` runs, and what the tests of a plug-in can run."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple

import torch

from armm.errors import InputError, nearest
from armm.generation import Temperature, TopP
from armm.modality import Modality, discover
from armm.model import AutoregressiveModel
from armm.sequence import Document
from armm.spec import from_spec
from armm.testing import round_trip, sampling
from armm.testing.law import LawBroken
from armm.testing.likelihood import CAUSAL, NORMALISED, VIEWS, check_causal, check_normalised, check_views_agree
from armm.testing.models import models_around
from armm.testing.round_trip import Tolerance, check_kept, check_random_round_trip, check_round_trip
from armm.testing.sampling import FILTERS, check_same_sample, check_sampler
from armm.testing.streams import random_document

SAMPLE_TEXTS = ("the quick brown fox jumps over the lazy dog\n", "a rose is a rose is a rose\n" * 4)
SYMBOLS = 100_000  # evaluated at most for one check of one model


class Verdict(NamedTuple):
    """What became of a law: `fault` is None where it holds, otherwise one line that says how it does not."""

    law: str
    fault: str | None


def check_modality(modality: Modality, raws: Iterable[Any] | None = None, tolerance: Tolerance = None) -> None:
    """Check every law on a modality, in tiny models around it with its own embedder and head.

    Args:
        raws: data to encode; without it, what random segments decode to. A modality that learns its vocabulary and has
            not yet is fitted on these first.
        tolerance: how far decoded data may be off; see `check_round_trip`.

    Raises LawBroken: a law does not hold. InputError: the modality cannot be checked like this.
    """
    for _, check in _checks(modality, raws, tolerance):
        check()


def run_checks(modality: Modality, raws: Iterable[Any] | None = None, tolerance: Tolerance = None) -> Iterator[Verdict]:
    """The same one law after another, faults as verdicts. An error in the modality's own code is a fault too.

    Raises InputError: the modality cannot be checked like this.
    """
    for law, check in _checks(modality, raws, tolerance):
        try:
            check()
        except LawBroken as broken:
            yield Verdict(law, broken.where)
        except InputError:
            raise
        except Exception as error:
            yield Verdict(law, _described(error))
        else:
            yield Verdict(law, None)


def check_class_path(path: str, init: Mapping[str, Any] | None = None) -> Iterator[Verdict]:
    """Check the modality at `package.module.Class`, importable from here or from the working directory.

    Args:
        path: of the class, or the name of an installed modality.
        init: its arguments, as in a recipe.

    Raises InputError: there is no such class, it is not a modality, or the arguments do not fit it.
    """
    return run_checks(load_modality(path, init or {}))


def load_modality(path: str, init: Mapping[str, Any]) -> Modality:
    """The modality at a class path.

    Raises InputError: there is no such class, it is not a modality, or the arguments do not fit it.
    """
    if "." not in path:
        installed = discover()
        if path not in installed:
            raise InputError(
                f"{path!r} is neither an installed modality ({', '.join(sorted(installed))}) nor a class path such as "
                f"package.module.Class{nearest(path, installed)}"
            )
        path = f"{installed[path].__module__}.{installed[path].__qualname__}"
    with _working_directory():
        _check_module(path.rpartition(".")[0])
        try:
            return from_spec({"class_path": path, "init_args": dict(init)}, Modality)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{path} cannot be made: {_described(error)}") from error


# ------------------------------------------------------------------ the checks


def _checks(
    modality: Modality, raws: Iterable[Any] | None, tolerance: Tolerance
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every law with what checks it."""
    data = None if raws is None else list(raws)
    modality = _fitted(modality, data)
    models: dict[str, AutoregressiveModel] = {}

    def first() -> None:
        check_kept(modality)
        if data is not None:
            check_round_trip(modality, data, tolerance)
        else:
            check_random_round_trip(modality)

    def in_all(check: Callable[[AutoregressiveModel, list[Document]], None]) -> Callable[[], None]:
        def run() -> None:
            if not models:
                models.update(models_around(modality))
            for description, model in models.items():
                try:
                    check(model, _documents(model))
                except LawBroken as broken:
                    raise LawBroken(broken.law, f"{description}: {broken.where}") from broken

        return run

    yield round_trip.LAW, first
    yield NORMALISED, in_all(_normalised)
    yield CAUSAL, in_all(lambda model, documents: check_causal(model, documents[-1], max_places=24))
    yield VIEWS, in_all(lambda model, documents: check_views_agree(model, documents, n_steps=32, n_moves=8))
    yield sampling.SAME, in_all(_same_sample)
    yield sampling.SAMPLER, in_all(_sampler)


def _documents(model: AutoregressiveModel) -> list[Document]:
    """Three of different length, and one that covers several units."""
    generator = torch.Generator().manual_seed(1)
    k = max(modality.unit_symbols for modality in model.modalities.values())
    return [random_document(model.grammar, generator, n_symbols) for n_symbols in (3, 2 * k, 4 * k + 6)]


def _limit(documents: list[Document], most: int) -> int:
    """How many documents to look at where each may be as long as these."""
    longest = max(sum(segment.length for segment in document) for document in documents)
    return max(2, min(most, SYMBOLS // max(longest, 1)))


def _normalised(model: AutoregressiveModel, documents: list[Document]) -> None:
    check_normalised(model, _limit(documents, 1024))


def _same_sample(model: AutoregressiveModel, documents: list[Document]) -> None:
    check_same_sample(model, n=3, max_symbols=24)
    check_same_sample(model, n=3, max_symbols=8, filters=(Temperature(0.8), TopP(0.9)))


def _sampler(model: AutoregressiveModel, documents: list[Document]) -> None:
    # the other filters do not see more of a modality than these
    filters = {name: FILTERS[name] for name in ("no filter", "temperature 1.5, top-k 3, top-p 0.8")}
    check_sampler(model, n=500, limit=_limit(documents, 64), filters=filters)


def _fitted(modality: Modality, raws: list[Any] | None) -> Modality:
    """The modality with a vocabulary."""
    try:
        _ = modality.vocab
        return modality
    except InputError as error:
        unfitted = error
    try:
        fitted = modality.fit(SAMPLE_TEXTS if raws is None else raws)
        _ = fitted.vocab
    except Exception:
        raise InputError(
            f"{unfitted}; or check it with data to fit it on, armm.testing.check_modality(modality, raws)"
        ) from unfitted
    return fitted


# --------------------------------------------------------------------- imports


@contextmanager
def _working_directory() -> Iterator[None]:
    """Import from the working directory too, after everything that is installed."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _check_module(name: str) -> None:
    """Raises InputError: a package or module on the way to `name` does not exist."""
    parents = name.split(".")
    for depth in range(1, len(parents) + 1):
        found = ".".join(parents[:depth])
        try:
            spec = find_spec(found)
        except (ImportError, ValueError) as error:
            raise InputError(f"{found} cannot be imported: {error}; mend it") from error
        if spec is None:
            inside = ".".join(parents[: depth - 1])
            folders = find_spec(inside) if inside else None
            where = list(folders.submodule_search_locations or ()) if folders else None
            known = [module.name for module in iter_modules(where)]
            raise InputError(
                f"there is no module {found!r}, in {inside or 'the working directory or among what is installed'}"
                f"{nearest(parents[depth - 1], known)}"
            )


def _described(error: Exception) -> str:
    """One line: what was raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if "armm/testing" not in frame.filename.replace("\\", "/")]
    frame = (outside or frames)[-1]
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message} ({Path(frame.filename).name}, line {frame.lineno}, in {frame.name})"

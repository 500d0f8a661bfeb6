"""Texts to token shards: in parallel, in memory that does not grow with the text, and resumed where it was ended.

The work is cut into jobs (`raw_texts.plan`) that depend on the files and settings only. A job writes one shard or,
where a gzipped file turns out to be long, several (`armm.datasets.jobs`); at the end their records become the index.
"""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

from armm.datasets.encoding import text_of
from armm.datasets.jobs import AGAIN, Preparation, Settings, readable, record_path, run_job
from armm.datasets.raw_texts import (
    TRAIN,
    Job,
    Piece,
    Range,
    find_sources,
    identity,
    plan,
)
from armm.datasets.shards import INDEX, SPLITS, DamagedIndexError, Index, Shard
from armm.datasets.store import write_aside
from armm.errors import InputError
from armm.modalities.text import Text
from armm.modality import Modality
from armm.spec import to_spec

MADE_FROM, LEARNED = "made_from.json", "learned.json"

Report = Callable[[str], None]
Read = Callable[[Range, Settings], Iterator[Piece]]


class TooLittleError(InputError):
    """There is nothing for a split."""


def prepare(
    modality: Modality, inputs: Sequence[Path], folder: Path, settings: Settings, n_workers: int, report: Report
) -> Index:
    """Make a set of token shards, or finish one.

    Args:
        modality: of a recipe; what it learns, it learns from some of the texts.
        inputs: files and folders.
        folder: where the set will be.
        n_workers: processes; 1 works in this one.
        report: is told what was done, a line at a time.

    Raises InputError: texts that cannot be used, a folder that holds something else, no space, or a worker that died.
    """
    if modality.header_sizes:
        raise InputError(f"{modality.name}: has headers, so its data is more than a run of symbols; prepare takes text")
    sources = find_sources(inputs, modality.suffixes)
    try:
        with _nothing_left_of_a_mistake(folder):
            _open(folder, modality, settings, identity(sources))
            jobs = plan(sources, settings.shard_bytes, settings.dealing)
            preparation = Preparation(folder, _learn(modality, jobs, folder, settings, report), settings)
            shards = _run(jobs, preparation, n_workers, report)
            return _finish(modality, preparation, shards)
    except OSError as error:
        place = error.filename or folder
        raise InputError(f"{place}: {error.strerror or error}; check the place and its space, then {AGAIN}") from error


@contextmanager
def _nothing_left_of_a_mistake(folder: Path) -> Iterator[None]:
    """Where texts or settings of a new set are not right, leave its place as it was: others will be tried next."""
    was_there = folder.exists()
    is_new = not was_there or (folder.is_dir() and not any(folder.iterdir()))
    try:
        yield
    except InputError as error:
        # of a long preparation shards are there, and what ended it may be over the next time
        if is_new and (isinstance(error, TooLittleError) or not any(folder.glob("*.bin"))):
            for path in folder.glob("*"):
                path.unlink(missing_ok=True)
            if not was_there and folder.exists():
                folder.rmdir()
        raise


def _open(folder: Path, modality: Modality, settings: Settings, texts: str) -> None:
    """Begin a set, writing down what it is made from, or see that it is the same as before.

    Raises InputError: the folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the shards")
    made_from = {"modality": _spec(modality), "settings": asdict(settings), "texts": texts}
    state = json.dumps(made_from, indent=1, sort_keys=True) + "\n"
    path = folder / MADE_FROM
    if path.is_file():
        try:
            before = json.loads(path.read_bytes())
        except ValueError:
            before = None
        before = before if isinstance(before, dict) else {}
        differing = [key for key in made_from if before.get(key) != json.loads(state)[key]]
        if differing:
            raise InputError(
                f"{folder} holds a set that was made with other {' and '.join(differing)}; name another --out, "
                "or remove it"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} holds files that are no set of token shards; name another --out or empty it")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_aside(path, [state.encode()])


def _spec(modality: Modality) -> Any:
    """The modality as in a recipe, without what changes no symbol."""
    spec = to_spec(modality)
    others = ("name", "head", "unit_symbols", "ended", "max_units")
    return {**spec, "init_args": {key: value for key, value in spec["init_args"].items() if key not in others}}


# ------------------------------------------------------------------ vocabulary


def with_vocab_size(modality: Modality, n: int) -> Modality:
    """Raises InputError: its vocabulary has no size to choose."""
    if not isinstance(modality, Text) or modality.kind != "bpe":
        kind = f"kind: {modality.kind}" if isinstance(modality, Text) else f"a {type(modality).__name__}"
        raise InputError(f"--vocab-size is for byte pairs, the recipe has {kind}; leave it out, or set kind: bpe there")
    return replace(modality, vocab_size=n)


def _learn(modality: Modality, jobs: Sequence[Job], folder: Path, settings: Settings, report: Report) -> Modality:
    """The modality with what it learns: from the folder where it was learned before, or from texts to train on."""
    if type(modality).fit is Modality.fit:
        return modality
    path = folder / LEARNED
    files, digests = _learned(folder)
    if files is not None:
        return modality.with_files(files)
    if path.is_file():
        report(f"{path}, or a file that it names, is damaged: learned anew")
    # an alphabet has to be whole; merges are as good from some of the text
    some = isinstance(modality, Text) and modality.kind == "bpe"
    ranges = [wanted for job in jobs for wanted in job]
    began = time.perf_counter()
    readable_as = partial(_readable, any_bytes=isinstance(modality, Text) and modality.kind == "bytes")
    texts = _sample(ranges, settings, readable_as) if some else _all(ranges, settings, readable_as)
    fitted = modality.fit(texts)
    if digests and digests != _digests(fitted):
        raise InputError(f"{folder} was prepared with another tokenizer, which is damaged; remove it and prepare anew")
    for name, content in fitted.files().items():
        write_aside(folder / name, [content])
    write_aside(path, [json.dumps(_digests(fitted), indent=1).encode()])
    if fitted.files():
        report(f"learned {fitted.vocab:,} symbols from the text in {time.perf_counter() - began:.0f} s")
    return fitted


def _learned(folder: Path) -> tuple[dict[str, bytes] | None, dict[str, str]]:
    """What was learned for a set before, None where it is not there or damaged; and the digests of its files."""
    try:
        digests = dict(json.loads((folder / LEARNED).read_bytes()).items())
        files = {name: (folder / name).read_bytes() for name in digests}
    except (OSError, ValueError, TypeError, AttributeError):
        return None, _digests_of_index(folder)
    whole = all(hashlib.sha256(files[name]).hexdigest() == digest for name, digest in digests.items())
    return files if whole else None, digests


def _digests_of_index(folder: Path) -> dict[str, str]:
    """What a finished set says of its learned files."""
    try:
        return dict(Index.parse((folder / INDEX).read_bytes(), str(folder / INDEX)).learned)
    except (OSError, InputError):
        return {}


def _digests(modality: Modality) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(modality.files().items())}


def _readable(wanted: Range, settings: Settings, any_bytes: bool) -> Iterator[Piece]:
    """Pieces that a vocabulary can be learned from; what is left out is said when it would be encoded.

    Raises InputError: a piece is no UTF-8.
    """
    for piece in readable(wanted, settings, []):
        try:
            if not any_bytes:
                text_of(piece.content)
        except InputError as error:
            if settings.on_error == "skip":
                continue
            raise InputError(f"{piece.place}: {error}; or leave such text out by --on-error skip") from error
        yield piece


def _all(ranges: Iterable[Range], settings: Settings, pieces: Read) -> Iterator[bytes]:
    for wanted in ranges:
        for piece in pieces(wanted, settings):
            yield piece.content
    if settings.join:
        yield settings.join.encode()


def _sample(ranges: Sequence[Range], settings: Settings, pieces: Read) -> Iterator[bytes]:
    """Training text from places spread over all of it, about `sample_bytes`, and from each gzipped file's beginning."""
    total = sum(wanted.end - wanted.start for wanted in ranges)
    share = min(settings.sample_bytes / total, 1.0)
    left = 0.0  # what earlier, short files leave to later ones
    for wanted in ranges:
        left += share * (wanted.end - wanted.start)
        if left <= 0:
            continue
        for piece in pieces(wanted, settings):
            if piece.split == TRAIN:
                yield piece.content
                left -= len(piece.content)
            if left <= 0:
                break


# ------------------------------------------------------------------------ jobs


def _run(jobs: Sequence[Job], preparation: Preparation, n_workers: int, report: Report) -> list[Shard]:
    """All jobs, a few ahead of the workers; the shards in the jobs' order."""
    done: dict[int, list[Shard]] = {}
    known = _known(preparation)
    began = time.perf_counter()
    said, n_new = began, 0

    def take(number: int, shards: list[Shard], new: int, left_out: list[str]) -> None:
        nonlocal said, n_new
        done[number] = shards
        n_new += new
        for line in left_out:
            report(f"left out {line}")
        now = time.perf_counter()
        if now - said > 2 or len(done) == len(jobs):
            said = now
            n_bytes = sum(shard.text_bytes for shards in done.values() for shard in shards)
            speed = f", {n_new / 1e6 / (now - began):.1f} MB/s" if n_new else ", all there already"
            report(f"{len(done)} of {len(jobs)} parts, {n_bytes / 1e6:,.0f} MB of text{speed}")

    if n_workers == 1 or len(jobs) == 1:
        for number, job in enumerate(jobs):
            take(number, *run_job(number, job, preparation, known.get(number)))
    else:
        _run_apart(jobs, preparation, known, min(n_workers, len(jobs)), take)
    return [shard for number in range(len(jobs)) for shard in done[number]]


def _known(preparation: Preparation) -> dict[int, list[Shard]]:
    """The shards of a finished set by job; none of one that is not finished."""
    path = preparation.folder / INDEX
    known: dict[int, list[Shard]] = {}
    try:
        shards = Index.parse(path.read_bytes(), str(path)).shards
    except (FileNotFoundError, DamagedIndexError):  # then all shards are made anew
        return known
    for shard in shards:
        known.setdefault(int(shard.name.partition("-")[0]), []).append(shard)
    return known


def _run_apart(
    jobs: Sequence[Job],
    preparation: Preparation,
    known: Mapping[int, list[Shard]],
    n_workers: int,
    take: Callable[[int, list[Shard], int, list[str]], None],
) -> None:
    # spawned, because the tokenizers library has threads that a fork would leave behind
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_workers, context, initializer=_begin_worker) as pool:
        waiting = iter(enumerate(jobs))
        running: dict[Future[tuple[list[Shard], int, list[str]]], int] = {}
        try:
            while True:
                while len(running) < 2 * n_workers and (following := next(waiting, None)):
                    number, job = following
                    with _interrupts_held(), _a_dead_worker_is_one():
                        future = pool.submit(run_job, number, job, preparation, known.get(number))
                    running[future] = number
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    take(running.pop(future), *future.result())
        except BrokenProcessPool as error:
            raise InputError(
                "a worker process died: it was killed, or there was not enough memory; lower --workers or --shard-mb, "
                f"or {AGAIN}"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _a_dead_worker_is_one() -> Iterator[None]:
    """Of a worker that dies at the very moment when it is begun or told about a job, the pool says something else."""
    try:
        yield
    except RuntimeError as error:  # it was shut down between two looks at it; or it says so itself
        raise BrokenProcessPool(str(error)) from error
    except OSError as error:
        if error.errno in (None, errno.EPIPE):  # "handle is closed"
            raise BrokenProcessPool(str(error)) from error
        raise


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes that begin inside never see Ctrl-C, which is for their parent; that sees it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    """In a worker: end when the parent does, however it ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _finish(modality: Modality, preparation: Preparation, shards: Sequence[Shard]) -> Index:
    """Write the index, and remove the records that it was made from.

    Raises InputError: there is nothing for a split.
    """
    folder, fitted, settings = preparation.folder, preparation.modality, preparation.settings
    for i, share in enumerate((1.0, settings.val, settings.test)):
        if share and not sum(shard.symbols[i] for shard in shards):
            n = sum(shard.documents for shard in shards)
            raise TooLittleError(
                f"of {n} documents none fell to {SPLITS[i]}; give more text, or larger shares by --val and --test"
            )
    index = Index(
        _spec(modality), _digests(fitted), fitted.vocab, preparation.dtype.name, fitted.bits_per, tuple(shards)
    )
    write_aside(folder / INDEX, [index.to_json().encode()])
    for shard in shards:
        record_path(folder, shard.name).unlink(missing_ok=True)
    return index

"""`armm prepare RECIPE TEXT... --out FOLDER`: text of any size as token shards to train on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from armm.commands.options import OptionParser
from armm.datasets import builtin_folder
from armm.datasets.files import check_fractions, reader
from armm.datasets.jobs import Settings
from armm.datasets.preparing import prepare, with_vocab_size
from armm.datasets.shards import SPLITS
from armm.errors import InputError, nearest
from armm.modality import Modality
from armm.spec import from_spec

MB = 2**20


def parser() -> OptionParser:
    p = OptionParser("prepare", "Text of any size as token shards, which `armm train` reads without loading them.")
    p.add_argument("recipe", help="a recipe, by path or name; its text modality encodes the text")
    p.add_argument("texts", nargs="+", type=Path, metavar="TEXT", help="text or .jsonl files, gzipped or not; folders")
    p.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="where the set will be")
    p.add_argument("--field", default="text", help="which field of a .jsonl line is the text (default text)")
    p.add_argument("--val", type=float, default=0.01, help="share of the documents for validation (default 0.01)")
    p.add_argument("--test", type=float, default=0.01, help="for the test; 0: the validation again (default 0.01)")
    p.add_argument("--seed", type=int, default=0, help="another seed deals the documents out differently (default 0)")
    p.add_argument(
        "--join",
        metavar="SEPARATOR",
        help="put documents one after another with this between them (\\n is a line end), so that windows of short "
        "ones are full; otherwise every window is of one document",
    )
    p.add_argument("--vocab-size", type=int, metavar="N", help="instead of the recipe's, for modalities that learn one")
    p.add_argument("--sample-mb", type=float, default=32, help="how much text byte pairs are learned from (default 32)")
    p.add_argument("--shard-mb", type=float, default=64, help="text per shard (default 64)")
    p.add_argument("--workers", type=int, help="processes; as many as there are cores by default")
    p.add_argument("--on-error", choices=("fail", "skip"), default="fail", help="what to do about text that is no text")
    return p


def run(arguments: list[str]) -> int:
    """Run `armm prepare`.

    Raises InputError: options, texts or a folder that are not right.
    """
    options = parser().parse_args(arguments)
    check_fractions(options.val, options.test, test_may_be_zero=True, prefix="--")
    for name, value in (("--sample-mb", options.sample_mb), ("--shard-mb", options.shard_mb)):
        if not 0 < value < 2**20:
            raise InputError(f"{name} is {value}, it must be more than 0 and less than {2**20}")
    workers = _n_cores() if options.workers is None else options.workers
    if workers < 1:
        raise InputError(f"--workers is {workers}, it must be at least 1")
    settings = Settings(
        field=options.field,
        val=options.val,
        test=options.test,
        seed=options.seed,
        shard_bytes=max(int(options.shard_mb * MB), 1),
        sample_bytes=max(int(options.sample_mb * MB), 1),
        join=None if options.join is None else options.join.replace("\\n", "\n"),
        on_error=options.on_error,
    )
    modality = text_modality(options.recipe, options.vocab_size)
    index = prepare(modality, options.texts, options.out, settings, workers, lambda line: print(line, flush=True))
    n_documents, n_bytes = (sum(getattr(s, key) for s in index.shards) for key in ("documents", "text_bytes"))
    print(f"{n_documents:,} documents, {n_bytes:,} bytes of text, {index.vocab:,} symbols in the vocabulary")
    for i, split in enumerate(SPLITS):
        print(f"{split:>5}: {sum(shard.symbols[i] for shard in index.shards):,} symbols")
    print(f"next: armm train {options.recipe} --data.source armm.datasets.TokenShards --data.path {options.out}")
    return 0


def _n_cores() -> int:
    """Of those that this process may use, where the system says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def text_modality(recipe: str, vocab_size: int | None) -> Modality:
    """The modality of a recipe that reads text.

    Raises InputError: there is no such recipe, or none in it.
    """
    path = _recipe(recipe)
    try:
        import yaml
    except ImportError as error:
        raise InputError(f"recipes need pyyaml ({error}); pip install armm[train]") from error
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        specs = content["model"]["modalities"]
        assert isinstance(specs, dict)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AssertionError) as error:
        raise InputError(f"{path} is no recipe with model.modalities ({error}); name another") from error
    modalities = {name: from_spec(spec, Modality).named(name) for name, spec in specs.items()}
    found = reader(modalities, ".txt")[1]
    return found if vocab_size is None else with_vocab_size(found, vocab_size)


def _recipe(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    folder = builtin_folder("recipes")
    known = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    short = name.removeprefix("recipes/").removesuffix(".yaml")
    if short not in known:
        raise InputError(f"there is no recipe {name}{nearest(short, known)} (armm list shows the recipes)")
    return known[short]

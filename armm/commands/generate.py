"""`armm generate RUN`: sample documents and write them as files."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from armm import bundle
from armm.commands.options import OptionParser
from armm.commands.prompting import parse_prompts
from armm.errors import InputError
from armm.generation import Filter, Sample, Temperature, TopK, TopP, generate
from armm.generation.requests import ends_by_itself
from armm.model import AutoregressiveModel

DEFAULT_LENGTH = 1000  # symbols, for models whose documents have no end of their own


def parser() -> OptionParser:
    p = OptionParser("generate", "Sample from a trained model.")
    p.add_argument("run", help="a run folder, its model/, or a bundle")
    p.add_argument("--n", type=int, default=1, help="how many samples (default 1)")
    p.add_argument(
        "--seed", type=int, default=0, help="with the number of a sample, all that it depends on (default 0)"
    )
    p.add_argument("--temperature", type=float, default=1.0, help="0 is greedy, 1 samples the model (default 1)")
    p.add_argument("--top-k", type=int, help="keep the k most probable symbols")
    p.add_argument("--top-p", type=float, help="keep the fewest symbols with this probability in all")
    p.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="[NAME=]VALUE",
        help="what a sample begins with: a text, a label, the file of an image's top rows or of a clip's first "
        "seconds; NAME where the model has several modalities; repeat for several segments",
    )
    p.add_argument("--prompt-complete", action="store_true", help="the last prompt is whole; something else follows it")
    p.add_argument("--plan", help="the modalities of a free document in order, such as text,image")
    p.add_argument(
        "--max-symbols", type=int, help=f"at most so many new symbols (default {DEFAULT_LENGTH} where needed)"
    )
    p.add_argument(
        "--batch-size", type=int, default=16, help="samples side by side; changes the speed only (default 16)"
    )
    p.add_argument("--out", type=Path, default=Path("samples"), help="folder for the files (default samples/)")
    p.add_argument("--device", default="cpu", help="where to run, such as cuda (default cpu)")
    return p


def run(arguments: list[str]) -> int:
    """Run `armm generate`.

    Raises InputError: whatever is not right about the model, the prompt or the options.
    """
    options = parser().parse_args(arguments)
    filters: list[Filter] = [Temperature(options.temperature)]
    if options.top_k is not None:
        filters.append(TopK(options.top_k))
    if options.top_p is not None:
        filters.append(TopP(options.top_p))
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out} is a file; name a folder")
    model = bundle.load(options.run, options.device)
    prompt = parse_prompts(model, options.prompt, "--prompt", open_end=not options.prompt_complete)
    limit = options.max_symbols
    if limit is None and not ends_by_itself(model):
        limit = DEFAULT_LENGTH
    samples = generate(
        model,
        [prompt],
        n=options.n,
        prompt_complete=options.prompt_complete,
        plan=options.plan.split(",") if options.plan is not None else None,
        seed=options.seed,
        filters=filters,
        max_symbols=limit,
        batch_size=options.batch_size,
    )
    began, kept, n_symbols = time.perf_counter(), [], 0
    try:
        for sample in samples:
            write(model, sample, options.out, options.seed)
            kept.append(sample)
            n_symbols += len(sample.log_probs)
            if sys.stderr.isatty():
                print(f"\r{len(kept)} of {options.n}", end="", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print(f"\n{len(kept)} of {options.n} samples are in {options.out}")
        raise
    seconds = time.perf_counter() - began
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    show(model, kept, options.out)
    rate = n_symbols / max(seconds, 1e-9)
    print(f"{len(kept)} samples, {n_symbols:,} symbols in {seconds:.1f} s ({rate:,.0f} a second), in {options.out}")
    return 0


def write(model: AutoregressiveModel, sample: Sample, folder: Path, seed: int) -> list[Path]:
    """One file for every segment of a sample that a file can hold.

    Raises InputError: the files cannot be written.
    """
    written = []
    several = sum(model.modalities[segment.modality].suffixes != () for segment in sample.document) > 1
    for number, segment in enumerate(sample.document):
        modality = model.modalities[segment.modality]
        if len(sample.document) > 1 and not modality.suffixes:
            continue  # a label beside an image has no file of its own
        middle = f"-{number}-{segment.modality}" if several else ""
        path = folder / f"{seed}-{sample.index:04d}{middle}{modality.suffix}"
        raw = modality.decode(segment)
        write_whole(path, partial(modality.save, raw))
        written.append(path)
    return written


def write_whole(path: Path, save: Callable[[Path], None]) -> None:
    """Let `save` write a file beside its place and move it there, so that there is never half of one.

    Raises InputError: it cannot be written.
    """
    beside = path.with_name(f".{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save(beside)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: how libsndfile says it
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be written: {reason}; check the place and its space") from error


def show(model: AutoregressiveModel, samples: list[Sample], folder: Path) -> None:
    """Print generated text; lay generated images out in one picture."""
    for name, modality in model.modalities.items():
        segments = [segment for sample in samples for segment in sample.document if segment.modality == name]
        if not segments or not modality.suffixes:
            continue
        preview = modality.preview([modality.decode(segment) for segment in segments])
        if preview.kind == "text":
            print(preview.data)
        elif preview.kind == "image" and len(segments) > 1:
            from PIL import Image

            write_whole(folder / f"{name}-grid.png", Image.fromarray(preview.data).save)

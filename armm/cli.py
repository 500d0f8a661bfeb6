"""The command line: `armm train | generate | score | ...`; `armm --help` lists the commands.

A user's mistake is one line on standard error and exit code 2; Ctrl-C is exit code 130.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec

from armm.errors import InputError, nearest


def train(arguments: list[str]) -> int:
    for package in ("jsonargparse", "lightning", "tensorboard"):
        if find_spec(package) is None:
            raise InputError(f'training needs {package}: pip install "armm[train]"')
    from armm.training.command import train

    return train(arguments)


def prepare(arguments: list[str]) -> int:
    from armm.commands.prepare import run

    return run(arguments)


def generate(arguments: list[str]) -> int:
    from armm.commands.generate import run

    return run(arguments)


def reproduce(arguments: list[str]) -> int:
    from armm.commands.reproduce import run

    return run(arguments)


def consolidate(arguments: list[str]) -> int:
    if find_spec("lightning") is None:
        raise InputError('checkpoints need lightning: pip install "armm[train]"')
    from armm.commands.consolidate import run

    return run(arguments)


def score(arguments: list[str]) -> int:
    from armm.commands.score import run

    return run(arguments)


def evaluate(arguments: list[str]) -> int:
    from armm.commands.evaluate import run

    return run(arguments)


def bench(arguments: list[str]) -> int:
    from armm.commands.bench import run

    return run(arguments)


def compare(arguments: list[str]) -> int:
    from armm.commands.compare import run

    return run(arguments)


def list_(arguments: list[str]) -> int:
    from armm.commands.listing import run

    return run(arguments)


def check_modality(arguments: list[str]) -> int:
    from armm.commands.check import run

    return run(arguments)


def demo(arguments: list[str]) -> int:
    from armm.demo.command import run

    return run(arguments)


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "train": (train, "train a recipe: armm train image/digits --trainer.max_steps 500"),
    "prepare": (prepare, "text of any size as token shards to train on: armm prepare text/shards TEXT... --out DIR"),
    "consolidate": (consolidate, "a bundle of a run's latest checkpoint: armm consolidate RUN"),
    "generate": (generate, "sample from a trained model: armm generate RUN --n 16 --out samples/"),
    "reproduce": (reproduce, "make a sample again from what its file says, and compare: armm reproduce FILE"),
    "score": (score, "bits of files under a model: armm score RUN FILE..."),
    "evaluate": (evaluate, "the scores that a run's recipe names, once more: armm evaluate RUN"),
    "bench": (bench, "how fast a model samples on this machine: armm bench RUN"),
    "compare": (compare, "recipes trained for the same wall time: armm compare RECIPE RECIPE --minutes 5 --out DIR"),
    "list": (list_, "modalities, recipes and runs"),
    "check-modality": (check_modality, "run the library's laws on a modality: armm check-modality my_pkg.MyModality"),
    "demo": (demo, "train and sample text, images and audio in minutes, and write a report"),
}


def parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:<15} {text}" for name, (_, text) in COMMANDS.items())
    root = argparse.ArgumentParser(
        prog="armm",
        description="Multimodal autoregressive generation: text, images and audio on one backbone.",
        epilog=f"commands:\n{lines}\n\narmm COMMAND --help documents each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"armm {version('armm')}")
    root.add_argument("command", metavar="COMMAND")
    return root


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        parser().print_help()
        return 2
    if isinstance(sys.stdout, io.TextIOWrapper):  # generated text may hold bytes that are no characters
        sys.stdout.reconfigure(errors="backslashreplace")
    # before torch is imported: threads that spin briefly before they sleep are as fast on a free machine, and several
    # times faster on a busy one (docs/experiments.md)
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    name = arguments[0]
    if name in ("-h", "--help", "--version"):
        parser().parse_args([name])
    if name not in COMMANDS:
        print(f"armm: there is no command {name!r}{nearest(name, COMMANDS)} (armm --help lists them)", file=sys.stderr)
        return 2
    if "" not in sys.path:
        sys.path.append("")  # a recipe or a bundle may name a class of a file in the working directory
    try:
        return COMMANDS[name][0](arguments[1:])
    except InputError as error:
        print(f"armm {name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\narmm {name}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe (head) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())

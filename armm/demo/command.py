"""`armm demo`: train and sample one small model each of text, images and audio, and write a page about them.

Training runs in processes of its own, by the very command that the report prints; sampling calls the function behind
the command it prints. So whatever the report shows can be had again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from armm.commands.generate import run as generate
from armm.datasets import Items
from armm.demo.measure import Measurement, load_data, load_modality, measure
from armm.demo.plan import PLANS, TRAINING, Plan, Sampling
from armm.demo.report import Chapter, Original, Samples, write_report
from armm.errors import InputError
from armm.modality import Modality

MARKER = "demo.json"
OURS = (MARKER, "report.html", "samples", "test_items", *(plan.name for plan in PLANS))
PATIENCE_SECONDS = 5.0  # for a process that was sent Ctrl-C, by the terminal or by us


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="armm demo",
        description="Train one small model each of text, images and audio, sample from them, and write a report.",
    )
    p.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of runs and report (default runs/demo)")
    p.add_argument("--quick", action="store_true", help="a few steps each: shows that everything works, and no more")
    return p


def run(arguments: list[str]) -> int:
    """Run `armm demo`; 130 if it is interrupted.

    Raises InputError: the folder holds something else, or a training failed.
    """
    options = parser().parse_args(arguments)
    out: Path = options.out
    began = time.perf_counter()
    doing = "the beginning"
    prepare(out)
    expected = "a minute or two" if options.quick else "about 4 minutes on two cores"
    say(f"three models, {expected}; then the report is {out / 'report.html'}")
    chapters = []
    try:
        for number, plan in enumerate(PLANS, 1):
            doing = f"training {plan.recipe}"
            say(f"[{number}/{len(PLANS)}] {doing}")
            command, seconds = train(plan, out, options.quick)
            doing = f"sampling {plan.recipe}"
            modality = load_modality(out / plan.name, plan.name)
            splits = load_data(out / plan.name, modality)
            measurement = measure(out / plan.name, modality, splits)
            say(f"      {score_line(measurement)} in {seconds:.0f} s; sampling")
            begins = time.perf_counter()
            originals = write_originals(plan, modality, splits.test, out / "test_items")
            samplings = plan.quick_samplings if options.quick else plan.samplings
            samples = [sample(sampling, plan, out, modality, originals) for sampling in samplings]
            sampling_seconds = time.perf_counter() - begins
            chapters.append(
                Chapter(plan, modality, measurement, command, seconds, sampling_seconds, samples, originals)
            )
    except KeyboardInterrupt:
        stopped(out, doing, [chapter.plan for chapter in chapters])
        return 130
    total = time.perf_counter() - began
    path = write_report(out / "report.html", chapters, shell("demo", *arguments), total, options.quick)
    write_marker(out, {"complete": True, "seconds": round(total, 1)})
    say(f"{total:.0f} s in all; the report is {path}")
    return 0


def say(line: str) -> None:
    """Print at once, so that the line stands before the progress bars that follow it."""
    print(line, flush=True)


def score_line(measurement: Measurement) -> str:
    best = measurement.best
    return f"{measurement.bits:.3f} bits/{measurement.unit} (best baseline: {best.name}, {best.bits:.3f})"


def stopped(out: Path, doing: str, finished: list[Plan]) -> None:
    """Say what an interruption left."""
    kept = ", ".join(str(out / plan.name) for plan in finished)
    print(f"\narmm demo: stopped while {doing}; no report was written", end="", file=sys.stderr)
    print(f"; finished models are in {kept}" if kept else "", file=sys.stderr)


# ------------------------------------------------------------------ the folder


def prepare(out: Path) -> None:
    """Make the folder, or remove what an earlier demo left there, and nothing else.

    Raises InputError: it is a file, cannot be written, or holds something and no demo.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    try:
        if out.is_dir() and any(out.iterdir()) and not is_demo(out):
            raise InputError(f"--out {out} holds files that are not an earlier demo; name another folder or empty it")
        out.mkdir(parents=True, exist_ok=True)
        for name in OURS[1:]:
            place = out / name
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
        write_marker(out, {"complete": False})
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}; check the place, its permissions and its space") from error


def is_demo(out: Path) -> bool:
    """Whether a demo wrote this folder."""
    try:
        marker = json.loads((out / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(marker, dict) and marker.get("made_by") == "armm demo"


def write_marker(out: Path, content: dict[str, Any]) -> None:
    """Write the file by which a later demo knows its own."""
    beside = out / f".{MARKER}.{os.getpid()}"
    beside.write_text(json.dumps({"made_by": "armm demo", **content}, indent=1) + "\n", encoding="utf-8")
    beside.replace(out / MARKER)


# -------------------------------------------------------------------- commands


def shell(*words: str) -> str:
    """A command line of `armm` that runs in the present folder, whether or not its environment is active."""
    found, own = shutil.which("armm"), Path(sys.executable).with_name("armm")
    if found and Path(found).resolve() == own.resolve():
        program = ["armm"]
    elif own.is_file():
        program = [os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own)]
    else:
        program = [sys.executable, "-m", "armm.cli"]
    return shlex.join([*program, *words])


def train(plan: Plan, out: Path, quick: bool) -> tuple[str, float]:
    """Train in a process of its own; its progress bars go to the terminal.

    Returns: the command that does it again, into a run folder of its own, and the seconds it took.

    Raises KeyboardInterrupt: it was interrupted. Its folder then holds what there is.
    Raises InputError: it failed.
    """
    words = ["train", plan.recipe, *TRAINING, *(plan.quick if quick else ())]
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "armm.cli", *words, "--run_dir", str(out / plan.name)],
        stdout=subprocess.DEVNULL,  # its closing lines; the bars and errors are on stderr
    )
    with interruptible(process):
        code = process.wait()
    if code == 130 or code == -signal.SIGINT:
        raise KeyboardInterrupt
    if code:
        raise InputError(
            f"training {plan.recipe} ended with exit code {code}; mend what it says above and run it again"
        )
    return shell(*words), time.perf_counter() - began


@contextlib.contextmanager
def interruptible(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Never leave the process behind: on Ctrl-C let it save its model, and end it if it does not."""
    try:
        yield
    except BaseException:
        # a terminal has sent it Ctrl-C too; whoever sent it to this process alone has not
        for send in (None, signal.SIGINT, signal.SIGKILL):
            if send is not None:
                process.send_signal(send)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE_SECONDS)
                break
        raise


def sample(sampling: Sampling, plan: Plan, out: Path, modality: Modality, originals: list[Original]) -> Samples:
    """Sample by the command, and take up the files that it wrote."""
    words = ["generate", str(out / plan.name), *sampling.options]
    original = None if sampling.item is None else originals[sampling.item]
    if original is not None:
        words += ["--prompt", str(original.beginning)]
    elif sampling.prompt:
        words += ["--prompt", sampling.prompt]
    folder = out / "samples" / sampling.name
    words += ["--out", str(folder)]
    with contextlib.redirect_stdout(io.StringIO()):
        generate(words[1:])
    files = sorted(path for path in folder.iterdir() if path.suffix == modality.suffix and path.name[0].isdigit())
    return Samples(sampling, shell(*words), files, original)


def write_originals(plan: Plan, modality: Modality, test: Items, folder: Path) -> list[Original]:
    """The first few test items, and their beginnings, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    originals = []
    for index in range(min(plan.n_originals, len(test))):
        # what the model sees: sound as mu-law codes
        raw = modality.decode(modality.encode(test.item(index, 0)[plan.name]))
        original = Original(*(folder / f"{plan.name}-{index}{part}{modality.suffix}" for part in ("", "-beginning")))
        modality.save(raw, original.whole)
        modality.save(raw[: round(plan.beginning * len(raw))], original.beginning)
        originals.append(original)
    return originals

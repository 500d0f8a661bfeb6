"""The frame of a benchmark: contenders measured in turns, medians, ratios, a table, one line of JSON at the end."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from armm.commands import machine
from armm.errors import InputError, nearest

LEAST, MOST = 3, 9  # repetitions
ENOUGH = 10_000  # characters of a text: windows of every work, to learn from and to validate on


@dataclass(frozen=True)
class Contender:
    """Someone who does the work.

    Attributes:
        name: who, in the table.
        run: one repetition.
        amount: symbols that a repetition makes; for a work measured in seconds, how many repetitions the work takes
            (more than 1 for those too slow to do all of it).
        warm: what is done once, unmeasured, before; a repetition by default.
        tells: `run` returns a repetition's value in the work's unit itself, instead of being timed.
    """

    name: str
    run: Callable[[], object]
    amount: float = 1.0
    warm: Callable[[], object] | None = None
    tells: bool = False


@dataclass(frozen=True)
class Contest:
    """A work made ready: its models built, its contenders checked against each other.

    Attributes:
        unit: of its values: `s` for the time it takes, anything else for a rate.
        ours: our own engine, as a user gets it.
        exact: ours says that its samples are exact; None where there are no samples.
        peers: those measured beside it. The best of them is the one the ratio is to.
        variants: of ours, measured with the rest and told, in no ratio.
        most: repetitions of each at most.
        given: a peer that needs no measuring, and its value.
        exact_mode, other_mode: a shorter piece of the same work with `exact=True` and `exact=False`.
        first_symbol: draws a first symbol and stops.
        peak_memory: bytes, while ours ran and no peer was there.
        bytes_read: of weights, for each symbol; 0 where that says nothing.
        notes: what else the reader should know.
    """

    unit: str
    ours: Contender
    exact: bool | None
    peers: Sequence[Contender] = ()
    variants: Sequence[Contender] = ()
    most: int = MOST
    given: tuple[str, float] | None = None
    exact_mode: Contender | None = None
    other_mode: Contender | None = None
    first_symbol: Contender | None = None
    peak_memory: int = 0
    bytes_read: int = 0
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Setting:
    """What a work is made ready with.

    Attributes:
        device: where models are, `cpu` or `cuda`.
        seconds: how long the measured repetitions of a work should take together; at least 3 are made.
        bandwidth: bytes per second that the device's memory can be read at; 0 where not measured.
        data: the file that training works learn from; none for what they have themselves.
    """

    device: str = "cpu"
    seconds: float = 20.0
    bandwidth: float = 0.0
    data: Path | None = None


@dataclass(frozen=True)
class Result:
    """One line of the last line: medians, and how many times better ours is than the peer."""

    work: str
    ours: float
    unit: str
    peer: float | None
    peer_name: str | None
    ratio: float | None
    exact: bool | None


@dataclass
class Report:
    """What came of all works: results, numbers beside them by work, and why some were left out or broke."""

    results: list[Result] = field(default_factory=list)
    details: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def json(self, machine: str) -> str:
        """One line."""
        results = [asdict(result) for result in self.results]
        rest = {"machine": machine, "details": self.details, "skipped": self.skipped, "failed": self.failed}
        return json.dumps({"results": results} | rest)


Prepare = Callable[[Setting], Contest]


def choose(names: Sequence[str] | None, works: Mapping[str, Prepare]) -> dict[str, Prepare]:
    """The works of these names; all of them for None.

    Raises InputError: there is no such work.
    """
    for name in names or ():
        if name not in works:
            raise InputError(f"no work is called {name!r}; there are {', '.join(works)}{nearest(name, works)}")
    return dict(works) if names is None else {name: works[name] for name in names}


def measure(contenders: Sequence[Contender], seconds: float, most: int = MOST) -> list[list[float]]:
    """Seconds of every contender's repetitions, or what they tell.

    They take turns, every other time in the opposite order, so that a slow spell of the machine meets all of them.
    """
    for contender in contenders:
        (contender.warm or contender.run)()
    times: list[list[float]] = [[] for _ in contenders]
    gc.collect()
    begin = perf_counter()
    for repetition in range(most):
        spent = perf_counter() - begin
        if repetition >= LEAST and spent * (repetition + 1) / repetition > seconds:
            break
        order = list(enumerate(contenders))
        for i, contender in order if repetition % 2 == 0 else reversed(order):
            start = perf_counter()
            told = contender.run()
            times[i].append(float(told) if contender.tells else perf_counter() - start)  # type: ignore[arg-type]
    return times


LESS_IS_BETTER = ("s", "nats/char")


def value(unit: str, contender: Contender, seconds: float) -> float:
    """A repetition's time as a value in the work's unit."""
    if contender.tells:
        return seconds
    return seconds * contender.amount if unit == "s" else contender.amount / seconds


def ratio(unit: str, ours: float, peer: float) -> float:
    """How many times better ours is: greater than 1 where we are better, whatever the unit."""
    return peer / ours if unit in LESS_IS_BETTER else ours / peer


def line(work: str, who: str, number: str, spread: str = "", unit: str = "", beside: str = "") -> str:
    return f"{work:<16} {who:<34} {number:>10} {spread:>19} {unit:<9} {beside}".rstrip()


def shown(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"


def take(name: str, prepare: Prepare, setting: Setting, report: Report) -> None:
    """Make a work ready, measure it, print its lines, add them to the report."""
    contest = prepare(setting)
    entrants = [contest.ours, *contest.variants, *contest.peers]
    times = measure(entrants, setting.seconds, contest.most)
    values = [[value(contest.unit, c, t) for t in own] for c, own in zip(entrants, times, strict=True)]
    medians = [median(own) for own in values]
    ours = medians[0]
    own_medians = medians[1 : 1 + len(contest.variants)]
    variants = {variant.name: middle for variant, middle in zip(contest.variants, own_medians, strict=True)}
    peers = {peer.name: middle for peer, middle in zip(contest.peers, medians[1 + len(variants) :], strict=True)}
    if contest.given:
        peers[contest.given[0]] = contest.given[1]
    best = (min if contest.unit in LESS_IS_BETTER else max)(peers, key=peers.__getitem__) if peers else None
    for i, (entrant, own) in enumerate(zip(entrants, values, strict=True)):
        spread = f"{shown(min(own))} to {shown(max(own))}"
        beside = "" if i <= len(variants) else f"ours is {ratio(contest.unit, ours, medians[i]):.2f} x"
        print(line(name if i == 0 else "", entrant.name, shown(medians[i]), spread, contest.unit, beside))
    if contest.given:
        beside = f"ours is {ratio(contest.unit, ours, contest.given[1]):.2f} x"
        print(line("", contest.given[0], shown(contest.given[1]), "", contest.unit, beside))
    peer = peers[best] if best is not None else None
    against = ratio(contest.unit, ours, peer) if peer is not None else None
    report.results.append(Result(name, ours, contest.unit, peer, best, against, contest.exact))
    report.details[name] = variants | peers | beside_the_point(contest, ours, setting)
    for note in contest.notes:
        print(f"{'':<17}{note}")
    sys.stdout.flush()


def beside_the_point(contest: Contest, ours: float, setting: Setting) -> dict[str, float]:
    """What is told beside the values, printed and returned: first symbol, memory, bandwidth, the cost of exactness."""
    told: dict[str, float] = {}
    said: list[str] = []
    if contest.exact is not None:
        told["exact"] = float(contest.exact)
        said.append("exact" if contest.exact else "approximate")
    if contest.exact_mode and contest.other_mode:
        exact, other = measure([contest.exact_mode, contest.other_mode], setting.seconds / 4)
        told["exact_costs"] = median(exact) / median(other) - 1
        said.append(f"exact=True costs {round(told['exact_costs'], 2) + 0.0:+.0%}")
    if contest.first_symbol:
        told["first_symbol_s"] = median(measure([contest.first_symbol], 1.0)[0])
        said.append(f"first symbol after {told['first_symbol_s'] * 1000:.3g} ms")
    if contest.peak_memory:
        told["peak_memory_bytes"] = contest.peak_memory
        said.append(f"{contest.peak_memory / 2**30:.2f} GiB resident at most")
    if contest.bytes_read and setting.bandwidth:
        told["of_bandwidth"] = contest.bytes_read * ours / setting.bandwidth
        said.append(
            f"{contest.bytes_read / 1e6:.0f} MB of weights a symbol, {told['of_bandwidth']:.0%} of memory bandwidth"
        )
    if said:
        print(f"{'':<17}{'; '.join(said)}")
    return told


def run(works: Mapping[str, Prepare], setting: Setting, described: str) -> int:
    """Measure works one after another and print the table, the last line as JSON.

    Returns: the exit code, 1 where a work broke. One that needs something not installed is skipped, with the reason.
    """
    print(line("work", "who", "median", "least to most", "unit"))
    report = Report()
    for name, prepare in works.items():
        try:
            take(name, prepare, setting, report)
        except (InputError, ImportError) as reason:
            report.skipped[name] = str(reason)
            print(line(name, f"skipped: {reason}", ""))
        except Exception as error:  # the others are worth having all the same
            traceback.print_exc()
            report.failed[name] = f"{type(error).__name__}: {error}"
            print(line(name, f"broke: {report.failed[name]}", ""))
        gc.collect()
    print(report.json(described), flush=True)
    return 1 if report.failed else 0


def check_text(path: Path) -> None:
    """Raises InputError: no file, or not enough of a text to learn from."""
    if not path.is_file():
        raise InputError(f"--data {path} is no file; name a text")
    try:
        n_characters = len(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"--data {path} is no UTF-8 text ({error.reason} at byte {error.start}); name a text"
        ) from error
    if n_characters < ENOUGH:
        raise InputError(
            f"--data {path} has {n_characters:,} characters, expected {ENOUGH:,} or more; name a larger text"
        )


def main(argv: Sequence[str], works: Mapping[str, Prepare], learns: bool = False) -> int:
    """A benchmark's command line. Returns the exit code: 1 where a work broke, 2 for a mistake in the arguments.

    learns: its works learn from data, which can be named.
    """
    what = "learn, beside others on the same data" if learns else "are, beside others on the same weights"
    parser = argparse.ArgumentParser(description=f"How fast we {what}.")
    parser.add_argument("--only", nargs="+", metavar="WORK", help=f"some of {', '.join(works)}; all by default")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring for a work, about; 20 by default")
    if learns:
        parser.add_argument("--data", type=Path, help="a text file to learn from, such as tiny Shakespeare")
    given = parser.parse_args(argv)
    data = given.data if learns else None
    try:
        if data is not None:
            check_text(data)
        chosen = choose(given.only, works)
        if not given.seconds > 0:
            raise InputError(f"--seconds is {given.seconds:g}, it must be greater than 0")
        if given.device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device is cuda, but torch finds no such device here; use --device cpu")
    except InputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    device = torch.device(given.device)
    bandwidth = machine.read_bandwidth(device)
    described = f"{machine.describe(device)}, memory read at {bandwidth / 1e9:.1f} GB/s"
    print(described)
    return run(chosen, Setting(given.device, given.seconds, bandwidth, data), described)

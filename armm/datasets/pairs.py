"""Source and target texts: two columns of a file, functions and what their docstrings say, and numbers in words."""

from __future__ import annotations

import ast
import csv
import io
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from armm.datasets.files import check_fractions, existing, list_files, split_by_hash
from armm.datasets.source import Item, Items, ListOfItems, OnError, Source, Splits
from armm.datasets.texts import library_modules
from armm.errors import InputError
from armm.modality import Modality

SOURCE, TARGET = "source", "target"


def check_pair(modalities: Mapping[str, Modality]) -> None:
    """Raises InputError: a model without a source and a target."""
    missing = [name for name in (SOURCE, TARGET) if name not in modalities]
    if missing:
        raise InputError(f"pairs need modalities named source and target; the model has {', '.join(modalities)}")


# ------------------------------------------------------------------------------ columns and functions


@dataclass(frozen=True)
class Pairs(Source):
    """A source and a target text for each item.

    `--data.path` is a file of two columns (`.csv`; anything else separated by tabs), or a folder of Python files: a
    function's code without its docstring, and the docstring's first line. Without a path: the functions of the running
    Python's library. Items are dealt out by a hash: of the source text, or of the file that a function is in.

    Args:
        longest: pairs with a source longer than so many characters are left out, silently where they are functions.
        val, test: shares of the items.
        seed: another seed deals them out differently.
    """

    longest: int = 800
    val: float = 0.1
    test: float = 0.1
    seed: int = 0

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        check_fractions(self.val, self.test)
        check_pair(modalities)
        skipped: tuple[str, ...] = ()
        if path is not None and existing(path).is_file():
            pairs, skipped = read_columns(path, self.longest, on_error)
            groups = [source for source, _ in pairs]
        else:
            root = Path(sysconfig.get_paths()["stdlib"]) if path is None else path
            files = library_modules(root) if path is None else list_files(root, [".py"])
            found = [(pair, file) for file in files for pair in documented(file) if len(pair[0]) <= self.longest]
            pairs = [pair for pair, _ in found]
            groups = [file.relative_to(root).as_posix() for _, file in found]
        names = sorted(set(groups))
        if len(names) < 3:
            what = (
                "different sources"
                if skipped or (path and path.is_file())
                else "Python files with documented functions"
            )
            raise InputError(
                f"{path}: {len(names)} {what}, at least 3 are needed: to train, validate and test; add more"
            )
        parts = split_by_hash(names, self.val, self.test, self.seed)
        split_of = {names[i]: number for number, part in enumerate(parts) for i in part}
        splits: tuple[list[Item], ...] = ([], [], [])
        for (source, target), group in zip(pairs, groups, strict=True):
            splits[split_of[group]].append({SOURCE: source, TARGET: target})
        train, val, test = map(ListOfItems, splits)
        return Splits(train, val, test, skipped)


def read_columns(path: Path, longest: int, on_error: OnError) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """The pairs of a file of two columns, and what was left out.

    Raises InputError: not UTF-8, or a line that is no pair and `on_error` is "fail"; it names the line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text: {error}; convert it") from error
    if path.suffix.lower() == ".csv":
        rows = csv.reader(io.StringIO(text, newline=""))
    else:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    pairs: list[tuple[str, str]] = []
    skipped: list[str] = []
    for row in rows:
        fault = None
        if not row:  # a blank line
            continue
        if len(row) != 2 or not all(row):
            filled = sum(map(bool, row))
            fault = f"has {len(row)} columns, {filled} of them filled; expected a source and a target"
        elif len(row[0]) > longest:
            fault = f"has a source of {len(row[0])} characters; shorten it or raise data.source.longest ({longest})"
        if fault is None:
            pairs.append((row[0], row[1]))
            continue
        skipped.append(f"{path}, line {rows.line_num} {fault}")
        if on_error == "fail":
            raise InputError(f"{skipped[-1]}; or leave such lines out by --data.on_error skip")
    if not pairs:
        raise InputError(f"{path} has no pair; write a source, a tab and a target on each line")
    return pairs, tuple(skipped)


def documented(file: Path) -> Iterator[tuple[str, str]]:
    """Of every documented function of a Python file: its code without the docstring, and the docstring's first line."""
    try:
        text = file.read_bytes().decode("utf-8")
        tree = ast.parse(text)
    except (OSError, ValueError, SyntaxError, RecursionError):  # no Python of this version
        return
    lines = text.splitlines(keepends=True)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        said = (ast.get_docstring(node) or "").strip().split("\n")[0].strip()
        first = node.body[0]
        if not 8 <= len(said) <= 100 or len(node.body) < 2 or first.end_lineno is None or first.lineno == node.lineno:
            continue
        code = lines[node.lineno - 1 : first.lineno - 1] + lines[first.end_lineno : node.end_lineno]
        indent = len(code[0]) - len(code[0].lstrip())
        yield "".join(line[min(indent, len(line) - len(line.lstrip())) :] for line in code).rstrip(), said


# ------------------------------------------------------------------------------ numbers and dates

ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ORDINALS = {
    **{"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"},
    **{"twelve": "twelfth"},
}
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November"),
    "December",
)
FIRST_DAY, N_DAYS = date(1800, 1, 1).toordinal(), 300 * 365


@dataclass(frozen=True)
class NumberItems(Items):
    """Numbers and dates in words, and in digits; another at every draw where `varies`.

    One in 16 belongs to the test, one to validation, by a hash of it: no split has what another has. Numbers below 100
    are all to be trained on, for nothing else says what "zero" is.
    """

    n: int
    split: int
    varies: bool = False

    def __len__(self) -> int:
        return self.n

    def item(self, index: int, draw: int) -> Item:
        rng = np.random.default_rng([index, draw & 0xFFFFFFFF if self.varies else 0, self.split])
        while True:
            is_date = rng.random() < 0.3
            value = int(rng.integers(N_DAYS)) if is_date else int(rng.integers(10 ** int(rng.integers(1, 7))))
            bucket = value * 2654435761 % 2**32 >> 28  # Knuth's multiplicative hash, its upper four bits
            has_own_words = not is_date and value < 100
            if (0 if has_own_words else {0: 2, 1: 1}.get(bucket, 0)) == self.split:
                break
        if not is_date:
            return {SOURCE: in_words(value), TARGET: str(value)}
        day = date.fromordinal(FIRST_DAY + value)
        return {SOURCE: date_in_words(day, int(rng.integers(3))), TARGET: day.isoformat()}


@dataclass(frozen=True)
class Numbers(Source):
    """Built in: "two hundred and seven" -> "207" below a million, "the third of May 1987" -> "1987-05-03" from 1800 on.

    With a path: the pairs of your own file, as `Pairs` reads them.

    Args:
        n_train: an epoch's training items, others at every draw. n_val, n_test: items that stay the same.
    """

    n_train: int = 20_000
    n_val: int = 200
    n_test: int = 1000

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        if min(self.n_train, self.n_val, self.n_test) < 1:
            raise InputError("data.source: n_train, n_val and n_test must be at least 1")
        if path is not None:
            return Pairs().load(modalities, path, on_error)
        check_pair(modalities)
        return Splits(NumberItems(self.n_train, 0, True), NumberItems(self.n_val, 1), NumberItems(self.n_test, 2))


def in_words(number: int) -> str:
    """A number below a million, the British way."""
    if number < 20:
        return ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens - 2] + (f"-{ONES[ones]}" if ones else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{ONES[hundreds]} hundred" + (f" and {in_words(rest)}" if rest else "")
    thousands, rest = divmod(number, 1000)
    joint = " and " if rest < 100 else " "
    return f"{in_words(thousands)} thousand" + (f"{joint}{in_words(rest)}" if rest else "")


def ordinal(number: int) -> str:
    """`twenty-first` for 21."""
    head, dash, last = in_words(number).rpartition("-")
    regular = f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th"
    return f"{head}{dash}{ORDINALS.get(last, regular)}"


def date_in_words(day: date, style: int) -> str:
    """In one of three styles."""
    month = MONTHS[day.month - 1]
    if style == 0:
        return f"the {ordinal(day.day)} of {month} {day.year}"
    return f"{month} {day.day}, {day.year}" if style == 1 else f"{day.day} {month[:3]} {day.year}"

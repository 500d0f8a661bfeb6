"""Python sources with a hole: what comes before it, what comes after it, and what belongs there (arXiv:2207.14255).

A document is three texts: prefix, suffix and middle ("PSM"), or suffix, prefix and middle ("SPM"), so that the middle
goes on where the text before it stops. In validation and test the first two are given: bits are those of the middle.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from armm.datasets.files import reader
from armm.datasets.folder import own_data
from armm.datasets.source import Item, Items, OnError, Part, Source, Splits
from armm.datasets.texts import StandardLibrary
from armm.errors import InputError
from armm.modality import Modality

PREFIX, SUFFIX, MIDDLE = "prefix", "suffix", "middle"


@dataclass(frozen=True)
class Hole:
    """A span of a text: characters [start, end)."""

    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Middles(Items):
    """Holes in texts.

    Attributes:
        name: of the text modality. texts: whole files.
        n: how many items. n_before, n_after, n_middle: characters at most of each part.
        varies: training: another hole at every draw, a statement or any span; nothing is given, and sometimes there is
            no suffix, so that writing on from left to right is learned too. Otherwise a statement an item, the rest
            given. A statement is one of a line; in texts that are no Python, any line.
        without_suffix: share of the training documents whose suffix is empty.
        suffix_first: the suffix stands before the prefix.
    """

    name: str
    texts: Sequence[str]
    n: int
    n_before: int
    n_after: int
    n_middle: int
    varies: bool = False
    without_suffix: float = 0.0
    suffix_first: bool = True

    def __len__(self) -> int:
        return self.n

    def item(self, index: int, draw: int) -> Item:
        """The parts, cut to their lengths; the whole `text` and the `hole`."""
        rng = np.random.default_rng([index, draw & 0xFFFFFFFF if self.varies else 0])
        number = int(rng.integers(len(self.texts)))
        text, hole = self.texts[number], self._hole(number, rng)
        after = text[hole.end : hole.end + self.n_after]
        if rng.random() < self.without_suffix:
            after = ""
        before = text[max(hole.start - self.n_before, 0) : hole.start]
        return {PREFIX: before, SUFFIX: after, MIDDLE: text[hole.start : hole.end], "text": text, "hole": hole}

    def parts(self, index: int, draw: int, layout: Sequence[str] | None) -> list[Part]:
        item = self.item(index, draw)
        given = [Part(self.name, text, not self.varies) for text in self.around(item[PREFIX], item[SUFFIX])]
        return [*given, Part(self.name, item[MIDDLE])]

    def around(self, prefix: str, suffix: str) -> tuple[str, str]:
        """What stands before the middle in a document, in order."""
        return (suffix, prefix) if self.suffix_first else (prefix, suffix)

    def _hole(self, number: int, rng: np.random.Generator) -> Hole:
        text = self.texts[number]
        if self.varies and rng.random() < 0.3:  # any span
            start = int(rng.integers(len(text)))
            return Hole(start, min(start + int(rng.integers(1, self.n_middle + 1)), len(text)))
        if known := self.statements_of(number):
            return known[int(rng.integers(len(known)))]
        start = text.rfind("\n", 0, int(rng.integers(len(text)))) + 1
        for _ in range(100):  # the next line that says something
            end = text.find("\n", start)
            end = len(text) if end < 0 else end
            line = text[start:end]
            if line.strip() and not line.strip().startswith("#") and len(line) <= self.n_middle:
                return Hole(start + len(line) - len(line.lstrip()), end)
            start = end + 1 if end < len(text) else 0
        return Hole(0, min(self.n_middle, len(text)))

    def statements_of(self, number: int) -> list[Hole]:
        """Statements that a hole in a text may be; none of what is no Python."""
        if number not in self._statements:
            found = statements(self.texts[number])
            self._statements[number] = [hole for hole in found if hole.end - hole.start <= self.n_middle]
        return self._statements[number]

    @cached_property
    def _statements(self) -> dict[int, list[Hole]]:
        """By the number of the text, of those that were asked for."""
        return {}

    def values(self, name: str) -> Iterator[str]:
        """Whole texts: what a tokenizer is learned from."""
        return iter(self.texts if name == self.name else ())


@dataclass(frozen=True)
class FillInMiddle(Source):
    """The standard library's sources, or the files of `--data.path`, with holes.

    Args:
        n_before, n_after: characters of prefix and suffix. n_middle: of the longest hole.
        n_train: an epoch's training items. n_val, n_test: holes that stay the same, each a statement.
        without_suffix: share of the training documents whose suffix is empty.
        suffix_first: documents are suffix, prefix, middle; else prefix, suffix, middle.
        max_bytes: of the standard library's modules.
    """

    n_before: int = 400
    n_after: int = 200
    n_middle: int = 100
    n_train: int = 20_000
    n_val: int = 100
    n_test: int = 400
    without_suffix: float = 0.3
    suffix_first: bool = True
    max_bytes: int = 5_000_000

    marks_conditions: ClassVar[bool] = True

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        if min(self.n_before, self.n_after, self.n_middle, self.n_train, self.n_val, self.n_test) < 1:
            raise InputError("data.source: n_before, n_after, n_middle, n_train, n_val and n_test must be at least 1")
        if not 0 <= self.without_suffix < 1:
            raise InputError(f"data.source.without_suffix is {self.without_suffix}; expected a share below 1")
        name, _ = reader(modalities, ".txt")
        if path is None:
            splits = StandardLibrary(self.max_bytes).load(modalities, None, on_error)
        else:
            splits = own_data("", modalities, path, on_error)
        texts = [[str(text) for text in part.values(name) if text] for part in (splits.train, splits.val, splits.test)]
        of = partial(
            Middles,
            name,
            n_before=self.n_before,
            n_after=self.n_after,
            n_middle=self.n_middle,
            suffix_first=self.suffix_first,
        )
        train = of(texts[0], self.n_train, varies=True, without_suffix=self.without_suffix)
        return Splits(train, of(texts[1], self.n_val), of(texts[2], self.n_test), splits.skipped)


def parsed(text: str) -> ast.Module | None:
    """None of what is no Python of the version that runs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in strings
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def statements(text: str) -> list[Hole]:
    """The statements of a Python file that are one line each, without docstrings; none of what is no Python."""
    lines = text.splitlines(keepends=True)
    starts = np.cumsum([0, *map(len, lines)])
    found: list[Hole] = []
    if (tree := parsed(text)) is None:
        return found
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt) or node.lineno != node.end_lineno or node.end_col_offset is None:
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        line = lines[node.lineno - 1]
        if line.isascii() and line[: node.col_offset].strip() == "" and line[node.end_col_offset :].strip() == "":
            start = int(starts[node.lineno - 1])
            found.append(Hole(start + node.col_offset, start + node.end_col_offset))
    return sorted(found, key=lambda hole: hole.start)

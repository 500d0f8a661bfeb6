"""Talks with an assistant that has a calculator: turns of a user, an assistant and a tool, made here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from armm.datasets.manifest import Manifest
from armm.datasets.source import Item, Items, OnError, Part, Source, Splits
from armm.errors import InputError
from armm.modality import Modality

USER, ASSISTANT, TOOL = "user", "assistant", "tool"
CALL = re.compile(r"calc\((\d{1,2})([+*-])(\d{1,2})\)")
WORDS = {"+": ("plus", "added to"), "-": ("minus", "less"), "*": ("times", "multiplied by")}
QUESTIONS = (
    *("What is {0}?", "how much is {0}", "Can you work out {0}?", "{0} = ?", "Tell me {0}, please."),
    *("I need to know what {0} makes.", "Please compute {0}."),
)
TALK = (
    ("Hello!", "Hello! What shall I work out?"),
    ("Good morning.", "Good morning. What shall I work out?"),
    ("Who are you?", "I am a small model with a calculator."),
    ("What can you do?", "I can add, subtract and multiply."),
    ("Thank you.", "You are welcome."),
    ("Thanks, bye!", "Goodbye!"),
)


def calculator(call: str) -> str | None:
    """What the caller answers: the value of `calc(23+45)`; None where the text is no call."""
    match = CALL.fullmatch(call)
    if match is None:
        return None
    a, operator, b = int(match[1]), match[2], int(match[3])
    return str({"+": a + b, "-": a - b, "*": a * b}[operator])


@dataclass(frozen=True)
class Turn:
    """What somebody says. name: of the modality."""

    name: str
    text: str


def question(a: int, operator: str, b: int, rng: np.random.Generator) -> str:
    """One of the ways to ask."""
    spaced = " " if rng.random() < 0.7 else ""
    sign = str(rng.choice(WORDS[operator])) if rng.random() < 0.4 else operator
    spaced = " " if sign != operator else spaced
    return str(rng.choice(QUESTIONS)).format(f"{a}{spaced}{sign}{spaced}{b}")


def answered(a: int, operator: str, b: int, rng: np.random.Generator) -> list[Turn]:
    """A question, the call, the result and the answer."""
    call = f"calc({a}{operator}{b})"
    result = calculator(call)
    assert result is not None
    said = f"{a} {operator} {b} = {result}"
    return [Turn(USER, question(a, operator, b, rng)), Turn(ASSISTANT, call), Turn(TOOL, result), Turn(ASSISTANT, said)]


@dataclass(frozen=True, eq=False)
class Talks(Items):
    """Talks of one to three exchanges; others at every draw where `varies`.

    A pair of numbers belongs to the test, to validation or to training by a hash of the two: no split asks what another
    has asked.
    """

    n: int
    split: int
    varies: bool = False

    def __len__(self) -> int:
        return self.n

    def item(self, index: int, draw: int) -> Item:
        """The `turns`; and the first question's `a`, `operator`, `b` and `question`."""
        rng = np.random.default_rng([self.split, index, draw & 0xFFFFFFFF if self.varies else 0])
        turns: list[Turn] = []
        a, operator, b = self._sum(rng)
        for exchange in range(int(rng.integers(1, 4))):
            if rng.random() < 0.15:
                said, replied = TALK[int(rng.integers(len(TALK)))]
                turns += [Turn(USER, said), Turn(ASSISTANT, replied)]
            else:
                turns += answered(*(self._sum(rng) if exchange else (a, operator, b)), rng)
        asked = question(a, operator, b, rng)
        return {"turns": turns, "a": a, "operator": operator, "b": b, "question": asked}

    def parts(self, index: int, draw: int, layout: Sequence[str] | None) -> list[Part]:
        """All turns; the assistant's are learned and scored."""
        turns: list[Turn] = self.item(index, draw)["turns"]
        return [Part(turn.name, turn.text, turn.name != ASSISTANT) for turn in turns]

    def _sum(self, rng: np.random.Generator) -> tuple[int, str, int]:
        while True:
            a, b = (int(n) for n in rng.integers(0, 100, size=2))
            bucket = (a * 100 + b) * 2654435761 % 2**32 >> 28  # Knuth's multiplicative hash, its upper four bits
            if {0: 2, 1: 1}.get(bucket, 0) == self.split:
                return a, str(rng.choice(["+", "-", "*"])), b

    def values(self, name: str) -> Iterator[str]:
        """What one of the three says in some talks."""
        talks = (self.item(index, 0)["turns"] for index in range(min(self.n, 2000)))
        return (turn.text for turns in talks for turn in turns if turn.name == name)


@dataclass(frozen=True)
class Calculator(Source):
    """Built in: questions about numbers below 100, calls of a calculator, its results, answers; a little talk.

    With a path: your own talks, as a JSONL manifest whose segments are `{"user": ...}`, `{"assistant": ...}` and
    `{"tool": ...}`, all but the assistant's with `"loss": false`.

    Args:
        n_train: talks of an epoch, others at every draw. n_val, n_test: talks that stay the same.
    """

    n_train: int = 10_000
    n_val: int = 100
    n_test: int = 400

    marks_conditions: ClassVar[bool] = True

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        if min(self.n_train, self.n_val, self.n_test) < 1:
            raise InputError("data.source: n_train, n_val and n_test must be at least 1")
        if path is not None:
            return Manifest().load(modalities, path, on_error)
        missing = [name for name in (USER, ASSISTANT, TOOL) if name not in modalities]
        if missing:
            raise InputError(f"talks need modalities named user, assistant and tool; add {', '.join(missing)}")
        return Splits(Talks(self.n_train, 0, True), Talks(self.n_val, 1), Talks(self.n_test, 2))

"""How well holes in Python sources are filled: bits of the middle with and without a suffix, and what still parses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log

import numpy as np

from armm.datasets.files import reader
from armm.datasets.middles import MIDDLE, PREFIX, SUFFIX, Hole, Middles, parsed
from armm.errors import InputError
from armm.evaluation.likelihood import payload_nats
from armm.evaluation.score import Material, Score, Value
from armm.generation import Temperature, generate
from armm.modality import Modality
from armm.model import AutoregressiveModel


@dataclass(frozen=True)
class MiddleBits(Score):
    """Bits a byte of the middles of the test, given prefix and suffix, and given the prefix alone ("left to right").

    Attributes:
        n: how many holes; all by default.
    """

    n: int | None = None

    def evaluate(self, model: AutoregressiveModel, data: Material) -> Mapping[str, Value]:
        text, middles = _text(model), _middles(data)
        items = data.items("test", self.n)
        n = sum(text.n_bits_per(text.encode(item[MIDDLE])) for item in items)
        found = {}
        for name, with_suffix in (("middle", True), ("middle_left_to_right", False)):
            documents = []
            for item in items:
                given = map(text.encode, middles.around(item[PREFIX], item[SUFFIX] if with_suffix else ""))
                documents.append([*(segment.as_condition() for segment in given), text.encode(item[MIDDLE])])
            nats, _ = payload_nats(model, documents)[text.name]
            found[f"{name}_bits_per_{text.bits_per}"] = Value(nats / log(2) / max(n, 1), n)
        return found


@dataclass(frozen=True)
class Parses(Score):
    """Take one-line statements out of test files, fill in a line, greedily: the share of files that still parse.

    Attributes:
        n: how many statements. max_symbols: of a line.
    """

    n: int = 200
    max_symbols: int = 64

    def evaluate(self, model: AutoregressiveModel, data: Material) -> Mapping[str, Value]:
        text, middles = _text(model), _middles(data)
        holes = _holes(middles, data.n_trials(self.n, self.n), data.seed)
        if not holes:
            raise InputError("scores: the test texts have no one-line statement of Python; leave Parses out")
        prompts = []
        for whole, hole in holes:
            before = whole[max(hole.start - middles.n_before, 0) : hole.start]
            after = whole[hole.end : hole.end + middles.n_after]
            prompts.append([text.encode(part) for part in middles.around(before, after)])
        n_right = n_same = 0
        for sample in generate(
            model,
            prompts,
            seed=data.seed,
            filters=[Temperature(0)],
            plan=[text.name] * 3,
            prompt_complete=True,
            stops=["\n"],
            max_symbols=self.max_symbols,
            exact=False,
        ):
            whole, hole = holes[sample.prompt]
            made = str(sample.decoded[2]) if len(sample.decoded) > 2 else ""
            n_right += parsed(whole[: hole.start] + made + whole[hole.end :]) is not None
            n_same += made == whole[hole.start : hole.end]
        n = len(holes)
        return {"parse_rate": Value(n_right / n, n), "exact_middle": Value(n_same / n, n)}


def _holes(middles: Middles, n: int, seed: int) -> list[tuple[str, Hole]]:
    """At most n different statements at random, of all that the files have which parse."""
    known = [(text, hole) for number, text in enumerate(middles.texts) for hole in middles.statements_of(number)]
    return [known[at] for at in np.random.default_rng(seed).permutation(len(known))[:n]]


def _middles(data: Material) -> Middles:
    if not isinstance(data.splits.test, Middles):
        raise InputError("scores: MiddleBits and Parses are about the source armm.datasets.FillInMiddle")
    return data.splits.test


def _text(model: AutoregressiveModel) -> Modality:
    _, modality = reader(model.modalities, ".txt")
    return modality

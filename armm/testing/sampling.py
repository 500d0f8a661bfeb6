"""Laws 5 and 6: the same seed gives the same sample, and samples have the probabilities that the model says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, log

import torch

from armm.generation import (
    Filter,
    FixedPoint,
    Hold,
    NGram,
    Proposer,
    Sample,
    Temperature,
    TopK,
    TopP,
    UnitAbove,
    generate,
)
from armm.generation.proposers import View
from armm.model import AutoregressiveModel
from armm.sequence import Document
from armm.testing.law import LawBroken
from armm.testing.streams import conditionals, leaves

SAME, SAMPLER = "same seed, same sample", "the sampler samples"
SIGNIFICANCE = 1e-5  # of the chi-square tests: how rarely a correct sampler fails one
LEAST_EXPECTED = 5.0  # rarer outcomes are pooled
PROPOSERS: tuple[Proposer, ...] = (NGram(most=2, least=1), FixedPoint(), UnitAbove(), Hold())


# ---------------------------------------------------- same seed, same sample


@dataclass(frozen=True)
class Knowing(Proposer):
    """Guesses what the samples turned out to be, and is wrong at every fifth place: runs of right guesses, and ends of
    runs, that a proposer without knowledge seldom has on a tiny model."""

    streams: Mapping[tuple[int, int], Sequence[int]]

    def propose(self, view: View, n: int) -> list[int]:
        first = len(view.stream)
        right = self.streams[view.prompt, view.index][first : first + n]
        return [symbol if place % 5 else int(symbol == 0) for place, symbol in enumerate(right, first)]


def check_same_sample(
    model: AutoregressiveModel,
    n: int = 5,
    *,
    prompts: Sequence[Document] | None = None,
    filters: Sequence[Filter] = (),
    seed: int = 7,
    max_symbols: int | None = 40,
    proposers: Sequence[Proposer] = PROPOSERS,
) -> None:
    """Law 5: a sample depends on the seed, its prompt and its number alone.

    All of them as one batch, each alone, two at a time, backwards, beside samples of other numbers, and guessed ahead
    by every proposer.

    Args:
        n: how many samples of each prompt.
        prompts: what they begin with.
        filters, seed, max_symbols: as for `generate`.
        proposers: each of them must change nothing, nor one that knows most of the samples beforehand.

    Raises LawBroken: it depends on something else.
    """

    def sample(
        numbers: Sequence[tuple[int, int]], batch_size: int, proposer: Proposer | None = None
    ) -> dict[tuple[int, int], Sample]:
        samples = generate(
            model,
            prompts,
            samples=numbers,
            seed=seed,
            filters=filters,
            proposer=proposer,
            max_symbols=max_symbols,
            batch_size=batch_size,
        )
        return {(found.prompt, found.index): found for found in samples}

    numbers = [(prompt, number) for prompt in range(len(prompts or [[]])) for number in range(n)]
    together = sample(numbers, len(numbers))
    if sorted(together) != numbers:
        raise LawBroken(SAME, f"samples {numbers} were asked for, {sorted(together)} came")
    others = [(prompt, number + n) for prompt, number in numbers]
    mixed = [number for pair in zip(others, numbers, strict=True) for number in pair]
    ways = {
        "alone": {number: found for number in numbers for found in sample([number], 1).values()},
        "again in one batch": sample(numbers, len(numbers)),
        "two at a time": sample(numbers, 2),
        "backwards": sample(numbers[::-1], len(numbers)),
        f"beside samples {others}": sample(mixed, 2 * len(numbers)),
    }
    known = {number: found.symbols for number, found in together.items()}
    for proposer in (*proposers, Knowing(known)):
        ways[f"guessed by {type(proposer).__name__}"] = sample(numbers, len(numbers), proposer)
    for way, samples in ways.items():
        if not set(numbers) <= set(samples):
            raise LawBroken(SAME, f"{way}: not every sample came")
        for number in numbers:
            _check_same(together[number], samples[number], way)


def _check_same(expected: Sample, found: Sample, way: str) -> None:
    if found.symbols != expected.symbols:
        pairs = zip([*expected.symbols, None], [*found.symbols, None], strict=False)
        at = next(i for i, (a, b) in enumerate(pairs) if a != b)
        raise LawBroken(
            SAME,
            f"sample {found.index} has {found.symbols[at : at + 1]} at symbol {at} {way}, in one batch "
            f"{expected.symbols[at : at + 1]}",
        )
    if found.stop != expected.stop:
        raise LawBroken(SAME, f"sample {found.index} stops by {found.stop!r} {way}, in one batch by {expected.stop!r}")
    for at, (a, b) in enumerate(zip(expected.log_probs, found.log_probs, strict=True)):
        if not abs(a - b) <= 1e-4 * max(1.0, abs(a)):
            raise LawBroken(
                SAME, f"sample {found.index}: generated symbol {at} has {b:.6f} nats {way}, in one batch {a:.6f}"
            )


# ------------------------------------------------------ the sampler samples

Nats = Mapping[int, float]  # of every value that a symbol can take


def heated(nats: Nats, t: float) -> dict[int, float]:
    """Probabilities in proportion to p^(1/t); at 0 all on the most probable value. The definition of `temperature`."""
    if t == 0:
        best = max(nats, key=lambda symbol: (nats[symbol], -symbol))
        return {symbol: 0.0 if symbol == best else -inf for symbol in nats}
    return _normalised({symbol: value / t for symbol, value in nats.items()})


def most_probable(nats: Nats, k: int) -> dict[int, float]:
    """Only the k most probable values. The definition of `top_k`."""
    kept = sorted(nats, key=lambda symbol: -nats[symbol])[:k]
    return _normalised({symbol: nats[symbol] if symbol in kept else -inf for symbol in nats})


def nucleus(nats: Nats, p: float) -> dict[int, float]:
    """Only the fewest values, most probable first, that have mass p together. The definition of `top_p`."""
    kept, mass = set(), 0.0
    for symbol in sorted(nats, key=lambda symbol: -nats[symbol]):
        if mass >= p:
            break
        kept.add(symbol)
        mass += exp(nats[symbol])
    return _normalised({symbol: nats[symbol] if symbol in kept else -inf for symbol in nats})


def _normalised(nats: Nats) -> dict[int, float]:
    highest = max(nats.values())
    total = highest + log(sum(exp(value - highest) for value in nats.values()))
    return {symbol: value - total for symbol, value in nats.items()}


# what is sampled with, and beside it the slow definition of the same
FILTERS: dict[str, tuple[Sequence[Filter], Callable[[Nats], Nats]]] = {
    "no filter": ((), dict),
    "temperature 0.6": ((Temperature(0.6),), lambda nats: heated(nats, 0.6)),
    "temperature 1.5": ((Temperature(1.5),), lambda nats: heated(nats, 1.5)),
    "temperature 0": ((Temperature(0),), lambda nats: heated(nats, 0)),
    "top-k 2": ((TopK(2),), lambda nats: most_probable(nats, 2)),
    "top-p 0.7": ((TopP(0.7),), lambda nats: nucleus(nats, 0.7)),
    "temperature 1.5, top-k 3, top-p 0.8": (
        (Temperature(1.5), TopK(3), TopP(0.8)),
        lambda nats: nucleus(most_probable(heated(nats, 1.5), 3), 0.8),
    ),
}


def check_sampler(
    model: AutoregressiveModel,
    n: int = 2000,
    seed: int = 11,
    limit: int = 256,
    filters: Mapping[str, tuple[Sequence[Filter], Callable[[Nats], Nats]]] = FILTERS,
) -> None:
    """Law 6: documents come as often as their probability says, with every filter.

    Args:
        n: samples for each filter.
        seed: of the samples; a correct sampler fails at 1 seed in 100,000.
        limit: compare at most so many different streams, cut at a length that leaves so few.
        filters: by name, each with its slow definition on the log-probabilities of one symbol.

    Raises LawBroken: a stream of probability 0 came, the frequencies differ by the chi-square test, or the samples'
        log-probabilities are not the model's.
    """
    streams = leaves(model.grammar, limit)
    longest = max(map(len, streams))
    follow = conditionals(model, streams)
    for name, (own, definition) in filters.items():
        filtered = {prefix: definition(nats) for prefix, nats in follow.items()}
        expected = {
            tuple(stream): exp(sum(filtered[tuple(stream[:t])][stream[t]] for t in range(len(stream))))
            for stream in streams
        }
        samples = list(generate(model, n=n, seed=seed, filters=own, max_symbols=longest, batch_size=500))
        counts = Counter(tuple(found.symbols) for found in samples)
        for stream in counts:
            if expected.get(stream, 0.0) <= 0:
                raise LawBroken(SAMPLER, f"{name}: {list(stream)} came {counts[stream]} times, its probability is 0")
        _check_frequencies(name, counts, expected, n)
        for found in sorted(samples, key=lambda found: found.index)[:16]:  # not those that ended first
            for t, nats in enumerate(found.log_probs):
                known = follow[tuple(found.symbols[:t])][found.symbols[t]]
                if not abs(nats - known) <= 1e-4 * max(1.0, abs(known)):
                    raise LawBroken(
                        SAMPLER,
                        f"{name}: symbol {t} of {found.symbols} is said to have {nats:.6f} nats, the model "
                        f"gives it {known:.6f}",
                    )


def _check_frequencies(
    name: str, counts: Mapping[tuple[int, ...], int], expected: Mapping[tuple[int, ...], float], n: int
) -> None:
    """Pearson's chi-square test, rare outcomes pooled."""
    cells: list[tuple[float, int, str]] = []
    pooled, seen = 0.0, 0
    for stream, probability in expected.items():
        if probability * n >= LEAST_EXPECTED:
            cells.append((probability * n, counts.get(stream, 0), str(list(stream))))
        else:
            pooled, seen = pooled + probability * n, seen + counts.get(stream, 0)
    if pooled >= LEAST_EXPECTED:
        cells.append((pooled, seen, "all rare streams together"))
    elif poisson_tail(seen, pooled) < SIGNIFICANCE:
        raise LawBroken(SAMPLER, f"{name}: rare streams came {seen} times in {n}, expected {pooled:.2f}")
    if len(cells) < 2:
        return
    terms = [(count - mean) ** 2 / mean for mean, count, _ in cells]
    p = chi_square_tail(sum(terms), len(cells) - 1)
    if not p >= SIGNIFICANCE:
        mean, count, what = cells[terms.index(max(terms))]
        raise LawBroken(
            SAMPLER,
            f"{name}: frequencies of {len(cells)} streams in {n} samples have p = {p:.1e}; most of all "
            f"{what} came {count} times, expected {mean:.1f}",
        )


def chi_square_tail(x: float, degrees: int) -> float:
    """How probable a chi-square of at least x is."""
    return float(torch.special.gammaincc(torch.tensor(degrees / 2.0).double(), torch.tensor(x / 2).double()))


def poisson_tail(count: int, mean: float) -> float:
    """How probable at least `count` events are where `mean` are expected."""
    if count == 0:
        return 1.0
    return float(torch.special.gammainc(torch.tensor(float(count)).double(), torch.tensor(mean).double()))

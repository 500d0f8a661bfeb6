"""The simple models that a report sets a trained one against: counts, mostly with one added to each.

All take symbols in `[0, vocab)` as numpy integers and return bits per symbol of the test symbols, under counts of the
training symbols. A *stream* is a 1-D array; a list of them is several clips or texts that do not run into each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import log2

import numpy as np

Streams = np.ndarray | Sequence[np.ndarray]


def unigram_bits(train_symbols: Streams, test_symbols: Streams, vocab: int) -> float:
    """Bits per symbol when each symbol is coded by its frequency alone.

    Raises ValueError: a symbol lies outside `[0, vocab)`, or there is none to test.
    """
    log_prob = _log_unigram(_streams(train_symbols, vocab), vocab)
    test = np.concatenate(_streams(test_symbols, vocab, test=True))
    return float(-log_prob[test].mean())


def bigram_bits(train_symbols: Streams, test_symbols: Streams, vocab: int) -> float:
    """Bits per symbol when each symbol is coded by its frequency after the one before it.

    The first symbol of a stream is coded by its frequency alone.

    Raises ValueError: a symbol lies outside `[0, vocab)`, or there is none to test.
    """
    train = _streams(train_symbols, vocab)
    test = _streams(test_symbols, vocab, test=True)
    train_pairs, test_pairs = _pairs(train, vocab), _pairs(test, vocab)
    # counted as a sorted list: a vocabulary of 32,000 has a billion pairs, nearly all of them never seen
    seen, counts = np.unique(train_pairs, return_counts=True)
    seen, counts = np.append(seen, -1), np.append(counts, 0)
    place = np.searchsorted(seen[:-1], test_pairs)
    pair_counts = np.where(seen[place] == test_pairs, counts[place], 0)
    before = np.bincount(train_pairs // vocab, minlength=vocab)
    bits = np.log2(before[test_pairs // vocab] + vocab) - np.log2(pair_counts + 1)
    first_bits = -_log_unigram(train, vocab)[np.array([stream[0] for stream in test])]
    return float((bits.sum() + first_bits.sum()) / (len(bits) + len(first_bits)))


def trigram_bits(train_symbols: Streams, test_symbols: Streams, vocab: int) -> float:
    """Bits per symbol when each symbol is coded by its frequency after the two before it.

    Mixed with those after one and after none by Witten and Bell's method C (IEEE Trans. Inf. Theory 37(4), 1991): a
    context seen n times with t different symbols after it counts n, the shorter context counts t.

    Raises ValueError: a symbol lies outside `[0, vocab)`, or there is none to test.
    """
    train, test = _streams(train_symbols, vocab), _streams(test_symbols, vocab, test=True)
    size = vocab + 1  # one more for "before the beginning"
    seen = [np.concatenate([np.full(2, vocab), stream]) for stream in train]
    asked = [np.concatenate([np.full(2, vocab), stream]) for stream in test]
    counts: Counter[tuple[int, ...]] = Counter()
    after: dict[tuple[int, ...], tuple[int, int]] = {}
    for n in (0, 1, 2):
        for stream in seen:
            counts.update(zip(*(stream[2 - i : len(stream) - i].tolist() for i in range(n, -1, -1)), strict=True))
    for ngram, count in counts.items():
        total, kinds = after.get(ngram[:-1], (0, 0))
        after[ngram[:-1]] = total + count, kinds + 1
    bits = 0.0
    for stream in asked:
        symbols = stream.tolist()
        for i in range(2, len(symbols)):
            share = 1 / size
            for n in (0, 1, 2):
                context = tuple(symbols[i - n : i])
                total, kinds = after.get(context, (0, 0))
                if total:
                    share = (counts[(*context, symbols[i])] + kinds * share) / (total + kinds)
            bits -= log2(share)
    return bits / sum(map(len, test))


def marginal_bits(train_items: np.ndarray, test_items: np.ndarray, vocab: int) -> float:
    """Bits per symbol when each place of an item has its own frequencies, independent of all others.

    Args:
        train_items, test_items: (N, ...) and (M, ...) integers, items of one shape: images.
        vocab: V.

    Raises ValueError: the shapes differ, a symbol lies outside `[0, vocab)`, or there is nothing to test.
    """
    if train_items.shape[1:] != test_items.shape[1:]:
        raise ValueError(f"training items are {train_items.shape[1:]}, test items {test_items.shape[1:]}")
    [train] = _streams(train_items.reshape(-1), vocab)
    [test] = _streams(test_items.reshape(-1), vocab, test=True)
    n_places = int(np.prod(train_items.shape[1:]))

    def cells(symbols: np.ndarray) -> np.ndarray:
        places = np.arange(len(symbols)) % n_places
        return places * vocab + symbols

    counts = np.bincount(cells(train), minlength=n_places * vocab)
    return float(np.log2(len(train_items) + vocab) - np.log2(counts + 1)[cells(test)].mean())


def _streams(symbols: Streams, vocab: int, test: bool = False) -> list[np.ndarray]:
    streams = [symbols] if isinstance(symbols, np.ndarray) else list(symbols)
    streams = [np.asarray(stream, dtype=np.int64) for stream in streams if len(stream)]
    if test and not streams:
        raise ValueError("there are no test symbols")
    for stream in streams:
        if stream.min() < 0 or stream.max() >= vocab:
            raise ValueError(f"symbols from {stream.min()} to {stream.max()} do not lie in [0, {vocab})")
    return streams


def _pairs(streams: list[np.ndarray], vocab: int) -> np.ndarray:
    pairs = [stream[:-1] * vocab + stream[1:] for stream in streams]
    return np.concatenate(pairs) if pairs else np.zeros(0, dtype=np.int64)


def _log_unigram(streams: list[np.ndarray], vocab: int) -> np.ndarray:
    """(V,) log2 of the add-one frequencies."""
    counts = np.ones(vocab)
    for stream in streams:
        counts += np.bincount(stream, minlength=vocab)
    return np.log2(counts / counts.sum())

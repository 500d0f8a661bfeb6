"""The baselines of a report: counts with one added to each, in bits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from armm.datasets import bigram_bits, marginal_bits, unigram_bits


def test_unigram_of_a_hand_counted_stream():
    # counts + 1: 3, 2, 1 of 6
    bits = unigram_bits(np.array([0, 0, 1]), np.array([0, 1, 2, 2]), vocab=3)
    assert bits == pytest.approx(np.mean([np.log2(6 / 3), np.log2(6 / 2), np.log2(6), np.log2(6)]))


def test_bigram_of_hand_counted_streams_does_not_cross_their_borders():
    train = [np.array([0, 1, 0, 1]), np.array([1, 0])]
    # after 0: 1 twice; after 1: 0 twice; the pair (1, 1) between the streams does not count
    # the first symbol by frequency: (3 + 1) / (6 + 2)
    expected = np.mean([-np.log2(4 / 8), -np.log2(3 / 4), -np.log2(1 / 4)])
    assert bigram_bits(train, [np.array([0, 1, 1])], vocab=2) == pytest.approx(expected)


def test_bigram_equals_a_dense_table_of_counts():
    rng = np.random.default_rng(0)
    train = [rng.integers(0, 7, n) for n in (40, 1, 13)]
    test = [rng.integers(0, 7, n) for n in (9, 1, 30)]
    table, single = np.ones((7, 7)), np.ones(7)
    for stream in train:
        np.add.at(single, stream, 1)
        np.add.at(table, (stream[:-1], stream[1:]), 1)
    bits = []
    for stream in test:
        bits.append(-np.log2(single[stream[0]] / single.sum()))
        bits += [-np.log2(table[a, b] / table[a].sum()) for a, b in pairwise(stream)]
    assert bigram_bits(train, test, vocab=7) == pytest.approx(np.mean(bits))


def test_bigram_of_a_pair_beyond_all_that_was_seen():
    """The largest pair must not be looked up past the end of the counts."""
    assert bigram_bits(np.array([0, 0]), np.array([3, 3]), vocab=4) == pytest.approx(np.mean([np.log2(6), np.log2(4)]))


def test_bigram_needs_no_table_of_all_pairs():
    """A vocabulary of 100,000 would take 80 GB."""
    assert bigram_bits(np.array([5, 99_999]), np.array([5, 99_999]), vocab=100_000) > 0


def test_bits_of_untrained_counts_are_those_of_the_uniform_distribution():
    empty, test = np.zeros(0, dtype=np.int64), np.array([3, 1, 4, 1, 5])
    assert unigram_bits(empty, test, vocab=8) == pytest.approx(3.0)
    assert bigram_bits(empty, test, vocab=8) == pytest.approx(3.0)


def test_marginal_counts_each_place_apart():
    train = np.array([[[0, 1]], [[0, 1]]])
    assert marginal_bits(train, np.array([[[0, 1]]]), vocab=2) == pytest.approx(-np.log2(3 / 4))
    assert marginal_bits(train, np.array([[[1, 0]]]), vocab=2) == pytest.approx(-np.log2(1 / 4))


def test_marginal_of_colour_images_counts_each_channel_apart():
    train = np.zeros((5, 2, 2, 3), dtype=np.uint8)
    train[..., 1] = 1
    assert marginal_bits(train, train[:1], vocab=2) == pytest.approx(-np.log2(6 / 7))


def test_symbols_outside_the_alphabet_are_refused():
    good, bad = np.array([0, 1]), np.array([0, 2])
    for baseline in (unigram_bits, bigram_bits):
        with pytest.raises(ValueError, match="do not lie in"):
            baseline(good, bad, 2)
        with pytest.raises(ValueError, match="no test symbols"):
            baseline(good, [], 2)
    with pytest.raises(ValueError, match="do not lie in"):
        marginal_bits(np.zeros((1, 2), dtype=int), np.full((1, 2), 5), 2)
    with pytest.raises(ValueError, match="test items"):
        marginal_bits(np.zeros((1, 2), dtype=int), np.zeros((1, 3), dtype=int), 2)

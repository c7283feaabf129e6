"""Against numpy's sort, brute force, and packing example by example."""

import bisect
import itertools
from collections import Counter

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast.packing import partition


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(np.array([7]), id="one"),
        pytest.param(np.full(1000, 3, dtype=np.int32), id="all-alike"),
        pytest.param(np.random.default_rng(0).integers(0, 2**16, 1000), id="sixteen-bits"),
        pytest.param(np.random.default_rng(0).integers(0, 300, 2**19 + 5, dtype=np.int32), id="several-chunks"),
    ],
)
def test_group_by_key_is_a_stable_sort(keys):
    order, counts = partition.group_by_key(keys, int(keys.max()) + 1)
    np.testing.assert_array_equal(order, np.argsort(keys, kind="stable"))
    np.testing.assert_array_equal(counts, np.bincount(keys))
    assert order.dtype == np.int32
    values = np.arange(len(keys), dtype=np.int32)[::-1].copy()
    np.testing.assert_array_equal(partition.group_by_key(keys, int(keys.max()) + 1, values)[0], values[order])


@pytest.mark.parametrize("n", [1, 2, 1000, 2**17, 2**17 + 1, 400_000])
def test_random_order_is_a_permutation(n):
    order = partition.random_order(np.random.default_rng(1), n)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    assert n < 1000 or abs(np.corrcoef(order, np.arange(n))[0, 1]) < 5 / np.sqrt(n)


def test_random_order_through_buckets_is_uniform(monkeypatch):
    monkeypatch.setattr(partition, "_SHUFFLE_CHUNK", 2)  # so that 4 elements go through buckets within buckets
    monkeypatch.setattr(partition, "_BUCKETS", 2)
    rng = np.random.default_rng(2)
    seen = Counter(tuple(partition.random_order(rng, 4).tolist()) for _ in range(4800))
    assert len(seen) == 24
    assert scipy.stats.chisquare(list(seen.values())).pvalue > 1e-3


@pytest.mark.parametrize("chunk", [pytest.param(2**17, id="in-one-go"), pytest.param(10, id="through-buckets")])
def test_shuffle_stretches_mixes_each_stretch_and_nothing_else(monkeypatch, chunk):
    monkeypatch.setattr(partition, "_SHUFFLE_CHUNK", chunk)
    sizes = np.array([0, 1, 40, 0, 200])
    array = np.arange(sizes.sum(), dtype=np.int32)
    partition.shuffle_stretches(np.random.default_rng(3), array, sizes)
    for start, end in ((0, 1), (1, 41), (41, 241)):
        np.testing.assert_array_equal(np.sort(array[start:end]), np.arange(start, end))
        assert end - start == 1 or (array[start:end] != np.arange(start, end)).mean() > 0.8


def test_ranges():
    np.testing.assert_array_equal(partition.ranges(np.array([5, 0, 9]), np.array([2, 3, 1])), [5, 6, 0, 1, 2, 9])


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=70), parts=st.integers(1, 12))
def test_split_evenly_places_each_example_once_and_counts_differ_by_one_at_most(lengths, parts):
    places = partition.split_evenly(np.array(lengths), parts)
    assert places.shape == (parts, -(-len(lengths) // parts))
    assert sorted(places[places >= 0].tolist()) == list(range(len(lengths)))
    sizes = (places >= 0).sum(axis=1)
    assert sizes.max() - sizes.min() <= 1
    assert all((row[:size] >= 0).all() for row, size in zip(places, sizes, strict=True))


def best_split(lengths, parts):
    """The smallest possible largest part, with counts that differ by at most one, by trying all of them."""
    most, extra = -(-len(lengths) // parts), len(lengths) % parts or parts

    def search(left, sizes):
        if not sizes:
            return 0
        rest = left[1:]
        options = []
        for size in set(sizes):
            others = list(sizes)
            others.remove(size)
            for chosen in itertools.combinations(rest, size - 1):
                remaining = list((Counter(rest) - Counter(chosen)).elements())
                options.append(max(lengths[left[0]] + sum(lengths[i] for i in chosen), search(remaining, tuple(others))))
        return min(options)

    return search(list(range(len(lengths))), (most,) * extra + (most - 1,) * (parts - extra))


def test_split_evenly_is_near_the_best_of_all_splits():
    rng = np.random.default_rng(4)
    excess = []
    for n, parts in [(8, 2), (10, 2), (9, 3), (7, 3), (8, 4), (6, 3), (5, 4)] * 12:
        lengths = np.clip(rng.lognormal(3, 0.7, n), 3, 128).astype(np.int64)
        padded = np.append(lengths, 0)
        excess.append(padded[partition.split_evenly(lengths, parts)].sum(axis=1).max() / best_split(lengths, parts) - 1)
    assert min(excess) == 0
    assert np.mean(excess) < 0.003
    assert max(excess) < 0.06


@pytest.mark.parametrize(
    ("n", "parts", "spread"),
    [
        pytest.param(1024, 2, 1, id="two-large-parts"),
        pytest.param(1024, 8, 1, id="eight"),
        pytest.param(1024, 64, 2, id="sixteen-in-each"),
        pytest.param(8192, 1024, 8, id="a-thousand-parts"),
    ],
)
def test_split_evenly_levels_tokens(n, parts, spread):
    lengths = np.clip(np.random.default_rng(5).lognormal(3.4, 0.5, n), 3, 128).astype(np.int64)
    tokens = lengths[partition.split_evenly(lengths, parts)].sum(axis=1)
    assert tokens.max() - tokens.min() <= spread


def best_fit_decreasing(lengths, budget):
    """One example after the other, each to the fullest bin that still takes it; how many bins there are in the end."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        at = bisect.bisect_left(rooms, length)
        bisect.insort(rooms, (rooms.pop(at) if at < len(rooms) else budget) - length)
    return len(rooms)


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=150), budget=st.integers(60, 200))
def test_pack_histogram_needs_no_more_bins_than_best_fit_decreasing(lengths, budget):
    counts = np.bincount(lengths)
    groups = partition.pack_histogram(counts, budget)
    packed = np.zeros_like(counts)
    for count, items in groups:
        assert count > 0 and len({length for length, _ in items}) == len(items)
        assert 0 < sum(length * taken for length, taken in items) <= budget
        for length, taken in items:
            packed[length] += count * taken
    np.testing.assert_array_equal(packed, counts)
    assert -(-sum(lengths) // budget) <= partition.num_bins(groups) <= best_fit_decreasing(lengths, budget)
    plain = partition._best_fit(counts, budget, np.flatnonzero(counts).tolist(), [0] * np.count_nonzero(counts))
    assert partition.num_bins(plain) == best_fit_decreasing(lengths, budget)


def test_pack_histogram_falls_back_on_plain_best_fit():
    # To fill 23 with 9 + 7 * 2 leaves the second 9 outside, for there is only one 2.
    assert partition.num_bins(partition.pack_histogram(np.bincount([9, 9, 2]), 23)) == 1


def test_pack_histogram_leaves_room_that_shorter_examples_can_fill():
    lengths = [6] * 2100 + [4] * 400  # best-fit packs 21 of 6 in 128, and 2 are left; 20 of 6 and 2 of 4 fill it
    assert best_fit_decreasing(lengths, 128) == 113
    assert partition.num_bins(partition.pack_histogram(np.bincount(lengths), 128)) == -(-sum(lengths) // 128) == 111


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=150),
    max_examples=st.integers(1, 40),
    max_tokens=st.integers(60, 500),
)
def test_cut_sorted_is_greedy(lengths, max_examples, max_tokens):
    expected, held = [0], 0
    falling = sorted(lengths, reverse=True)
    for place, length in enumerate(falling):
        if place - expected[-1] == max_examples or held + length > max_tokens:
            expected.append(place)
            held = 0
        held += length
    assert partition.cut_sorted(np.bincount(lengths), max_examples, max_tokens) == [*expected, len(lengths)]

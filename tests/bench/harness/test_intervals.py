"""bench.harness.intervals: identical contenders tie, a slower one is found, and a tie has no ratio."""

import math

import numpy as np
import pytest
from scipy import stats

from bench.harness.intervals import (
    CONFIDENCE,
    MIN_ROUNDS,
    Ratio,
    _signed_rank_cut,
    paired_ratio,
    take_turns,
    timing_rows,
    turns,
    unpaired_ratio,
)

ROUNDS = 40


def machine(rng: np.random.Generator, rounds: int, slowdown: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of two contenders that take turns on a machine that drifts by half, has slow spells, and at times does something else.

    The drift is up to 6 % from one step to the next; one step in twenty takes up to ten times as long; noise has three degrees of freedom.
    """
    moments = np.arange(2 * rounds) / (2 * rounds)
    drift = 1 + 0.5 * np.sin(2 * np.pi * (moments * rng.uniform(0.3, 1.5) + rng.uniform()))
    spells = np.repeat(rng.choice([1.0, 1.15], size=-(-2 * rounds // 10), p=[0.7, 0.3]), 10)[: 2 * rounds]
    noise = np.exp(0.02 * rng.standard_t(3, size=2 * rounds))
    pauses = np.where(rng.random(2 * rounds) < 0.05, rng.uniform(1.5, 10, size=2 * rounds), 1.0)
    seconds = 0.1 * drift * spells * noise * pauses
    first, second = np.empty(rounds), np.empty(rounds)
    for index in range(rounds):
        for place, name in enumerate(turns(["first", "second"], index)):
            (first if name == "first" else second)[index] = seconds[2 * index + place]
    return first, second * slowdown


@pytest.mark.parametrize("seed", range(5))
def test_identical_contenders_tie(seed):
    """In 19 of 20 runs: of each five times twenty."""
    rng = np.random.default_rng(seed)
    assert sum(paired_ratio(*machine(rng, ROUNDS)).is_tie for _ in range(20)) >= 19


@pytest.mark.parametrize("seed", range(5))
def test_ten_percent_is_found(seed):
    rng = np.random.default_rng(100 + seed)
    found = [paired_ratio(*machine(rng, ROUNDS, slowdown=1.1)) for _ in range(20)]
    assert sum(ratio.high < 1 for ratio in found) >= 19
    assert np.median([ratio.value for ratio in found]) == pytest.approx(1 / 1.1, abs=0.01)


def test_the_interval_holds_what_it_promises():
    """Over many runs: the truth lies outside no more often than 1 - CONFIDENCE, within what so many runs can tell."""
    rng = np.random.default_rng(7)
    outside = 0
    for _ in range(400):
        ratio = paired_ratio(*machine(rng, 20, slowdown=1.25))
        outside += not ratio.low <= 1 / 1.25 <= ratio.high
    assert outside <= stats.binom.ppf(0.999, 400, 1 - CONFIDENCE)


def test_means_of_unpaired_times_would_call_the_drift_a_difference():
    """What the pairs are for: the same times, but one contender after the other."""
    rng = np.random.default_rng(3)
    drift = np.linspace(1.0, 1.5, 2 * ROUNDS) * np.exp(0.02 * rng.standard_normal(2 * ROUNDS))
    assert not paired_ratio(drift[:ROUNDS], drift[ROUNDS:]).is_tie
    assert paired_ratio(drift[::2], drift[1::2]).is_tie


@pytest.mark.parametrize("n", [8, 9, 15, 40, 80, 120])
def test_the_interval_is_what_scipys_test_does_not_reject(n):
    values = np.random.default_rng(n).standard_normal(n)
    first, second = np.triu_indices(n)
    means = np.sort((values[first] + values[second]) / 2)
    cut, method = _signed_rank_cut(n), "exact" if n <= 80 else "approx"
    inside = stats.wilcoxon(values - (means[cut] + means[cut + 1]) / 2, method=method).pvalue
    outside = stats.wilcoxon(values - (means[cut - 1] + means[cut] if cut else 2 * means[0] - 1) / 2, method=method).pvalue
    assert outside <= 1 - CONFIDENCE < inside


def test_one_outlier_moves_nothing():
    rng = np.random.default_rng(1)
    first, second = 0.1 * np.exp(0.01 * rng.standard_normal((2, 20)))
    before = paired_ratio(first, second * 1.2)
    second[7] *= 1000
    after = paired_ratio(first, second * 1.2)
    assert after.value == pytest.approx(before.value, abs=0.01) and after.high < 1


def test_correlated_rounds_widen_the_interval():
    rng = np.random.default_rng(2)
    logs = np.zeros(60)
    for index in range(1, 60):
        logs[index] = 0.8 * logs[index - 1] + 0.02 * rng.standard_normal()
    slow = np.exp(logs)
    shuffled = rng.permutation(slow)
    wide, narrow = paired_ratio(slow, np.ones(60)), paired_ratio(shuffled, np.ones(60))
    assert math.log(wide.high / wide.low) > 1.4 * math.log(narrow.high / narrow.low)


def test_too_few_rounds_have_no_ratio():
    ratio = paired_ratio([2.0] * (MIN_ROUNDS - 1), [1.0] * (MIN_ROUNDS - 1))
    assert ratio.is_tie and "no ratio" in str(ratio)
    assert ratio.to_row("x")["value"] is None and ratio.to_row("x")["low"] is None
    assert str(Ratio.from_row(ratio.to_row("x"))) == str(ratio)


def test_a_tie_has_no_ratio_to_print():
    tie, win = Ratio(1.04, 0.98, 1.1, 20), Ratio(1.31, 1.28, 1.35, 20)
    assert str(tie) == "tie [0.98, 1.10]" and tie.to_row("base")["value"] is None
    assert str(win) == "1.31x [1.28, 1.35]" and win.to_row("base")["value"] == 1.31
    assert all(str(Ratio.from_row(ratio.to_row("base"))) == str(ratio) for ratio in (tie, win))


@pytest.mark.parametrize(
    ("base", "other"),
    [
        pytest.param([1.0, 2.0], [1.0], id="no-pairs"),
        pytest.param([1.0, 0.0], [1.0, 1.0], id="no-time"),
        pytest.param([1.0, np.nan], [1.0, 1.0], id="nan"),
        pytest.param([], [], id="none"),
    ],
)
def test_times_that_are_none(base, other):
    with pytest.raises(ValueError, match="times"):
        paired_ratio(base, other)


def test_separate_runs_are_compared_without_pairs():
    rng = np.random.default_rng(4)
    ties = slower = 0
    for _ in range(100):
        first, second = 0.1 * np.exp(0.03 * rng.standard_t(3, size=(2, 30)))
        ties += unpaired_ratio(first, second).is_tie
        slower += unpaired_ratio(first, second * 1.1).high < 1
    assert ties >= 95 and slower >= 95
    assert unpaired_ratio([1.0] * 3, [2.0] * 3).is_tie


def test_turns_are_even():
    names = list("abc")
    orders = [turns(names, index) for index in range(6)]
    assert all(sorted(order) == names for order in orders)
    assert {order.index("a") for order in orders} == {0, 1, 2}
    assert all(
        first.index(name) + second.index(name) == 2 for first, second in zip(orders[::2], orders[1::2], strict=True) for name in names
    )


def test_warming_up_is_not_kept():
    asked = []
    seconds = take_turns({"a": lambda index: asked.append(index) or 1.0 + index, "b": lambda index: 2.0}, 3, warm_up=2)
    assert asked == [-2, -1, 0, 1, 2] and seconds == {"a": [1.0, 2.0, 3.0], "b": [2.0] * 3}


def test_rows_of_times():
    seconds = {"slow": [0.2] * 9, "fast": [0.1] * 9, "same": [0.2] * 9}
    slow, fast, same = timing_rows({"suite": "step"}, seconds, ["slow", "absent"])
    assert slow["ratios"] == [] and fast["suite"] == "step" and fast["samples"] == [0.1] * 9
    assert fast["ratios"][0]["to"] == "slow" and fast["ratios"][0]["value"] == 2.0
    assert same["ratios"][0]["value"] is None and fast["seconds"] == [0.1, 0.1, 0.1]

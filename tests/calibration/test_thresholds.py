"""Thresholds against scikit-learn's precision-recall curve, intervals against scipy's, and promises against examples that were not seen."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score, precision_recall_curve, precision_score, recall_score

from bertfast.calibration.thresholds import Aim, Share, abstention_of, threshold_of
from bertfast.errors import DataError


def scored(n=2000, seed=0, digits=3):
    rng = np.random.default_rng(seed)
    scores = rng.beta(0.7, 1.2, n).round(digits)
    return scores, rng.random(n) < scores


@pytest.mark.parametrize("hits, total", [(0, 10), (10, 10), (3, 7), (950, 1000)])
def test_intervals_are_wilsons(hits, total):
    found, theirs = Share.of(hits, total), binomtest(hits, total).proportion_ci(method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((hits / total, theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_a_precision_is_reached_with_the_most_recall(seed):
    scores, truth = scored(seed=seed)
    found = threshold_of(scores, truth, Aim("precision", 0.9), "x")
    said = scores >= found.value
    assert precision_score(truth, said) >= 0.9
    precision, recall, _ = precision_recall_curve(truth, scores)
    assert recall_score(truth, said) == pytest.approx(recall[:-1][precision[:-1] >= 0.9].max())


@pytest.mark.parametrize("seed", range(3))
def test_a_recall_is_reached_with_the_highest_threshold(seed):
    scores, truth = scored(seed=seed)
    said = scores >= threshold_of(scores, truth, Aim("recall", 0.8), "x").value
    _, recall, values = precision_recall_curve(truth, scores)
    assert recall_score(truth, said) >= 0.8
    assert np.array_equal(said, scores >= values[recall[:-1] >= 0.8].max())


@pytest.mark.parametrize("digits", [1, 3], ids=["many-ties", "few-ties"])
def test_the_best_f1(digits):
    scores, truth = scored(digits=digits)
    found = threshold_of(scores, truth, Aim("f1"), "x")
    assert f1_score(truth, scores >= found.value) == pytest.approx(max(f1_score(truth, scores >= value) for value in np.unique(scores)))


def test_what_is_promised_is_kept_by_examples_that_were_not_seen():
    """Over many sets the interval of the held-out precision holds the precision on fresh examples, as often as 95 % says."""
    fresh_scores, fresh_truth = scored(100_000, seed=99)
    kept = []
    for seed in range(40):
        found = threshold_of(*scored(1500, seed), Aim("precision", 0.9), "x")
        true = precision_score(fresh_truth, fresh_scores >= found.value)
        kept.append(found.precision.low <= true <= found.precision.high)
    assert np.mean(kept) >= 0.85


def test_a_risk_is_kept_and_the_coverage_told():
    rng = np.random.default_rng(3)
    sure = rng.uniform(0.4, 1.0, 4000)
    right = rng.random(4000) < sure
    found = abstention_of(sure, right, 0.1)
    answered = sure >= found.least_confidence
    assert (~right[answered]).mean() <= 0.1 and found.risk.low <= 0.1 + 0.02
    assert found.coverage.low <= answered.mean() <= found.coverage.high


def test_what_cannot_be_had_is_said():
    scores, truth = np.linspace(0, 1, 100), np.arange(100) % 2 == 0
    with pytest.raises(DataError, match="label x: no threshold has a precision of 0.9; the best on these examples is 0.5"):
        threshold_of(scores, truth, Aim("precision", 0.9), "label x")
    with pytest.raises(DataError, match="label x: is of no labelled example"):
        threshold_of(scores, truth & False, Aim("f1"), "label x")
    with pytest.raises(DataError, match="risk 0.01: even the surest answers are wrong more often"):
        abstention_of(scores, truth, 0.01)

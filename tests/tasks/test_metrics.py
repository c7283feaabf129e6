"""Against scikit-learn and scipy, and the cases where a metric is undefined."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from bertfast.errors import ConfigError, NonFiniteLossError
from bertfast.tasks.metrics import accuracy, compute_metrics, is_better
from bertfast.tasks.task import CLASS_METRICS, REGRESSION_METRICS


def classes(*metrics, num_labels=2):
    return SimpleNamespace(
        name="demo", metrics=metrics, main_metric=metrics[0], is_regression=False, is_multilabel=False, num_labels=num_labels
    )


def regression(*metrics):
    return SimpleNamespace(name="demo", metrics=metrics, main_metric=metrics[0], is_regression=True, is_multilabel=False, num_labels=1)


def logits_for(predictions, num_labels=2):
    return np.eye(num_labels, dtype=np.float32)[np.asarray(predictions)]


@pytest.mark.parametrize("num_labels", [2, 3, 28])
def test_classes_agree_with_scikit_learn(num_labels):
    rng = np.random.default_rng(num_labels)
    logits = rng.normal(size=(500, num_labels)).astype(np.float32)
    labels = np.where(rng.random(500) < 0.4, logits.argmax(1), rng.integers(num_labels, size=500)).astype(np.int32)
    names = [name for name in CLASS_METRICS if name != "f1" or num_labels == 2]
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(labels, logits.argmax(1)),
        "macro_f1": sklearn.metrics.f1_score(labels, logits.argmax(1), average="macro"),
        "matthews_correlation": sklearn.metrics.matthews_corrcoef(labels, logits.argmax(1)),
    }
    if num_labels == 2:
        expected["f1"] = sklearn.metrics.f1_score(labels, logits.argmax(1))
    measured = compute_metrics(classes(*names, num_labels=num_labels), logits, labels)
    assert measured == pytest.approx(expected, abs=1e-12)
    assert all(type(value) is float for value in measured.values())


@pytest.mark.parametrize(
    "scores, labels",
    [
        pytest.param(np.arange(9) ** 2, np.arange(9) * 0.5, id="monotonic"),
        pytest.param([1, 1, 2, 2, 2, 5], [3, 1, 1, 4, 4, 4], id="ties-on-both-sides"),
        pytest.param([3.0, 2.0, 1.0], [0.0, 2.5, 5.0], id="reversed"),
        pytest.param(1e4 + np.array([1, 2, 3, 4, 5]) / 1024, [1, 2, 2, 5, 4], id="a-small-spread-on-a-large-mean"),
    ],
)
def test_correlations_agree_with_scipy(scores, labels):
    logits, labels = np.asarray(scores, dtype=np.float32)[:, None], np.asarray(labels, dtype=np.float32)
    expected_pearson = scipy.stats.pearsonr(logits[:, 0].astype(np.float64), labels.astype(np.float64)).statistic
    expected_spearman = scipy.stats.spearmanr(logits[:, 0], labels).statistic
    measured = compute_metrics(regression(*REGRESSION_METRICS), logits, labels)
    both = (expected_pearson + expected_spearman) / 2
    assert measured == pytest.approx({"pearson": expected_pearson, "spearman": expected_spearman, "pearson_spearman": both}, abs=1e-9)


def test_correlations_of_many_ties_agree_with_scipy():
    rng = np.random.default_rng(0)
    labels = (rng.integers(0, 26, size=1500) / 5).astype(np.float32)
    logits = (labels + rng.normal(size=1500)).round(1).astype(np.float32)[:, None]
    measured = compute_metrics(regression("spearman"), logits, labels)
    assert measured["spearman"] == pytest.approx(scipy.stats.spearmanr(logits[:, 0], labels).statistic, abs=1e-9)


@pytest.mark.parametrize(
    "predictions, labels, expected",
    [
        pytest.param([1, 1, 1, 1], [1, 1, 0, 1], {"accuracy": 0.75, "f1": 6 / 7, "matthews_correlation": 0.0}, id="constant-prediction"),
        pytest.param([0, 0, 0], [0, 1, 0], {"accuracy": 2 / 3, "f1": 0.0, "matthews_correlation": 0.0}, id="positive-never-predicted"),
        pytest.param([0, 0, 0], [0, 0, 0], {"accuracy": 1.0, "f1": 0.0, "matthews_correlation": 0.0}, id="one-class-all-right"),
        pytest.param([1, 0], [0, 1], {"accuracy": 0.0, "f1": 0.0, "matthews_correlation": -1.0}, id="all-wrong"),
        pytest.param([1], [1], {"accuracy": 1.0, "f1": 1.0, "matthews_correlation": 0.0}, id="one-example"),
    ],
)
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_undefined_class_metrics_are_zero(predictions, labels, expected):
    assert compute_metrics(classes(*expected), logits_for(predictions), np.array(labels)) == pytest.approx(expected)
    assert sklearn.metrics.matthews_corrcoef(labels, predictions) == pytest.approx(expected["matthews_correlation"])


@pytest.mark.parametrize(
    "scores, labels",
    [
        pytest.param([0.1] * 7, [0, 1, 2, 3, 4, 5, 6], id="constant-prediction"),
        pytest.param([1, 2, 3], [0.1, 0.1, 0.1], id="constant-label"),
        pytest.param([2.0], [3.0], id="one-example"),
    ],
)
def test_undefined_correlations_are_zero(scores, labels):
    measured = compute_metrics(
        regression(*REGRESSION_METRICS), np.array(scores, dtype=np.float32)[:, None], np.array(labels, dtype=np.float32)
    )
    assert measured == {"pearson": 0.0, "spearman": 0.0, "pearson_spearman": 0.0}


def test_sums_are_exact_where_float32_is_not():
    n = 2**24 + 2  # float32 cannot tell 16777217 from 16777216
    labels = np.zeros(n, dtype=np.int8)
    predictions = labels.copy()
    predictions[0] = 1
    assert accuracy(predictions, labels) == (n - 1) / n


@pytest.mark.parametrize(
    "task, words",
    [
        pytest.param(classes("acuracy"), ["demo", "'acuracy'", "did you mean 'accuracy'"], id="misspelt"),
        pytest.param(classes("bleu"), ["demo", "'bleu'", "known: accuracy"], id="unheard-of"),
        pytest.param(classes("pearson"), ["'pearson' for classes"], id="regression-metric-for-classes"),
        pytest.param(regression("accuracy"), ["'accuracy' for regression"], id="class-metric-for-regression"),
        pytest.param(classes("f1", num_labels=3), ["'f1' is for two classes", "there are 3", "'macro_f1'"], id="f1-of-three-classes"),
    ],
)
def test_a_metric_that_does_not_fit_is_an_error_that_names_the_fix(task, words):
    logits = np.zeros((2, task.num_labels), dtype=np.float32)
    with pytest.raises(ConfigError) as caught:
        compute_metrics(task, logits, np.array([0, 1]))
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_stop_the_evaluation(value):
    logits = np.zeros((5, 2), dtype=np.float32)
    logits[3, 1] = value
    with pytest.raises(NonFiniteLossError, match=r"1 of 5 examples.*example 3.*bf16"):
        compute_metrics(classes("accuracy"), logits, np.zeros(5, dtype=np.int32))


@pytest.mark.parametrize(
    "logits, labels", [pytest.param(np.zeros((3, 2)), [0, 1], id="too-few-labels"), pytest.param(np.zeros((0, 2)), [], id="none")]
)
def test_shapes_must_fit(logits, labels):
    with pytest.raises(ValueError, match="must be"):
        compute_metrics(classes("accuracy"), logits, np.array(labels))


def test_is_better():
    task = classes("accuracy")
    assert is_better(task, 0.5, None)
    assert is_better(task, 0.6, 0.5)
    assert not is_better(task, 0.5, 0.5)
    assert not is_better(task, float("nan"), 0.5)
    assert not is_better(task, float("nan"), None)
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        is_better(classes("accurracy"), 1.0, None)

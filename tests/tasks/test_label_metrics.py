"""The metrics of several labels a text, against scikit-learn's, degenerate cases too."""

import warnings

import numpy as np
import pytest
import sklearn.metrics as sk

from bertfast.config.schema import TaskConfig
from bertfast.errors import ConfigError, NonFiniteLossError
from bertfast.tasks.calibrated import Calibration
from bertfast.tasks.catalogue import get_task
from bertfast.tasks.label_metrics import sigmoid
from bertfast.tasks.metrics import compute_metrics
from bertfast.tasks.task import MULTILABEL_METRICS


def task_of(count, **keys):
    return get_task(
        TaskConfig(text_columns=("text",), label_names=tuple(f"label {index}" for index in range(count)), labels="several", **keys)
    )


def expected(logits, labels):
    said = logits > 0
    both = [column for column in range(labels.shape[1]) if 0 < labels[:, column].sum() < len(labels)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of what is undefined
        return {
            "micro_f1": sk.f1_score(labels, said, average="micro", zero_division=0),
            "macro_f1": sk.f1_score(labels, said, average="macro", zero_division=0),
            "samples_f1": sk.f1_score(labels, said, average="samples", zero_division=0),
            "exact_match": sk.accuracy_score(labels, said),
            "mean_average_precision": sk.average_precision_score(labels, logits, average="macro"),
            "roc_auc": np.mean([sk.roc_auc_score(labels[:, column], logits[:, column]) for column in both]) if both else 0.0,
        }


def random_case(n, count, share=0.3, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, count)).round(1)  # rounded, so that some are equal
    return logits, (rng.random((n, count)) < share).astype(np.uint8)


def with_column(case, column, value):
    case[1][:, column] = value
    return case


CASES = [
    pytest.param(*random_case(300, 28), id="28-labels"),
    pytest.param(*random_case(50, 2), id="two-labels"),
    pytest.param(*random_case(1, 5), id="one-text"),
    pytest.param(*with_column(random_case(60, 4), 1, 0), id="a-label-that-holds-nowhere"),
    pytest.param(*with_column(random_case(60, 4), 2, 1), id="a-label-that-holds-everywhere"),
    pytest.param(*random_case(40, 3, share=0.0), id="no-label-at-all"),
    pytest.param(*random_case(40, 3, share=1.1), id="all-labels-everywhere"),
    pytest.param(np.zeros((30, 3)), random_case(30, 3)[1], id="all-logits-equal"),
    pytest.param(np.full((30, 3), -2.0), random_case(30, 3)[1], id="nothing-said"),
    pytest.param(np.full((30, 3), 2.0), random_case(30, 3)[1], id="everything-said"),
]


@pytest.mark.parametrize("logits, labels", CASES)
def test_metrics_equal_scikit_learns(logits, labels):
    measured = compute_metrics(task_of(labels.shape[1]), logits, labels)
    assert list(measured) == list(MULTILABEL_METRICS)
    assert measured == pytest.approx(expected(logits, labels), abs=1e-12)
    assert all(type(value) is float for value in measured.values())


def test_probabilities_are_each_label_by_itself():
    logits = np.array([[0.0, 800.0, -800.0, 1.5]])
    assert Calibration().probabilities(task_of(4), logits) == pytest.approx(np.array([[0.5, 1.0, 0.0, 1 / (1 + np.exp(-1.5))]]), abs=1e-15)
    assert sigmoid(np.array([-1e4, 1e4])).tolist() == [0.0, 1.0]  # without a warning: pytest makes one an error


def test_the_metric_that_chooses():
    assert task_of(3).main_metric == "micro_f1"
    assert task_of(3, metric="mean_average_precision").main_metric == "mean_average_precision"
    with pytest.raises(ConfigError, match="metric = 'accuracy', but a text has several labels; choose micro_f1, macro_f1"):
        task_of(3, metric="accuracy")
    with pytest.raises(ConfigError, match="metric = 'pearson' is of one score a text, and labels of several labels"):
        task_of(3, metric="pearson")
    assert get_task(TaskConfig(text_columns=("text",), label_names=("a", "b"), metric="micro_f1")).is_multilabel  # it says so by itself
    with pytest.raises(ConfigError, match="labels = 'one', but metric = 'micro_f1' is of several labels"):
        get_task(TaskConfig(text_columns=("text",), labels="one", metric="micro_f1"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(value):
    logits, labels = random_case(4, 3)
    logits[2, 1] = value
    with pytest.raises(NonFiniteLossError, match="the first is example 2"):
        compute_metrics(task_of(3), logits, labels)


def test_shapes_are_held():
    with pytest.raises(ValueError, match=r"logits \[4, 3\] and labels \[4\] must be \[n, C\] both"):
        compute_metrics(task_of(3), np.zeros((4, 3)), np.zeros(4))

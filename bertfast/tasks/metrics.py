"""The metrics of the tasks (those of several labels a text are in label_metrics.py): accuracy, F1, Matthews, Pearson and Spearman, over a whole data set at once, in float64.

They are sums over a confusion matrix and correlations of two vectors, so numpy says each in a few lines. torchmetrics 1.9 would take
1.7 s to import, answers in float32, and gives predictions that are all 1 a Matthews correlation of 0.58, where scikit-learn says 0.

Shapes: n examples, C classes (1 for regression).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bertfast.errors import ConfigError, NonFiniteLossError
from bertfast.tasks import label_metrics
from bertfast.tasks.task import CLASS_METRICS, MULTILABEL_METRICS, REGRESSION_METRICS, Task
from bertfast.wording import did_you_mean

LOSSES = {"mlm_loss"}  # of pre-training, which computes its metrics itself


def compute_metrics(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric that `task.metrics` names, of logits [n, C] (any float type) and labels [n] (class ids, or floats for regression), or [n, C] of 0
    and 1 where a text has several labels.

    A metric that is undefined (F1 with no positive example and none predicted, a correlation with a constant) is 0.0, as in scikit-learn:
    a model that tells nothing apart must not win, and NaN cannot be compared.

    Raises:
        ConfigError: naming a metric that is not known, or that does not fit the task's number of labels.
        NonFiniteLossError: naming the first example whose logits are NaN or infinite.
        ValueError: where logits and labels have different lengths, or no example at all.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != (logits.shape if task.is_multilabel else logits.shape[:1]) or not len(labels):
        wanted = "[n, C] both" if task.is_multilabel else "[n, C] and [n]"
        raise ValueError(f"logits {list(logits.shape)} and labels {list(labels.shape)} must be {wanted}, with n of at least 1")
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise NonFiniteLossError(
            f"the logits of {len(broken)} of {len(logits)} examples are not finite; the first is example {broken[0]} of the evaluation "
            "data. Train with a smaller learning rate, or in bf16 or fp32 rather than fp16"
        )
    predictions = logits if task.is_multilabel else logits[:, 0] if task.is_regression else logits.argmax(axis=1)
    return {name: float(_metric(name, task)(predictions, labels)) for name in task.metrics}


def softmax(logits: np.ndarray) -> np.ndarray:
    """The probabilities of the classes [n, C], of logits [n, C]."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def is_better(task: Task, new: float, old: float | None) -> bool:
    """Whether `new` beats `old` as a value of `task.main_metric`. Every metric is better when higher, save a loss; a tie or a NaN is not better."""
    if task.main_metric in LOSSES:
        return not np.isnan(new) and (old is None or new < old)
    _metric(task.main_metric, task)
    return not np.isnan(new) and (old is None or new > old)


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The share of class ids [n] that are right."""
    return float(np.mean(predictions == labels))


def f1(predictions: np.ndarray, labels: np.ndarray, positive: int = 1) -> float:
    """The harmonic mean of precision and recall of class `positive`: 2 TP / (2 TP + FP + FN). Class ids [n]."""
    true_positives = np.sum((predictions == positive) & (labels == positive))
    marked = np.sum(predictions == positive) + np.sum(labels == positive)
    return 2 * true_positives / marked if marked else 0.0


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The mean of F1 over the classes that occur among the labels or the predictions. Class ids [n]."""
    return float(np.mean([f1(predictions, labels, positive) for positive in np.union1d(predictions, labels)]))


def matthews_correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Matthews correlation for any number of classes (Gorodkin 2004, R_K), in -1 to 1. Class ids [n]."""
    classes = np.union1d(predictions, labels)
    predicted = np.array([np.sum(predictions == label) for label in classes], dtype=np.float64)
    actual = np.array([np.sum(labels == label) for label in classes], dtype=np.float64)
    n, right = float(len(labels)), float(np.sum(predictions == labels))
    spread = (n**2 - predicted @ predicted) * (n**2 - actual @ actual)
    return float((right * n - predicted @ actual) / np.sqrt(spread)) if spread else 0.0


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's correlation of two vectors [n]."""
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:  # asked of the values: rounding leaves the centred ones a little off 0
        return 0.0
    x, y = (np.asarray(values, dtype=np.float64) - np.mean(values, dtype=np.float64) for values in (predictions, labels))
    return float(np.clip(x / np.linalg.norm(x) @ (y / np.linalg.norm(y)), -1, 1))


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Spearman's correlation of two vectors [n]: Pearson's of their ranks, where equal values share the mean of their ranks."""
    return pearson(_ranks(predictions), _ranks(labels))


def pearson_spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The mean of Pearson's and Spearman's correlation, by which GLUE ranks STS-B."""
    return (pearson(predictions, labels) + spearman(predictions, labels)) / 2


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]


def _metric(name: str, task: Task) -> Callable[[np.ndarray, np.ndarray], float]:
    known = REGRESSION_METRICS if task.is_regression else MULTILABEL_METRICS if task.is_multilabel else CLASS_METRICS
    if name not in known:
        hint = did_you_mean(name, known, f"known: {', '.join(known)}")
        kind = "regression" if task.is_regression else "several labels a text" if task.is_multilabel else "classes"
        raise ConfigError(f"task {task.name}: there is no metric {name!r} for {kind}; {hint}")
    if name == "f1" and task.num_labels != 2:
        raise ConfigError(f"task {task.name}: the metric 'f1' is for two classes, and there are {task.num_labels}; use 'macro_f1'")
    return getattr(label_metrics, name) if task.is_multilabel else globals()[name]  # a metric is the function of its name

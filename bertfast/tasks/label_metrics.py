"""The metrics of several labels a text, over a whole data set at once, in float64: those of scikit-learn, with 0.0 where one is undefined.

Shapes: n examples, C labels.
"""

from __future__ import annotations

import numpy as np


def holds(logits: np.ndarray) -> np.ndarray:
    """Which labels hold, bool [n, C]: those of a probability above one half, which is a logit above 0."""
    return logits > 0


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """The probability of each label [n, C] by itself, of logits [n, C]."""
    powers = np.exp(-np.abs(logits))  # never large, whatever the logit
    return np.where(logits >= 0, 1, powers) / (1 + powers)


def micro_f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """F1 of all answers together, 2 TP / (2 TP + FP + FN): every text and label counts once."""
    return float(_f1(holds(logits), labels == 1, axis=None))


def macro_f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean of F1 over the labels. One that neither holds nor is said to hold anywhere has 0, as in scikit-learn."""
    return float(_f1(holds(logits), labels == 1, axis=0).mean())


def samples_f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean of F1 over the texts. One of which no label holds, nor is said to hold, has 0, as in scikit-learn."""
    return float(_f1(holds(logits), labels == 1, axis=1).mean())


def exact_match(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of texts of which all labels are right: scikit-learn's accuracy_score."""
    return float((holds(logits) == (labels == 1)).all(axis=1).mean())


def mean_average_precision(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the labels of average precision, the sum of (R_k - R_{k-1}) P_k over the thresholds. A label that holds nowhere has 0, as in
    scikit-learn."""
    return float(np.mean([_average_precision(scores, truth == 1) for scores, truth in zip(logits.T, labels.T, strict=True)]))


def roc_auc(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean of the area under the ROC curve over the labels that hold of some texts and not of all; 0.0 where there are none."""
    areas = [_area(scores, truth == 1) for scores, truth in zip(logits.T, labels.T, strict=True) if 0 < np.sum(truth == 1) < len(truth)]
    return float(np.mean(areas)) if areas else 0.0


def _f1(said: np.ndarray, truth: np.ndarray, axis: int | None) -> np.ndarray:
    right, marked = (said & truth).sum(axis), said.sum(axis) + truth.sum(axis)
    return 2 * right / np.maximum(marked, 1)


def _average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Texts of equal score stand or fall together, by one threshold."""
    if not truth.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of each run of equal scores
    found = np.cumsum(truth[order])[last]
    precision, gained = found / (last + 1), np.diff(found, prepend=0) / found[-1]
    return float(precision @ gained)


def _area(scores: np.ndarray, truth: np.ndarray) -> float:
    """The chance that a text with the label is above one without it, ties counting half (Mann and Whitney 1947), from the ranks."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    n_true = int(truth.sum())
    return float((ranks[truth].sum() - n_true * (n_true + 1) / 2) / (n_true * (len(truth) - n_true)))

"""Which reading of the logits gives probabilities that are right: temperature, vector scaling or isotonic regression, whichever wins on folds it did not see.

n examples, C classes or labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bertfast.errors import DataError
from bertfast.tasks import Calibration, Task, sigmoid, softmax

FOLDS = 5
LEAST_EXAMPLES = 50  # with fewer, what is found is chance
_LOWEST = 1e-7  # a probability that an isotonic curve calls 0 may still come true
_PULL = 1e-3  # of a vector's numbers towards those of the temperature alone, so that a class that is always right cannot run away


def fit(task: Task, logits: np.ndarray, labels: np.ndarray, seed: int = 0) -> tuple[Calibration, dict[str, float]]:
    """The calibration that these logits [n, C] and labels (class ids [n], or 0 and 1 [n, C]) ask for, and the held-out loss of every method.

    A method with more numbers must beat the one before it by more than a standard error of the difference on examples that it did not see.

    Raises:
        DataError: too few examples.
    """
    if len(logits) < LEAST_EXAMPLES:
        raise DataError(f"there are {len(logits)} labelled examples, and {LEAST_EXAMPLES} are the least to calibrate by; give more")
    losses = {method: loss_of(task, held_out(task, method, logits, labels, seed), labels) for method in _FITS}
    best = "none"
    for method in list(_FITS)[1:]:
        gained = losses[best] - losses[method]
        if gained.mean() > gained.std(ddof=1) / np.sqrt(len(gained)):
            best = method
    logits = np.asarray(logits, dtype=np.float64)
    return _FITS[best](task, logits, labels), {method: float(values.mean()) for method, values in losses.items()}


def held_out(task: Task, method: str, logits: np.ndarray, labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Probabilities [n, C] of every example by a method that was fitted without it, and without a fifth of the others."""
    logits = np.asarray(logits, dtype=np.float64)
    fold, chances = np.random.default_rng(seed).permutation(len(logits)) % FOLDS, np.empty(logits.shape)
    for number in range(FOLDS):
        seen, unseen = fold != number, fold == number
        chances[unseen] = _FITS[method](task, logits[seen], labels[seen]).probabilities(task, logits[unseen])
    return chances


def loss_of(task: Task, probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The negative log likelihood of each example [n]; of several labels a text the mean over its labels."""
    chances = np.clip(probabilities, _LOWEST, 1 - _LOWEST)
    if task.is_multilabel:
        return -np.where(labels == 1, np.log(chances), np.log1p(-chances)).mean(axis=1)
    return -np.log(chances[np.arange(len(labels)), labels])


def _as_it_is(task: Task, logits: np.ndarray, labels: np.ndarray) -> Calibration:
    return Calibration()


def _temperature(task: Task, logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """One number for all logits, 1 / T, by which the loss is least: convex in it."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda power: loss_of(task, Calibration("temperature", (np.exp(power),)).probabilities(task, logits), labels).mean(),
        bounds=(-4.0, 4.0),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return Calibration("temperature", (float(np.exp(found.x)),))


def _vector(task: Task, logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """A number and a shift for each class, pulled a little towards the temperature alone."""
    from scipy.optimize import minimize

    count, start = logits.shape[1], _temperature(task, logits, labels).scale[0]
    truth = labels.astype(np.float64) if task.is_multilabel else np.eye(count)[labels]
    share = 1 / count if task.is_multilabel else 1.0

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        scale, shift = values[:count], values[count:]
        scaled = logits * scale + shift
        if task.is_multilabel:
            chances, each = sigmoid(scaled), np.logaddexp(0, scaled) - truth * scaled
            total = float(each.mean())
        else:
            chances = softmax(scaled)
            top = scaled.max(axis=1)
            total = float((np.log(np.exp(scaled - top[:, None]).sum(axis=1)) + top - (truth * scaled).sum(axis=1)).mean())
        error = (chances - truth) * share / len(logits)
        pulled = np.concatenate([scale - start, shift])
        gradient = np.concatenate([(error * logits).sum(axis=0), error.sum(axis=0)])
        return total + _PULL / 2 * float(pulled @ pulled), gradient + _PULL * pulled

    found = minimize(loss, np.concatenate([np.full(count, start), np.zeros(count)]), jac=True, method="L-BFGS-B").x
    return Calibration("vector", tuple(found[:count].tolist()), tuple(found[count:].tolist()))


def _isotonic(task: Task, logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """For each class a curve from its probability to how often it is right."""
    from sklearn.isotonic import IsotonicRegression

    chances = Calibration().probabilities(task, logits)
    curves = []
    for index, column in enumerate(chances.T):
        truth = labels[:, index] if task.is_multilabel else labels == index
        found = IsotonicRegression(out_of_bounds="clip").fit(column, truth.astype(np.float64))
        curves.append((tuple(found.X_thresholds_.tolist()), tuple(found.y_thresholds_.tolist())))
    return Calibration("isotonic", curves=tuple(curves))


_FITS: dict[str, Any] = {"none": _as_it_is, "temperature": _temperature, "vector": _vector, "isotonic": _isotonic}  # each with more freedom

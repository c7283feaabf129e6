"""How far probabilities are from how often they come true: the expected calibration error, its interval, and the bins of a reliability diagram.

n examples, C classes or labels, D decisions: one a text, of several labels a text one for each of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bertfast.tasks import Task

BINS = 15  # of equal width, as in Guo et al. 2017
RESAMPLES = 1000
LEVEL = 0.95


class Bin(NamedTuple):
    """Decisions whose confidence lies between two bounds: how many, their mean confidence, and the share that was right."""

    low: float
    high: float
    decisions: int
    confidence: float
    right: float


class Reliability(NamedTuple):
    """error: the expected calibration error, the mean over decisions of |confidence - share right| of their bin. low, high: its 95 % interval, by resampling
    texts. bins: those that hold decisions."""

    error: float
    low: float
    high: float
    bins: tuple[Bin, ...]


def reliability(task: Task, probabilities: np.ndarray, labels: np.ndarray, seed: int = 0) -> Reliability:
    """The calibration of probabilities [n, C] against class ids [n], or 0 and 1 [n, C].

    The confidence is that of the most probable class, right where it is the label's; of several labels a text it is each label's probability, right where it holds.
    """
    sure, right = (probabilities, labels == 1) if task.is_multilabel else _of_the_best(probabilities, labels)
    places = np.arange(len(sure))[:, None] * BINS + np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    counts, confidences, hits = (
        np.bincount(places.ravel(), values.ravel(), len(sure) * BINS).reshape(-1, BINS)  # of each text, by bin
        for values in (np.ones_like(sure), sure, right.astype(np.float64))
    )

    def error(rows: np.ndarray) -> float:
        total = counts[rows].sum()
        return float(np.abs(confidences[rows].sum(axis=0) - hits[rows].sum(axis=0)).sum() / total)

    rng, n = np.random.default_rng(seed), len(sure)
    spread = [error(rng.integers(0, n, n)) for _ in range(RESAMPLES)]
    low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    held = counts.sum(axis=0)
    bins = tuple(
        Bin(
            index / BINS,
            (index + 1) / BINS,
            int(held[index]),
            float(confidences[:, index].sum() / held[index]),
            float(hits[:, index].sum() / held[index]),
        )
        for index in np.flatnonzero(held).tolist()
    )
    return Reliability(error(np.arange(n)), float(low), float(high), bins)


def _of_the_best(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    best = probabilities.argmax(axis=1)
    return probabilities.max(axis=1)[:, None], (best == labels)[:, None]

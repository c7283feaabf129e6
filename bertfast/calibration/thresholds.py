"""From which probability a class is answered: for a wanted precision, a wanted recall or the best F1; and from which confidence a text is answered at all.

What is to be expected of a threshold is not what it does on the examples that it was chosen by. So it is chosen on four fifths, and counted on the last, in turn.
n examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bertfast.errors import DataError

FOLDS = 5
Z = 1.959963984540054  # of a normal distribution's 97.5 %


class Share(NamedTuple):
    """A share of counted things, with its 95 % interval (Wilson 1927); NaN where there is nothing to count."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, hits: int, total: int) -> Share:
        if not total:
            return cls(math.nan, 0.0, 1.0)
        rate, spread = hits / total, Z * Z / total
        centre, half = rate + spread / 2, Z * math.sqrt(rate * (1 - rate) / total + spread / (4 * total))
        return cls(rate, max((centre - half) / (1 + spread), 0.0), min((centre + half) / (1 + spread), 1.0))


class Threshold(NamedTuple):
    """A threshold, and what is to be expected of it: precision and recall of what is answered from it on, held out."""

    value: float
    precision: Share
    recall: Share


class Aim(NamedTuple):
    """What is wanted: "precision" or "recall" of at least `wanted`, or the best "f1"."""

    kind: str
    wanted: float | None = None


def threshold_of(scores: np.ndarray, truth: np.ndarray, aim: Aim, name: str, seed: int = 0, total: int | None = None) -> Threshold:
    """The threshold on scores [n] that an aim asks for, where truth, bool [n], says what is right. total: of how many examples recall is the share; left
    out, of those that are right.

    Raises:
        DataError: nothing is right, or no threshold has the precision that is wanted.
    """
    if not truth.any():
        what = "is of no labelled example" if not total else "is never right where it is the answer"
        raise DataError(f"{name}: {what}, so no threshold can be found; give more examples of it")
    value = _choose(scores, truth, aim)
    if value is None:
        best = max(_curve(scores, truth)[1])
        raise DataError(f"{name}: no threshold has a precision of {aim.wanted:g}; the best on these examples is {best:.3f}: ask for less")
    hits, answered = _held_out(scores, truth, lambda few, right: _choose(few, right, aim), seed)
    return Threshold(value, Share.of(hits, answered), Share.of(hits, int(truth.sum()) if total is None else total))


class Abstention(NamedTuple):
    """The least confidence of an answer, and what is to be expected: the share of wrong answers, and of texts that are answered."""

    least_confidence: float
    risk: Share
    coverage: Share


def abstention_of(sure: np.ndarray, right: np.ndarray, risk: float, seed: int = 0, total: int | None = None) -> Abstention:
    """The least confidence from which, of answers [n] this sure, at most the share `risk` is wrong (selective classification, Geifman and El-Yaniv 2017).
    total: the texts that coverage is a share of; left out, n.

    Raises:
        DataError: the surest answers are wrong more often.
    """
    aim = Aim("precision", 1 - risk)
    value = _choose(sure, right, aim)
    if value is None:
        raise DataError(f"risk {risk:g}: even the surest answers are wrong more often on these examples; allow more")
    hits, answered = _held_out(sure, right, lambda few, are_right: _choose(few, are_right, aim), seed)
    wrong = Share.of(answered - hits, answered)
    return Abstention(value, wrong, Share.of(answered, len(sure) if total is None else total))


def _curve(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every threshold, from the highest down, its value (midway to the next score), precision and recall."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each run of equal scores
    found = np.cumsum(truth[order])[last]
    below = np.append(ranked[last[:-1] + 1], 0.0)
    return (ranked[last] + below) / 2, found / (last + 1), found / max(int(truth.sum()), 1)


def _choose(scores: np.ndarray, truth: np.ndarray, aim: Aim) -> float | None:
    values, precision, recall = _curve(scores, truth)
    if aim.kind == "f1":
        return float(values[np.argmax(2 * precision * recall / np.maximum(precision + recall, 1e-300))])
    reached = np.flatnonzero((precision if aim.kind == "precision" else recall) >= aim.wanted)
    if not len(reached):
        return None
    return float(values[reached[-1] if aim.kind == "precision" else reached[0]])


def _held_out(
    scores: np.ndarray, truth: np.ndarray, choose: Callable[[np.ndarray, np.ndarray], float | None], seed: int
) -> tuple[int, int]:
    """How many are right, and how many answered, of those that were held out when the threshold was chosen."""
    fold, hits, answered = np.random.default_rng(seed).permutation(len(scores)) % FOLDS, 0, 0
    for number in range(FOLDS):
        unseen = fold == number
        value = choose(scores[~unseen], truth[~unseen]) if truth[~unseen].any() else None
        if value is not None:
            taken = scores[unseen] >= value
            hits, answered = hits + int((taken & truth[unseen]).sum()), answered + int(taken.sum())
    return hits, answered

"""The expected calibration error against a slow reading of Guo et al., and how its interval behaves."""

import numpy as np
import pytest

from bertfast.calibration.reliability import BINS, reliability
from bertfast.tasks.calibrated import Calibration
from tests.calibration.test_fitting import ONE, SEVERAL, drawn


def slow(sure, right):
    """Bin by bin."""
    total = 0.0
    for number in range(BINS):
        inside = (sure >= number / BINS) & ((sure < (number + 1) / BINS) | (number == BINS - 1))
        if inside.any():
            total += inside.sum() / len(sure) * abs(sure[inside].mean() - right[inside].mean())
    return total


def test_it_is_the_formula():
    logits, labels = drawn(ONE, n=700, times=2.0)
    chances = Calibration().probabilities(ONE, logits)
    found = reliability(ONE, chances, labels)
    assert found.error == pytest.approx(slow(chances.max(axis=1), chances.argmax(axis=1) == labels), abs=1e-12)
    logits, labels = drawn(SEVERAL, n=700, times=2.0)
    chances = Calibration().probabilities(SEVERAL, logits)
    assert reliability(SEVERAL, chances, labels).error == pytest.approx(slow(chances.ravel(), labels.ravel() == 1), abs=1e-12)


@pytest.mark.parametrize("task", [ONE, SEVERAL], ids=["one-label", "several"])
def test_what_is_too_sure_has_a_larger_error(task):
    logits, labels = drawn(task, times=3.0)
    chances = Calibration().probabilities(task, logits)
    wrong, right = (
        reliability(task, chances, labels),
        reliability(task, Calibration("temperature", (1 / 3,)).probabilities(task, logits), labels),
    )
    assert right.high < wrong.low and wrong.low < wrong.error < wrong.high
    assert sum(part.decisions for part in wrong.bins) == len(labels) * (3 if task.is_multilabel else 1)
    assert all(part.low <= part.confidence <= part.high and 0 <= part.right <= 1 for part in wrong.bins)


def test_certainty_is_in_the_last_bin():
    found = reliability(ONE, np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), np.array([0, 1]))
    assert found.error == 0.5 and [part[:3] for part in found.bins] == [(14 / 15, 1.0, 2)]

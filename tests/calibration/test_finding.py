"""The figures that are promised: of one label a text, of several, and of both aims together, counted again here."""

import json

import numpy as np
import pytest

from bertfast.calibration.finding import Aims, find_calibration, shown
from bertfast.calibration.thresholds import Aim, threshold_of
from bertfast.errors import DataError, NonFiniteLossError
from tests.calibration.test_fitting import ONE, SEVERAL, drawn


def test_of_one_label_a_text_recall_is_the_share_of_all_its_examples():
    logits, labels = drawn(ONE, n=6000)
    found = find_calibration(ONE, logits, labels, Aims(Aim("precision", 0.9)))
    chances = found.probabilities(ONE, logits)
    for index, (name, figures) in enumerate(found.figures["thresholds"].items()):
        said = (chances.argmax(axis=1) == index) & (chances[:, index] >= figures["threshold"])
        right = said & (labels == index)
        assert figures["recall"]["value"] == pytest.approx(right.sum() / (labels == index).sum(), abs=0.03), name
        assert figures["precision"]["value"] == pytest.approx(right.sum() / said.sum(), abs=0.03), name


def test_with_thresholds_and_a_risk_the_coverage_is_a_share_of_all_texts():
    logits, labels = drawn(ONE, n=6000)
    found = find_calibration(ONE, logits, labels, Aims(Aim("precision", 0.8), risk=0.1))
    answered = found.answered(ONE, found.probabilities(ONE, logits))
    assert found.figures["abstention"]["answered"]["value"] == pytest.approx(answered.mean(), abs=0.03)
    assert "of the texts, of which" in shown(found)[-1]


@pytest.mark.parametrize("task", [ONE, SEVERAL], ids=["one-label", "several"])
def test_the_figures_are_strict_json(task):
    logits, labels = drawn(task, n=300)
    found = find_calibration(task, logits, labels, Aims(risk=0.3))
    json.dumps(found.to_dict(), allow_nan=False)


def test_logits_that_are_not_finite_are_named():
    logits, labels = drawn(ONE, n=100)
    logits[7, 1] = np.inf
    with pytest.raises(NonFiniteLossError, match="1 of 100 examples are not finite; the first is example 7"):
        find_calibration(ONE, logits, labels, Aims())


def test_a_class_that_is_never_right_is_told_from_one_without_examples():
    scores = np.linspace(0.4, 0.9, 20)
    with pytest.raises(DataError, match="class c: is never right where it is the answer"):
        threshold_of(scores, np.zeros(20, dtype=bool), Aim("precision", 0.5), "class c", total=12)

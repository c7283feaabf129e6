"""How logits are put right: against torch's own optimizer, scikit-learn and made-up data whose true probabilities are known."""

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import log_loss

from bertfast.calibration.fitting import _isotonic, _temperature, _vector, fit, held_out, loss_of
from bertfast.config.schema import TaskConfig
from bertfast.errors import DataError
from bertfast.tasks.calibrated import Calibration
from bertfast.tasks.catalogue import get_task

NAMES = ("a", "b", "c")
ONE = get_task(TaskConfig(text_columns=("text",), label_names=NAMES))
SEVERAL = get_task(TaskConfig(text_columns=("text",), label_names=NAMES, labels="several"))


def drawn(task, n=4000, times=1.0, plus=0.0, seed=0):
    """Logits that are `times` too large and `plus` off, and labels drawn from the true ones."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(n, 3)) * 2
    chances = Calibration().probabilities(task, true)
    if task.is_multilabel:
        labels = (rng.random((n, 3)) < chances).astype(np.uint8)
    else:
        labels = (rng.random(n)[:, None] > chances.cumsum(axis=1)).sum(axis=1).clip(max=2).astype(np.int32)
    return true * times + plus, labels


@pytest.mark.parametrize("task", [ONE, SEVERAL], ids=["one-label", "several"])
def test_a_temperature_is_found_again(task):
    logits, labels = drawn(task, times=3.0)
    found = _temperature(task, logits, labels)
    assert found.scale[0] == pytest.approx(1 / 3, rel=0.05)
    power = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([power], max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    given, truth = torch.tensor(logits), torch.tensor(labels)

    def loss():
        optimizer.zero_grad()
        scaled = given * power.exp()
        if task.is_multilabel:
            value = torch.nn.functional.binary_cross_entropy_with_logits(scaled, truth.double())
        else:
            value = torch.nn.functional.cross_entropy(scaled, truth.long())
        value.backward()
        return value

    optimizer.step(loss)
    assert found.scale[0] == pytest.approx(power.exp().item(), rel=1e-4)


@pytest.mark.parametrize("task", [ONE, SEVERAL], ids=["one-label", "several"])
def test_a_shift_is_found_again(task):
    logits, labels = drawn(task, times=2.0, plus=np.array([1.0, -1.0, 0.0]))
    found = _vector(task, logits, labels)
    assert found.scale == pytest.approx([0.5] * 3, rel=0.15)
    shift = np.array(found.shift)
    wanted = np.array([-0.5, 0.5, 0.0])
    if not task.is_multilabel:  # what all classes have in common changes no softmax
        shift, wanted = shift - shift.mean(), wanted - wanted.mean()
    assert shift == pytest.approx(wanted, abs=0.12)


def test_isotonic_curves_are_scikit_learns():
    logits, labels = drawn(SEVERAL, n=500, times=2.0)
    found, chances = _isotonic(SEVERAL, logits, labels), Calibration().probabilities(SEVERAL, logits)
    theirs = [IsotonicRegression(out_of_bounds="clip").fit(chances[:, c], labels[:, c]).predict(chances[:, c]) for c in range(3)]
    assert found.probabilities(SEVERAL, logits) == pytest.approx(np.stack(theirs, axis=1), abs=1e-12)
    of_classes = _isotonic(ONE, *drawn(ONE, n=500)).probabilities(ONE, logits)
    assert of_classes.sum(axis=1) == pytest.approx(1.0) and (of_classes >= 0).all()


def test_the_loss_is_scikit_learns():
    logits, labels = drawn(ONE, n=200)
    chances = Calibration().probabilities(ONE, logits)
    assert loss_of(ONE, chances, labels).mean() == pytest.approx(log_loss(labels, chances))
    logits, labels = drawn(SEVERAL, n=200)
    chances = Calibration().probabilities(SEVERAL, logits)
    assert loss_of(SEVERAL, chances, labels).mean() == pytest.approx(np.mean([log_loss(labels[:, c], chances[:, c]) for c in range(3)]))


@pytest.mark.parametrize("task", [ONE, SEVERAL], ids=["one-label", "several"])
@pytest.mark.parametrize(
    "times, plus, method",
    [
        pytest.param(1.0, 0.0, "none", id="right-already"),
        pytest.param(3.0, 0.0, "temperature", id="too-sure"),
        pytest.param(1.0, np.array([1.5, -1.5, 0.0]), "vector", id="shifted"),
    ],
)
def test_the_simplest_method_that_wins_is_taken(task, times, plus, method):
    logits, labels = drawn(task, times=times, plus=plus)
    found, losses = fit(task, logits, labels)
    assert found.method == method and list(losses) == ["none", "temperature", "vector", "isotonic"]
    assert losses[method] == pytest.approx(min(losses.values()), abs=2e-3)


def test_a_bend_that_no_scale_mends_is_isotonic():
    """Right in the middle, and far too sure at both ends."""
    logits, labels = drawn(SEVERAL, n=8000)
    bent = np.sign(logits) * np.maximum(np.abs(logits), 40 * (np.abs(logits) > 1))
    assert fit(SEVERAL, bent, labels)[0].method == "isotonic"


def test_held_out_is_held_out():
    """Of labels that have nothing to do with the logits a curve learns nothing that holds for others."""
    logits = drawn(SEVERAL, n=300)[0]
    labels = (np.random.default_rng(5).random((300, 3)) < 0.5).astype(np.uint8)
    seen = loss_of(SEVERAL, _isotonic(SEVERAL, logits, labels).probabilities(SEVERAL, logits), labels).mean()
    unseen = loss_of(SEVERAL, held_out(SEVERAL, "isotonic", logits, labels), labels).mean()
    assert seen < np.log(2) < unseen


def test_too_few_examples():
    with pytest.raises(DataError, match="there are 49 labelled examples, and 50 are the least"):
        fit(ONE, *drawn(ONE, n=49))


def test_plain_data_and_back():
    logits, labels = drawn(SEVERAL, n=200)
    for found in (_temperature(SEVERAL, logits, labels), _vector(SEVERAL, logits, labels), _isotonic(SEVERAL, logits, labels)):
        again = Calibration.from_dict(found.to_dict())
        assert np.array_equal(again.probabilities(SEVERAL, logits), found.probabilities(SEVERAL, logits))

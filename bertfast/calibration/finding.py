"""The whole of it: from a model's logits on labelled examples to the calibration that is kept, with the figures that are to be expected of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from bertfast.calibration.fitting import FOLDS, fit, held_out
from bertfast.calibration.reliability import Reliability, reliability
from bertfast.calibration.thresholds import Abstention, Aim, Share, Threshold, abstention_of, threshold_of
from bertfast.errors import ConfigError, DataError, NonFiniteLossError
from bertfast.tasks import Calibration, Task, confidence


class Aims(NamedTuple):
    """What is wanted of the decisions: of each class a precision, a recall or the best F1; and of all answers at most a share that is wrong."""

    per_class: Aim | None = None
    risk: float | None = None


def find_calibration(task: Task, logits: np.ndarray, labels: np.ndarray, aims: Aims, seed: int = 0) -> Calibration:
    """The calibration by logits [n, C] and labels (class ids [n], or 0 and 1 [n, C]).

    Its figures are of examples that were held out in turn: the loss of every method, the expected calibration error as it was and as it is, and of every threshold
    the precision and recall that are to be expected, each with a 95 % interval.

    Raises:
        ConfigError: a regression has no probabilities; an aim that does not fit.
        DataError: too few examples, or an aim that no threshold reaches.
        NonFiniteLossError: logits that are NaN or infinite.
    """
    if task.is_regression:
        raise ConfigError(f"task {task.name} is a regression: its answers are numbers, and there are no probabilities to calibrate")
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise NonFiniteLossError(
            f"the logits of {len(broken)} of {len(logits)} examples are not finite; the first is example {broken[0]}, from 0: calibrate in bf16 or fp32"
        )
    found, losses = fit(task, logits, labels, seed)
    before, after = Calibration().probabilities(task, logits), held_out(task, found.method, logits, labels, seed)
    figures: dict[str, Any] = {
        "examples": len(labels),
        "folds": FOLDS,
        "held_out_loss": losses,
        "calibration_error": {
            name: _error(reliability(task, chances, labels, seed)) for name, chances in (("before", before), ("after", after))
        },
    }
    probabilities = found.probabilities(task, logits)
    if aims.per_class is not None:
        thresholds = _thresholds(task, probabilities, labels, aims.per_class, seed)
        figures["aim"] = {"of_each_class": aims.per_class.kind, "wanted": aims.per_class.wanted}
        figures["thresholds"] = {name: _expected(threshold) for name, threshold in thresholds.items()}
        found = replace(found, thresholds=tuple(threshold.value for threshold in thresholds.values()))
    if aims.risk is not None:
        abstention = _abstention(task, found, probabilities, labels, aims.risk, seed)
        figures["abstention"] = {"wanted_risk": aims.risk, "risk": _plain(abstention.risk), "answered": _plain(abstention.coverage)}
        found = replace(found, least_confidence=abstention.least_confidence)
    return replace(found, figures=figures)


def _thresholds(task: Task, probabilities: np.ndarray, labels: np.ndarray, aim: Aim, seed: int) -> dict[str, Threshold]:
    if aim.kind != "precision" and not task.is_multilabel:
        raise ConfigError(
            f"--{'best_f1' if aim.kind == 'f1' else aim.kind} is for several labels a text; of one label a text the most probable class is answered, and a "
            "threshold can but leave texts unanswered: ask for a --precision, or for a --risk"
        )
    found = {}
    for index, name in enumerate(task.class_names):
        total = None if task.is_multilabel else int((labels == index).sum())
        if task.is_multilabel:
            scores, truth = probabilities[:, index], labels[:, index] == 1
        else:
            chosen = probabilities.argmax(axis=1) == index
            scores, truth = probabilities[chosen, index], labels[chosen] == index
            if not len(scores):
                raise DataError(f"class {name}: is the answer to no labelled example, so no threshold can be found; give more examples")
        found[name] = threshold_of(scores, truth, aim, f"{'label' if task.is_multilabel else 'class'} {name}", seed, total)
    return found


def _abstention(task: Task, calibration: Calibration, probabilities: np.ndarray, labels: np.ndarray, risk: float, seed: int) -> Abstention:
    decided = replace(calibration, least_confidence=None)
    truth = labels == 1 if task.is_multilabel else np.eye(task.num_labels, dtype=bool)[labels]
    answered = decided.answered(task, probabilities)
    right = (decided.decisions(task, probabilities) == truth).all(axis=1)
    return abstention_of(confidence(task, probabilities)[answered], right[answered], risk, seed, len(labels))


def _error(found: Reliability) -> dict[str, Any]:
    return {"value": found.error, "low": found.low, "high": found.high, "bins": [part._asdict() for part in found.bins]}


def _expected(threshold: Threshold) -> dict[str, Any]:
    return {"threshold": threshold.value, "precision": _plain(threshold.precision), "recall": _plain(threshold.recall)}


def _plain(share: Share) -> dict[str, float | None]:
    """As JSON has it: no number where nothing was counted."""
    return {**share._asdict(), "value": None if math.isnan(share.value) else share.value}


def shown(calibration: Calibration) -> list[str]:
    """What was found, in lines for a person."""
    figures, said = (
        calibration.figures,
        {"none": "the probabilities as they are", "temperature": "temperature scaling", "vector": "vector scaling"},
    )
    losses = ", ".join(f"{method} {loss:.4f}" for method, loss in figures["held_out_loss"].items())
    lines = [f"by {figures['examples']:,} examples: {said.get(calibration.method, 'isotonic regression')} (held-out loss: {losses})"]
    errors = figures["calibration_error"]
    lines.append("expected calibration error: " + ", ".join(f"{name} {_share(errors[name])}" for name in ("before", "after")))
    for name, found in figures.get("thresholds", {}).items():
        lines.append(f"{name}: from {found['threshold']:.4f} on; precision {_share(found['precision'])}, recall {_share(found['recall'])}")
    if "abstention" in figures:
        found = figures["abstention"]
        lines.append(
            f"answered from a confidence of {calibration.least_confidence:.4f} on: {_share(found['answered'])} of the texts, of which {_share(found['risk'])} wrong"
        )
    return lines


def _share(found: dict[str, Any]) -> str:
    if found["value"] is None:
        return "unknown (nothing that was held out is answered)"
    return f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"

"""What a classifier answers to one text, the same from a torch model and from an exported file."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bertfast.tasks.calibrated import Calibration
from bertfast.tasks.task import Task


class Prediction(NamedTuple):
    """One answer. label: the name of the most probable class, None for a regression. score: its probability, or the regression's number. probabilities: by
    name. labels: the decision: the class alone, or of several labels a text each whose own probability is above one half (or its threshold), which may be none.
    answered: False where the model's calibration leaves a text without an answer; then there is no label in `labels`."""

    label: str | None
    score: float
    probabilities: dict[str, float]
    labels: tuple[str, ...] = ()
    answered: bool = True


def predictions_of(task: Task, logits: np.ndarray, calibration: Calibration) -> list[Prediction]:
    """The answers that logits [n, C] are."""
    if task.is_regression:
        return [Prediction(None, score, {}) for score in logits[:, 0].tolist()]
    names, chances = task.class_names, calibration.probabilities(task, logits)
    held, answered = calibration.decisions(task, chances).tolist(), calibration.answered(task, chances).tolist()
    best = chances.argmax(axis=1).tolist()
    return [
        Prediction(
            names[index],
            row[index],
            dict(zip(names, row, strict=True)),
            tuple(name for name, is_true in zip(names, marks, strict=True) if is_true),
            is_sure,
        )
        for index, row, marks, is_sure in zip(best, chances.tolist(), held, answered, strict=True)
    ]

"""Probabilities that were put right by labelled data, and decisions at thresholds: what `bertfast calibrate` found, and how it is applied.

Logits [n, C] become probabilities [n, C] by a softmax over the classes, or where a text has several labels by the sigmoid of each; before that they are
scaled and shifted, or after it they go through a curve that rises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bertfast.tasks.label_metrics import sigmoid
from bertfast.tasks.metrics import softmax
from bertfast.tasks.task import Task

METHODS = ("none", "temperature", "vector", "isotonic")
ONE_HALF = 0.5


@dataclass(frozen=True)
class Calibration:
    """How a model's logits are to be read.

    method: "none"; "temperature" (Guo et al. 2017): logits times one number; "vector": times a number for each class and plus another, which for several labels
    a text is Platt's scaling of each; "isotonic" (Zadrozny and Elkan 2002): each class's probability by a curve that rises. scale: one number or C. shift: none
    or C. curves: for each class the points x and y, between which it is a straight line. thresholds: the probability from which each class is answered; of several
    labels a text, from which each holds: left out, above one half. least_confidence: a text whose answer is less sure gets none.
    """

    method: str = "none"
    scale: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = ()
    curves: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()
    thresholds: tuple[float, ...] | None = None
    least_confidence: float | None = None
    figures: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def probabilities(self, task: Task, logits: np.ndarray) -> np.ndarray:
        """The probabilities [n, C], float64, of logits [n, C]."""
        logits = np.asarray(logits, dtype=np.float64)
        if self.method in ("temperature", "vector"):
            logits = logits * np.array(self.scale) + (np.array(self.shift) if self.shift else 0.0)
        chances = sigmoid(logits) if task.is_multilabel else softmax(logits)
        if self.method != "isotonic":
            return chances
        curved = np.stack([np.interp(column, *curve) for column, curve in zip(chances.T, self.curves, strict=True)], axis=1)
        if task.is_multilabel:
            return curved
        total = curved.sum(axis=1, keepdims=True)
        return np.where(total > 0, curved / np.maximum(total, np.finfo(np.float64).tiny), 1 / curved.shape[1])

    def decisions(self, task: Task, probabilities: np.ndarray) -> np.ndarray:
        """Which labels are the answer, bool [n, C]: the most probable class, or none where it is not probable enough; of several labels a text those that hold.

        A text that is not answered has none.
        """
        answered = self.answered(task, probabilities)[:, None]
        if task.is_multilabel:
            return answered & (probabilities > ONE_HALF if self.thresholds is None else probabilities >= np.array(self.thresholds))
        return answered & (np.arange(probabilities.shape[1]) == probabilities.argmax(axis=1)[:, None])

    def answered(self, task: Task, probabilities: np.ndarray) -> np.ndarray:
        """Of which texts an answer is given, bool [n]."""
        sure = np.ones(len(probabilities), dtype=bool)
        if self.least_confidence is not None:
            sure &= confidence(task, probabilities) >= self.least_confidence
        if self.thresholds is not None and not task.is_multilabel:
            sure &= probabilities.max(axis=1) >= np.array(self.thresholds)[probabilities.argmax(axis=1)]
        return sure

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for calibration.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """What `to_dict` gave. Raises KeyError, TypeError or ValueError for anything else."""
        curves = tuple((tuple(map(float, x)), tuple(map(float, y))) for x, y in values.get("curves", ()))
        thresholds, least = values.get("thresholds"), values.get("least_confidence")
        if values["method"] not in METHODS:
            raise ValueError(f"method is {values['method']!r}; it must be one of {', '.join(METHODS)}")
        return cls(
            values["method"],
            tuple(map(float, values.get("scale", (1.0,)))),
            tuple(map(float, values.get("shift", ()))),
            curves,
            None if thresholds is None else tuple(map(float, thresholds)),
            None if least is None else float(least),
            dict(values.get("figures", {})),
        )


AS_IT_IS = Calibration()  # what changes nothing


def confidence(task: Task, probabilities: np.ndarray) -> np.ndarray:
    """How sure an answer is [n]: the probability of the most probable class; of several labels a text that of the least sure of its labels."""
    return np.maximum(probabilities, 1 - probabilities).min(axis=1) if task.is_multilabel else probabilities.max(axis=1)

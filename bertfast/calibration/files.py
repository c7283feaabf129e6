"""calibration.json, beside the model that it is of."""

from __future__ import annotations

import json
import math
from pathlib import Path

from bertfast.errors import CheckpointError
from bertfast.storage import write_json
from bertfast.tasks import Calibration, Task

CALIBRATION_FILE = "calibration.json"


def write_calibration(folder: str | Path, calibration: Calibration) -> Path:
    """Write it into a model's folder, whole or not at all; returns its path."""
    path = Path(folder) / CALIBRATION_FILE
    write_json(path, calibration.to_dict())
    return path


def read_calibration(folder: str | Path, task: Task) -> Calibration:
    """That of a model's folder; where there is none, the one that changes nothing.

    Raises:
        CheckpointError: the file is none, or of a model with another number of classes.
    """
    path = Path(folder) / CALIBRATION_FILE
    if task.is_regression or not path.is_file():
        return Calibration()
    again = "delete it, or run bertfast calibrate again"
    try:
        found = Calibration.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {again}") from None
    count = task.num_labels
    wanted = {"none": (1, 0, 0), "temperature": (1, 0, 0), "vector": (count, count, 0), "isotonic": (1, 0, count)}[found.method]
    sizes = (len(found.scale), len(found.shift), len(found.curves))
    if sizes != wanted or (found.thresholds is not None and len(found.thresholds) != count):
        raise CheckpointError(f"{path}: does not fit this model of {count} classes, so it may be of another; {again}")
    points = [value for curve in found.curves for side in curve for value in side]
    numbers = [*found.scale, *found.shift, *points, *(found.thresholds or ()), found.least_confidence or 0.0]
    if not all(map(math.isfinite, numbers)) or any(not x or len(x) != len(y) for x, y in found.curves):
        raise CheckpointError(f"{path}: holds a number that is none, or a curve without points; {again}")
    return found

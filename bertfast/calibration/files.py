"""calibration.json, beside the model that it is of."""

from __future__ import annotations

import json
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
    sizes = {len(found.scale), len(found.shift), len(found.curves), 0 if found.thresholds is None else len(found.thresholds)}
    if not sizes <= {0, 1, task.num_labels}:
        raise CheckpointError(f"{path}: is of another model, with {max(sizes)} classes; this one has {task.num_labels}: {again}")
    return found

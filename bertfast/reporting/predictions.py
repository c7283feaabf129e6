"""Predictions out: GLUE's submission format, or JSON lines with probabilities.

n examples, C classes (1 for regression).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np

from bertfast.errors import ConfigError, NonFiniteLossError
from bertfast.storage import replacing
from bertfast.tasks import Task, softmax

# What GLUE's server wants the files of a submission to be called (gluebenchmark.com/faq), by task and split.
_OFFICIAL_NAMES = {
    ("cola", "test"): "CoLA",
    ("sst2", "test"): "SST-2",
    ("mrpc", "test"): "MRPC",
    ("stsb", "test"): "STS-B",
    ("qqp", "test"): "QQP",
    ("mnli", "test_matched"): "MNLI-m",
    ("mnli", "test_mismatched"): "MNLI-mm",
    ("qnli", "test"): "QNLI",
    ("rte", "test"): "RTE",
    ("wnli", "test"): "WNLI",
    ("ax", "test"): "AX",
}
_NUMBERED = ("cola", "sst2", "mrpc", "qqp", "wnli")  # GLUE wants their classes as numbers, those of the other tasks as names


def output_name(task: Task, split: str, format: str) -> str:
    """The name of a split's file in an output folder: GLUE's own where it has one, else task and split."""
    stem = _OFFICIAL_NAMES.get((task.name, split), task.name if split == "test" else f"{task.name}-{split}")
    return f"{stem}.{'tsv' if format == 'glue' else 'jsonl'}"


def choose_format(format: str | None, output: str | None) -> str:
    """The format asked for, or the one that the output's name implies: glue for a folder or a .tsv, jsonl for the rest."""
    if format is not None:
        return format
    return "glue" if output is not None and (Path(output).suffix == ".tsv" or is_folder(output)) else "jsonl"


def is_folder(output: str) -> bool:
    """Whether an output means a folder: one that is there, or a name that ends in a slash."""
    return output.endswith("/") or Path(output).is_dir()


def write_predictions(path: str | Path, task: Task, logits: np.ndarray, format: str) -> None:
    """Write the predictions of logits [n, C] to a file, whole or not at all; see `prediction_lines`."""
    lines = prediction_lines(task, logits, format)
    with replacing(path) as file:
        write_lines(file, lines)


def write_lines(file: TextIO, lines: Iterator[str]) -> None:
    """Write lines to an open file."""
    for line in lines:
        file.write(f"{line}\n")


@contextmanager
def clean_stdout() -> Iterator[TextIO]:
    """Standard output for the block's own lines alone: what anything else prints there, C++ libraries included, goes to standard error."""
    sys.stdout.flush()
    with open(os.dup(1), "w", encoding="utf-8", newline="\n") as ours:
        os.dup2(2, 1)
        try:
            yield ours
        finally:
            sys.stdout.flush()
            ours.flush()
            os.dup2(ours.fileno(), 1)


def prediction_lines(task: Task, logits: np.ndarray, format: str) -> Iterator[str]:
    """The lines of a prediction file for logits [n, C], one a row in order, counted from 0.

    glue: a header and `index<TAB>prediction`; classes as GLUE wants them (names for mnli, ax, qnli and rte, numbers for its other tasks),
    names for any other task; stsb with 3 decimals, held within 0 and 5. jsonl: `{"index", "prediction", "probabilities": {label: p}}`, with
    a number and no probabilities for regression.

    Raises:
        ConfigError: a label name that holds a tab or a line break, which the glue format cannot write.
        NonFiniteLossError: naming the first row whose logits are NaN or infinite.
    """
    logits = np.asarray(logits, dtype=np.float64)
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise NonFiniteLossError(f"the logits of {len(broken)} of {len(logits)} rows are not finite; the first is row {broken[0]}, from 0")
    return _glue_lines(task, logits) if format == "glue" else _json_lines(task, logits)


def _glue_lines(task: Task, logits: np.ndarray) -> Iterator[str]:
    if task.is_regression:
        scores = logits[:, 0]
        predictions = (
            [f"{score:.3f}" for score in np.clip(scores, 0, 5) + 0.0] if task.name == "stsb" else [f"{score:.6g}" for score in scores]
        )
    else:
        names = [str(index) for index in range(task.num_labels)] if task.name in _NUMBERED else list(task.class_names)
        for name in names:
            if set(name) & set("\t\r\n"):
                raise ConfigError(
                    f"--format glue: the label name {name!r} holds a tab or a line break, which a TSV cannot; use --format jsonl"
                )
        predictions = [names[index] for index in logits.argmax(axis=1)]
    return iter(["index\tprediction", *(f"{index}\t{prediction}" for index, prediction in enumerate(predictions))])


def _json_lines(task: Task, logits: np.ndarray) -> Iterator[str]:
    if task.is_regression:
        for index, score in enumerate(logits[:, 0].tolist()):
            yield json.dumps({"index": index, "prediction": round(score, 6)})
        return
    names = task.class_names
    probabilities = softmax(logits).round(6)
    for index, (best, row) in enumerate(zip(logits.argmax(axis=1).tolist(), probabilities.tolist(), strict=True)):
        record = {"index": index, "prediction": names[best], "probabilities": dict(zip(names, row, strict=True))}
        yield json.dumps(record, ensure_ascii=False)

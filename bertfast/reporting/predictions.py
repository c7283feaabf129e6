"""Predictions out: GLUE's submission format, JSON lines with probabilities, or the input's own table with the answers beside it (`tables`).

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
from bertfast.reporting.tables import Given, delimited_lines, write_parquet
from bertfast.storage import replacing
from bertfast.tasks import AS_IT_IS, Calibration, Task

FORMATS = ("csv", "tsv", "parquet", "jsonl", "glue")
_BY_SUFFIX = {".csv": "csv", ".tsv": "glue", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}

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
    return f"{stem}.{'tsv' if format == 'glue' else format}"


def choose_format(format: str | None, output: str | None) -> str:
    """The format asked for, or the one that the output's name implies: glue for a folder or a .tsv, csv and parquet for files of that name, jsonl
    for a .jsonl or .json, and where there is no suffix, as of standard output.

    Raises:
        ConfigError: a suffix that implies none.
    """
    if format is not None:
        return format
    if output is not None and is_folder(output):
        return "glue"
    suffix = "" if output is None or (Path(output).exists() and not Path(output).is_file()) else Path(output).suffix
    if suffix and suffix.lower() not in _BY_SUFFIX:
        raise ConfigError(
            f"--output {output}: no format is known by the suffix {suffix!r}; give a name that ends in {', '.join(_BY_SUFFIX)}, "
            f"or say with --format which is meant: {', '.join(FORMATS)}"
        )
    return _BY_SUFFIX.get(suffix.lower(), "jsonl")


def is_folder(output: str) -> bool:
    """Whether an output means a folder: one that is there, or a name that ends in a slash."""
    return output.endswith("/") or Path(output).is_dir()


def write_predictions(
    path: str | Path, task: Task, logits: np.ndarray, format: str, given: Given | None = None, calibration: Calibration = AS_IT_IS
) -> None:
    """Write the predictions of logits [n, C] to a file, whole or not at all; see `write_to`."""
    with replacing(path) as file:
        write_to(file, task, logits, format, given, calibration)


def write_to(
    file: TextIO, task: Task, logits: np.ndarray, format: str, given: Given | None = None, calibration: Calibration = AS_IT_IS
) -> None:
    """Write the predictions of logits [n, C] to an open file, one a row in order, as `calibration` reads them.

    glue, jsonl: see `prediction_lines`. csv, tsv, parquet: the columns of `given` (left out: `index`, from 0), and after them `prediction`, and for each class
    `probability_NAME`, rounded to 6 digits; for a regression its number alone. Of several labels a text `prediction` holds all those that hold: in Parquet as a
    list, in text joined by task.label_separator ("|" without one), or as a JSON list where a name holds it. What a threshold leaves unanswered is empty (null in
    JSON and Parquet). A name that is taken already gets "_2".

    Raises:
        ConfigError: what a format cannot write: a tab or a line break in a name for glue, or anywhere for tsv.
        NonFiniteLossError: naming the first row whose logits are NaN or infinite.
    """
    if format in ("glue", "jsonl"):
        file.writelines(f"{line}\n" for line in prediction_lines(task, logits, format, calibration))
        return
    logits = _finite(logits)
    table, answers = given or Given(("index",), ([index] for index in range(len(logits)))), _answers(task, logits, calibration)
    if format != "parquet" and not task.is_regression:
        answers["prediction"] = _in_text(task, answers["prediction"])
    if format == "parquet":
        write_parquet(file.buffer, table, answers)
    else:
        file.writelines(delimited_lines(table, answers, format))


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


def prediction_lines(task: Task, logits: np.ndarray, format: str, calibration: Calibration = AS_IT_IS) -> Iterator[str]:
    """The lines of a prediction file for logits [n, C], one a row in order, counted from 0.

    glue: a header and `index<TAB>prediction`; classes as GLUE wants them (names for mnli, ax, qnli and rte, numbers for its other tasks),
    names for any other task; stsb with 3 decimals, held within 0 and 5. jsonl: `{"index", "prediction", "probabilities": {label: p}}`, with
    a number and no probabilities for regression. Of several labels a text, jsonl has a list of those that hold, and each a probability of its own.

    Raises:
        ConfigError: a label name that holds a tab or a line break, which the glue format cannot write.
        NonFiniteLossError: naming the first row whose logits are NaN or infinite.
    """
    logits = _finite(logits)
    return _glue_lines(task, logits, calibration) if format == "glue" else _json_lines(task, logits, calibration)


def _finite(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, dtype=np.float64)
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise NonFiniteLossError(f"the logits of {len(broken)} of {len(logits)} rows are not finite; the first is row {broken[0]}, from 0")
    return logits


def _answers(task: Task, logits: np.ndarray, calibration: Calibration) -> dict[str, list]:
    """What a table gets beside its own columns, by name: float64 logits [n, C] -> n values each."""
    if task.is_regression:
        return {"prediction": logits[:, 0].round(6).tolist()}
    chances = calibration.probabilities(task, logits)
    by_class = {f"probability_{name}": column.tolist() for name, column in zip(task.class_names, chances.round(6).T, strict=True)}
    decisions = _decisions(task, chances, calibration)
    told = (
        task.is_multilabel and calibration.least_confidence is not None
    )  # no label holds, or no answer is given: a field would look the same
    return {"prediction": decisions, **({"answered": [one is not None for one in decisions]} if told else {}), **by_class}


def _decisions(task: Task, chances: np.ndarray, calibration: Calibration) -> list:
    """The name of each row's class, or a list of the labels that hold; None where it is not answered."""
    names, answered = task.class_names, calibration.answered(task, chances).tolist()
    if not task.is_multilabel:
        return [names[best] if is_sure else None for best, is_sure in zip(chances.argmax(axis=1), answered, strict=True)]
    held = calibration.decisions(task, chances).tolist()
    return [
        [name for name, is_true in zip(names, row, strict=True) if is_true] if is_sure else None
        for row, is_sure in zip(held, answered, strict=True)
    ]


def _in_text(task: Task, decisions: list) -> list[str]:
    """Answers as one field each: a name, or labels as the readers take them back; nothing where there is none."""
    separator = task.label_separator or "|"
    if not task.is_multilabel:
        return [name or "" for name in decisions]
    if any(separator in name or name.startswith("[") for name in task.class_names):
        return ["" if labels is None else json.dumps(labels, ensure_ascii=False) for labels in decisions]
    return [separator.join(labels or ()) for labels in decisions]


def _glue_lines(task: Task, logits: np.ndarray, calibration: Calibration) -> Iterator[str]:
    if task.is_regression:
        scores = logits[:, 0]
        predictions = (
            [f"{score:.3f}" for score in np.clip(scores, 0, 5) + 0.0] if task.name == "stsb" else [f"{score:.6g}" for score in scores]
        )
    else:
        names = [str(index) for index in range(task.num_labels)] if task.name in _NUMBERED else list(task.class_names)
        for name in (*names, *([task.label_separator or ""] if task.is_multilabel else [])):
            if set(name) & set("\t\r\n"):
                raise ConfigError(
                    f"--format glue: the label name {name!r} holds a tab or a line break, which a TSV cannot; use --format jsonl"
                )
        chances = calibration.probabilities(task, logits)
        if task.is_multilabel:
            predictions = _in_text(task, _decisions(task, chances, calibration))
        else:  # each row is answered: GLUE's server takes no gaps
            predictions = [names[index] for index in chances.argmax(axis=1)]
    return iter(["index\tprediction", *(f"{index}\t{prediction}" for index, prediction in enumerate(predictions))])


def _json_lines(task: Task, logits: np.ndarray, calibration: Calibration) -> Iterator[str]:
    if task.is_regression:
        for index, score in enumerate(logits[:, 0].tolist()):
            yield json.dumps({"index": index, "prediction": round(score, 6)})
        return
    names, chances = task.class_names, calibration.probabilities(task, logits)
    for index, (decision, row) in enumerate(zip(_decisions(task, chances, calibration), chances.round(6).tolist(), strict=True)):
        record = {"index": index, "prediction": decision, "probabilities": dict(zip(names, row, strict=True))}
        yield json.dumps(record, ensure_ascii=False)

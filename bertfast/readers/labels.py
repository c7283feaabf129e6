"""Labels as files spell them (names, numbers, text) -> class ids or scores.

All labels of a split are gathered first, as text: each distinct spelling once, and a code for each row. So a rule that depends on the whole
column (is it regression? do the classes count from 0 or from 1?) is decided once, and a fault is named with the first row that has it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np

from bertfast.errors import DataError
from bertfast.tasks import Task

MAX_INFERRED_CLASSES = 1000  # more than these are no classes but a wrong column, unless label_names says otherwise
_INTEGER = re.compile(r"[+-]?[0-9]+")
_WHOLE_FLOAT = re.compile(r"([+-]?[0-9]+)\.0*")  # how pandas writes an integer column that once held a gap


class LabelTable:
    """The labels of a split, gathered block by block."""

    def __init__(self) -> None:
        self._codes: list[np.ndarray] = []
        self._spellings: dict[str, int] = {}

    def add(self, labels: list[str]) -> None:
        known = self._spellings
        self._codes.append(np.array([known.setdefault(label, len(known)) for label in labels], dtype=np.int32))

    def resolve(
        self, task: Task, where: Callable[[int], str], first_label: int = 0, hidden: bool = False
    ) -> tuple[Task, np.ndarray | None]:
        """The task, completed, and the labels: int32 class ids, or float32 scores.

        where(i) names row i in messages. first_label: the number of the first class in this file. hidden: labels that are all
        -1, as in test data whose labels are withheld, count as none.

        Raises:
            DataError: naming the first row whose label is empty, unknown, out of range, NaN or no number.
        """
        codes = np.concatenate(self._codes)
        spellings = [spelling.strip() for spelling in self._spellings]
        if hidden and set(spellings) <= {"-1", "-1.0"}:
            return task, None

        def place(code: int) -> str:
            return where(int(np.argmax(codes == code)))

        for code, spelling in enumerate(spellings):
            if not spelling:
                raise DataError(f"{place(code)}: the label is empty; every row needs one")
        if not task.is_complete:
            task = task.with_labels(_infer(task, spellings, place))
        values = _scores(spellings, place) if task.is_regression else _class_ids(task, spellings, place, first_label)
        return task, values[codes]


def _infer(task: Task, spellings: list[str], place: Callable[[int], str]) -> tuple[str, ...] | None:
    """The class names that these labels imply, or None where they are scores of a regression."""
    if all(_INTEGER.fullmatch(spelling) for spelling in spellings):
        numbers = [int(spelling) for spelling in spellings]
        if min(numbers) < 0:
            code = numbers.index(min(numbers))
            raise DataError(
                f"{place(code)}: the label is {numbers[code]}; classes are numbered from 0 (for regression write {numbers[code]}.0)"
            )
        names = [str(number) for number in range(min(max(numbers), MAX_INFERRED_CLASSES) + 1)]
    elif all(_is_number(spelling) for spelling in spellings):
        return None
    else:
        for code, spelling in enumerate(spellings):
            if spelling.lower() == "nan":
                raise DataError(f"{place(code)}: the label is NaN; every row needs one (a class of that name must stand in label_names)")
        names = sorted(set(spellings))
    if len(names) > MAX_INFERRED_CLASSES:
        raise DataError(
            f"{place(0)}: column {task.label_column!r} seems to hold more than {MAX_INFERRED_CLASSES} classes; if it is the right column, "
            "give label_names, or write scores with a decimal point for regression"
        )
    if len(names) < 2:
        raise DataError(f"{place(0)}: every label is {spellings[0]!r}, and a classifier needs two classes; give label_names")
    return tuple(names)


def _scores(spellings: list[str], place: Callable[[int], str]) -> np.ndarray:
    values = []
    for code, spelling in enumerate(spellings):
        if not _is_number(spelling):
            raise DataError(f"{place(code)}: the label {spelling!r} is not a number, and this is regression")
        values.append(float(spelling))
        if not math.isfinite(values[-1]):
            raise DataError(f"{place(code)}: the label is {spelling}; a score must be a finite number")
    return np.array(values, dtype=np.float32)


def _class_ids(task: Task, spellings: list[str], place: Callable[[int], str], first_label: int) -> np.ndarray:
    """A label is a name, or the number of a class. Where a name is itself a whole number, all are names: "1" cannot be both."""
    names = {name: index for index, name in enumerate(task.class_names)}
    numbers_are_names = any(_INTEGER.fullmatch(name) for name in names)
    if "0" in spellings:
        first_label = 0  # the file numbers its classes from 0, as the hub's copies of the Zhang sets do
    values = []
    for code, spelling in enumerate(spellings):
        value = names.get(spelling)
        number = _whole_number(spelling)
        if value is None and number is not None and not numbers_are_names:
            value = number - first_label
        elif value is None and number is not None:
            value = names.get(str(number))
        if value is None or not 0 <= value < len(names):
            raise DataError(f"{place(code)}: {_unknown(spelling, task.class_names, first_label, numbers_are_names)}")
        values.append(value)
    return np.array(values, dtype=np.int32)


def _unknown(spelling: str, names: tuple[str, ...], first_label: int, numbers_are_names: bool) -> str:
    shown = ", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    numbers = "" if numbers_are_names else f" (or their numbers, {first_label} to {first_label + len(names) - 1})"
    return f"unknown label {spelling!r}; the labels are {shown}{numbers}"


def _whole_number(spelling: str) -> int | None:
    match = _INTEGER.fullmatch(spelling) or _WHOLE_FLOAT.fullmatch(spelling)
    return int(match.group(match.lastindex or 0)) if match else None


def _is_number(spelling: str) -> bool:
    try:
        float(spelling)
    except ValueError:
        return False
    return "_" not in spelling

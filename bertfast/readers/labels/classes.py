"""Labels as files spell them (names, numbers, text) -> class ids or scores.

All labels of a split are gathered first, as text: each distinct spelling once, and a code for each row. So a rule that depends on the whole
column (are these classes or scores? do they count from 0 or from 1?) is decided once, and a fault is named with the first row that has it.

What is written is what is read: "001" and "1" are two classes. Blanks around a label are no part of it, and where all labels are whole
numbers, "1.0" is the class "1": pandas writes a column of integers so that once held a gap.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from bertfast.errors import ConfigError, DataError
from bertfast.tasks import Task
from bertfast.wording import counted

MAX_INFERRED_CLASSES = 1000  # more than these are no classes but a wrong column, unless the config says otherwise
_FEW_CLASSES = 20  # up to so many, a class may have one row: a file that someone tries things out with
_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}")  # Python's int takes 4,300 digits
_WHOLE_FLOAT = re.compile(r"([+-]?[0-9]{1,4000})\.0*")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_NO_NUMBER = (
    "na",
    "n/a",
    "#n/a",
    "nan",
    "null",
    "none",
    "nil",
    "inf",
    "-inf",
    "+inf",
    "infinity",
    "-infinity",
)  # what stands where one lacks
_TRUTHS = {"true": 1, "false": 0}

Place = Callable[[int], str]  # the code of a spelling -> the first row that has it, for messages


class LabelTable:
    """The labels of a split, gathered block by block."""

    def __init__(self) -> None:
        self._codes: list[np.ndarray] = []
        self._spellings: dict[str, int] = {}

    def add(self, labels: list[str]) -> None:
        known = self._spellings
        self._codes.append(np.array([known.setdefault(label, len(known)) for label in labels], dtype=np.int32))

    def resolve(
        self,
        task: Task,
        where: Callable[[int], str],
        first_label: int = 0,
        hidden: bool = False,
        names_of_file: tuple[str, ...] | None = None,
    ) -> tuple[Task, np.ndarray | None]:
        """The task, completed, and the labels: int32 class ids, or float32 scores.

        where(i) names row i in messages. first_label: the number of the first class in this file. hidden: labels that are all
        -1, as in test data whose labels are withheld, count as none. names_of_file: what the file itself calls the classes 0, 1, 2...

        Raises:
            DataError: naming the first row whose label is empty, unknown, out of range, NaN or no number; or labels of which it is open whether
                they are classes or scores.
            ConfigError: a metric that does not fit the labels.
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
        if names_of_file is not None and not task.is_regression and (not task.is_complete or set(names_of_file) <= set(task.class_names)):
            spellings = _named(spellings, names_of_file, place)
            task = task if task.is_complete else task.with_labels(names_of_file)
        if not task.is_complete:
            task = task.with_labels(_infer(task, spellings, len(codes), place))
        values = _scores(spellings, place) if task.is_regression else _class_ids(task, spellings, place, first_label)
        return task, values[codes]


def _named(spellings: list[str], names: tuple[str, ...], place: Place) -> list[str]:
    """The classes' names in the place of the numbers that the file gives them."""
    for code, spelling in enumerate(spellings):
        if not 0 <= int(spelling) < len(names):
            raise DataError(
                f"{place(code)}: the label is {spelling}, but the file itself names {len(names)} classes, 0 to {len(names) - 1} "
                f"({', '.join(names[:8])}); leave out the rows without a label"
            )
    return [names[int(spelling)] for spelling in spellings]


def _infer(task: Task, spellings: list[str], n_rows: int, place: Place) -> tuple[str, ...] | None:
    """The class names that these labels imply, or None where they are scores of a regression."""
    _check_values_are_there(spellings, place)
    whole = [_whole_number(spelling) for spelling in spellings]
    if None not in whole:
        written_whole = all(_INTEGER.fullmatch(spelling) for spelling in spellings)
        if not written_whole and task.kind is None and not task.main_metric:
            return None
        names = sorted(set(map(_class_name, spellings)), key=lambda name: (int(name), name))
        if task.kind is None and int(names[0]) < 0:
            code = next(code for code, spelling in enumerate(spellings) if _class_name(spelling) == names[0])
            raise DataError(
                f"{place(code)}: the label is {names[0]}: is it a class, a score, or no label? task.kind = 'classification' or "
                "'regression' says which; rows without a label are to be left out"
            )
    elif all(_is_number(spelling) for spelling in spellings):
        if task.kind is None and not task.main_metric:
            return None
        code = whole.index(None)
        if task.kind is None:
            raise ConfigError(
                f"task {task.name}: metric = {task.main_metric!r} is of classes, but {place(code)} has the label {spellings[code]}; choose a "
                f"metric of regression, or set task.kind = 'classification' if such numbers are classes"
            )
        names = sorted(set(spellings), key=lambda name: (float(name), name))
    else:
        names = sorted(set(spellings))
    _check_these_are_classes(task, names, spellings, n_rows, place)
    return tuple(names)


def _check_values_are_there(spellings: list[str], place: Place) -> None:
    """Refuse "NA" and its like among numbers. Among names it may be one: NA is North America too. "nan" is never taken for a name."""
    strange = [spelling.lower() in _NO_NUMBER for spelling in spellings]
    others = [spelling for spelling, is_strange in zip(spellings, strange, strict=True) if not is_strange]
    among_numbers = bool(others) and all(map(_is_number, others))
    for code, spelling in enumerate(spellings):
        if spelling.lower() == "nan" or (among_numbers and strange[code]):
            shown = f"{spelling}, where the others are numbers" if among_numbers else "NaN"
            raise DataError(f"{place(code)}: the label is {shown}; every row needs one (a class of that name must stand in label_names)")


def _check_these_are_classes(task: Task, names: list[str], spellings: list[str], n_rows: int, place: Place) -> None:
    if len(names) < 2:
        raise DataError(f"{place(0)}: every label is {spellings[0]!r}, and a classifier needs two classes; give label_names")
    if task.kind is not None:
        return
    say = "task.kind = 'classification' (or 'regression', if they are scores) says that it is the right column"
    if len(names) > MAX_INFERRED_CLASSES:
        raise DataError(f"{place(0)}: column {task.label_column!r} seems to hold more than {MAX_INFERRED_CLASSES} classes; {say}")
    if len(names) > _FEW_CLASSES and n_rows < 2 * len(names):
        raise DataError(
            f"{place(0)}: column {task.label_column!r} holds {len(names)} different labels in {counted(n_rows, 'row')}, as a column of ids "
            f"does; {say}"
        )


def _scores(spellings: list[str], place: Place) -> np.ndarray:
    values = []
    for code, spelling in enumerate(spellings):
        if spelling.lower().lstrip("+-") in ("nan", "inf", "infinity"):
            raise DataError(f"{place(code)}: the label is {spelling}; a score must be a finite number")
        if not _is_number(spelling):
            raise DataError(f"{place(code)}: the label {spelling!r} is not a number, and this is regression")
        values.append(float(spelling))
        if abs(values[-1]) > float(np.finfo(np.float32).max):
            raise DataError(f"{place(code)}: the label is {spelling}, too large for a number of 32 bits; scale the scores")
    return np.array(values, dtype=np.float32)


def _class_ids(task: Task, spellings: list[str], place: Place, first_label: int) -> np.ndarray:
    """A label is a name, or the number of a class. Where a name is itself a number, all are names: "1" cannot be both."""
    names = {name: index for index, name in enumerate(task.class_names)}
    alike = {_class_name(name): index for name, index in names.items()}
    numbers_are_names = any(map(_is_number, names))
    if "0" in spellings:
        first_label = 0  # the file numbers its classes from 0, as the hub's copies of the Zhang sets do
    values = []
    for code, spelling in enumerate(spellings):
        value = names.get(spelling, alike.get(_class_name(spelling)))
        if value is None and spelling.lower() in _TRUTHS:
            value = _index_of_truth(spelling, alike, numbers_are_names)
        number = _whole_number(spelling)
        if value is None and number is not None and not numbers_are_names:
            value = number - first_label
        if value is None or not 0 <= value < len(names):
            raise DataError(f"{place(code)}: {_unknown(spelling, task.class_names, first_label, numbers_are_names)}")
        values.append(value)
    return np.array(values, dtype=np.int32)


def _index_of_truth(spelling: str, names: dict[str, int], numbers_are_names: bool) -> int | None:
    """The class of true or false, as JSON, Parquet and pandas write it: that of the name in other capitals, or that of 1 or 0."""
    index = next((index for name, index in names.items() if name.lower() == spelling.lower()), None)
    number = _TRUTHS[spelling.lower()]
    return index if index is not None else names.get(str(number)) if numbers_are_names else number if len(names) == 2 else None


def _unknown(spelling: str, names: tuple[str, ...], first_label: int, numbers_are_names: bool) -> str:
    shown = ", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    numbers = "" if numbers_are_names else f" (or their numbers, {first_label} to {first_label + len(names) - 1})"
    return f"unknown label {spelling!r}; the labels are {shown}{numbers}"


def _class_name(spelling: str) -> str:
    """A class as it is written, save that a whole number has no decimal point."""
    match = _WHOLE_FLOAT.fullmatch(spelling)
    return match.group(1) if match else spelling


def _whole_number(spelling: str) -> int | None:
    name = _class_name(spelling)
    return int(name) if _INTEGER.fullmatch(name) else None


def _is_number(spelling: str) -> bool:
    return _NUMBER.fullmatch(spelling) is not None

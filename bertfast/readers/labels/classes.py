"""One label a text: spellings -> class ids or scores.

What is written is what is read: "001" and "1" are two classes. Blanks around a label are no part of it, and where all labels are whole
numbers, "1.0" is the class "1": pandas writes a column of integers so that once held a gap.
"""

from __future__ import annotations

import numpy as np

from bertfast.errors import ConfigError, DataError
from bertfast.readers.labels.spellings import Place, class_name, is_integer, is_number, whole_number
from bertfast.tasks import Task
from bertfast.wording import counted

MAX_INFERRED_CLASSES = 1000  # more than these are no classes but a wrong column, unless the config says otherwise
_FEW_CLASSES = 20  # up to so many, a class may have one row: a file that someone tries things out with
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


def named(spellings: list[str], names: tuple[str, ...], place: Place) -> list[str]:
    """The classes' names in the place of the numbers that the file gives them."""
    for code, spelling in enumerate(spellings):
        if not 0 <= int(spelling) < len(names):
            raise DataError(
                f"{place(code)}: the label is {spelling}, but the file itself names {len(names)} classes, 0 to {len(names) - 1} "
                f"({', '.join(names[:8])}); leave out the rows without a label"
            )
    return [names[int(spelling)] for spelling in spellings]


def infer_classes(task: Task, spellings: list[str], n_rows: int, place: Place) -> tuple[str, ...] | None:
    """The class names that these labels imply, or None where they are scores of a regression."""
    _check_values_are_there(spellings, place)
    whole = [whole_number(spelling) for spelling in spellings]
    if None not in whole:
        written_whole = all(is_integer(spelling) for spelling in spellings)
        if not written_whole and task.kind is None and not task.main_metric:
            return None
        names = sorted(set(map(class_name, spellings)), key=lambda name: (int(name), name))
        if task.kind is None and int(names[0]) < 0:
            code = next(code for code, spelling in enumerate(spellings) if class_name(spelling) == names[0])
            raise DataError(
                f"{place(code)}: the label is {names[0]}: is it a class, a score, or no label? task.kind = 'classification' or "
                "'regression' says which; rows without a label are to be left out"
            )
    elif all(is_number(spelling) for spelling in spellings):
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
    among_numbers = bool(others) and all(map(is_number, others))
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


def scores(spellings: list[str], place: Place) -> np.ndarray:
    values = []
    for code, spelling in enumerate(spellings):
        if spelling.lower().lstrip("+-") in ("nan", "inf", "infinity"):
            raise DataError(f"{place(code)}: the label is {spelling}; a score must be a finite number")
        if not is_number(spelling):
            raise DataError(f"{place(code)}: the label {spelling!r} is not a number, and this is regression")
        values.append(float(spelling))
        if abs(values[-1]) > float(np.finfo(np.float32).max):
            raise DataError(f"{place(code)}: the label is {spelling}, too large for a number of 32 bits; scale the scores")
    return np.array(values, dtype=np.float32)


def class_ids(task: Task, spellings: list[str], place: Place, first_label: int) -> np.ndarray:
    """A label is a name, or the number of a class. Where a name is itself a number, all are names: "1" cannot be both."""
    names = {name: index for index, name in enumerate(task.class_names)}
    alike = {class_name(name): index for name, index in names.items()}
    numbers_are_names = any(map(is_number, names))
    if "0" in spellings:
        first_label = 0  # the file numbers its classes from 0, as the hub's copies of the Zhang sets do
    values = []
    for code, spelling in enumerate(spellings):
        value = names.get(spelling, alike.get(class_name(spelling)))
        if value is None and spelling.lower() in _TRUTHS:
            value = _index_of_truth(spelling, alike, numbers_are_names)
        number = whole_number(spelling)
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

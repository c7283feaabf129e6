"""Several labels a text: spellings -> which labels each names -> rows of 0 and 1.

Files write them in three ways: as a list (in JSONL and Parquet, or within a field of a CSV, as pandas writes one), as names with a separator between
them, or as a column of 0 and 1 for each label. No label at all is an answer too: an empty list, an empty field, or zeros alone.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bertfast.errors import ConfigError, DataError
from bertfast.readers.labels.classes import MAX_INFERRED_CLASSES, class_ids
from bertfast.readers.labels.spellings import Place, class_name, is_number, sorted_names, whole_number
from bertfast.tasks import Task

SEPARATORS = ("|", ";", ",")  # what is looked for where the task names none
_MARKS = {"0": False, "1": True, "false": False, "true": True}
_WITHOUT_COMMAS = re.compile(r"""['"]\s+['"]""")  # of a list as numpy prints it, which Python reads as one long name

Label = str | tuple[str, ...]  # a field; or a list of labels, or of the marks in the columns of each


def label_rows(
    task: Task, spellings: Sequence[Label], place: Place, first_label: int = 0, names_of_file: tuple[str, ...] | None = None
) -> tuple[Task, np.ndarray]:
    """The task, completed, and for each spelling a row of 0 and 1, uint8 [spellings, C]. Arguments as of `LabelTable.resolve`.

    Raises:
        DataError: naming the first row with a list or a mark that cannot be read, a label that is unknown, or NaN.
        ConfigError: it is open what separates the labels; see `Task.with_labels` too.
    """
    if task.label_columns:
        names = task.class_names
        sets = [_marked(spelling, names, task.label_columns, place, code) for code, spelling in enumerate(spellings)]
    else:
        task, sets = _parted(task, spellings, place)
    flat = {
        name: code for code, labels in reversed(list(enumerate(sets))) for name in labels
    }  # each label, and the first spelling that has it
    known = list(flat)

    def of_label(index: int) -> str:
        return place(flat[known[index]])

    for index, name in enumerate(known):
        if name.lower() == "nan":
            raise DataError(f"{of_label(index)}: a label is NaN; leave out what is missing: a text may have no label at all")
    ids = {name: name for name in known}
    is_own = names_of_file is not None and (not task.is_complete or set(names_of_file) <= set(task.class_names))
    if names_of_file is not None and is_own and all(whole_number(name) is not None for name in known):
        ids = {name: _of_file(name, names_of_file, of_label, index) for index, name in enumerate(known)}
        task = task if task.is_complete else task.with_labels(names_of_file)
    if not task.is_complete:
        task = task.with_labels(_inferred(task, known, place))
    rows = np.zeros((len(spellings), task.num_labels), dtype=np.uint8)
    if known:
        columns = dict(zip(known, class_ids(task, list(ids.values()), of_label, first_label).tolist(), strict=True))
        for row, labels in zip(rows, sets, strict=True):
            row[[columns[name] for name in labels]] = 1
    return task, rows


def _of_file(name: str, names: tuple[str, ...], place: Place, index: int) -> str:
    number = whole_number(name)
    if number is None or not 0 <= number < len(names):
        raise DataError(f"{place(index)}: a label is {name}, but the file itself names {len(names)} labels, 0 to {len(names) - 1}")
    return names[number]


def _inferred(task: Task, known: list[str], place: Place) -> tuple[str, ...]:
    names = sorted_names(known)
    if len(names) < 2:
        found = f"the only label is {names[0]!r}" if names else "no row has a label"
        raise DataError(f"{place(0)}: {found}, and a classifier of several labels needs two; give label_names")
    if len(names) > MAX_INFERRED_CLASSES and task.kind is None:
        raise DataError(
            f"{place(0)}: column {task.label_column!r} seems to hold more than {MAX_INFERRED_CLASSES} labels; "
            "task.kind = 'classification' says that it is the right column"
        )
    return tuple(names)


def _marked(spelling: Label, names: tuple[str, ...], columns: tuple[str, ...], place: Place, code: int) -> tuple[str, ...]:
    held = []
    for name, column, mark in zip(names, columns, spelling, strict=True):
        holds = _MARKS.get(class_name(mark.strip()).lower())
        if holds is None:
            raise DataError(
                f"{place(code)}: column {column!r} holds {mark!r}; of several labels each column holds 1 where its label does, and else 0"
            )
        held += [name] if holds else []
    return tuple(held)


def _parted(task: Task, spellings: Sequence[Label], place: Place) -> tuple[Task, list[tuple[str, ...]]]:
    """The labels of each spelling; and the task, which then knows what separates them."""
    names = task.class_names if task.is_complete else ()
    if _are_marks(spellings, len(names)):
        if len(names) != len(spellings[0]):
            raise DataError(
                f"{place(0)}: the labels are lists of {len(spellings[0])} marks, 0 and 1 throughout; task.label_names must say what each mark stands for"
                + (f", and names {len(names)} labels" if names else "")
            )
        return task, [_marked(spelling, names, names, place, code) for code, spelling in enumerate(spellings)]
    are_lists = [not isinstance(spelling, str) for spelling in spellings]
    if any(are_lists):
        for code, spelling in enumerate(spellings):
            if isinstance(spelling, str):
                raise DataError(f"{place(code)}: the label is {spelling!r}, and other rows have lists of labels; write a list in every row")
        return task, [_stripped(spelling, place, code) for code, spelling in enumerate(spellings)]
    fields = [str(spelling).strip() for spelling in spellings]
    lists = [field.startswith("[") and field.endswith("]") for field in fields]
    if any(lists) and task.label_separator is None:
        for code, (field, is_list) in enumerate(zip(fields, lists, strict=True)):
            if field and not is_list:
                raise DataError(
                    f"{place(code)}: the label is {field[:80]!r}, and other rows have lists of labels; write a list in every row"
                )
        return task, [_stripped(_read_list(field, place, code), place, code) for code, field in enumerate(fields)]
    separator = task.label_separator or _separator(task, fields)
    if separator is None:
        return task, [(field,) if field else () for field in fields]
    parts = [tuple(part for part in map(str.strip, field.split(separator)) if part) for field in fields]
    return replace(task, label_separator=separator), parts


def _are_marks(spellings: Sequence[Label], count: int) -> bool:
    """Whether lists are a mark for each label, as `datasets` and transformers have them, and no names: all as long, of 0 and 1 alone, and as many as there
    are labels. With another length they are marks where a list has one twice: a list of numbers names each label once. count: labels that are known."""
    lengths = {len(spelling) if not isinstance(spelling, str) else 0 for spelling in spellings}
    if (
        len(lengths) > 1
        or max(lengths, default=0) < 2
        or not all(class_name(mark.strip()).lower() in _MARKS for marks in spellings for mark in marks)
    ):
        return False
    return count in (0, *lengths) or any(len(set(marks)) < len(marks) for marks in spellings)


def _stripped(labels: Sequence[str], place: Place, code: int) -> tuple[str, ...]:
    names = tuple(label.strip() for label in labels)
    if "" in names:
        raise DataError(f"{place(code)}: a label in the list is empty; leave it out: a text may have no label at all")
    return names


def _read_list(field: str, place: Place, code: int) -> list[str]:
    """A list as JSON or Python writes it."""
    if not field:
        return []
    fix = 'write ["a", "b"], or a|b'
    if _WITHOUT_COMMAS.search(field):
        raise DataError(f"{place(code)}: {field!r} has no commas between its labels; {fix}")
    try:
        labels = json.loads(field)
    except ValueError:
        try:
            labels = ast.literal_eval(field)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise DataError(f"{place(code)}: {field[:80]!r} is no list of labels; {fix}") from None
    if not isinstance(labels, list) or not all(isinstance(label, str | int | float) and not isinstance(label, bool) for label in labels):
        raise DataError(f"{place(code)}: {field[:80]!r} is no list of names or numbers; {fix}")
    return [str(label) for label in labels]


def _separator(task: Task, fields: list[str]) -> str | None:
    """What separates the labels: of the usual marks the one that is there. Where the labels are known, one under which they are all known."""
    found = [mark for mark in SEPARATORS if any(mark in field for field in fields)]
    if task.is_complete:
        names = set(task.class_names)
        whole = all(field in names for field in fields if field)
        fitting = [mark for mark in found if all(_is_known(part.strip(), names) for field in fields for part in field.split(mark))]
        return None if whole or not found else (fitting or found)[0]
    if len(found) > 1:
        raise ConfigError(
            f"task {task.name}: the labels hold {' and '.join(map(repr, found))}; which of them stands between two labels? "
            f"Set task.label_separator = {found[0]!r}, or another"
        )
    return found[0] if found else None  # without any, a field is a label


def _is_known(part: str, names: set[str]) -> bool:
    return not part or part in names or is_number(part)

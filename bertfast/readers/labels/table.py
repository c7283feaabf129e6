"""The labels of a split, gathered as text and then resolved.

Each distinct spelling is kept once, and a code for each row. So a rule that depends on the whole column (are these classes or scores? do they count
from 0 or from 1?) is decided once, and a fault is named with the first row that has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bertfast.errors import DataError
from bertfast.readers.labels.classes import class_ids, infer_classes, named, scores
from bertfast.readers.labels.several import Label, label_rows
from bertfast.tasks import Task


class LabelTable:
    """The labels of a split, gathered block by block."""

    def __init__(self) -> None:
        self._codes: list[np.ndarray] = []
        self._spellings: dict[Label, int] = {}

    def add(self, labels: Sequence[Label]) -> None:
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
        """The task, completed, and the labels: int32 class ids [n], float32 scores [n], or of several labels a text 0 and 1 as uint8 [n, C].

        where(i) names row i in messages. first_label: the number of the first class in this file. hidden: labels that are all
        -1, as in test data whose labels are withheld, count as none. names_of_file: what the file itself calls the classes 0, 1, 2...

        Raises:
            DataError: naming the first row whose label is empty, unknown, out of range, NaN or no number; or labels of which it is open whether
                they are classes or scores.
            ConfigError: a metric that does not fit the labels, or lists of labels where the task has one a text.
        """
        codes = np.concatenate(self._codes)
        parts = {part.strip() for spelling in self._spellings for part in ([spelling] if isinstance(spelling, str) else spelling)}
        if hidden and parts and parts <= {"-1", "-1.0"}:
            return task, None

        def place(code: int) -> str:
            return where(int(np.argmax(codes == code)))

        if any(not isinstance(spelling, str) for spelling in self._spellings):
            task = task.of_several()
        if task.is_multilabel:
            task, rows = label_rows(task, list(self._spellings), place, first_label, names_of_file)
            return task, rows[codes]
        spellings = [str(spelling).strip() for spelling in self._spellings]
        for code, spelling in enumerate(spellings):
            if not spelling:
                raise DataError(f"{place(code)}: the label is empty; every row needs one")
        if names_of_file is not None and not task.is_regression and (not task.is_complete or set(names_of_file) <= set(task.class_names)):
            spellings = named(spellings, names_of_file, place)
            task = task if task.is_complete else task.with_labels(names_of_file)
        if not task.is_complete:
            task = task.with_labels(infer_classes(task, spellings, len(codes), place))
        values = scores(spellings, place) if task.is_regression else class_ids(task, spellings, place, first_label)
        return task, values[codes]

"""What readers share: a block of rows, the columns to look for, a split that is not read yet, and how a place in it is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bertfast.errors import DataError
from bertfast.readers.labels.several import Label
from bertfast.tasks import Task
from bertfast.wording import did_you_mean

SUFFIXES = (".tsv", ".csv", ".jsonl", ".json", ".parquet")


@dataclass
class Rows:
    """A block of rows. texts: one list for each text column. labels: as text (of several a text a tuple: all of them, or the marks in the column of each), or
    None where the file has none. lines: the physical line on
    which each row begins, from 1 (for Parquet the row, from 0). parts: for a folder of files, the file of each row. class_names: what the
    file itself calls the classes 0, 1, 2..., where its labels are such numbers."""

    texts: list[list[str]]
    labels: Sequence[Label] | None
    lines: Sequence[int]
    parts: list[str] | None = None
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Fields:
    """Where in a row the texts and the label stand. A text may be the join of several fields. marks: where the columns of 0 and 1 stand, one for
    each of several labels, in the place of `label`."""

    texts: tuple[tuple[int, ...], ...]
    label: int | None
    names: tuple[str, ...]  # of all fields
    has_header: bool = True
    marks: tuple[int, ...] = ()

    def extract(self, rows: list[list[str]]) -> tuple[list[list[str]], Sequence[Label] | None]:
        """The texts and the labels of these rows; IndexError where a row is too short."""
        texts = []
        for positions in self.texts:
            if len(positions) == 1:
                texts.append([row[positions[0]] for row in rows])
            else:
                texts.append([" ".join([row[position] for position in positions]) for row in rows])
        if self.marks:
            return texts, [tuple([row[position] for position in self.marks]) for row in rows]
        return texts, None if self.label is None else [row[self.label] for row in rows]

    @property
    def label_fields(self) -> tuple[int, ...]:
        """Where everything stands that says which labels a row has."""
        return self.marks if self.label is None else (self.label,)

    @property
    def last(self) -> int:
        return max([position for positions in self.texts for position in positions] + list(self.label_fields))


@dataclass(frozen=True)
class Columns:
    """The columns to look for in a header: for each text and for the label, every name that will do, the usual one first. marks: the columns of 0 and 1
    of several labels, in the place of `label`."""

    texts: tuple[tuple[str, ...], ...]
    label: tuple[str, ...]
    needs_label: bool = True
    marks: tuple[str, ...] = ()

    def labelled(self, header: Iterable[str]) -> bool:
        """Whether labels are to be read of a file with these columns."""
        return self.needs_label or bool(set(header) & {*self.label, *self.marks})

    def find(self, header: Sequence[str], where: str) -> Fields:
        """Where the columns stand in this header.

        Raises:
            DataError: naming the missing column, those present, and the nearest; or a column that stands twice.
        """
        texts = tuple((self._position(names, header, where),) for names in self.texts)
        if not self.labelled(header):
            return Fields(texts, None, tuple(header))
        if self.marks:
            return Fields(texts, None, tuple(header), marks=tuple(self._position((name,), header, where) for name in self.marks))
        return Fields(texts, self._position(self.label, header, where), tuple(header))

    @staticmethod
    def _position(names: tuple[str, ...], header: Sequence[str], where: str) -> int:
        for name in names:
            if list(header).count(name) > 1:
                raise DataError(f"{where}: the column {name!r} stands twice; rename one of them")
            if name in header:
                return list(header).index(name)
        raise DataError(missing_column(names, header, where))


Locate = Callable[[Sequence[str], str], Fields]  # a header and its place -> where the columns stand


def missing_column(names: Sequence[str], present: Sequence[str], where: str) -> str:
    """The message for a column that is not there."""
    others = f" (nor {' nor '.join(map(repr, dict.fromkeys(names[1:])))})" if len(names) > 1 else ""
    meant = did_you_mean(names[0], present)
    hint = f"; {meant}" if meant else ""
    if len(present) == 1 and any(mark in present[0] for mark in ",;\t"):
        hint = "; its fields are not separated as the file's suffix says (.tsv by tabs, .csv by commas)"
    elif f'"{names[0]}"' in present:
        hint = "; a .tsv is read without quoting: save it without quotes, or as a .csv"
    shown = ", ".join(map(repr, present)) or "nothing"
    return f"{where}: there is no column {names[0]!r}{others}; the columns are {shown}{hint}"


def some_rows(count: int, path: Path) -> None:
    if not count:
        raise DataError(f"{path}: the file has a header and no rows")


def not_a_text(value: object, where: str, column: str) -> str:
    """The message for a text that is missing, or something else than a text."""
    if value is None:
        return f"{where}: the text in column {column!r} is missing (null); write an empty string for an empty text"
    return f"{where}: column {column!r} holds {value!r}, a {type(value).__name__}, where a text should be"


def label_of(value: object, where: str, column: str) -> Label:
    """A label as text, or a list of labels as a tuple of texts; see `label_text`."""
    return tuple(label_text(item, where, column) for item in value) if isinstance(value, list) else label_text(value, where, column)


def label_text(value: object, where: str, column: str) -> str:
    """A label of any type as text: classes as they are, True as JSON writes it, numbers as Python does.

    Raises:
        DataError: where there is none (null, or NaN), or it is a list or an object.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value != value:
        raise DataError(f"{where}: the label in column {column!r} is missing ({'null' if value is None else 'NaN'}); every row needs one")
    if not isinstance(value, str | int | float):
        raise DataError(f"{where}: the label in column {column!r} is a {type(value).__name__}; it must be a name or a number")
    return str(value)


@dataclass(frozen=True)
class Source:
    """One split, not read yet. name: how messages call it. rows: reads it. digest: a hash of all the bytes that decide the rows. unit: what
    a row's number counts: "line" (from 1), "row" (from 0) or "file". first_label: the number of the first class."""

    name: str
    rows: Callable[[], Iterator[Rows]]
    digest: Callable[[], str]
    unit: str = "line"
    first_label: int = 0


def place(name: str, unit: str, number: int, part: str | None) -> str:
    """How messages name a row: its file and line, its file and row, or its file."""
    if unit == "file":
        return f"{name}/{part}"
    within = f"{name}, {part}" if part is not None else name
    return f"{within}, line {number}" if unit == "line" else f"{within}, row {number} (from 0)"


def needs_labels(task: Task, split: str) -> bool:
    """Whether rows of this split must have labels: those of training and dev data must, test data may."""
    return split in task.train_splits or split == "train" or split.startswith("dev")


def expected_layout(task: Task, split: str) -> str:
    """The files that a data_dir of this task should hold, for messages."""
    names = task.layout.files.get(split) or tuple(split + suffix for suffix in SUFFIXES)
    folder = f"{task.layout.folders[0]}/" if task.layout.folders else ""
    return " or ".join(folder + name for name in names)

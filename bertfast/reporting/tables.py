"""The rows that were given, with answers beside them: as CSV, TSV or Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

from bertfast.errors import ConfigError


class Given(NamedTuple):
    """A table to add columns to: the names of its columns, and its rows, each with a value for every name (text, number, whatever a file held)."""

    names: Sequence[str]
    rows: Iterable[Sequence[Any]]


def added_names(given: Sequence[str], added: Iterable[str]) -> list[str]:
    """What the added columns are called in a table that has these columns: their own names, or with "_2", "_3" ... where a name is taken."""
    taken, found = set(given), []
    for name in added:
        number, free = 1, name
        while free in taken:
            number += 1
            free = f"{name}_{number}"
        taken.add(free)
        found.append(free)
    return found


def delimited_lines(given: Given, answers: Mapping[str, Sequence[Any]], format: str) -> Iterator[str]:
    """The lines of a csv (quoted as RFC 4180 says) or a tsv (without any quoting, as bertfast reads one), each with its line break.

    Raises:
        ConfigError: a tab or a line break, which a tsv cannot write.
    """
    join = _csv_line if format == "csv" else _tsv_line
    yield join([*given.names, *added_names(given.names, answers)])
    for row, answer in zip(given.rows, zip(*answers.values(), strict=True), strict=True):
        yield join([_text(value) for value in (*row, *answer)])


def _csv_line(fields: Sequence[str]) -> str:
    return ",".join(_quoted(field) if any(mark in field for mark in ',"\r\n') else field for field in fields) + "\n"


def _quoted(field: str) -> str:
    doubled = field.replace('"', '""')
    return f'"{doubled}"'


def _tsv_line(fields: Sequence[str]) -> str:
    for field in fields:
        if any(mark in field for mark in "\t\r\n"):
            raise ConfigError(f"--format tsv: {field[:60]!r} holds a tab or a line break, which a TSV cannot write; use --format csv")
    return "\t".join(fields) + "\n"


def _text(value: Any) -> str:
    """A value as a field: nothing for null, and JSON for a list or an object."""
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else str(value)


def write_parquet(file: IO[bytes], given: Given, answers: Mapping[str, Sequence[Any]]) -> None:
    """Write a Parquet file. A column whose values are not of one type is written as text."""
    import pyarrow as pa
    from pyarrow import parquet

    columns: list[list[Any]] = [[] for _ in given.names]
    for row in given.rows:
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    arrays = [_array(pa, column) for column in (*columns, *map(list, answers.values()))]
    parquet.write_table(pa.Table.from_arrays(arrays, [*given.names, *added_names(given.names, answers)]), file)


def _array(pa: Any, values: list[Any]) -> Any:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return pa.array([None if value is None else _text(value) for value in values], pa.string())

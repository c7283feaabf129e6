"""Readers of JSONL and Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bertfast.errors import DataError
from bertfast.readers.labels.several import Label
from bertfast.readers.lines import BLOCK_ROWS, line_blocks
from bertfast.readers.rows import Columns, Rows, label_of, label_text, missing_column, not_a_text, some_rows

if TYPE_CHECKING:
    import pyarrow as pa


def read_jsonl(path: Path, columns: Columns) -> Iterator[Rows]:
    """One JSON object a line; blank lines are passed over. A label may be a string, a number or a boolean; several are a list of these.

    Raises:
        DataError: see `line_blocks`; a line that is no JSON object; a missing key, or one that stands twice; a text that is null or no
            string; a label that is null.
    """
    has_labels, count = None, 0
    keys = [json.dumps(name, ensure_ascii=False) for names in (*columns.texts, columns.label, columns.marks) for name in names]
    for first, lines in line_blocks(path):
        texts: list[list[str]] = [[] for _ in columns.texts]
        labels: list[Label] = []
        numbers = []
        for number, line in enumerate(lines, first):
            if not line.strip():
                continue
            row = _json_object(line, f"{path}, line {number}", keys)
            if has_labels is None:  # the first row decides whether there are labels
                has_labels = columns.labelled(row)
            for column, names in zip(texts, columns.texts, strict=True):
                column.append(_json_text(row, names, f"{path}, line {number}"))
            if has_labels:
                labels.append(_json_label(row, columns, f"{path}, line {number}"))
            numbers.append(number)
        if numbers:
            yield Rows(texts, labels if has_labels else None, numbers)
        count += len(numbers)
    if not count:
        raise DataError(f"{path}: the file is empty")


def _json_object(line: str, where: str, keys: list[str]) -> dict:
    """The object in a line. keys: those that are read, as JSON spells them."""
    try:
        row = json.loads(line)
        if any(line.count(key) > 1 for key in keys):  # perhaps within a text: the slower look is taken at few lines
            json.loads(line, object_pairs_hook=lambda pairs: _keys_once(pairs, where))
    except json.JSONDecodeError as error:
        raise DataError(f"{where}, column {error.colno}: not valid JSON: {error.msg}; a .jsonl file holds one object a line") from None
    except RecursionError:
        raise DataError(f"{where}: the JSON is nested too deeply") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON {type(row).__name__}; a .jsonl file holds one object a line, with a key for each column")
    return row


def _keys_once(pairs: list[tuple[str, object]], where: str) -> dict:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{where}: the key {twice!r} stands twice; rename one of them")
    return dict(pairs)


def _present(row: dict, names: tuple[str, ...], where: str) -> str:
    for name in names:
        if name in row:
            return name
    raise DataError(missing_column(names, tuple(row), where))


def _json_text(row: dict, names: tuple[str, ...], where: str) -> str:
    name = _present(row, names, where)
    if not isinstance(row[name], str):
        raise DataError(not_a_text(row[name], where, name))
    return row[name]


def _json_label(row: dict, columns: Columns, where: str) -> Label:
    if columns.marks:
        return tuple(label_text(row[_present(row, (name,), where)], where, name) for name in columns.marks)
    name = _present(row, columns.label, where)
    return label_of(row[name], where, name)


def read_parquet(path: Path, columns: Columns) -> Iterator[Rows]:
    """A Parquet file; the "line" of a row is its number, from 0.

    Raises:
        DataError: a file that is none, or torn; a missing column; a column of texts of another type; a null text or label (naming the row).
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, memory_map=True) as file:
            fields = columns.find(file.schema_arrow.names, str(path))
            class_names = None if fields.label is None else _class_names(file.schema_arrow, fields.names[fields.label])
            wanted = [*(positions[0] for positions in fields.texts), *fields.label_fields]
            names = [fields.names[position] for position in wanted]
            first = 0
            for batch in file.iter_batches(BLOCK_ROWS, columns=names):
                yield replace(_parquet_rows(batch, names, len(fields.texts), path, first), class_names=class_names)
                first += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a whole Parquet file: {error}") from error
    some_rows(first, path)


def _class_names(schema: pa.Schema, label_column: str) -> tuple[str, ...] | None:
    """The names of the classes 0, 1, 2..., where the library `datasets` has noted them in the schema: {"info": {"features": {column: {"names":
    [...], "_type": "ClassLabel"}}}}, as JSON, under the key "huggingface"."""
    import pyarrow as pa

    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label_column]
        feature = feature.get("feature", feature)  # of a list: {"feature": {...}, "_type": "List"}, or "Sequence" in older files
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    kind = schema.field(label_column).type
    is_number = pa.types.is_integer(kind.value_type if pa.types.is_nested(kind) and hasattr(kind, "value_type") else kind)
    return tuple(names) if names and is_number and all(isinstance(name, str) for name in names) else None


def _parquet_rows(batch, names: list[str], num_texts: int, path: Path, first: int) -> Rows:
    values = []
    for index, name in enumerate(names):
        try:
            column = batch.column(name).to_pylist()
        except UnicodeDecodeError:
            column = batch.column(name).cast("binary").to_pylist()
            broken = next(row for row, text in enumerate(column) if text is not None and not _is_utf8(text))
            raise DataError(f"{path}, row {first + broken} (from 0): column {name!r} is not valid UTF-8") from None
        for row, value in enumerate(column):
            if index < num_texts and not isinstance(value, str):
                raise DataError(not_a_text(value, f"{path}, row {first + row} (from 0)", name))
        if index >= num_texts:
            read = label_of if len(names) == num_texts + 1 else label_text  # a column of marks holds no lists
            column = [read(value, f"{path}, row {first + row} (from 0)", name) for row, value in enumerate(column)]
        values.append(column)
    marks = values[num_texts:]
    labels = None if not marks else marks[0] if len(marks) == 1 else list(zip(*marks, strict=True))
    return Rows(values[:num_texts], labels, range(first, first + len(batch)))


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True

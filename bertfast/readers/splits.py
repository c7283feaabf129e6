"""The rows of a split, read and held as Arrow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from bertfast.config import InputConfig, TaskConfig
from bertfast.errors import DataError
from bertfast.readers.arrow import number_array, text_array
from bertfast.readers.labels.table import LabelTable
from bertfast.readers.rows import Source, needs_labels, not_a_text, place
from bertfast.readers.sources import find_source
from bertfast.tasks import Task, get_task


class TextColumn(Sequence[str]):
    """A column of texts, held as Arrow (their bytes and 8 more each); it reads like a list of strings."""

    def __init__(self, texts: pa.ChunkedArray):
        self.arrow = texts

    def __len__(self) -> int:
        return len(self.arrow)

    def __getitem__(self, index):
        if isinstance(index, slice):
            begin, end, step = index.indices(len(self))
            return self.arrow.slice(begin, max(end - begin, 0)).to_pylist()[::step] if step > 0 else self.arrow.to_pylist()[index]
        return self.arrow[int(index)].as_py()

    def __iter__(self) -> Iterator[str]:
        for chunk in self.arrow.chunks:
            yield from chunk.to_pylist()


@dataclass
class RawSplit:
    """The rows of one split, as text.

    task: with its classes known, where the labels told. text_a, text_b: the texts (text_b None for single sentences). labels: int32 class
    ids or float32 scores [n], or None. source: the file (or hub set). lines: int32 [n], for `where`. fingerprint: of the rows.
    """

    task: Task
    text_a: TextColumn
    text_b: TextColumn | None
    labels: np.ndarray | None
    source: str
    lines: np.ndarray
    fingerprint: str
    unit: str = "line"
    parts: list[str] | None = None
    objects: list[dict[str, Any]] | None = None  # the rows whole, where they came as JSON and are in no file that can be read again

    def __len__(self) -> int:
        return len(self.text_a)

    @classmethod
    def from_texts(
        cls, task: Task, text_a: Sequence[str], text_b: Sequence[str] | None = None, labels: np.ndarray | None = None, source: str = "input"
    ) -> RawSplit:
        """Rows that are in memory already; row i counts as line i + 1 of `source`.

        Raises:
            DataError: where the columns are not of one length, the task wants a pair and got none (or the other way round), or a text is
                no string, or none that UTF-8 can write.
        """
        if task.is_pair != (text_b is not None):
            wanted = "pairs of texts" if task.is_pair else "single texts"
            raise DataError(f"{source}: task {task.name} takes {wanted} ({', '.join(task.text_columns)})")
        columns = [column for column in (text_a, text_b) if column is not None]
        sizes = {len(column) for column in columns} | (set() if labels is None else {len(labels)})
        if len(sizes) > 1 or 0 in sizes:
            raise DataError(
                f"{source}: the texts and labels have {' and '.join(map(str, sorted(sizes)))} rows; there must be as many of each"
            )
        lines = np.arange(1, len(text_a) + 1, dtype=np.int32)
        for name, column in zip(task.text_columns, columns, strict=True):
            for row, text in enumerate(column, 1):
                if not isinstance(text, str):
                    raise DataError(not_a_text(text, f"{source}, line {row}", name))
        texts = [_text_column([_checked(list(column), source, "line", lines, None)]) for column in columns]
        digest = hashlib.sha256()
        for column in (*columns, [] if labels is None else np.asarray(labels).tolist()):
            digest.update(json.dumps(list(column)).encode())
        fingerprint = fingerprint_of("texts", repr(task), digest.hexdigest())
        return cls(task, texts[0], texts[1] if len(texts) > 1 else None, labels, source, lines, fingerprint)

    def where(self, index: int) -> str:
        """The place of row `index` in its source, for messages: file and line."""
        return place(self.source, self.unit, int(self.lines[index]), None if self.parts is None else self.parts[index])

    def sample(self, max_examples: int, seed: int) -> RawSplit:
        """A random subset of at most max_examples rows, chosen by seed, in the order of the source."""
        fingerprint = sample_fingerprint(self.fingerprint, max_examples, seed)
        chosen = random_subset(len(self), max_examples, seed)
        if chosen is None:
            return replace(self, fingerprint=fingerprint)
        rows = number_array(chosen)
        return replace(
            self,
            text_a=TextColumn(self.text_a.arrow.take(rows)),
            text_b=None if self.text_b is None else TextColumn(self.text_b.arrow.take(rows)),
            labels=None if self.labels is None else self.labels[chosen],
            lines=self.lines[chosen],
            parts=None if self.parts is None else [self.parts[index] for index in chosen],
            fingerprint=fingerprint,
        )


def random_subset(n: int, max_examples: int | None, seed: int) -> np.ndarray | None:
    """Which of n examples max_examples leaves: a random subset by seed, int64, rising; None for all."""
    if max_examples is None or max_examples >= n:
        return None
    return np.sort(np.random.default_rng(seed).choice(n, max_examples, replace=False))


def load_split(task: Task | TaskConfig | str, input_config: InputConfig, split: str, with_labels: bool = True) -> RawSplit:
    """Read one split ("train", "dev", "test", or the task's own, such as "dev_matched") from data_file, data_dir or the hub.

    A user's own task whose classes are not known gets them from this split: read the training data first, and hand the task of what comes
    back to the other splits. Test data may be without labels; with_labels False passes over a column of them, whatever it holds.

    Raises:
        ConfigError: a split that the task has not, or an input that names no data.
        DataError: naming file and line of what is wrong.
    """
    task = get_task(task)
    source = find_source(task, input_config, split, with_labels)
    return read_split(task, source, split, with_labels)


class SplitTexts(NamedTuple):
    """The texts of a split, not read yet. source: the file (or hub set). fingerprint: of its rows, from the contents of its files alone.
    read: yields the texts row by row, those of a pair one after the other, and keeps none; raises as `load_split` does."""

    source: str
    fingerprint: str
    read: Callable[[], Iterator[str]]


def split_texts(task: Task | TaskConfig | str, input_config: InputConfig, split: str) -> SplitTexts:
    """The texts of one split, without its labels; see `load_split`.

    Raises:
        ConfigError, DataError: as `load_split`, where there are no such data.
    """
    task = get_task(task)
    source = find_source(task, input_config, split, with_labels=False)

    def read() -> Iterator[str]:
        n_rows = 0
        for block in source.rows():
            n_rows += len(block.lines)
            for column in block.texts:
                _checked(column, source.name, source.unit, block.lines, block.parts)
            yield from chain.from_iterable(zip(*block.texts, strict=True))
        if not n_rows:
            raise DataError(f"{source.name}: there is no row for split {split!r}")

    return SplitTexts(source.name, source_fingerprint(task, source, split), read)


def read_split(task: Task, source: Source, split: str, with_labels: bool = True) -> RawSplit:
    fingerprint = source_fingerprint(task, source, split)
    texts: list[list[pa.Array]] = [[] for _ in task.text_columns]
    lines: list[np.ndarray] = []
    parts, labels, has_labels, class_names = [], LabelTable(), True, None
    for block in source.rows():
        for chunks, column in zip(texts, block.texts, strict=True):
            chunks.append(_checked(column, source.name, source.unit, block.lines, block.parts))
        found = block.labels if with_labels else None
        if lines and ((found is not None) != has_labels or block.class_names != class_names):
            here = place(source.name, source.unit, int(block.lines[0]), None if block.parts is None else block.parts[0])
            raise DataError(f"{here}: labels begin or end here, or other class names hold; make the files of a split alike")
        lines.append(np.asarray(block.lines, dtype=np.int32))
        parts += block.parts or []
        has_labels, class_names = found is not None, block.class_names
        if found is not None:
            labels.add(found)
    if not lines:
        raise DataError(f"{source.name}: there is no row for split {split!r}")
    columns = [_text_column(chunks) for chunks in texts]
    text_b = columns[1] if task.is_pair else None
    raw = RawSplit(task, columns[0], text_b, None, source.name, np.concatenate(lines), fingerprint, source.unit, parts or None)
    if has_labels:
        raw.task, raw.labels = labels.resolve(
            task, raw.where, source.first_label, hidden=not needs_labels(task, split), names_of_file=class_names
        )
    return raw


def _checked(texts: list[str], source: str, unit: str, lines: Sequence[int] | np.ndarray, parts: list[str] | None) -> pa.Array:
    try:
        return text_array(texts)
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        row = next(row for row, text in enumerate(texts) if any("\ud800" <= character <= "\udfff" for character in text))
        where = place(source, unit, int(lines[row]), None if parts is None else parts[row])
        raise DataError(f"{where}: the text holds a lone surrogate (such as \\ud800), which is no character; remove it") from None


def _text_column(chunks: list[pa.Array]) -> TextColumn:
    return TextColumn(pa.chunked_array(chunks, pa.large_string()))


def source_fingerprint(task: Task, source: Source, split: str) -> str:
    return fingerprint_of("source", repr(task), split, source.digest())


def sample_fingerprint(fingerprint: str, max_examples: int, seed: int) -> str:
    return fingerprint_of("sample", fingerprint, max_examples, seed)


def fingerprint_of(*parts: str | int) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

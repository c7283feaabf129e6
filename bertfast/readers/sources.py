"""Where a split of a task comes from: the files of its folder, a user's own file, or the hub.

`find_source` decides that without reading a row, so that a cache can be found from the contents of the files alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from bertfast.config import InputConfig
from bertfast.errors import ConfigError, DataError
from bertfast.readers.delimited import read_csv, read_tsv
from bertfast.readers.hub import hub_source
from bertfast.readers.own_formats import check_classes, read_msr, read_reviews, read_trec, review_files, unescaped
from bertfast.readers.records import read_jsonl, read_parquet
from bertfast.readers.rows import SUFFIXES, Columns, Fields, Rows, Source, expected_layout, needs_labels
from bertfast.tasks import Task

_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")

_SHARD = re.compile(r"(.+)-([0-9]+)-of-([0-9]+)")  # the stem of one of the files that hold a split together, as the hub stores it

OTHER_NAMES = {"dev": ("validation", "valid"), "dev_matched": ("validation_matched",), "dev_mismatched": ("validation_mismatched",)}


def find_source(task: Task, config: InputConfig, split: str, with_labels: bool = True) -> Source:
    """The source of this split of the task; `needs_labels(task, split)` tells whether a missing label column is an error. with_labels False:
    a column of labels is not looked at.

    Raises:
        ConfigError: a split that the task has not, or no source for a user's own task.
        DataError: naming the folder, what was looked for in it and what it holds.
    """
    if config.data_file is not None:
        path = Path(config.data_file)
        if not path.is_file():
            raise DataError(f"data_file {path}: there is no such file{_neighbours(path.parent)}")
        return _file_source(task, path, split, with_labels)
    if task.layout.kind != "own" and split not in task.splits:
        raise ConfigError(f"task {task.name} has no split {split!r}; it has {', '.join(task.splits)}")
    if config.data_dir is not None:
        return _folder_source(task, Path(config.data_dir), split, with_labels)
    if task.hub is None:
        raise ConfigError(f"task {task.name}: its input names no data; give data_file, data_dir or input_fn")
    return hub_source(task, task.hub, split)


def _folder_source(task: Task, data_dir: Path, split: str, with_labels: bool) -> Source:
    if not data_dir.is_dir():
        raise DataError(
            f"data_dir {data_dir}: there is no such folder{_neighbours(data_dir.parent)}; expected {expected_layout(task, split)}"
        )
    tried = [data_dir, *(data_dir / name for name in task.layout.folders)]
    for folder in tried:
        paths = _split_files(task, folder, split)
        if paths:
            return _file_source(task, paths[0], split, with_labels) if len(paths) == 1 else _sharded(task, paths, split, with_labels)
    raise DataError(
        f"data_dir {data_dir}: no data for split {split!r} of task {task.name}; looked for {expected_layout(task, split)} "
        f"(or {split} as {', '.join(SUFFIXES)}){_neighbours(data_dir)}"
    )


def _split_files(task: Task, folder: Path, split: str) -> list[Path]:
    """The file (for aclImdb the folder) of a split: an official name, else one of that stem, else the only `<split>_*` or `<split>-*`; or all
    of its shards, in order. Empty where there is none."""
    stems = (split, *OTHER_NAMES.get(split, ()))
    for name in task.layout.files.get(split, ()):
        path = folder / name
        if path.is_file() or (task.layout.kind == "imdb" and (path / "pos").is_dir()):
            return [path]
    found = [folder / (stem + suffix) for stem in stems for suffix in SUFFIXES if (folder / (stem + suffix)).is_file()]
    if not found and folder.is_dir():
        patterns = [f"{stem}{mark}*{suffix}" for stem in stems for mark in "_-" for suffix in SUFFIXES]
        found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
        if shards := _whole_shards(found):
            return shards
    if len(found) > 1:
        raise DataError(
            f"{folder}: more than one file could be split {split!r}: {', '.join(path.name for path in found)}; name one as data_file"
        )
    return found


def _whole_shards(paths: list[Path]) -> list[Path]:
    """These files in their order, where they are the shards of one split; empty where they are not.

    Raises:
        DataError: naming the first shard that is not there.
    """
    found = [(match, path) for path in paths if (match := _SHARD.fullmatch(path.stem))]
    if not found or len(found) < len(paths) or len({(match[1], match[3], path.suffix) for match, path in found}) > 1:
        return []
    by_number = {int(match[2]): path for match, path in found}
    (match, path), first = found[0], int(int(found[0][0][3]) in by_number)  # some count them from 1
    for number in range(first, first + int(match[3])):
        if number not in by_number:
            missing = f"{match[1]}-{number:0{len(match[2])}}-of-{match[3]}{path.suffix}"
            raise DataError(f"{path.parent}: {missing} is not there, one of {int(match[3])} files that are a split together; fetch it too")
    return [by_number[number] for number in sorted(by_number)]


def is_shard(source: str) -> bool:
    """Whether a source is one file of several that hold a split together."""
    match = _SHARD.fullmatch(Path(source).stem)
    return match is not None and int(match[3]) > 1


def _sharded(task: Task, paths: list[Path], split: str, with_labels: bool) -> Source:
    """The shards of a split as one source, whose rows are named by their file too."""
    sources = [_file_source(task, path, split, with_labels) for path in paths]

    def rows() -> Iterator[Rows]:
        for source, path in zip(sources, paths, strict=True):
            for block in source.rows():
                yield replace(block, parts=[path.name] * len(block.lines))

    name = paths[0].parent / _SHARD.sub(r"\1-*-of-\3", paths[0].name)
    return replace(sources[0], name=str(name), rows=rows, digest=lambda: _digest(paths, paths[0].parent))


def _neighbours(folder: Path) -> str:
    if not folder.is_dir():
        return f" ({folder} is no folder either)"
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    packed = [name for name in names if name.endswith(_PACKED)]
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"; {folder} holds {shown or 'nothing'}" + (f" ({packed[0]} is compressed: unpack it first)" if packed else "")


def _file_source(task: Task, path: Path, split: str, with_labels: bool) -> Source:
    layout, suffix = task.layout, path.suffix.lower()
    columns = _columns(task, split)
    if not with_labels and layout.kind != "zhang":  # there, the class tells a header from a row
        columns = replace(columns, label=(), needs_label=False, marks=())
    extra: tuple[Path, ...] = ()
    rows: Callable[[], Iterator[Rows]]
    if path.is_dir():
        return Source(str(path), partial(read_reviews, path), lambda: _digest(review_files(path), path), "file")
    if suffix == ".label" and layout.kind == "trec":
        rows = partial(read_trec, path)
    elif path.name.startswith("msr_paraphrase_") and suffix == ".txt":
        ids = path.parent / "dev_ids.tsv"
        extra = (ids,) if ids.is_file() and split != "test" else ()
        rows = partial(read_msr, path, extra[0] if extra else None, columns, split)
    elif suffix == ".tsv":
        short_rows = ("skip" if needs_labels(task, split) else "fill") if layout.skip_short_rows else "error"
        long_rows = "keep" if any(path.name in names for names in layout.files.values()) else "error"  # as their authors laid them out
        quoted = "error" if layout.kind == "own" else "keep"  # the known sets are handed on with quotes that became part of the texts
        rows = partial(read_tsv, path, _locator(task, columns), short_rows, long_rows, quoted)
    elif suffix == ".csv":
        rows = partial(read_csv, path, _locator(task, columns))
    elif suffix in (".jsonl", ".json"):
        rows = partial(read_jsonl, path, columns)
    elif suffix == ".parquet":
        rows = partial(read_parquet, path, columns)
    elif suffix in _PACKED:
        raise DataError(f"{path}: the file is compressed; unpack it first")
    else:
        raise DataError(f"{path}: the suffix {suffix!r} is not known; give a file that ends in {', '.join(SUFFIXES)}")
    if layout.newline_escape is not None:
        rows = partial(unescaped, rows, layout.newline_escape)
    unit = "row" if suffix == ".parquet" else "line"
    classes = path.parent / "classes.txt"
    if layout.kind == "zhang" and classes.is_file():
        check_classes(task, classes)
    return Source(str(path), rows, lambda: _digest([path, *extra], path.parent), unit, layout.first_label)


def _columns(task: Task, split: str) -> Columns:
    aliases = task.layout.aliases
    texts = tuple(tuple(dict.fromkeys((column, *aliases.get(column, ())))) for column in task.text_columns)
    label = tuple(dict.fromkeys((task.label_column, *aliases.get(task.label_column, ()))))
    return Columns(texts, () if task.label_columns else label, needs_labels(task, split), task.label_columns)


def _locator(task: Task, columns: Columns) -> Callable[[Sequence[str], str], Fields]:
    if task.layout.no_header is not None:
        return partial(_locate_without_header, task.layout.no_header, columns)
    if task.layout.kind != "zhang":
        return columns.find
    assert task.hub is not None, "each of these sets is on the hub too"
    return partial(_locate_zhang, columns, task.hub.text_columns[0])


def _locate_without_header(no_header: tuple[str, ...], columns: Columns, first_row: Sequence[str], where: str) -> Fields:
    """CoLA: train and dev have four fields and no header, test has a header."""
    texts_named = all(any(name in first_row for name in names) for names in columns.texts)
    if texts_named or len(first_row) != len(no_header):
        return columns.find(first_row, where)
    fields = columns.find(no_header, where)
    return Fields(fields.texts, fields.label, no_header, has_header=False)


def _locate_zhang(columns: Columns, hub_parts: tuple[str, ...], first_row: Sequence[str], where: str) -> Fields:
    """A class number, then the parts of one text. In copies with a header, the text is `text`, the hub's columns, or all but the class."""
    label = next((index for index, name in enumerate(first_row) if name in columns.label), None)
    has_header = label is not None or not first_row or not first_row[0].strip().isdigit()
    if has_header and (label is None or columns.texts[0][0] in first_row):
        return columns.find(first_row, where)
    named = [index for index, name in enumerate(first_row) if name in hub_parts] if has_header else []
    label = label or 0
    parts = named or [index for index in range(len(first_row)) if index != label]
    if not parts:
        raise DataError(f"{where}: the row has one field; it should hold a class and then at least one field of text")
    return Fields((tuple(parts),), label, tuple(first_row), has_header)


def _digest(files: list[Path], folder: Path) -> str:
    """A hash of names and contents. The folder is left out, so that moved data keep their cache."""
    total = hashlib.sha256()
    for path in files:
        try:
            with open(path, "rb") as stream:
                total.update(f"{path.relative_to(folder)}\0{hashlib.file_digest(stream, 'blake2b').hexdigest()}\0".encode())
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return total.hexdigest()

"""Where a split of a task comes from: the files of its folder, a user's own file, or the hub.

`find_source` decides that without reading a row, so that a cache can be found from the contents of the files alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bertfast.config import InputConfig
from bertfast.errors import ConfigError, DataError
from bertfast.files import Columns, Fields, Rows, missing_column, read_csv, read_tsv
from bertfast.records import label_text, not_a_text, read_jsonl, read_parquet, read_reviews, read_trec, review_files
from bertfast.tasks import Task

SUFFIXES = (".tsv", ".csv", ".jsonl", ".json", ".parquet")
OTHER_NAMES = {"dev": ("validation", "valid"), "dev_matched": ("validation_matched",), "dev_mismatched": ("validation_mismatched",)}
HUB_BLOCK_ROWS = 10_000
HUB_SECONDS = 5  # to answer one question; `datasets` repeats each of its own for half a minute, and longer where packets are dropped


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
    return _hub_source(task, split)


def needs_labels(task: Task, split: str) -> bool:
    """Whether rows of this split must have labels: those of training and dev data must, test data may."""
    return split in task.train_splits or split == "train" or split.startswith("dev")


def expected_layout(task: Task, split: str) -> str:
    """The files that a data_dir of this task should hold, for messages."""
    names = task.layout.files.get(split) or tuple(split + suffix for suffix in SUFFIXES)
    folder = f"{task.layout.folders[0]}/" if task.layout.folders else ""
    return " or ".join(folder + name for name in names)


def _folder_source(task: Task, data_dir: Path, split: str, with_labels: bool) -> Source:
    if not data_dir.is_dir():
        raise DataError(
            f"data_dir {data_dir}: there is no such folder{_neighbours(data_dir.parent)}; expected {expected_layout(task, split)}"
        )
    tried = [data_dir, *(data_dir / name for name in task.layout.folders)]
    for folder in tried:
        path = _split_file(task, folder, split)
        if path is not None:
            return _file_source(task, path, split, with_labels)
    raise DataError(
        f"data_dir {data_dir}: no data for split {split!r} of task {task.name}; looked for {expected_layout(task, split)} "
        f"(or {split} as {', '.join(SUFFIXES)}){_neighbours(data_dir)}"
    )


def _split_file(task: Task, folder: Path, split: str) -> Path | None:
    """The file (for aclImdb the folder) of a split: an official name, else one of that stem, else the only `<split>_*` or `<split>-*`."""
    stems = (split, *OTHER_NAMES.get(split, ()))
    for name in task.layout.files.get(split, ()):
        path = folder / name
        if path.is_file() or (task.layout.kind == "imdb" and (path / "pos").is_dir()):
            return path
    found = [folder / (stem + suffix) for stem in stems for suffix in SUFFIXES if (folder / (stem + suffix)).is_file()]
    if not found and folder.is_dir():
        patterns = [f"{stem}{mark}*{suffix}" for stem in stems for mark in "_-" for suffix in SUFFIXES]
        found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if len(found) > 1:
        raise DataError(
            f"{folder}: more than one file could be split {split!r}: {', '.join(path.name for path in found)}; name one as data_file"
        )
    return found[0] if found else None


def _neighbours(folder: Path) -> str:
    if not folder.is_dir():
        return f" ({folder} is no folder either)"
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"; {folder} holds {shown or 'nothing'}"


def _file_source(task: Task, path: Path, split: str, with_labels: bool) -> Source:
    layout, suffix = task.layout, path.suffix.lower()
    columns = _columns(task, split)
    if not with_labels and layout.kind != "zhang":  # there, the class tells a header from a row
        columns = replace(columns, label=(), needs_label=False)
    extra: tuple[Path, ...] = ()
    rows: Callable[[], Iterator[Rows]]
    if path.is_dir():
        return Source(str(path), partial(read_reviews, path), lambda: _digest(review_files(path), path), "file")
    if suffix == ".label" and layout.kind == "trec":
        rows = partial(read_trec, path)
    elif path.name.startswith("msr_paraphrase_") and suffix == ".txt":
        ids = path.parent / "dev_ids.tsv"
        extra = (ids,) if ids.is_file() and split != "test" else ()
        rows = partial(_read_msr, path, extra[0] if extra else None, columns, split)
    elif suffix == ".tsv":
        short_rows = ("skip" if needs_labels(task, split) else "fill") if layout.skip_short_rows else "error"
        rows = partial(read_tsv, path, _locator(task, columns), short_rows)
    elif suffix == ".csv":
        rows = partial(read_csv, path, _locator(task, columns))
    elif suffix in (".jsonl", ".json"):
        rows = partial(read_jsonl, path, columns)
    elif suffix == ".parquet":
        rows = partial(read_parquet, path, columns)
    else:
        raise DataError(f"{path}: the suffix {suffix!r} is not known; give a file that ends in {', '.join(SUFFIXES)}")
    if layout.newline_escape is not None:
        rows = partial(_unescaped, rows, layout.newline_escape)
    unit = "row" if suffix == ".parquet" else "line"
    classes = path.parent / "classes.txt"
    if layout.kind == "zhang" and classes.is_file():
        _check_classes(task, classes)
    return Source(str(path), rows, lambda: _digest([path, *extra], path.parent), unit, layout.first_label)


def _columns(task: Task, split: str) -> Columns:
    aliases = task.layout.aliases
    texts = tuple(tuple(dict.fromkeys((column, *aliases.get(column, ())))) for column in task.text_columns)
    label = tuple(dict.fromkeys((task.label_column, *aliases.get(task.label_column, ()))))
    return Columns(texts, label, needs_labels(task, split))


def _locator(task: Task, columns: Columns) -> Callable[[Sequence[str], str], Fields]:
    if task.layout.no_header is not None:
        return partial(_locate_without_header, task.layout.no_header, columns)
    return partial(_locate_zhang, columns, task.hub.text_columns[0]) if task.layout.kind == "zhang" else columns.find


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


def _unescaped(rows: Callable[[], Iterator[Rows]], escape: str) -> Iterator[Rows]:
    for block in rows():
        block.texts = [[text.replace(escape, "\n") for text in column] for column in block.texts]
        yield block


def _check_classes(task: Task, path: Path) -> None:
    names = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if len(names) != len(task.label_names):
        raise DataError(
            f"{path}: {len(names)} classes, but task {task.name} has {len(task.label_names)}; is this the folder of another task?"
        )


def _read_msr(path: Path, dev_ids: Path | None, columns: Columns, split: str) -> Iterator[Rows]:
    """The raw files of MRPC. Its dev set is the pairs of dev_ids.tsv (id<TAB>id), which GLUE's download script fetches; where that is not
    at hand, every tenth row of msr_paraphrase_train.txt."""
    with_ids = Columns((*columns.texts, ("#1 ID",), ("#2 ID",)), columns.label, columns.needs_label)
    wanted = None
    if dev_ids is not None:
        pairs = read_tsv(dev_ids, lambda first_row, where: Fields(((0,), (1,)), None, tuple(first_row), has_header=False))
        wanted = {pair for block in pairs for pair in zip(*block.texts, strict=True)}
    count = 0
    for block in read_tsv(path, with_ids.find):
        ids = list(zip(block.texts[2], block.texts[3], strict=True))
        is_dev = [pair in wanted if wanted is not None else row % 10 == 9 for row, pair in enumerate(ids, count)]
        count += len(ids)
        kept = [row for row, dev in enumerate(is_dev) if split == "test" or dev == (split == "dev")]
        if kept:
            texts = [[column[row] for row in kept] for column in block.texts[:2]]
            labels = None if block.labels is None else [block.labels[row] for row in kept]
            yield Rows(texts, labels, [block.lines[row] for row in kept])


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


def _hub_source(task: Task, split: str) -> Source:
    hub = task.hub
    name = f"{hub.name} ({hub.config})" if hub.config else hub.name
    hub_split = hub.splits.get(split, split)
    try:
        import datasets

        with _offline_unless_hub_answers():
            data = datasets.load_dataset(hub.name, hub.config, split=hub_split)
    except Exception as error:  # the library raises many kinds: no network, no such set, a set that is only a loading script
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"task {task.name}: split {hub_split!r} of {name} could not be loaded from the hub ({type(error).__name__}: {reason[0]}). "
            f"Give data_dir, a folder with {expected_layout(task, split)}, or data_file"
        ) from error
    where = f"{name}, split {hub_split}"
    rows = partial(_read_hub, data, task, where)
    if task.layout.newline_escape is not None:
        rows = partial(_unescaped, rows, task.layout.newline_escape)
    return Source(where, rows, lambda: f"hub {hub.name} {hub.config} {hub_split} {data._fingerprint}", "row")


@contextmanager
def _offline_unless_hub_answers() -> Iterator[None]:
    """Ask the hub once. Where it does not answer, `datasets` uses what an earlier run left in its cache, and asks no further."""
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    switches = [(constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE")]
    before = [getattr(module, name) for module, name in switches]
    try:
        if not any(before):
            get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)  # any status is an answer
    except Exception:  # the kinds differ between the HTTP libraries that huggingface_hub has used; each means that there is no answer
        for module, name in switches:
            setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(switches, before, strict=True):
            setattr(module, name, value)


def _read_hub(data, task: Task, where: str) -> Iterator[Rows]:
    hub = task.hub
    for column in (*(part for parts in hub.text_columns for part in parts), hub.label_column):
        if column not in data.column_names:
            raise DataError(missing_column((column,), data.column_names, where))
    for first in range(0, len(data), HUB_BLOCK_ROWS):
        block = data[first : first + HUB_BLOCK_ROWS]
        for column in (part for parts in hub.text_columns for part in parts):
            for row, text in enumerate(block[column], first):
                if not isinstance(text, str):
                    raise DataError(not_a_text(text, place(where, "row", row, None), column))
        texts = [[" ".join(parts) for parts in zip(*(block[part] for part in columns), strict=True)] for columns in hub.text_columns]
        labels = [
            label_text(label, place(where, "row", row, None), hub.label_column) for row, label in enumerate(block[hub.label_column], first)
        ]
        yield Rows(texts, labels, range(first, first + len(labels)))

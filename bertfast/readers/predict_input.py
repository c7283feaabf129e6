"""What predict reads: the task's test files, a file of the user's own, plain lines of text, or standard input."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bertfast.config import BertfastConfig, InputConfig
from bertfast.errors import ConfigError, DataError
from bertfast.machine import world_size
from bertfast.readers.delimited import read_csv, read_tsv
from bertfast.readers.lines import BLOCK_ROWS, line_blocks
from bertfast.readers.rows import Fields
from bertfast.readers.sources import find_source
from bertfast.readers.splits import RawSplit, load_split
from bertfast.tasks import TASKS, Task

STANDARD_INPUT = "standard input"


def read_inputs(
    block: BertfastConfig | None, task: Task, given: str | None, single: bool, with_labels: bool = True
) -> list[tuple[str, RawSplit]]:
    """The texts to classify, as (split, rows); the split names the output file.

    block: the config's, where there is one. given: a file, a folder of the task, "-" for standard input, or None: standard input where something is piped in and there is one
    output, else the test files of eval_input (or train_input). single: there is one output, so one split alone will do.
    with_labels: False passes over labels, whatever the column holds.

    Raises:
        ConfigError: nothing to read, or two test splits for one output.
        DataError: naming the file or line that cannot be read.
    """
    if given is None and reads_standard_input(single):
        given = "-"
    if given == "-":
        return [("test", read_lines(task, _standard_input(), STANDARD_INPUT))]
    path = None if given is None else Path(given)
    if path is not None and not path.exists():
        raise DataError(f"--input {given}: there is no such file or folder")
    if path is not None and not path.is_dir():
        split = path.stem if path.stem in task.splits else "test"
        if path.suffix == ".txt" and not path.name.startswith("msr_paraphrase"):
            return [(split, read_lines(task, _bytes_of(path), str(path)))]
        source = InputConfig(data_file=str(path))
        return [(split, load_split(task, source, split if split in task.test_splits else "test", with_labels))]
    source = InputConfig(data_dir=str(path)) if path is not None else _configured(block)
    if single and len(task.test_splits) > 1:
        raise ConfigError(
            f"task {task.name} has {len(task.test_splits)} test sets ({', '.join(task.test_splits)}) and there is one output: "
            "give a folder as --output, or the file of one set as --input"
        )
    return [(split, load_split(task, source, split, with_labels)) for split in task.test_splits]


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"--input {path}: cannot be read: {error.strerror or error}") from None


def read_lines(task: Task, content: bytes, source: str) -> RawSplit:
    """Texts from UTF-8 lines: one text a line, or `text_a<TAB>text_b` for a pair; or, where the first line is a JSON object, one object a
    line with the task's columns as keys. An empty line is an empty text.

    Raises:
        DataError: naming the line that is not UTF-8, not a pair, no object, or lacks a text; or no line at all.
    """
    lines, objects = _decode(content, source), None
    if not lines:
        raise DataError(f"{source}: there is no text in it; give one text a line")
    if _is_object(lines[0]):
        objects = [_object(line, f"{source}, line {number}") for number, line in enumerate(lines, 1)]
        rows = [_texts_of(task, row, f"{source}, line {number}") for number, row in enumerate(objects, 1)]
    elif task.is_pair:
        rows = [line.split("\t") for line in lines]
        for number, row in enumerate(rows, 1):
            if len(row) != 2:
                raise DataError(
                    f"{source}, line {number}: {len(row)} fields; task {task.name} takes pairs, so a line is two texts with one tab between"
                )
    else:
        rows = [[line] for line in lines]
    columns = [list(column) for column in zip(*rows, strict=True)]
    raw = RawSplit.from_texts(task, columns[0], columns[1] if task.is_pair else None, source=source)
    raw.objects = objects
    return raw


def _decode(content: bytes, source: str) -> list[str]:
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        lines.pop()
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{source}, line {number}: not valid UTF-8 at byte {error.start} of the line; convert it to UTF-8") from None
    return texts


def _is_object(line: str) -> bool:
    if not line.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error}); the first line is a JSON object, so each line must be one") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON {type(row).__name__}; the first line is a JSON object, so each line must be one")
    return row


def _texts_of(task: Task, row: dict[str, Any], where: str) -> list[str]:
    texts = []
    for column in task.text_columns:
        names: Sequence[str] = (column, *task.layout.aliases.get(column, ()))
        name = next((name for name in names if name in row), None)
        if name is None:
            raise DataError(f"{where}: there is no key {column!r}; the keys are {', '.join(map(repr, row)) or 'none'}")
        if not isinstance(row[name], str):
            raise DataError(f"{where}: {name!r} is {json.dumps(row[name])}, where a text should be")
        texts.append(row[name])
    return texts


# ------------------------------------------------------------------------------------------------------- the whole rows, not the texts alone


def whole_rows(raw: RawSplit) -> tuple[tuple[str, ...], Iterator[Sequence[Any]]]:
    """The columns of what was read, by name, and its rows, each whole: read again, in the order of `raw`. Values of a CSV or TSV are text, those of JSON
    and Parquet as they are, None where a row has none.

    What has no header of its own (lines of text, a set's own format, the hub) gives its texts alone, under the names of the task's columns.

    Raises:
        DataError: the file has changed since it was read.
    """
    path = Path(raw.source)
    reader = _WHOLE_READERS.get(path.suffix.lower()) if raw.task.layout.kind in ("own", "glue") and path.is_file() else None
    if raw.objects is not None:
        return _table_of(lambda: enumerate(raw.objects or (), 1), raw)
    if reader is None:
        texts = [raw.text_a] if raw.text_b is None else [raw.text_a, raw.text_b]
        return raw.task.text_columns, zip(*texts, strict=True)
    return reader(path, raw)


class _AllFields(Fields):
    """Every field of a row, as a column; one that is not there is empty."""

    def extract(self, rows: list[list[str]]) -> tuple[list[list[str]], list[str] | None]:
        width = len(self.names)
        filled = [row[:width] + [""] * (width - len(row)) for row in rows]
        return [list(column) for column in zip(*filled, strict=True)], None


def _delimited(path: Path, raw: RawSplit) -> tuple[tuple[str, ...], Iterator[Sequence[Any]]]:
    found: list[_AllFields] = []

    def locate(header: Sequence[str], where: str) -> _AllFields:
        bare = raw.task.layout.no_header if int(raw.lines[0]) == 1 else None  # CoLA's training file has no header
        found.append(_AllFields((), None, tuple(bare or header), has_header=bare is None))
        return found[-1]

    def rows() -> Iterator[tuple[int, Sequence[Any]]]:
        for block in blocks:
            yield from zip(block.lines, zip(*block.texts, strict=True), strict=True)

    # Which rows of other lengths a TSV may have was decided when it was read first: GLUE's own files have some.
    blocks = read_csv(path, locate) if path.suffix.lower() == ".csv" else read_tsv(path, locate, short_rows="fill", long_rows="keep")
    first = next(blocks)  # now the header is known
    blocks = itertools.chain([first], blocks)
    return found[0].names, _rows_of(rows(), raw)


def _jsonl(path: Path, raw: RawSplit) -> tuple[tuple[str, ...], Iterator[Sequence[Any]]]:
    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        for first, lines in line_blocks(path):
            for number, line in enumerate(lines, first):
                if line.strip():
                    yield number, _object(line, f"{path}, line {number}")

    return _table_of(rows, raw)


def _parquet(path: Path, raw: RawSplit) -> tuple[tuple[str, ...], Iterator[Sequence[Any]]]:
    from pyarrow import parquet

    def rows() -> Iterator[Sequence[Any]]:
        with parquet.ParquetFile(path, memory_map=True) as file:
            for batch in file.iter_batches(BLOCK_ROWS):
                yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    return tuple(parquet.read_schema(path).names), _rows_of(enumerate(rows()), raw)


_WHOLE_READERS = {".csv": _delimited, ".tsv": _delimited, ".jsonl": _jsonl, ".json": _jsonl, ".parquet": _parquet}


def _table_of(
    objects: Callable[[], Iterator[tuple[int, dict[str, Any]]]], raw: RawSplit
) -> tuple[tuple[str, ...], Iterator[Sequence[Any]]]:
    """Numbered objects as a table: its columns are all their keys, in the order in which they first come. Read twice, since the header comes first."""
    names = tuple(dict.fromkeys(key for _, row in objects() for key in row))
    rows = ((number, [_writable(row.get(name)) for name in names]) for number, row in objects())
    return tuple(map(_writable, names)), _rows_of(rows, raw)


def _writable(value: Any) -> Any:
    """The value; a string with its lone surrogates, which JSON can spell and UTF-8 cannot, as their escapes."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _rows_of(numbered: Iterator[tuple[int, Any]], raw: RawSplit) -> Iterator[Any]:
    """Of numbered rows those that `raw` holds."""
    for wanted in raw.lines.tolist():
        row = next((row for number, row in numbered if number == wanted), None)
        if row is None:
            raise DataError(f"{raw.source}: has changed while it was read; write it first, and then predict")
        yield row


# ------------------------------------------------------------------------------------------------------------------------- what there is to read


def files_of(task: Task, source: InputConfig) -> list[str]:
    """The files (for aclImdb the folders) of this input that hold a split of the task, as far as they are there; none of the hub."""
    if source.data_file is not None:
        return [source.data_file]
    found = []
    for split in task.splits if source.data_dir is not None else ():
        with contextlib.suppress(ConfigError, DataError):  # a split that is not there is no file to lose
            found.append(find_source(task, source, split, with_labels=False).name)
    return found


def text_columns_of(given: str | None) -> tuple[str, ...]:
    """The columns of a file that hold the texts, for a model that names none: `text_pair` with `text`, those of a known task, or the one that there is.
    What has no columns, such as lines of text, is read as if it were one called `text`.

    Raises:
        DataError: naming the columns, none of which has such a name.
    """
    header = () if given is None else _header_of(Path(given))
    usual = [("text", "text_pair")]
    for task in TASKS.values():
        usual += zip(*((column, *task.layout.aliases.get(column, ())) for column in task.text_columns), strict=False)
    found = [columns for columns in sorted(usual, key=len, reverse=True) if set(columns) <= {*header}]
    if found or len(header) < 2:
        return found[0] if found else header or ("text",)
    raise DataError(
        f"--input {given}: which of its columns hold the texts? It has {', '.join(map(repr, header))}; name one or two: "
        f"--set 'bertfast.task.text_columns=[{header[0]}]'"
    )


def _header_of(path: Path) -> tuple[str, ...]:
    """The names of a file's columns, of JSON lines the keys of the first; none where it has no columns."""
    if not path.is_file():
        return ()
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        from pyarrow import parquet

        return tuple(parquet.read_schema(path).names)
    if suffix in (".csv", ".tsv"):
        found: list[tuple[str, ...]] = []

        def locate(header: Sequence[str], where: str) -> Fields:
            found.append(tuple(header))
            return _AllFields((), None, found[0])

        next(read_csv(path, locate) if suffix == ".csv" else read_tsv(path, locate))
        return found[0]
    lines = next(line_blocks(path))[1]
    return tuple(_object(lines[0], f"{path}, line 1")) if _is_object(lines[0]) else ()


def _configured(block: BertfastConfig | None) -> InputConfig:
    """The folder (or the hub) of eval_input or train_input, whole."""
    for source in () if block is None else (block.eval_input, block.train_input):
        if source is not None and source.data_file is None and source.input_fn is None:
            return source
    raise ConfigError("there is nothing to predict: name a file with --input, or pipe texts into standard input")


def _standard_input() -> bytes:
    if world_size() > 1:
        raise ConfigError("--input -: standard input cannot be shared by several ranks; write the texts to a file and name it with --input")
    return sys.stdin.buffer.read()


def reads_standard_input(single: bool) -> bool:
    """Whether texts are piped in and can be read: by one rank, for one output."""
    return single and world_size() == 1 and _is_piped()


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file: not a terminal, and not /dev/null, which is what services and schedulers give."""
    try:
        return not stat.S_ISCHR(os.fstat(sys.stdin.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):  # closed, or replaced by something that is no file
        return False
